"""Bring this device's replica to the newest version.

The push log says what every ref is at every version; a leader is needed only for objects that are not here yet.
So a sync never copies another device's refs, and a device with a wiped disk can empty nobody.

    look      under the replica's write lock (flock): row, marker and refs, as they are between two pushes; with the row
              come the changes since the marker's version
    plan      trusted: those changes
              not trusted (wiped, rolled back, altered, demoted): all refs of the newest version, from the log
    fetch     what `wanted` reaches and is not here, from the leaders in turn. No write lock; it may take hours.
              trusted: as a pack, since the log says what both have (pulling.py); otherwise by `git fetch`
    apply     under the write lock again: one ref transaction that checks the old values
    claim     the row (compare-and-set from the position we had), then the marker

What was staged here is applied at once, under the lock of the look: no other device is asked for anything.

Refs move before the row does. Cut off in between, the refs are not those of the row's version: the next look sees
that and takes the untrusted way, which finds nothing left to do.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC
from uuid import UUID

from cluster import aside, git, history, pulling
from cluster.bell import Bell
from cluster.db import Changes
from cluster.errors import (
    ClientGone,
    ClusterError,
    DiskFailed,
    Frozen,
    GitFailed,
    NoSource,
    NotFound,
    PeerFailed,
    ReplicaUnfit,
)
from cluster.model import HEAD, LogEntry, Position, RefUpdate, Replica, Service, Snapshot
from cluster.node import Node
from cluster.ssh_command import ServiceCommand
from cluster.versions import difference, head_of, keepers, sources, updated

Say = Callable[[str], None]

_log = logging.getLogger(__name__)

LOCAL_WRITE_WAIT = 30.0
"""Seconds to wait for this replica's own write to finish moving refs; it takes milliseconds (G5)."""

AT_HAND = 0.25
"""Seconds for which the write lock is held to see whether all objects are here; of a large push they are counted
without it."""

FEW_REFS = 200
"""Refs that are named one by one to say what is here already. Of more, HEAD's branch stands for all."""


def _silent(line: str) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Plan:
    """What turns this replica's refs into those of `target`."""

    was: Position | None
    target: Position
    updates: tuple[RefUpdate, ...]
    wanted: tuple[str, ...]
    known: tuple[str, ...]
    settled: tuple[UUID, ...]
    keep: tuple[tuple[str, str], ...]
    """(ref, value) pairs that are given up and stay under refs/cluster/lost/ (guarantee G8)."""
    trusted: bool
    entries: tuple[LogEntry, ...] | None = None
    """What leads to `target`, for the journal; None: more than one entry, or not from `was`."""


def catch_up(
    node: Node, repository_id: int, say: Say = _silent, gone: Callable[[], bool] = lambda: False
) -> Snapshot:
    """Make this device's replica current; returns the row it ended with. Many callers cost one sync.

    Raises Frozen (an interrupted write is in the way, or the database is older than this disk), NoSource, NotFound.
    """

    def alone(tell: Say) -> Snapshot:
        while True:
            with node.store.holding(repository_id, "sync", 1.0) as mine:  # another process may be at it
                if mine:
                    return _catch_up(node, repository_id, tell)
            if gone():
                raise ClientGone("the client hung up while it waited for a sync")

    while True:
        snapshot = node.syncs.run(repository_id, alone, say, gone)
        if snapshot is not None:
            return snapshot
        snapshot = node.db.snapshot_of(
            repository_id
        )  # taken after we came: what another one's sync saw may not be
        if _current(node, snapshot):
            return snapshot


def _current(node: Node, snapshot: Snapshot) -> bool:
    """Whether row, refs and marker all say that this replica is at the newest version."""
    newest, mine = snapshot.repository.position, snapshot.of(node.name)
    if mine is None or mine.position != newest or mine.quarantined or mine.intent is not None:
        return False
    marker = node.store.marker(snapshot.repository.id)
    return (
        marker is not None
        and (marker.version, marker.checksum) == (newest.version, str(newest.checksum))
        and node.store.checksum(snapshot.repository.id) == newest.checksum
    )


def _catch_up(node: Node, repository_id: int, say: Say) -> Snapshot:
    for trust in (True, False):
        if (snapshot := _once(node, repository_id, say, trust=trust)) is not None:
            return snapshot
    raise AssertionError("unreachable: the second round returns or raises")


def _once(node: Node, repository_id: int, say: Say, *, trust: bool) -> Snapshot | None:
    """The row that it ended with; None: what the log says does not fit this disk."""
    with node.store.adding_objects(repository_id) as objects:
        with _write_lock(node, repository_id):
            snapshot, changes = _seen(node, repository_id, trust=trust)
            plan = _look(node, snapshot, changes, say, trust=trust)
            if plan is None:
                return snapshot
            here = _at_hand(node, snapshot, plan) if plan.trusted else None
            done = bool(here) and _carried_out(node, snapshot, plan, lambda: _apply(node, snapshot, plan))
        if not here:

            def bring() -> None:
                _fetch(node, snapshot, plan, say, objects, absent=here is False)
                with _write_lock(node, repository_id):
                    _refuse_changed(node, snapshot, plan)
                    _apply(node, snapshot, plan)

            done = _carried_out(node, snapshot, plan, bring)
    if not done:
        return None
    return _synced(snapshot, node.name, plan) if plan.trusted else node.db.snapshot_of(repository_id)


def _seen(node: Node, repository_id: int, *, trust: bool) -> tuple[Snapshot, Changes | None]:
    """The row, and what the log has since the version that this disk says it is at, where that is of use."""
    marker = node.store.marker(repository_id) if trust else None
    if marker is None:
        return history.reclaimed(node, node.db.snapshot_of(repository_id)), None
    snapshot, changes = node.db.snapshot_and_changes(repository_id, marker.version)
    return history.reclaimed(node, snapshot), changes


def _synced(snapshot: Snapshot, device: str, plan: Plan) -> Snapshot:
    """What was seen, with this replica at the version that was the newest then: newer than whatever was acknowledged
    before this sync was asked for, without another look."""
    replicas = tuple(
        replace(each, position=plan.target, marker=None, marker_checksum=None, attempts=0, last_error=None)
        if each.device.name == device
        else each
        for each in snapshot.replicas
    )
    return replace(snapshot, replicas=replicas)


def _carried_out(node: Node, snapshot: Snapshot, plan: Plan, work: Callable[[], None]) -> bool:
    """Whether it could be done. False: the log does not fit this disk. A plan that trusts nothing has to do."""
    try:
        with node.measures.syncing(trusted=plan.trusted):
            work()
    except DiskFailed:  # it says nothing of the copy
        raise
    except (GitFailed, ReplicaUnfit) as error:
        if not plan.trusted:
            raise
        _log.warning(
            "sync of repository %s from the log failed (%s); rebuilding", snapshot.repository.id, error.what
        )
        return False
    return True


@contextmanager
def _write_lock(node: Node, repository_id: int) -> Iterator[None]:
    """The replica's write lock (the file, not the cluster's): inside, no push moves refs here."""
    error = Frozen(
        "a write to this replica is still going on", hint="try again in a moment; see `git-cluster status`"
    )
    with node.store.locked(repository_id, "write", LOCAL_WRITE_WAIT, error):
        yield


# ------------------------------------------------------------------------------------------------------- look


def _look(node: Node, snapshot: Snapshot, changes: Changes | None, say: Say, *, trust: bool) -> Plan | None:
    """What is to be done, or None where the replica is current. changes: what the log was seen to have, if it was."""
    repository, store = snapshot.repository, node.store
    mine = snapshot.of(node.name)
    if mine is None:
        raise NotFound(f"device {node.name} does not hold {repository.name}")
    history.refuse_other_history(node, snapshot)
    if mine.intent is not None:
        raise interrupted(snapshot, mine)
    if store.foreign(repository.id):
        _distrust(node, snapshot, "its disk is another device's, or another cluster's")
        store.set_aside(repository.id, "foreign")
    elif former := store.former(repository):
        was = f"{former.name or 'of unknown name'}, at version {former.version}"
        _distrust(
            node,
            snapshot,
            f"its disk held the copy of a former repository with its number ({was}); that is in the trash now",
        )
        store.set_aside(repository.id, "former")
    elif not store.exists(repository.id) and not store.objects(repository.id).is_dir():
        if mine.version:
            _distrust(node, snapshot, "its disk holds no copy, though it should")
        store.set_aside(repository.id, "damaged")
    elif store.checksum(repository.id) is None:
        _distrust(node, snapshot, "its refs cannot be read")
        aside.salvage(store, repository, _head(node, snapshot))
    if not store.exists(repository.id):
        store.create(repository, _head(node, snapshot))
    disk = store.checksum(repository.id)
    trusted = trust and mine.position is not None and not mine.quarantined and disk == mine.position.checksum
    if trusted and mine.position == repository.position:
        history.mark_again(node, repository, repository.position)
        return None
    if trusted:
        assert mine.position is not None
        plan = _changes_since(node, snapshot, mine.position, changes)
        if plan is not None:
            return plan
    differs = mine.position is not None and disk != mine.position.checksum
    if differs and not mine.quarantined and mine.version:
        _distrust(node, snapshot, f"its refs are not those of version {mine.version}")
    if mine.quarantined or (differs and mine.version):
        say(f"rebuilding this device's copy: {mine.quarantined or 'its refs are not what they should be'}")
    return _everything(node, snapshot, mine)


def _head(node: Node, snapshot: Snapshot) -> str:
    """HEAD's target at the newest version."""
    return head_of(node.db.refs_at(snapshot.repository.id, snapshot.repository.version))


def _distrust(node: Node, snapshot: Snapshot, why: str) -> None:
    _log.warning("%s on %s is quarantined: %s", snapshot.repository.name, node.name, why)
    node.db.quarantine(snapshot.repository.id, node.name, why)


def _changes_since(node: Node, snapshot: Snapshot, was: Position, changes: Changes | None) -> Plan | None:
    """The incremental plan, or None where the log and the checksums do not fit together."""
    repository = snapshot.repository
    if changes is None or not changes.lead(was.version, repository.version):  # another push came between
        changes = node.db.changes(repository.id, was.version, repository.version)
    updates, entries = changes.updates, changes.entries
    if updated(was.checksum, updates) != repository.position.checksum:
        return None
    thawed = any(entry.via == "thaw" for entry in entries)
    return Plan(
        was=was,
        target=repository.position,
        updates=updates,
        wanted=_objects(updates),
        known=tuple(
            {
                *_anchors(node, repository.id, updates),
                *(u.old for u in updates if not u.creates and u.ref != HEAD),
            }
        ),
        settled=tuple(entry.push_id for entry in entries),
        keep=tuple((u.ref, u.old) for u in updates if thawed and not u.creates),
        trusted=True,
        entries=(replace(entries[0], refs=updates),) if len(entries) == 1 else None,
    )


def _anchors(node: Node, repository_id: int, updates: Sequence[RefUpdate]) -> set[str]:
    """What else is here for sure, where the old values of `updates` do not tell: a new ref may start anywhere."""
    if not any(update.creates and update.ref != HEAD for update in updates):
        return set()
    store = node.store
    if store.packed_refs(repository_id) + store.loose_refs(repository_id) <= FEW_REFS:
        return {value for ref, value in store.refs(repository_id).items() if ref != HEAD}
    return set(store.values(repository_id, [store.head(repository_id)]).values())


def _everything(node: Node, snapshot: Snapshot, mine: Replica) -> Plan:
    """The plan that assumes nothing about the disk but what it can show."""
    repository, store = snapshot.repository, node.store
    have = store.refs(repository.id)
    want = node.db.refs_at(repository.id, repository.version)
    updates = difference(have, want, git.ZERO[repository.object_format])
    replaced = [(u.ref, u.old) for u in updates if u.ref != HEAD and not u.creates]
    history = set() if mine.demoted else node.db.was_committed(repository.id, replaced)
    values = {value for ref, value in have.items() if ref != HEAD}
    whole = store.connected(repository.id, values, []) if values else False
    return Plan(
        was=mine.position,
        target=repository.position,
        updates=tuple(updates),
        wanted=_objects(updates) if whole else tuple({v for ref, v in want.items() if ref != HEAD}),
        known=tuple(values) if whole else (),
        settled=(),
        keep=tuple(pair for pair in replaced if pair not in history),
        trusted=False,
    )


def _objects(updates: Sequence[RefUpdate]) -> tuple[str, ...]:
    return tuple({u.new for u in updates if u.ref != HEAD and not u.deletes})


# ------------------------------------------------------------------------------------------------------ fetch


def _at_hand(node: Node, snapshot: Snapshot, plan: Plan) -> bool | None:
    """Whether everything is here that `plan.wanted` reaches, as it is where it was staged. None: that takes longer.

    Git is not asked where nothing speaks for it: then a fetch is tried first (`_fetch`).
    """
    if not plan.wanted:
        return True
    store, repository_id = node.store, snapshot.repository.id
    if not (
        store.has_staged(repository_id, plan.settled)
        or store.all_loose(repository_id, set(plan.wanted).difference(plan.known))
    ):
        return False
    return node.store.connected_soon(snapshot.repository.id, plan.wanted, plan.known, within=AT_HAND)


def _fetch(
    node: Node, snapshot: Snapshot, plan: Plan, say: Say, objects: int, *, absent: bool = False
) -> None:
    """Have everything here that `plan.wanted` reaches; no ref refers to it yet. objects: the lock that Git inherits.
    absent: it seems not to be here, so that is looked at only where nobody can send it."""
    if not plan.wanted:
        return
    if not absent and node.store.connected(snapshot.repository.id, plan.wanted, plan.known):
        return
    behind = snapshot.repository.version - (plan.was.version if plan.was else 0)
    last: ClusterError | None = None
    for source in [*sources(snapshot, node.name), *keepers(snapshot, node.name)]:
        say(f"syncing from {source.device.name}: {behind} version{'' if behind == 1 else 's'} behind")
        try:
            _fetch_from(node, snapshot, source, plan, say, objects)
        except DiskFailed:  # this device's: no other source helps
            raise
        except (PeerFailed, GitFailed) as error:
            _log.warning(
                "sync of %s from %s failed: %s", snapshot.repository.name, source.device.name, error.what
            )
            last = error
        else:
            return
    if not absent or not node.store.connected(snapshot.repository.id, plan.wanted, plan.known):
        raise _no_source(snapshot, node.name) from last


def _fetch_from(node: Node, snapshot: Snapshot, source: Replica, plan: Plan, say: Say, objects: int) -> None:
    """By the shorter way where that leads anywhere; else `git fetch` of object ids, over our own connection to the
    peer."""
    repository = snapshot.repository
    if (
        plan.trusted
        and pulling.few(plan.wanted, plan.known)
        and pulling.pull(node, repository, source.device, plan.wanted, plan.known, objects, say)
        and node.store.connected(repository.id, plan.wanted, plan.known)
    ):
        return
    command = str(ServiceCommand(Service.UPLOAD_PACK, repository.name))
    with (
        node.store.scratch(repository, plan.known) as env,
        node.peers.run(source.device, command, protocol="version=2") as remote,
        remote.pipes() as (reads, writes),
    ):
        try:
            git.run_telling(
                [
                    "fetch",
                    "--progress",
                    "--no-tags",
                    "--no-write-fetch-head",
                    "--stdin",
                    f"fd::{reads},{writes}",
                ],
                data="".join(f"{oid}\n" for oid in plan.wanted).encode(),
                env=env,
                config=git.DURABLE,
                pass_fds=(reads, writes, objects),
                tell=lambda line: say(f"syncing from {source.device.name}: {line}"),
            )
        except DiskFailed:
            raise
        except GitFailed as error:
            raise PeerFailed(f"device {source.device.name}: {remote.stderr.strip() or error.what}") from error


def _no_source(snapshot: Snapshot, device: str) -> NoSource:
    """Why nobody can be synced from, in the words of the person who waits for it."""
    version = snapshot.repository.version
    holders = [r.device for r in snapshot.leaders if r.device.name != device]
    if not holders:
        return NoSource(
            f"no device holds version {version} of {snapshot.repository.name} any more",
            hint="an administrator looks at `git-cluster status` and decides with `git-cluster thaw`",
        )
    names = ", ".join(f"{d.name} ({'online' if d.online else 'offline'})" for d in holders)
    return NoSource(
        f"version {version} of {snapshot.repository.name} cannot be fetched from where it is: {names}",
        hint="try again when that device is back; nothing is lost",
    )


# ------------------------------------------------------------------------------------------------------ apply


def _refuse_changed(node: Node, snapshot: Snapshot, plan: Plan) -> None:
    """Raise ReplicaUnfit where a push, or a stranger, came by here since the look. With the write lock held again."""
    now = node.db.snapshot_of(snapshot.repository.id).of(node.name)
    disk = node.store.checksum(snapshot.repository.id)
    moved = plan.trusted and plan.was is not None and disk != plan.was.checksum
    if now is None or now.position != plan.was or now.intent is not None or moved:
        raise ReplicaUnfit("the replica changed while it was synced")


def _apply(node: Node, snapshot: Snapshot, plan: Plan) -> None:
    """Move the refs, then the claim. The replica's write lock is held: nobody else moves refs here, and this replica
    has no intent."""
    repository, store = snapshot.repository, node.store
    if plan.keep:
        kept = store.keep_lost(repository.id, plan.keep)
        _log.warning(
            "%s: kept what is given up as %s", repository.name, ", ".join(kept) or "(nothing readable)"
        )
    store.remove_stale_locks(repository.id, suspected=True)
    store.apply(repository.id, plan.updates, settled=plan.settled)
    if not plan.trusted and store.checksum(repository.id) != plan.target.checksum:
        raise ReplicaUnfit("after a rebuild the refs are still not those of the newest version")
    store.remember(repository.id, plan.target.checksum)
    node.db.synced(repository.id, node.name, plan.was, plan.target)
    history.mark(node, repository, plan.target, plan.entries)
    store.unstage(repository.id, plan.settled)


def interrupted(snapshot: Snapshot, owner: Replica) -> Frozen:
    """The one text for an intent that nobody is carrying out any more."""
    intent, name = owner.intent, snapshot.repository.name
    assert intent is not None
    refs = ", ".join(update.ref for update in intent.refs[:3]) + (" …" if len(intent.refs) > 3 else "")
    at = f"{intent.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"
    return Frozen(
        f"{name} is frozen: a push by {intent.actor} on {owner.device.name} was interrupted at {at} ({refs})",
        hint=f"an administrator resolves it: `git-cluster thaw {name} --dry-run` says how; nothing is lost meanwhile",
    )


def wait_for(
    condition: Callable[[], bool], timeout: float, gone: Callable[[], bool], bell: Bell | None = None
) -> bool:
    """Look at `condition` ever less often, for `timeout` seconds at most. ClientGone when nobody waits any more.
    bell: and whenever it rings."""
    deadline, pause, heard = time.monotonic() + timeout, 0.002, bell.rung if bell else 0
    while not condition():
        if time.monotonic() > deadline:
            return False
        if gone():
            raise ClientGone("the client hung up while it waited")
        if bell is None:
            time.sleep(pause)
        else:
            heard = bell.wait(heard, pause)
        pause = min(pause * 1.5, 0.1)
    return True
