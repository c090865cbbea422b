"""Changing where repositories are: add, wait, take away; and moving everything off a device.

The order is always: the new copy is placed, it is waited for until it is current, then the old one is taken away. What
is done stays done when the command is cut off; begun again, it goes on from there. A removal that the database refuses
because the copy is still needed (placement.refuse_removal) is tried again, not forced.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from cluster.db import Database
from cluster.errors import NotFound, Refused, StillNeeded
from cluster.model import Device, DeviceMode, Snapshot
from cluster.placement import Change, candidates, check_copies, choose

Say = Callable[[str], None]

LOOK = 0.2
"""Seconds between two looks at what is waited for."""

TELL = 2.0
"""Seconds between two lines of progress about the same."""

PATIENCE = 5.0
"""Seconds for which a removal waits for pushes between their intents and their commits; those take milliseconds."""

AT_ONCE = 16
"""Repositories that are on their way at the same time; a device syncs four."""


class Teller:
    """Says what is waited for: at once where it is something else than before, now and then where it goes on."""

    def __init__(self, say: Say) -> None:
        self._say = say
        self._told: tuple[str, str] = ("", "")
        self._at = float("-inf")

    def __call__(self, about: str, how_far: str) -> None:
        now = time.monotonic()
        told = (about, how_far)
        if told != self._told and (about != self._told[0] or now - self._at >= TELL):
            self._told, self._at = told, now
            self._say(f"{about}{how_far}")


# ------------------------------------------------------------------------------------------------ one repository


def carry_out(
    db: Database, repository_id: int, change: Change, *, await_: Sequence[str] = (), say: Say | None = None
) -> Iterator[tuple[str, str]]:
    """Make the change, step by step: yields ("add" or "remove", device) as soon as each is done.

    say: where to tell what is waited for, for as long as it takes: until the devices in `await_` are current, then
    until each removal is possible. None: nothing is waited for but pushes that are being committed; StillNeeded.
    """
    for device in change.add:
        db.place(repository_id, device)
        yield "add", device
    if say is not None:
        _until_current(db, repository_id, [*change.add, *await_], Teller(say))
    for device in change.remove:
        remove(db, repository_id, device, say)
        yield "remove", device


def remove(db: Database, repository_id: int, device: str, say: Say | None = None) -> None:
    """Take one replica away; say as in `carry_out`. StillNeeded, Refused, NotFound."""
    deadline, tell = time.monotonic() + PATIENCE, Teller(say or (lambda line: None))
    while True:
        try:
            return db.unplace(repository_id, device)
        except StillNeeded as error:
            if say is None and (
                time.monotonic() > deadline or db.snapshot_of(repository_id).intent_owner is None
            ):
                raise
            tell("waiting: ", error.what)
        time.sleep(LOOK)


def _until_current(db: Database, repository_id: int, devices: Sequence[str], tell: Teller) -> None:
    """Wait until each of the devices has got to the version that is the newest now; from there on it follows."""
    goal = db.snapshot_of(repository_id).repository.version
    for device in dict.fromkeys(devices):
        while waits := _waits(db.snapshot_of(repository_id), device, goal):
            tell(f"waiting until {device} is current: ", waits)
            time.sleep(LOOK)


def _waits(snapshot: Snapshot, device: str, goal: int) -> str:
    """What keeps a device from holding version `goal`, in words; "": nothing, it does. NotFound."""
    mine = snapshot.of(device)
    if mine is None:
        raise NotFound(
            f"device {device} does not hold {snapshot.repository.name} any more",
            hint="somebody else took it away meanwhile; look at `git-cluster repo show`",
        )
    if mine.version is not None and mine.version >= goal and not mine.quarantined:
        return ""
    if mine.device.mode is DeviceMode.DISABLED or not mine.device.online:
        return f"it is {mine.device.state}"
    if mine.last_error:
        return f"{mine.last_error} (tried {mine.attempts} time{'' if mine.attempts == 1 else 's'})"
    at = "it has no copy yet" if mine.version is None else f"it is at version {mine.version}"
    return f"{at} of {snapshot.repository.version}" if mine.version is not None else at


# ------------------------------------------------------------------------------------------------ a whole device


@dataclass(slots=True)
class _Move:
    """A repository on its way. target: the device that is to hold it instead, None: the others are enough."""

    name: str
    target: str | None
    goal: int


class Moving:
    """Everything that one device holds, on its way to others. `run` returns what could not be moved, and why.

    The device is draining already, so it is given nothing new meanwhile.
    """

    def __init__(self, db: Database, device: str, say: Say) -> None:
        self._db, self._device = db, device
        self._tell = Teller(say)
        self._pending: dict[int, _Move] = {}
        self._failed: dict[int, str] = {}
        self.moved = 0

    def run(self) -> list[str]:
        while todo := self._left():
            total, before = self.moved + len(todo), self.moved
            todo.reverse()
            chosen, loads, devices = self._db.moving(self._device), self._db.loads(), self._db.devices()
            while todo or self._pending:
                while todo and len(self._pending) < AT_ONCE:
                    repository_id = todo.pop()
                    with suppress(NotFound):  # deleted meanwhile
                        self._begin(repository_id, chosen.get(repository_id), loads, devices)
                waits = [self._finish(repository_id) for repository_id in list(self._pending)]
                first = next((line for line in waits if line), "")
                self._tell(f"{self.moved} of {total} repositories moved", f"; {first}" if first else "")
                if self._pending:
                    time.sleep(LOOK)
                    devices = self._db.devices()
            if self.moved == before:
                time.sleep(LOOK)
        return list(self._failed.values())

    def _left(self) -> list[int]:
        held = {id: name for id, name in self._db.held(self._device).items() if name is not None}
        return sorted((id for id in held if id not in self._failed), key=lambda id: held[id])

    def _begin(
        self, repository_id: int, target: str | None, loads: dict[str, int], devices: list[Device]
    ) -> None:
        snapshot = self._db.snapshot_of(repository_id)
        if snapshot.of(self._device) is None:
            return
        name = snapshot.repository.name
        modes = {device.name: device.mode for device in devices}
        if target is not None and snapshot.of(target) is not None and modes.get(target) is DeviceMode.ENABLED:
            self._pending[repository_id] = _Move(name, target, snapshot.repository.version)
            return
        if target is not None and snapshot.of(target) is not None:
            with suppress(Refused):  # it is wanted there no more, either
                self._db.unplace(repository_id, target)
            snapshot = self._db.snapshot_of(repository_id)
        others = [r.device.name for r in snapshot.replicas if r.device.name != self._device]
        known = candidates([device for device in devices if device.name != self._device], loads)
        target = next(
            (found for found in choose(known, len(others) + 1, others) if found not in others), None
        )
        if target is None:
            try:
                check_copies(name, snapshot.repository.min_copies, len(others))
            except Refused as error:
                self._failed[repository_id] = f"{name}: no other device could hold it: {error.what}"
                return
        else:
            try:
                self._db.place(repository_id, target, instead_of=self._device)
            except Refused:  # something changed meanwhile: it is chosen for again
                return
            loads[target] = loads.get(target, 0) + 1
        self._pending[repository_id] = _Move(name, target, snapshot.repository.version)

    def _finish(self, repository_id: int) -> str:
        """Take it away here where the other copy is there; else what is waited for."""
        move = self._pending[repository_id]
        try:
            if move.target is not None:
                snapshot = self._db.snapshot_of(repository_id)
                there = snapshot.of(move.target)
                if waits := _waits(snapshot, move.target, move.goal):
                    if there is not None and there.device.mode is not DeviceMode.ENABLED:
                        del self._pending[repository_id]  # another is chosen
                        return ""
                    return f"{move.name} waits for {move.target}: {waits}"
            self._db.unplace(repository_id, self._device)
        except StillNeeded as error:
            return error.what
        except NotFound:
            if self._holds(repository_id):  # the target was taken away meanwhile: another is chosen
                del self._pending[repository_id]
                return ""
        except Refused as error:
            self._failed[repository_id] = error.what
            del self._pending[repository_id]
            return ""
        del self._pending[repository_id]
        self.moved += 1
        return ""

    def _holds(self, repository_id: int) -> bool:
        with suppress(NotFound):
            return self._db.snapshot_of(repository_id).of(self._device) is not None
        return False
