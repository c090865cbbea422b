"""From single pushes, at no distance and at one distance at a time, to the model's constants.

A step's trips are what it takes longer at a distance, divided by that distance: to the database, to the peers, to the
client, each alone. So a change of the protocol changes the constants without anybody who counts.
"""

from __future__ import annotations

import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.faults import Step
from tests.model import trips
from tests.model.constants import CONNECT, PUSH_STEPS, READ_STEPS, Cost, Work
from tests.model.instruments import Cpu, cpu, cpu_of_postgres, figures
from tests.model.site import Site

FAR = 0.15
"""Seconds of round trip for counting trips: far more than what a shared machine is late by."""

NEAR_ROUNDS, FAR_ROUNDS = 15, 4
COPIES = (1, 2)


@dataclass
class Sample:
    """Single pushes of one kind at one distance, each followed by a read elsewhere once all is quiet.

    All seconds are kept: a cost is their median, and trips are counted from their lower quartile.
    """

    steps: dict[str, list[float]]
    read: dict[str, list[float]]
    kept: list[float]
    fetched: list[float]
    cpu: dict[str, Cpu] = field(default_factory=dict)
    client: float = 0.0
    database: float = 0.0
    read_cpu: Cpu = field(default_factory=lambda: Cpu(0, 0))


def calibrate(site: Site, tell: Callable[[str], None]) -> dict[str, Any]:
    """The constants, and the statements that they come from, as calibration.json has them."""
    idle = _idle(site)
    subjects = {
        0: _Subject(site, site.repository(devices="a")),
        **{copies: _Subject(site, site.repository(min_copies=copies)) for copies in COPIES},
    }
    tell("at no distance")
    samples = _samples(subjects, NEAR_ROUNDS, idle)
    alone, near = samples.pop(0), samples
    del subjects[0]
    far: dict[int, dict[str, Sample]] = {copies: {} for copies in COPIES}
    for where in ("database", "peers", "clients"):
        tell(f"{where} {FAR * 1000:.0f} ms away")
        site.distances.set(**{where: FAR})
        for copies, sample in _samples(subjects, FAR_ROUNDS, idle).items():
            far[copies][where] = sample
        site.distances.set()
    tell("statements")
    runs = {copies: trips.of_a_push(site, copies) for copies in COPIES}
    before, after = trips.waiting_for_the_lock(site, FAR)
    costs, notified = _costs(near, far), trips.notified(site)
    asked = sum(cost["database"] for cost in costs["push"]["1"].values())
    asked += 2 * costs["fetched"]["database"] + 3 * notified  # the other replicas; every device
    constants = {
        **costs,
        **_works(alone, near),
        "client": near[1].client,
        "statement": near[1].database / asked,
        "flush": trips.flush(site),
        "notified": notified,
        "wait_before": before,
        "wait_after": after,
    }
    return {
        "constants": constants,
        "statements": {str(copies): trips.listed(site, found) for copies, found in runs.items()},
        "spent": {
            "database_per_push": near[1].database,
            "idle_per_second": {name: used.all for name, used in idle.items()},
        },
    }


def _costs(near: Mapping[int, Sample], far: Mapping[int, Mapping[str, Sample]]) -> dict[str, Any]:
    """Seconds and trips of each step, of a read's, and of a sync."""

    def steps(copies: int, kind: str) -> dict[str, dict[str, float]]:
        return {
            step: _cost(seconds, {w: getattr(one, kind)[step] for w, one in far[copies].items()})
            for step, seconds in getattr(near[copies], kind).items()
        }

    return {
        "push": {str(copies): steps(copies, "steps") for copies in COPIES},
        "read": steps(1, "read"),
        "kept": _cost(near[2].kept, {w: one.kept for w, one in far[2].items()}),
        "fetched": _cost(near[1].fetched, {w: one.fetched for w, one in far[1].items()}),
    }


def _cost(near: list[float], far: Mapping[str, list[float]]) -> dict[str, float]:
    """Trips are whole ones: of a sync, the notification's way and that of the claim make one."""
    counted = {where: max(0.0, round((_low(one) - _low(near)) / FAR)) for where, one in far.items()}
    return asdict(Cost(seconds=statistics.median(near), **counted))


def _low(seconds: list[float]) -> float:
    """Their lower quartile: other programs only ever add."""
    return sorted(seconds)[len(seconds) // 4]


def _works(alone: Sample, near: Mapping[int, Sample]) -> dict[str, Any]:
    """CPU. What a device spends on a push is told apart by who has a replica: none but itself; two that fetch; one
    that was staged on and one that fetches."""
    serve = (near[1].cpu["a"] - alone.cpu["a"]) * 0.5
    fetched = (near[1].cpu["b"] + near[1].cpu["c"]) * 0.5
    keeper = near[2].cpu["b"] + near[2].cpu["c"] - fetched
    kept, stage = statistics.median(near[2].kept), statistics.median(near[2].steps[Step.STAGE])
    found = {
        "work_push": alone.cpu["a"],
        "work_send": near[2].cpu["a"] - alone.cpu["a"] - serve,
        "work_keep": keeper * (stage / (kept + stage)),
        "work_kept": keeper * (kept / (kept + stage)),
        "work_fetched": fetched,
        "work_serve": serve,
        "work_notified": (alone.cpu["b"] + alone.cpu["c"]) * 0.5,
        "work_read": near[1].read_cpu,
    }
    return {name: asdict(Work(max(0.0, one.own), max(0.0, one.children))) for name, one in found.items()}


# ---------------------------------------------------------------------------------------------------- samples


def _idle(site: Site) -> dict[str, Cpu]:
    """CPU per second of each device that has nothing to do."""
    seconds = 4.0
    before = {name: cpu(_pid(site, name)) for name in site.cluster.devices}
    time.sleep(seconds)
    after = {name: cpu(_pid(site, name)) - before[name] for name in before}
    return {name: used * (1 / seconds) for name, used in after.items()}


def _pid(site: Site, name: str) -> int:
    pid = site.cluster.devices[name].pid
    assert pid is not None
    return pid


class _Subject:
    """A repository that is pushed to on device a and read on another one that holds it."""

    def __init__(self, site: Site, repository: str) -> None:
        self.site, self.repository, self.branch = site, repository, site.branch(100)
        holders = {replica.device.name for replica in site.cluster.snapshot(repository).replicas}
        self.reader = "b" if "b" in holders else "a"
        self.urls = {name: str(device.http_url) for name, device in site.cluster.devices.items()}
        self.pushes: list[_Push] = []
        self.reads: list[_Read] = []

    def round(self, idle: Mapping[str, Cpu]) -> None:
        """A push, until all is quiet, and a read."""
        site, devices = self.site, self.site.cluster.devices
        spent = {name: cpu(_pid(site, name)) for name in devices}
        database, client = cpu_of_postgres(site.distances.postgres), _children()
        begun, before = time.monotonic(), figures(self.urls["a"])
        wall = self.branch.push("a", self.repository)
        client = _children() - client
        synced = sorted(site.synced_after(self.repository).values()) or [0.0]
        time.sleep(0.05)  # devices that were only notified
        seconds = time.monotonic() - begun
        self.pushes.append(
            _Push(
                figures(self.urls["a"]).since(before, "push"),
                wall,
                synced[0],
                synced[-1],
                {name: cpu(_pid(site, name)) - spent[name] - idle[name] * seconds for name in devices},
                client,
                cpu_of_postgres(site.distances.postgres) - database,
            )
        )
        before, reading = figures(self.urls[self.reader]), cpu(_pid(site, self.reader))
        wall = site.read(self.reader, self.repository)
        steps = figures(self.urls[self.reader]).since(before, "read")
        self.reads.append(_Read(steps, wall, cpu(_pid(site, self.reader)) - reading))

    def sample(self) -> Sample:
        """Of the rounds since the last one."""
        pushes, reads = self.pushes, self.reads
        self.pushes, self.reads = [], []
        return Sample(
            steps=_by_step([(one.steps, one.wall) for one in pushes], PUSH_STEPS),
            read=_by_step([(one.steps, one.wall) for one in reads], READ_STEPS),
            kept=[one.first for one in pushes],
            fetched=[one.last for one in pushes],
            cpu={name: _mean([one.cpu[name] for one in pushes]) for name in pushes[0].cpu},
            client=statistics.fmean(one.client for one in pushes),
            database=statistics.fmean(one.database for one in pushes),
            read_cpu=_mean([one.cpu for one in reads]),
        )


@dataclass(frozen=True)
class _Push:
    """steps, wall: seconds. first, last: until the first and the last of the other replicas had it. The rest: CPU."""

    steps: dict[str, float]
    wall: float
    first: float
    last: float
    cpu: dict[str, Cpu]
    client: float
    database: float


@dataclass(frozen=True)
class _Read:
    steps: dict[str, float]
    wall: float
    cpu: Cpu


def _samples(subjects: Mapping[int, _Subject], rounds: int, idle: Mapping[str, Cpu]) -> dict[int, Sample]:
    """Rounds of all in turn, so that what else the machine does meets all of them."""
    for _ in range(2 if rounds == NEAR_ROUNDS else 1):  # connections are made, statements prepared
        for subject in subjects.values():
            subject.round(idle)
    for subject in subjects.values():
        subject.pushes.clear()
        subject.reads.clear()
    for _ in range(rounds):
        for subject in subjects.values():
            subject.round(idle)
    return {key: subject.sample() for key, subject in subjects.items()}


def _children() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _by_step(found: list[tuple[dict[str, float], float]], steps: Iterable[str]) -> dict[str, list[float]]:
    """Seconds of each step, and of what is outside of them ("connect")."""
    inside = {str(step): [one.get(step, 0.0) for one, _ in found] for step in steps}
    return {CONNECT: [max(0.0, wall - sum(one.values())) for one, wall in found], **inside}


def _mean(samples: list[Cpu]) -> Cpu:
    return Cpu(
        statistics.fmean(one.own for one in samples), statistics.fmean(one.children for one in samples)
    )


def machine() -> dict[str, Any]:
    """Where this was measured."""
    git = subprocess.run(["git", "--version"], capture_output=True, text=True).stdout.split()[-1]
    return {
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "git": git,
        "load_before": round(os.getloadavg()[0], 1),
    }
