"""The cluster at a glance: is it healthy, and if not, what needs a person first. For the status page.

`glance` reads a bounded number of rows: groups of repositories that are not as they should be, one of each to say what
is wrong with them all. `headline` is pure: a glance in, one sentence and what to do out, by the first that fits:

    bad      a repository is frozen or unavailable, or no device serves
    warning  a device is silent that should be there, its disk is nearly full, repositories are degraded
    busy     replicas are behind and being synced: nobody is needed
    healthy  all is well
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from cluster import status
from cluster.db import Database, Group, Lag
from cluster.model import Device, Snapshot

MOST_GROUPS = 100
"""Groups of repositories that are looked at; what lies beyond is counted, not named."""

ORDER = ("frozen", "unavailable", "degraded", "behind")
"""How urgent a trouble is, the most urgent first."""

GIB = 1 << 30


@dataclass(frozen=True, slots=True)
class Trouble:
    """Repositories that are not healthy for the same reasons. state: one of ORDER; "behind": a device is at work on it
    and nobody is needed. name: the first of `count` by name; reason: what is wrong with it and what to do."""

    state: str
    name: str
    count: int
    reason: str


@dataclass(frozen=True, slots=True)
class Glance:
    """at: of the database's clock. repositories: how many there are. others: of those that may not be healthy, how many
    none of `troubles` stands for, because there are too many kinds of them."""

    at: datetime
    devices: tuple[Device, ...]
    lags: dict[str, Lag]
    repositories: int
    troubles: tuple[Trouble, ...]
    others: int
    took: float

    def count(self, *states: str) -> int:
        return sum(trouble.count for trouble in self.troubles if trouble.state in states)


@dataclass(frozen=True, slots=True)
class Headline:
    """level: bad, warning, busy or healthy. todo: what to do first, and whom it is about: "" or a repository."""

    level: str
    words: str
    todo: str = ""
    repository: str = ""


def glance(db: Database) -> Glance:
    """As of now. DatabaseUnavailable."""
    began = time.monotonic()
    at, devices = db.now(), db.devices()
    found, others = troubles(db, devices)
    lags = {lag.device: lag for lag in db.lags()}
    return Glance(at, tuple(devices), lags, db.how_many(), tuple(found), others, time.monotonic() - began)


def troubles(
    db: Database, devices: Iterable[Device], *, among: Sequence[str] | None = None
) -> tuple[list[Trouble], int]:
    """What is wrong, the most urgent first, and how many more repositories there are; `among`: of these names only."""
    down = [device.id for device in devices if not serves(device)]
    groups, every = db.unfit_groups(down, among=among, limit=MOST_GROUPS)
    names = [group.name for group in groups]
    snapshots = db.snapshots_of(names) if names else []
    locked = status.write_locks(db, snapshots, lambda: db.snapshots_of(names))
    by_name = {snapshot.repository.name: snapshot for snapshot in snapshots}
    found = [
        trouble
        for group in groups
        if (snapshot := by_name.get(group.name))
        and (trouble := _trouble(group, snapshot, locked=snapshot.repository.id % status.LOCK_IDS in locked))
    ]
    found.sort(key=lambda trouble: (ORDER.index(trouble.state), -trouble.count, trouble.name))
    return found, every - sum(group.count for group in groups)


def _trouble(group: Group, snapshot: Snapshot, *, locked: bool) -> Trouble | None:
    """None: it is healthy after all, by now or because a push is at work on it."""
    entry = status.repository(snapshot, locked=locked)
    if entry["state"] == "healthy":
        return None
    state = "behind" if entry["state"] == "degraded" and catching_up(snapshot) else entry["state"]
    return Trouble(state, group.name, group.count, entry["reason"])


def catching_up(snapshot: Snapshot) -> bool:
    """Whether all that is wrong with a degraded repository is replicas that were not synced yet, and can be: no try has
    failed, and their devices are there."""
    newest = snapshot.repository.position
    return all(
        serves(replica.device)
        and not replica.quarantined
        and not replica.damage
        and (replica.position == newest or not replica.attempts)
        for replica in snapshot.replicas
    )


def serves(device: Device) -> bool:
    return device.state in ("online", "draining")


# ------------------------------------------------------------------------------------------------ in words


def headline(glance: Glance, *, named: bool) -> Headline:
    """named: whether whoever reads it may know of devices and repositories by name."""
    devices = [device for device in glance.devices if device.state != "disabled"]
    silent = [device.name for device in devices if device.state == "offline"]
    full = [device.name for device in devices if nearly_full(device)]
    first = next((t for t in glance.troubles if t.state in ("frozen", "unavailable")), None)
    parts = [_counted(count, state) for state in ("frozen", "unavailable") if (count := glance.count(state))]
    if silent:
        parts.append(
            f"device{'s' * (len(silent) > 1)} {status.listed(silent)} {_is(len(silent))} offline"
            if named
            else f"{len(silent)} device{'s' * (len(silent) > 1)} {_is(len(silent))} offline"
        )
    if full:
        parts.append(
            f"the disk of {status.listed(full)} is nearly full" if named else "a disk is nearly full"
        )
    if degraded := glance.count("degraded") + glance.others:
        parts.append(_counted(degraded, "degraded"))
    if not devices:
        return Headline("bad", "No device serves", "register one: git-cluster device add, then serve")
    if len(silent) == len(devices):
        return Headline("bad", _sentence(parts), _start(silent, named=named))
    if first is not None:
        return Headline("bad", _sentence(parts), first.reason if named else "", first.name if named else "")
    if silent:
        return Headline("warning", _sentence(parts), _start(silent, named=named))
    if full:
        return Headline("warning", _sentence(parts), "make room there before its pushes are refused")
    if parts:
        worst = next((trouble for trouble in glance.troubles if trouble.state == "degraded"), None)
        return Headline(
            "warning",
            _sentence(parts),
            worst.reason if worst and named else "",
            worst.name if worst and named else "",
        )
    if behind := glance.count("behind"):
        return Headline("busy", f"Healthy; {_counted(behind, 'being synced')}", "nothing to do")
    return Headline("healthy", "Healthy")


def nearly_full(device: Device) -> bool:
    """As `doctor` judges it."""
    total, free = device.disk_total, device.disk_free
    if total is None or free is None or not serves(device):
        return False
    return free < GIB or (free < 0.05 * total and free < 50 * GIB)


def _start(silent: Sequence[str], *, named: bool) -> str:
    if not named:
        return "an administrator is needed"
    them = "it" if len(silent) == 1 else "they"
    return (
        f"start {status.listed(silent)} again, or look at the machine{'s' * (len(silent) > 1)}; if {them} will not "
        f"come back: git-cluster device drain {silent[0]} --move"
    )


def _counted(count: int, state: str) -> str:
    return f"{count:,} {'repository' if count == 1 else 'repositories'} {_is(count)} {state}"


def _is(count: int) -> str:
    return "is" if count == 1 else "are"


def _sentence(parts: Sequence[str]) -> str:
    words = "; ".join(parts)
    return words[:1].upper() + words[1:]
