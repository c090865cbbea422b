"""The state of the cluster as one document: what `status --json`, the status page and the metrics show.

`document` is pure: rows in, words out. `observe` reads the rows in an order that makes "frozen" true. Of very many
repositories it shows MOST: those that need attention first. What that costs does not grow with the others.

    replica        when
    ───────────    ─────────────────────────────────────────────────────────────────────────────
    quarantined    its copy is not trusted
    absent         it holds nothing yet
    writing        it has an intent, and somebody holds the repository's write lock
    frozen         it has an intent, and nobody does: the writer died or lost the database; or its disk is ahead
    behind         its version is older than the repository's
    current        all is well

    repository     the first that fits
    ───────────    ─────────────────────────────────────────────────────────────────────────────
    frozen         a person froze it, or one of its intents is left over
    unavailable    no device that serves holds the newest version (version 0: no device serves)
    degraded       fewer copies than min_copies, a replica that is not current, a device that is not there
    healthy        all is well
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any
from uuid import UUID

from cluster.model import Device, Intent, Replica, Snapshot

if TYPE_CHECKING:
    from cluster.db import Database

Document = dict[str, Any]

MOST = 1000
"""Repositories in a document; where there are more, it says how many (`repositories_total`) and that it does not have
them all (`truncated`)."""

WORST_FIRST = ("frozen", "unavailable", "degraded", "healthy")

LOCK_IDS = 2**31
"""Write locks are known by the repository's id modulo this: the second key of an advisory lock is 32 bits."""


def document(
    cluster_name: str,
    devices: Iterable[Device],
    snapshots: Iterable[Snapshot],
    locks: Container[int],
) -> Document:
    """The whole document. `locks`: the write locks that are held, as Database.write_locks names them."""
    return {
        "cluster": cluster_name,
        "devices": [device_entry(device) for device in devices],
        "repositories": [
            repository(snapshot, locked=snapshot.repository.id % LOCK_IDS in locks) for snapshot in snapshots
        ],
    }


def observe(db: Database, cluster_name: str, only: str | None = None) -> Document:
    """The document as of now; `only`: of this repository and the devices that hold it. NotFound."""
    if only is None and (total := db.how_many()) > MOST:
        return _excerpt(db, cluster_name, total)

    def look() -> list[Snapshot]:
        return [db.snapshot(only)] if only else db.snapshots(limit=2 * MOST)

    snapshots = look()
    locked = write_locks(db, snapshots, look)
    devices = db.devices()
    if only:
        devices = [device for device in devices if snapshots[0].of(device.name)]
    return document(cluster_name, devices, snapshots, locked)


def _excerpt(db: Database, cluster_name: str, total: int) -> Document:
    """The document of very many repositories: the worst first, then by name, MOST in all."""
    devices = db.devices()
    down = [device.id for device in devices if not _serves(device)]
    worst = entries(db, db.worst_names(down, limit=MOST))
    worst.sort(key=lambda entry: WORST_FIRST.index(entry["state"]))
    shown = [entry for entry in worst if entry["state"] != "healthy"]
    if len(shown) < MOST:
        there = {entry["name"] for entry in shown}
        first = [snapshot.repository.name for snapshot in db.snapshots(limit=MOST)]
        shown += entries(db, [name for name in first if name not in there][: MOST - len(shown)])
    return {
        "cluster": cluster_name,
        "devices": [device_entry(device) for device in devices],
        "repositories": shown,
        "repositories_total": total,
        "truncated": True,
    }


def every_entry(db: Database) -> Iterator[Document]:
    """The entries of all repositories, by name; read a page at a time, so each page is of a moment of its own."""
    after = ""
    while True:
        snapshots = db.snapshots(after=after, limit=MOST)
        names = [snapshot.repository.name for snapshot in snapshots]
        locked = write_locks(db, snapshots, lambda names=names: db.snapshots_of(names))  # type: ignore[misc]
        for snapshot in snapshots:
            yield repository(snapshot, locked=snapshot.repository.id % LOCK_IDS in locked)
        if len(snapshots) < MOST:
            return
        after = names[-1]


def all_healthy(db: Database, document: Document) -> bool:
    """Whether nothing needs anybody in the whole cluster, of which `document` shows all or some repositories."""
    if not healthy(document):
        return False
    if not document.get("truncated"):
        return True
    # The rest is counted, by the same rules (db/overview.py).
    return not any(count for state, count in db.repository_states().items() if state != "healthy")


def write_locks(db: Database, snapshots: Sequence[Snapshot], again: Callable[[], list[Snapshot]]) -> set[int]:
    """The write locks that are held on `snapshots`, so that "frozen" is true of them. again: reads them once more."""
    locked = set[int]()
    if intents := _intents(snapshots):
        # Rows and locks are two statements, and a push may come or go between them. It takes the lock before it
        # writes its intent and releases it after the commit: only an intent that is there both before and after
        # the lock was seen free is left over. Any other is a push at work.
        locked = set(db.write_locks())
        if unheld := {id: token for id, token in intents.items() if id % LOCK_IDS not in locked}:
            later = _intents(again())
            locked |= {id % LOCK_IDS for id, token in unheld.items() if later.get(id) != token}
    return locked


def _intents(snapshots: Sequence[Snapshot]) -> dict[int, UUID]:
    """The tokens of all intents, by repository id."""
    return {
        snapshot.repository.id: owner.intent.token
        for snapshot in snapshots
        if (owner := snapshot.intent_owner) and owner.intent
    }


def entries(db: Database, names: Sequence[str]) -> list[Document]:
    """The entries of these repositories as of now, in the order of `names`, without those that there are not."""
    snapshots = db.snapshots_of(names)
    locked = write_locks(db, snapshots, lambda: db.snapshots_of(names))
    found = {
        snapshot.repository.name: repository(snapshot, locked=snapshot.repository.id % LOCK_IDS in locked)
        for snapshot in snapshots
    }
    return [found[name] for name in names if name in found]


def device_entry(device: Device) -> Document:
    return {"name": device.name, "state": device.state, "last_seen_at": timestamp(device.last_seen_at)}


def repository(snapshot: Snapshot, *, locked: bool) -> Document:
    """One repository's entry. `locked`: somebody holds its write lock."""
    state, reason = _state(snapshot, locked=locked)
    return {
        "name": snapshot.repository.name,
        "version": snapshot.repository.version,
        "state": state,
        "reason": reason,
        "min_copies": snapshot.repository.min_copies,
        "copies": len(snapshot.leaders),
        "replicas": [_replica(snapshot, replica, locked=locked) for replica in snapshot.replicas],
    }


def _replica(snapshot: Snapshot, replica: Replica, *, locked: bool) -> Document:
    intent = replica.intent
    return {
        "device": replica.device.name,
        "version": replica.version,
        "behind": snapshot.repository.version - (replica.version or 0),
        "checksum": str(replica.position.checksum) if replica.position else None,
        "state": replica_state(snapshot, replica, locked=locked),
        "reason": replica.quarantined or _beyond(snapshot, replica),
        "is_writing": intent is not None,
        "writer": intent.actor if intent else None,
        "writing_since": timestamp(intent.at) if intent else None,
        "last_synced_at": timestamp(replica.synced_at),
        "attempts": replica.attempts,
        "last_error": replica.last_error,
        "verified_at": timestamp(replica.verified_at),
        "damage": replica.damage,
        "disk_version": replica.marker if replica.knows_more else None,
    }


def replica_state(snapshot: Snapshot, replica: Replica, *, locked: bool) -> str:
    if replica.quarantined:
        return "quarantined"
    if replica.position is None:
        return "absent"
    if replica.intent:
        return "writing" if locked else "frozen"
    if replica.knows_more:
        return "frozen"
    return "current" if replica.position == snapshot.repository.position else "behind"


def _state(snapshot: Snapshot, *, locked: bool) -> tuple[str, str | None]:
    """The repository's state and, unless it is healthy, why and what to do."""
    if reason := _frozen(snapshot, locked=locked):
        return "frozen", reason
    serving = [replica for replica in snapshot.replicas if _serves(replica.device)]
    leaders = [replica for replica in snapshot.leaders if replica in serving]
    # Version 0 is empty: any device can make it out of nothing.
    if not (leaders if snapshot.repository.version else serving):
        return "unavailable", _unavailable(snapshot)
    troubles = _troubles(snapshot, locked=locked)
    return ("degraded", "; ".join(troubles)) if troubles else ("healthy", None)


def _serves(device: Device) -> bool:
    return device.state in ("online", "draining")


def _frozen(snapshot: Snapshot, *, locked: bool) -> str | None:
    subject, owner = snapshot.repository, snapshot.intent_owner
    if subject.frozen:
        since = f"frozen since {moment(subject.frozen_at)}: {subject.frozen}"
        if lost := _lost(snapshot):
            return f"{since}; {lost}; see what would be put back: `git-cluster thaw {subject.name} --dry-run`"
        return f"{since}; end it with `git-cluster thaw {subject.name}`"
    if owner and owner.intent and not locked:
        if owner.damage:
            return (
                f"{owner.damage}; decide: `git-cluster thaw {subject.name} --promote {owner.device.name}` "
                f"or `--demote {owner.device.name}` (try --dry-run first)"
            )
        return (
            f"{interrupted(owner.device, owner.intent)}; "
            f"see what would be lost: `git-cluster thaw {subject.name} --dry-run`"
        )
    return None


def _lost(snapshot: Snapshot) -> str | None:
    """What disks know that the database does not, and which devices have them (guarantee G7); None: nothing is known
    to be so."""
    knowing = [replica for replica in snapshot.replicas if replica.knows_more]
    first, last = snapshot.repository.version + 1, max((r.marker or 0 for r in knowing), default=0)
    lacks = f"it lacks {numbers(range(first, last + 1))}" if last >= first else ""
    held: dict[tuple[int, str], list[str]] = {}
    for replica in knowing:
        held.setdefault((replica.marker or 0, replica.marker_checksum or ""), []).append(replica.device.name)
    words = []
    for version, checksum in sorted(held, key=lambda key: (-key[0], held[key])):
        names = held[version, checksum]
        other = version < first or any(v == version and c != checksum for v, c in held)
        words.append(
            f"{listed(names)} {'holds' if len(names) == 1 else 'hold'} "
            + (
                f"a version {version} of {'its' if len(names) == 1 else 'their'} own"
                if other
                else f"version {version}"
            )
        )
    return (f"{lacks}: " if lacks else "") + ", ".join(words) if words else None


def _beyond(snapshot: Snapshot, replica: Replica) -> str | None:
    if not replica.knows_more or replica.marker is None:
        return None
    if replica.marker > snapshot.repository.version:
        return f"its disk is at version {replica.marker}, which the database does not know"
    return f"its disk is at another version {replica.marker} than the database's"


def numbers(versions: Sequence[int]) -> str:
    """A run of versions in words."""
    if len(versions) == 1:
        return f"version {versions[0]}"
    return f"versions {versions[0]} {'and' if len(versions) == 2 else 'to'} {versions[-1]}"


def listed(names: Sequence[str]) -> str:
    """Names in words: "a, b and c"."""
    return f"{', '.join(names[:-1])} and {names[-1]}" if len(names) > 1 else "".join(names)


def interrupted(device: Device, intent: Intent) -> str:
    """An interrupted write in words: who wrote, where, since when, which refs."""
    refs = [update.ref for update in intent.refs]
    shown = ", ".join(refs[:3]) + (f" and {len(refs) - 3} more" if len(refs) > 3 else "")
    where = f"device {device.name}" + ("" if _serves(device) else f" ({device.state})")
    return f"a write by {intent.actor} on {where} was interrupted, begun {moment(intent.at)}: {shown}"


def _unavailable(snapshot: Snapshot) -> str:
    if not snapshot.replicas:
        return f"no device holds it; add one: `git-cluster repo place {snapshot.repository.name} --add …`"
    holders = [replica.device for replica in snapshot.leaders] or [r.device for r in snapshot.replicas]
    named = ", ".join(f"{device.name} ({device.state})" for device in holders)
    if snapshot.leaders or not snapshot.repository.version:
        return (
            f"no device that holds version {snapshot.repository.version} is serving; bring one back: {named}"
        )
    name, newest = snapshot.repository.name, snapshot.repository.position
    had = next((r.device.name for r in snapshot.replicas if r.position == newest), holders[0].name)
    return (
        f"no trusted copy of version {newest.version} is left: put device {had}'s disk back and run "
        f"`git-cluster sync {name}`; or see what giving it up would lose: "
        f"`git-cluster thaw {name} --demote {had} --dry-run`"
    )


def _troubles(snapshot: Snapshot, *, locked: bool) -> list[str]:
    troubles = []
    for replica in snapshot.replicas:
        name = replica.device.name
        match replica_state(snapshot, replica, locked=locked):
            case "quarantined":
                troubles.append(f"the copy on {name} is not trusted: {replica.quarantined}")
            case "absent":
                troubles.append(f"{name} has no copy yet")
            case "behind":
                troubles.append(f"{name} is {snapshot.repository.version - (replica.version or 0)} behind")
        if replica.damage:
            troubles.append(_damage(snapshot, replica))
        if not _serves(replica.device):
            troubles.append(f"device {name} is {replica.device.state}")
    if len(snapshot.leaders) < snapshot.repository.min_copies:
        troubles.append(f"{len(snapshot.leaders)} of {snapshot.repository.min_copies} copies")
    return troubles


def _damage(snapshot: Snapshot, replica: Replica) -> str:
    """What a person has to see to, where it is, and what ends it."""
    told = f"{replica.device.name}: {replica.damage}"
    if replica.intent:
        return told
    return (
        f"{told}; nothing was touched: bring another copy of version {replica.version} back, or restore this one "
        f"from a backup, then run `git-cluster verify {snapshot.repository.name}`"
    )


def healthy(document: Document) -> bool:
    """Whether nothing in it needs anybody: every repository healthy, no device silent that should be there."""
    return all(device["state"] != "offline" for device in document["devices"]) and all(
        entry["state"] == "healthy" for entry in document["repositories"]
    )


def timestamp(at: datetime | None) -> str | None:
    """ISO 8601 in UTC, for programs."""
    return at.astimezone(UTC).isoformat() if at else None


def moment(at: datetime | None) -> str:
    """The same for people, to the second."""
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z" if at else "-"
