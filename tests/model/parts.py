"""What a simulation is made of: what is decided before it, what comes out, and what is waited for in it."""

from __future__ import annotations

import statistics
from collections.abc import Generator
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import simpy

Process = Generator[Any, Any, None]

QUANTUM = 0.004
"""Seconds for which a core goes on with one task while others wait for it."""


@dataclass(frozen=True)
class Setting:
    """What is decided before a run.

    pushers: clients that push again and again, each to a branch of its own; each has its device and its repository, in
    turn. spread: whether the pushers of one repository go to different devices, or all to one of its replicas.
    rtt_*: seconds of round trip. cores: of each device. one_machine: cores of a machine that has all of it: devices,
    database and clients; None: each has its own. daemons: processes of a device that share its work.
    min_copies: each copy beyond the first is staged on one peer after another.
    readers: clients that read, each from a device that holds its repository.
    """

    devices: int = 3
    repositories: int = 1
    replicas: int = 3
    pushers: int = 1
    readers: int = 0
    min_copies: int = 1
    spread: bool = False
    rtt_database: float = 0.0
    rtt_peers: float = 0.0
    rtt_clients: float = 0.0
    cores: float = 4
    database_cores: float = 8
    daemons: int = 1
    one_machine: float | None = None
    seconds: float = 60.0
    warm: float = 10.0
    read_after_push: bool = False


@dataclass
class Outcome:
    """pushes, reads: per second. Each of the others is a list of seconds.

    latencies: of pushes. held: the steps in which a device holds the write lock, as it sees them; locked: the same as
    PostgreSQL sees it. fresh: from a commit until a replica has it by itself; stale: the same from the
    acknowledgement. read: of reads; after: of a read on another device right after a push was acknowledged.
    """

    pushes: float = 0.0
    reads: float = 0.0
    latencies: list[float] = field(default_factory=list)
    held: list[float] = field(default_factory=list)
    locked: list[float] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)
    stale: list[float] = field(default_factory=list)
    read: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.latencies) if self.latencies else float("nan")

    @property
    def p99(self) -> float:
        ordered = sorted(self.latencies)
        return ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))] if ordered else float("nan")


@dataclass(frozen=True)
class Lock:
    """The write lock: its place in PostgreSQL's queue, when it was granted, since when it has been held without a sync,
    and how many had it in a row."""

    place: simpy.resources.resource.Request
    granted: float
    since: float
    row: int = 1


class Repository:
    """The newest version, where each replica is, who is in the middle of a commit, and the write lock.

    turns: the queue within a device; handed: a lock on its way to the next one there. files: the replica's own lock,
    from "intend" to "mark". committed: what whoever waits for a commit is woken by.
    """

    def __init__(self, env: simpy.Environment, number: int, holders: list[int]) -> None:
        self.number, self.holders = number, holders
        self.version = 0
        self.committed_at: dict[int, float] = {}
        self.acknowledged_at: dict[int, float] = {}
        self.at = dict.fromkeys(holders, 0)
        self.kept: dict[int, set[int]] = {0: set(holders)}
        self.lock = simpy.Resource(env)
        self.turns = {device: simpy.Resource(env) for device in holders}
        self.handed: dict[int, Lock] = {}
        self.files = {device: simpy.Resource(env) for device in holders}
        self.committed = env.event()
        self.syncs = {device: simpy.Resource(env) for device in holders}
        self.intent: tuple[int, int] | None = None
        self.intents = 0


class Cores:
    """Some cores; tasks share them in turns. One and a half are two that are slower."""

    def __init__(self, env: simpy.Environment, count: float) -> None:
        self._env = env
        self._cores = simpy.Resource(env, capacity=ceil(count))
        self._slower = ceil(count) / count

    def use(self, seconds: float) -> Process:
        left = seconds * self._slower
        while left > 1e-9:
            with self._cores.request() as turn:
                yield turn
                now = min(left, QUANTUM)
                yield self._env.timeout(now)
                left -= now
