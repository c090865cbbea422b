"""What a run is going to do, from its seed: the same seed, the same operations and the same faults. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from random import Random

from cluster.faults import Step


class Action(StrEnum):
    """What a client does."""

    PUSH = "push"
    FORCE_PUSH = "force-push"
    PUSH_TWO = "push of two refs"
    PUSH_ATOMIC = "atomic push of two refs"
    DELETE = "delete"
    FETCH = "fetch"
    LIST = "list"


WEIGHTS = {
    Action.PUSH: 30,
    Action.FORCE_PUSH: 15,
    Action.PUSH_TWO: 5,
    Action.PUSH_ATOMIC: 5,
    Action.DELETE: 8,
    Action.FETCH: 12,
    Action.LIST: 25,
}


class Fault(StrEnum):
    """What the nemesis does."""

    KILL = "device killed"
    STEP_KILL = "device killed at a step of a push"
    STEP_PAUSE = "device paused at a step of a push"
    STEP_DROP = "database connections cut at a step of a push"
    STOP = "device stopped"
    POWER = "device without power"
    PAUSE = "device paused"
    DATABASE_DOWN = "PostgreSQL killed"
    NO_DATABASE = "device cut off from the database"
    NO_PEERS = "device cut off from its peers"
    ALONE = "device cut off from both"
    WIPE = "device killed, its disk wiped"
    GIT_KILLED = "a Git process of a device killed"
    CONNECTIONS_CUT = "a device's database connections cut"


AT_ONCE = (Fault.GIT_KILLED, Fault.CONNECTIONS_CUT)
"""These are over when they have happened; all others last for a while and are then undone."""

AT_A_STEP = {Fault.STEP_KILL: "kill", Fault.STEP_PAUSE: "pause", Fault.STEP_DROP: "drop-db"}
"""These wait for a push to come to that step, and are undone by a restart; with GIT_CLUSTER_FAULT's word for each."""

STEPS = [step for step in Step if step is not Step.DONE]

SHORT, LONG = (0.2, 1.5), (3.5, 6.0)
"""Seconds that faults last: most of them less than `fence_after` (3 s) of a torture run, some more."""


@dataclass(frozen=True, slots=True)
class Wish:
    """One operation of a client."""

    action: Action
    device: str
    refs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Blow:
    """One fault: it begins when `at` operations have begun, and lasts for `seconds`."""

    at: int
    fault: Fault
    device: str
    seconds: float
    step: Step | None = None

    def __str__(self) -> str:
        where = f" ({self.step})" if self.step else ""
        return f"{self.fault}{where}: {self.device}, {self.seconds:.1f} s"


@dataclass(frozen=True, slots=True)
class Plan:
    """Everything that is going to happen, by client and (the nemesis) in the order of `at`."""

    seed: int
    devices: str
    refs: tuple[str, ...]
    clients: tuple[tuple[Wish, ...], ...]
    blows: tuple[Blow, ...]


def make(seed: int, *, operations: int, clients: int, devices: str, every: int = 8, refs: int = 4) -> Plan:
    """A plan of `operations`, shared among `clients`, with a fault for `every` so many of them."""
    random = Random(seed)
    names = tuple(f"refs/heads/r{n}" for n in range(refs))
    shares = [operations // clients + (n < operations % clients) for n in range(clients)]
    return Plan(
        seed,
        devices,
        names,
        tuple(tuple(_wish(random, devices, names) for _ in range(share)) for share in shares),
        _blows(random, devices, operations, every),
    )


def _wish(random: Random, devices: str, refs: tuple[str, ...]) -> Wish:
    (action,) = random.choices(list(WEIGHTS), list(WEIGHTS.values()))
    two = action in (Action.PUSH_TWO, Action.PUSH_ATOMIC)
    return Wish(action, random.choice(devices), tuple(random.sample(refs, 2 if two else 1)))


def _blows(random: Random, devices: str, operations: int, every: int) -> tuple[Blow, ...]:
    """Every kind of fault comes up once before any comes up again."""
    blows: list[Blow] = []
    deck: list[Fault] = []
    for at in range(every // 2, operations, every):
        if not deck:
            deck = random.sample(list(Fault), len(Fault))
        fault = deck.pop()
        seconds = random.uniform(*(LONG if random.random() < 0.25 else SHORT))
        step = random.choice(STEPS) if fault in AT_A_STEP else None
        blows.append(Blow(at, fault, random.choice(devices), round(seconds, 1), step))
    return tuple(blows)
