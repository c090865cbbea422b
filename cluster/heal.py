"""Resolve an interrupted write on the device that owns it, from what its disk shows.

| the refs of the intent                | then                                                     |
|---------------------------------------|----------------------------------------------------------|
| none moved                            | clear the intent; the version stays                      |
| all moved                             | commit it: the push happened                             |
| some moved                            | put those back (kept under refs/cluster/lost/), clear it |
| one at neither its old nor new value  | a person decides: `thaw --demote` or `--promote`         |

Done under the cluster's write lock and the replica's own (flock), which a receive-pack that outlived its session
still holds: a write whose process lives is never resolved by anybody else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from cluster import git
from cluster.db import Connection
from cluster.errors import Frozen, Refused, ReplicaUnfit
from cluster.locks import write_lock
from cluster.model import HEAD, Intent, RefUpdate, Replica, Snapshot
from cluster.node import Node
from cluster.versions import inspect, updated

_log = logging.getLogger(__name__)

MOMENT = 2.0
"""Seconds that a commit or a step of a sync may take before whoever does it counts as carrying a write."""

PATIENCE = 10.0
"""Seconds to wait for locks before saying that somebody is still writing."""


def alive(node: Node, repository_id: int) -> bool:
    """Whether a process on this device still carries a write of this repository; a sync holds the lock as briefly
    as a commit does, and is waited for."""
    with node.store.holding(repository_id, "write", MOMENT) as free:
        return not free


@contextmanager
def still(node: Node, repository_id: int, actor: str) -> Iterator[Connection]:
    """Hold both locks of a write: nobody moves refs here, nobody intends anywhere. Refused while somebody does.

    A live write is looked for first: its session may have lost the cluster's lock, and still has its turn here.
    """
    if alive(node, repository_id):
        raise _carried(node)
    with (
        write_lock(
            node.turns, node.db, repository_id, device=node.name, actor=actor, timeout=PATIENCE
        ) as connection,
        node.store.holding(repository_id, "write", PATIENCE) as got,
    ):
        if not got:
            raise _carried(node)
        yield connection


def _carried(node: Node) -> Refused:
    return Refused(
        f"a process on device {node.name} still carries this write", hint="it ends by itself; try again"
    )


def fence(node: Node, repository_id: int) -> list[str]:
    """Withdraw the claim of a device that has not been seen for fence_after, so that others may write (G6, G8).

    Only by a device that holds the newest version itself: what the silent one may have moved was acknowledged to
    nobody. Its token is void, so a process of its that still lives cannot commit; its copy is rebuilt when it is back.
    """
    with write_lock(
        node.turns, node.db, repository_id, device=node.name, actor="fence", timeout=PATIENCE
    ) as connection:
        _, silent = node.db.interrupted(node.name, node.writes.fence_after)
        snapshot = node.db.snapshot_of(repository_id)
        owner = snapshot.intent_owner
        if repository_id not in silent or owner is None or owner.intent is None:
            return []
        name = owner.device.name
        why = f"demoted: silent for more than {node.writes.fence_after:g} s in the middle of a write"
        node.db.demote(repository_id, name, why, connection=connection)
        return [
            f"the push by {owner.intent.actor} on {name} is given up: {name} has not been seen for too long"
        ]


def resolve(node: Node, repository_id: int, *, dry_run: bool = False) -> list[str]:
    """Do what the table says for the intent of this device's replica; what was (or would be) done, in lines."""
    with still(node, repository_id, "thaw") as connection:
        snapshot = node.db.snapshot_of(repository_id)
        mine = snapshot.of(node.name)
        if mine is None or mine.intent is None:
            return [f"{snapshot.repository.name} has no interrupted write on {node.name} any more"]
        return _resolve(node, snapshot, mine, mine.intent, connection, dry_run=dry_run)


def _resolve(
    node: Node, snapshot: Snapshot, mine: Replica, intent: Intent, connection: Connection, *, dry_run: bool
) -> list[str]:
    repository = snapshot.repository
    try:
        now = node.store.values(repository.id, [u.ref for u in intent.refs])
    except ReplicaUnfit as error:
        raise _for_a_person(node, snapshot, intent, "its disk holds no readable copy") from error
    found = inspect(intent, now, git.ZERO[repository.object_format])
    if found.elsewhere:
        names = ", ".join(f"{update.ref} is at {value[:12]}" for update, value in found.elsewhere)
        raise _for_a_person(node, snapshot, intent, names)
    lines = [describe(update) for update in found.moved]
    does = "would be" if dry_run else "is"
    if found.moved and not found.unmoved:
        assert mine.position is not None
        checksum = updated(mine.position.checksum, found.moved)
        if node.store.checksum(repository.id) != checksum:
            raise _for_a_person(
                node, snapshot, intent, f"its other refs are not those of version {mine.version}"
            )
        if not dry_run:
            position = node.db.commit(
                repository.id, node.name, mine.position, checksum, intent, found.moved, connection=connection
            )
            node.store.remember(repository.id, checksum)
            node.store.mark(repository.id, position)
        return [f"every ref of the push by {intent.actor} moved: it {does} committed as a version", *lines]
    if not dry_run:
        node.store.remove_stale_locks(repository.id)
        put_back(node, repository.id, found.moved)
        node.db.clear_intent(repository.id, intent.token)
    if not found.moved:
        return [f"no ref of the push by {intent.actor} moved: it {does} called off"]
    return [
        f"a part of the push by {intent.actor} moved: it {does} put back, and kept under refs/cluster/lost/",
        *lines,
    ]


def _for_a_person(node: Node, snapshot: Snapshot, intent: Intent, why: str) -> Frozen:
    name = snapshot.repository.name
    return Frozen(
        f"the write by {intent.actor} on {node.name} cannot be resolved by itself: {why}",
        hint=f"decide: `git-cluster thaw {name} --promote {node.name}` or `--demote {node.name}`",
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
