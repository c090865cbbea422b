"""Resolve an interrupted write: by the device that owns it, from what its disk shows; or, where that stays away, by
another that holds the newest version (a fence). `versions.healing` decides; this module carries it out.

| decision | what is done                                                                            |
|----------|-----------------------------------------------------------------------------------------|
| CALL_OFF | the intent is cleared; the version stays                                                |
| COMMIT   | it becomes the next version: the push happened                                          |
| PUT_BACK | what moved goes back and is kept under refs/cluster/lost/; the intent is cleared        |
| GIVE_UP  | this device's claim is withdrawn; its copy is rebuilt                                   |
| PERSON   | nothing; `thaw --demote` or `--promote` decides                                         |

Done under the cluster's write lock and the replica's own (flock), which a receive-pack that outlived its session
still holds: a write whose process lives is never resolved by anybody else. What was done stands in the repository's
log (`git-cluster log`), in the transaction that did it.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace

from cluster import git
from cluster.db import Connection
from cluster.errors import Frozen, GitFailed, LockTimeout, Refused, ReplicaUnfit, WriteConflict
from cluster.history import other_history, refuse_other_history
from cluster.locks import Turns, write_lock
from cluster.model import HEAD, Checksum, EventKind, Intent, RefUpdate, Replica, Snapshot
from cluster.node import Node
from cluster.verify import log_suffices
from cluster.versions import Healing, Interrupted, healing, inspect, updated

_log = logging.getLogger(__name__)

MOMENT = 2.0
"""Seconds that a commit or a step of a sync may take before whoever does it counts as carrying a write."""

PATIENCE = 10.0
"""Seconds to wait for locks before saying that somebody is still writing."""


def alive(node: Node, repository_id: int, patience: float = MOMENT) -> bool:
    """Whether a process on this device still carries a write of this repository; a sync holds the lock as briefly
    as a commit does, and is waited for."""
    with node.store.holding(repository_id, "write", patience) as free:
        return not free


@contextmanager
def still(node: Node, repository_id: int, actor: str) -> Iterator[Connection]:
    """Hold both locks of a write: nobody moves refs here, nobody intends anywhere. Refused while somebody does.

    A live write is looked for first: its session may have lost the cluster's lock, and still has its turn here.
    """
    if alive(node, repository_id):
        raise _carried(node)
    with (
        node.write_lock(repository_id, actor=actor, timeout=PATIENCE) as held,
        _replica_locked(node, repository_id),
    ):
        yield held.connection


def _replica_locked(node: Node, repository_id: int) -> AbstractContextManager[None]:
    return node.store.locked(repository_id, "write", PATIENCE, _carried(node))


def _carried(node: Node) -> Refused:
    return Refused(
        f"a process on device {node.name} still carries this write", hint="it ends by itself; try again"
    )


# ---------------------------------------------------------------------------------------------------- who heals


def recover(node: Node, repository_id: int) -> list[str]:
    """Resolve this device's own interrupted write. What was done, in lines."""
    return resolve(node, repository_id, by=EventKind.HEAL)


def resolve(node: Node, repository_id: int, *, by: EventKind, dry_run: bool = False) -> list[str]:
    """Do what `versions.healing` says for the intent of this device's replica; what was (or would be) done."""
    with still(node, repository_id, by.value) as connection:
        snapshot = node.db.snapshot_of(repository_id)
        mine = snapshot.of(node.name)
        if mine is None or mine.intent is None:
            return [f"{snapshot.repository.name} has no interrupted write on {node.name} any more"]
        return _resolve(node, snapshot, mine, mine.intent, connection, by, dry_run=dry_run)


def fence(node: Node, repository_id: int) -> list[str]:
    """Withdraw the claim of a device that has not been seen for fence_after, so that others may write (G6, G8).

    Only by a device that holds the newest version itself: what the silent one may have moved was acknowledged to
    nobody. Its token is void, so a process of its that still lives cannot commit; its copy is rebuilt when it is back.
    """
    with node.write_lock(repository_id, actor="fence", timeout=PATIENCE) as held:
        return _fence(node, held.seen, held.connection)


def met(node: Node, snapshot: Snapshot, connection: Connection) -> bool:
    """Resolve an intent that a writer met while it holds the write lock (`connection`); False: that is another's to
    do, who needs the lock for it."""
    owner = snapshot.intent_owner
    assert owner is not None and owner.intent is not None
    if owner.device.name != node.name:
        return bool(_fence(node, snapshot, connection))
    if alive(node, snapshot.repository.id):
        return False
    with _replica_locked(node, snapshot.repository.id):
        _resolve(node, snapshot, owner, owner.intent, connection, EventKind.HEAL, dry_run=False)
    return True


def stand_in(node: Node, repository_id: int) -> None:
    """Hold the cluster's write lock for a write of this device that lives but lost it with its connection.

    So that everybody sees a write that is going on, and waits for it, instead of one that was interrupted. Returns
    when that write has ended. It keeps a queue of its own: the live session still has its turn in this process's.
    """
    owner = node.db.snapshot_of(repository_id).intent_owner
    if owner is None or owner.intent is None or owner.device.name != node.name:
        return
    intent = owner.intent
    with (
        suppress(LockTimeout),
        write_lock(Turns(), node.db, repository_id, device=node.name, actor=intent.actor, timeout=MOMENT),
    ):
        _log.info("standing in for a write to repository %s that lost the write lock", repository_id)
        while alive(node, repository_id, 0.0):
            now = node.db.snapshot_of(repository_id).intent_owner
            if now is None or now.intent != intent:
                return
            time.sleep(0.1)


# ------------------------------------------------------------------------------------------------ what is done


def _fence(node: Node, snapshot: Snapshot, connection: Connection) -> list[str]:
    repository, owner = snapshot.repository, snapshot.intent_owner
    _, silent = node.db.interrupted(node.name, node.writes.fence_after)
    if repository.id not in silent or owner is None or owner.intent is None:
        return []
    if any(replica.knows_more for replica in snapshot.replicas) or other_history(node, snapshot):
        return []  # this intent is one of an older time
    name, intent = owner.device.name, owner.intent
    line = (
        f"the push by {intent.actor} on {name} is given up: "
        f"{name} was not seen for {owner.device.silent_for or 0:.0f} s in the middle of it"
    )
    why = "it fell silent in the middle of a write"
    try:
        with connection.transaction():
            node.db.demote(repository.id, name, why, intent, connection=connection)
            node.db.record(
                repository.id, EventKind.FENCE, node.name, line, intent.refs, connection=connection
            )
    except WriteConflict:
        return []  # it came back at the last moment, and has committed
    return [line]


def _resolve(
    node: Node,
    snapshot: Snapshot,
    mine: Replica,
    intent: Intent,
    connection: Connection,
    by: EventKind,
    *,
    dry_run: bool,
) -> list[str]:
    repository, base = snapshot.repository, mine.position
    _refuse_older(node, snapshot)
    found, checksum = _look(node, snapshot, intent)
    rebuildable = found is None and log_suffices(node, snapshot)
    decision = healing(snapshot, mine, found, checksum, rebuildable=rebuildable)
    if decision is Healing.PERSON:
        raise _for_a_person(node, snapshot, intent, found, note=by is EventKind.HEAL)
    moved = found.moved if found else ()
    line = _words(decision, intent, found, "would be" if dry_run else "is")
    lines = [line, *(describe(update) for update in moved)]
    if dry_run:
        return lines
    if decision is Healing.COMMIT:
        assert base is not None
        after = updated(base.checksum, moved)
        claim = replace(intent, via=by.value) if by is EventKind.HEAL else intent
        with connection.transaction():
            entry = node.db.commit(repository.id, node.name, base, after, claim, moved, connection=connection)
            node.db.record(repository.id, by, node.name, line, moved, connection=connection)
        node.store.remember(repository.id, after)
        node.store.mark(repository, entry.position, [entry])
        return lines
    if decision is Healing.PUT_BACK:
        node.store.remove_stale_locks(repository.id)
        put_back(node, repository.id, moved)
    if decision is Healing.GIVE_UP and node.store.exists(repository.id):
        with suppress(GitFailed):  # the refs that moved are illegible; what they were to be may be there (G8)
            node.store.keep_lost(repository.id, [(u.ref, u.new) for u in intent.refs if not u.deletes])
    with connection.transaction():
        if decision is Healing.GIVE_UP:
            why = "its disk held no readable copy in the middle of a write"
            node.db.demote(repository.id, node.name, why, intent, connection=connection)
        else:
            node.db.clear_intent(repository.id, intent.token, connection=connection)
        node.db.record(repository.id, by, node.name, line, moved or intent.refs, connection=connection)
    if base is not None and checksum is not None and node.store.checksum(repository.id) != base.checksum:
        why = f"its refs are not those of version {base.version}"
        node.db.quarantine(repository.id, node.name, why)
    return lines


def _refuse_older(node: Node, snapshot: Snapshot) -> None:
    """Raise Frozen where the database came back older than a disk: the intent in it may have become a version, or have
    been called off, in what it lost (guarantee G7)."""
    refuse_other_history(node, snapshot)
    knowing = [replica.device.name for replica in snapshot.replicas if replica.knows_more]
    if knowing:
        raise Frozen(
            f"{snapshot.repository.name} is frozen: the database is older than the disk of {', '.join(knowing)}",
            hint=f"first put back what it lost: `git-cluster thaw {snapshot.repository.name}`",
        )


def _look(node: Node, snapshot: Snapshot, intent: Intent) -> tuple[Interrupted | None, Checksum | None]:
    """The refs of the intent as this disk shows them (None: it shows none), and the checksum of all refs."""
    repository = snapshot.repository
    try:
        now = node.store.values(repository.id, [update.ref for update in intent.refs])
    except ReplicaUnfit:
        return None, None
    checksum = node.store.checksum(repository.id)
    if checksum is None:
        return None, None
    return inspect(intent, now, git.ZERO[repository.object_format]), checksum


def _words(decision: Healing, intent: Intent, found: Interrupted | None, does: str) -> str:
    push = f"the push by {intent.actor}"
    part = (
        f"a part of {push} moved" if found and found.unmoved else f"{push} cannot become a version any more"
    )
    return {
        Healing.CALL_OFF: f"no ref of {push} moved: it {does} called off",
        Healing.COMMIT: f"every ref of {push} moved: it {does} committed as a version",
        Healing.PUT_BACK: f"{part}: it {does} put back, and kept under refs/cluster/lost/",
        Healing.GIVE_UP: f"nothing of {push} is left on this disk: it {does} given up, the copy rebuilt",
    }[decision]


def _for_a_person(
    node: Node, snapshot: Snapshot, intent: Intent, found: Interrupted | None, *, note: bool
) -> Frozen:
    """What only a person can decide, with exactly the refs that it is about; `status` shows it from now on."""
    name = snapshot.repository.name
    if found is None:
        why = "its disk holds no readable copy, and no other device holds the newest version"
    else:
        why = ", ".join(f"{update.ref} is at {value[:12]}" for update, value in found.elsewhere)
    what = f"the write by {intent.actor} on {node.name} cannot be resolved by itself: {why}"
    if note:
        node.db.note_damage(snapshot.repository.id, node.name, what)
    return Frozen(
        what, hint=f"decide: `git-cluster thaw {name} --promote {node.name}` or `--demote {node.name}`"
    )


def put_back(node: Node, repository_id: int, moved: tuple[RefUpdate, ...]) -> None:
    """Undo refs that moved without a version, and keep what they pointed to (guarantee G8)."""
    node.store.keep_lost(repository_id, [(u.ref, u.new) for u in moved if u.ref != HEAD and not u.deletes])
    node.store.apply(repository_id, [RefUpdate(u.ref, u.new, u.old) for u in moved])


def describe(update: RefUpdate) -> str:
    """One ref of a change, for people."""
    old = "(new)" if update.creates else update.old[:12]
    new = "(deleted)" if update.deletes else update.new[:12]
    return f"  {update.ref}  {old} → {new}"
