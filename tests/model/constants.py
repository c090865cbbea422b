"""What things cost, measured by calibrate.py and kept in calibration.json: the model knows no other number.

A *trip* is one round trip: a question that waits for its answer. Costs are per push, sync or read of one small commit.
Seconds are those at no distance, so whatever distance adds is trips × round-trip time.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cluster.faults import Step
from cluster.measure import ReadStep

FILE = Path(__file__).with_name("calibration.json")

PUSH_STEPS = tuple(step for step in Step if step is not Step.DONE)
READ_STEPS = (ReadStep.AUTHORIZE, ReadStep.CATCH_UP, ReadStep.SERVE)
CONNECT = "connect"
"""What comes before the first step, and after the last: SSH, the login, the client's own programs."""

HELD = (Step.CLEAR, Step.SETTLE, Step.INTEND, Step.APPLY, Step.COMMIT)
"""The steps of which a device knows that it holds the write lock."""


@dataclass(frozen=True)
class Cost:
    """seconds: at no distance. database, peers, clients: trips to each."""

    seconds: float = 0.0
    database: float = 0.0
    peers: float = 0.0
    clients: float = 0.0


@dataclass(frozen=True)
class Work:
    """CPU seconds: in the daemon's Python, of which one thread runs at a time, and in Git's processes beside it."""

    daemon: float = 0.0
    git: float = 0.0

    @property
    def all(self) -> float:
        return self.daemon + self.git


@dataclass(frozen=True)
class Constants:
    """push: by min_copies, then step ("connect" is what comes before the first and after the last).
    read: by step. kept, fetched: an eager sync, from the commit to the claim, where the objects were staged and where
    they are fetched from a leader.

    work_push, work_send: on the device pushed to, without and for one staged copy. work_keep: on the keeper.
    work_kept, work_fetched: a sync. work_serve: what a fetch costs its source. work_notified: what each device does
    for each push anywhere. work_read: a read. client: CPU of `git push` and ssh. statement: of PostgreSQL for one trip.
    flush: seconds until PostgreSQL has a commit on disk.
    notified: trips of each device for each push anywhere, beside its syncs.
    wait_before, wait_after: trips of a push that finds the write lock taken by another device: before it queues (the
    try in vain included) and, holding the lock, after it got it.
    """

    push: Mapping[int, Mapping[str, Cost]]
    read: Mapping[str, Cost]
    kept: Cost
    fetched: Cost
    work_push: Work
    work_send: Work
    work_keep: Work
    work_kept: Work
    work_fetched: Work
    work_serve: Work
    work_notified: Work
    work_read: Work
    client: float
    statement: float
    flush: float
    notified: float
    wait_before: int
    wait_after: int

    def trips_held(self, min_copies: int) -> float:
        """Trips for which PostgreSQL has the write lock taken: from half of the grant's to half of the release's."""
        return sum(self.push[min(min_copies, 2)][step].database for step in HELD) + 1

    @classmethod
    def of(cls, data: Mapping[str, Any]) -> Constants:
        """From what `calibrate` wrote."""
        given: dict[str, Any] = {}
        for field in fields(cls):
            value = data[field.name]
            if field.name == "push":
                value = {int(copies): _costs(steps) for copies, steps in value.items()}
            elif field.name == "read":
                value = _costs(value)
            elif field.name in ("kept", "fetched"):
                value = Cost(**value)
            elif field.name.startswith("work_"):
                value = Work(**value)
            given[field.name] = value
        return cls(**given)


def _costs(steps: Mapping[str, Mapping[str, float]]) -> dict[str, Cost]:
    return {step: Cost(**cost) for step, cost in steps.items()}


def load(file: Path = FILE) -> dict[str, Any]:
    """The whole file: "date", "machine", "constants", "statements", "measured"."""
    data: dict[str, Any] = json.loads(file.read_text())
    return data
