"""The decisions: rows in, decision out. No I/O happens here, so every row of every table is a unit test.

The invariant that all of them keep:

    A client is shown refs only from a replica whose refs are exactly those of the newest committed version,
    and a version is committed only by the holder of an intent that was written at the version before it.

An intent is written before refs move and cleared by the commit that accounts for the move. So whoever finds
an intent knows that this replica's refs may be ahead of its position, and whoever finds none knows that they
are not.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum, auto

from cluster.errors import WriteConflict
from cluster.model import (
    CHECKSUM_BYTES,
    HEAD,
    Checksum,
    DeviceMode,
    Intent,
    Position,
    RefUpdate,
    Replica,
    Snapshot,
    is_zero,
)

# ------------------------------------------------------------------------------------------------ checksums

_MODULUS = 1 << (8 * CHECKSUM_BYTES)


def _hash(ref: str, value: str) -> int:
    item = b"\0".join((b"git-cluster", ref.encode("utf-8", "surrogateescape"), value.encode()))
    return int.from_bytes(hashlib.shake_256(item).digest(CHECKSUM_BYTES), "big")


def _present(value: str) -> bool:
    return bool(value) and not is_zero(value)


def checksum_of(refs: Mapping[str, str]) -> Checksum:
    """The checksum of a whole set of refs; HEAD's value is "ref: refs/heads/…"."""
    total = sum(_hash(ref, value) for ref, value in refs.items() if _present(value))
    return Checksum((total % _MODULUS).to_bytes(CHECKSUM_BYTES, "big"))


def updated(checksum: Checksum, changes: Iterable[RefUpdate]) -> Checksum:
    """The checksum after `changes`, from the changed refs alone: its cost does not grow with the repository."""
    total = int.from_bytes(checksum.accumulator, "big")
    for change in changes:
        if _present(change.old):
            total -= _hash(change.ref, change.old)
        if _present(change.new):
            total += _hash(change.ref, change.new)
    return Checksum((total % _MODULUS).to_bytes(CHECKSUM_BYTES, "big"))


def difference(have: Mapping[str, str], want: Mapping[str, str], zero: str) -> list[RefUpdate]:
    """The updates that turn one set of refs into another, by ref name."""
    return [
        RefUpdate(ref, have.get(ref, zero), want.get(ref, zero))
        for ref in sorted(have.keys() | want.keys())
        if have.get(ref, zero) != want.get(ref, zero)
    ]


# ----------------------------------------------------------------------------------------------------- reading


class Fit(Enum):
    """What this device may do with its replica now."""

    SERVE = auto()
    WAIT = auto()
    """A commit is in flight: milliseconds, because no client is waited for between intend and commit (G5)."""
    SYNC = auto()
    UNCOMMITTED = auto()
    """This replica's own interrupted write moved refs that no version accounts for: never shown (G6)."""


@dataclass(frozen=True, slots=True)
class Local:
    """What this device's disk says of a replica, as far as it was looked at.

    checksum: of the refs on disk, or None where there is no repository.
    """

    checksum: Checksum | None


def fit_to_read(snapshot: Snapshot, device: str, local: Local, *, write_locked: bool) -> Fit:
    """Whether a clone or fetch may be served from `device` now.

    | an intent | its owner lives | the owner is us, refs moved | position, checksum      | then        |
    |-----------|-----------------|---------------------------|-------------------------|-------------|
    | yes       | yes             | any                       | any                     | WAIT        |
    | yes       | no              | yes                       | any                     | UNCOMMITTED |
    | any       | no              | no                        | newest, and disk agrees | SERVE       |
    | any       | no              | no                        | behind, or disk differs | SYNC        |

    The owner lives when the write lock is held: it is released by the database with its connection.
    """
    owner = snapshot.intent_owner
    if owner is not None and write_locked:
        return Fit.WAIT
    mine = snapshot.of(device)
    if mine is None:
        return Fit.SYNC
    moved = mine.position is not None and local.checksum != mine.position.checksum
    if owner is not None and owner.device.name == device and moved:
        return Fit.UNCOMMITTED
    if mine.position != snapshot.repository.position or mine.quarantined or moved:
        return Fit.SYNC
    return Fit.SERVE


def sources(snapshot: Snapshot, device: str) -> list[Replica]:
    """The leaders that `device` may sync from, best first: online before silent, then the one heard last."""
    others = [
        replica
        for replica in snapshot.leaders
        if replica.device.name != device and replica.device.mode is not DeviceMode.DISABLED
    ]
    return sorted(others, key=lambda r: (not r.device.online, r.device.silent_for or 0.0, r.device.name))


def keepers(snapshot: Snapshot, device: str) -> list[Replica]:
    """Who else may hold objects of the newest version, because they were staged there: asked when no leader answers."""
    return [
        replica
        for replica in snapshot.replicas
        if replica.device.name != device
        and replica not in snapshot.leaders
        and replica.device.online
        and replica.device.mode is not DeviceMode.DISABLED
    ]


HEARD = 4.0
"""Seconds of silence in which one heartbeat (every 2 s) may be late, and not two."""


def stage_peers(snapshot: Snapshot, device: str) -> list[Replica]:
    """The devices that may hold a second copy of a push to `device`, best first: those just heard of (one that misses
    its heartbeat may be cut off, and would be waited for), current before behind, then in zones that have no copy yet
    (what fails together holds one copy as long as there is a choice)."""
    others = [
        replica
        for replica in snapshot.replicas
        if replica.device.name != device
        and replica.device.mode is DeviceMode.ENABLED
        and replica.device.online
    ]
    newest = snapshot.repository.version
    mine = snapshot.of(device)
    used = {mine.device.zone} if mine is not None else set()
    best: list[Replica] = []
    while others:
        chosen = min(
            others,
            key=lambda r: (
                (r.device.silent_for or 0.0) > HEARD,
                newest - (r.version or 0),
                bool(r.quarantined),
                bool(r.device.zone) and r.device.zone in used,
                r.device.name,
            ),
        )
        others.remove(chosen)
        used.add(chosen.device.zone)
        best.append(chosen)
    return best


# --------------------------------------------------------------------------------------- interrupted writes


@dataclass(frozen=True, slots=True)
class Interrupted:
    """What an interrupted write left on its replica's disk, ref by ref."""

    moved: tuple[RefUpdate, ...]
    unmoved: tuple[RefUpdate, ...]
    elsewhere: tuple[tuple[RefUpdate, str], ...]
    """Refs at neither their old nor their new value, with the value that they have."""


def inspect(intent: Intent, refs: Mapping[str, str], zero: str) -> Interrupted:
    """Hold an intent against the refs on disk."""
    moved, unmoved, elsewhere = [], [], []
    for update in intent.refs:
        value = refs.get(update.ref, zero)
        if value == update.new:
            moved.append(update)
        elif value == update.old:
            unmoved.append(update)
        else:
            elsewhere.append((update, value))
    return Interrupted(tuple(moved), tuple(unmoved), tuple(elsewhere))


class Healing(Enum):
    """What becomes of an interrupted write."""

    CALL_OFF = auto()
    """No ref moved: clear the intent; the version stays."""
    COMMIT = auto()
    """Every ref moved, and nobody has committed since: the push happened."""
    PUT_BACK = auto()
    """It cannot become a version any more: what moved goes back (and is kept, guarantee G8), the intent is cleared."""
    GIVE_UP = auto()
    """Nothing legible is left of it here, but another device, or the log, has the version it began at: rebuild."""
    PERSON = auto()
    """Its refs are at values that this write does not explain: nobody but a person knows what to keep."""


def healing(
    snapshot: Snapshot,
    mine: Replica,
    found: Interrupted | None,
    checksum: Checksum | None,
    *,
    rebuildable: bool = False,
) -> Healing:
    """What the owner's device does about its interrupted write.

    found: the refs of the intent as its disk shows them, None where it shows none (wiped, unreadable).
    checksum: of all its refs now; those outside the intent have to be the ones of the version it began at.
    rebuildable: where its refs are illegible, whether all is there that those of the newest version reach.

    | the refs of the intent             | the others | committed since     | another leader | then     |
    |------------------------------------|------------|---------------------|----------------|----------|
    | illegible                          |            |                     | or rebuildable | GIVE_UP  |
    | illegible                          |            |                     | no             | PERSON   |
    | one at neither its old nor new one |            |                     |                | PERSON   |
    | none moved                         |            |                     |                | CALL_OFF |
    | all moved                          | as they were | nobody            |                | COMMIT   |
    | all moved                          | not        | or somebody         |                | PUT_BACK |
    | some moved                         |            |                     |                | PUT_BACK |

    Refs outside the intent that are not what they were are no part of the write: the next look at the replica
    rebuilds it from the log.
    """
    if found is None:
        elsewhere = any(leader.device.name != mine.device.name for leader in snapshot.leaders)
        return Healing.GIVE_UP if elsewhere or rebuildable else Healing.PERSON
    if found.elsewhere:
        return Healing.PERSON
    if not found.moved:
        return Healing.CALL_OFF
    base = mine.position
    alone = base is not None and base == snapshot.repository.position
    if found.unmoved or not alone or base is None or checksum != updated(base.checksum, found.moved):
        return Healing.PUT_BACK
    return Healing.COMMIT


def newest_without(snapshot: Snapshot, device: str) -> Position | None:
    """The newest position that a trusted replica other than `device`'s claims, or None where there is none."""
    positions = [
        replica.position
        for replica in snapshot.replicas
        if replica.device.name != device and replica.position is not None and not replica.quarantined
    ]
    return max(positions, key=lambda position: position.version, default=None)


def head_of(refs: Mapping[str, str]) -> str:
    """HEAD's target branch, "refs/heads/main" for example."""
    return refs[HEAD].removeprefix("ref: ")


def refuse_other_version(name: str, version: int, expected: object) -> None:
    """Raise where a decision about a repository was made at another version than it has now. None: at whichever."""
    if expected is not None and version != expected:
        raise WriteConflict(
            f"{name} is at version {version} by now, and not at version {expected}",
            hint="look again, then decide anew",
        )
