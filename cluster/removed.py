"""The copy that stays on a disk when its repository is taken away from the device.

From the moment that the row is gone nothing here is served, written to, synced from or staged to: each begins with the
row. What is left of it is moved to the trash, as a deleted repository's copy is, with the lost refs that it may hold
(guarantee G8). Placed here again, the repository begins anew; or goes on with this copy, where it was not moved yet.

No Git process of ours may be at work in it: the copy's locks say so. Whoever reads it goes on: Git has its folder as
its working directory, which moves along.

A database that came back older than the disks has no row, either, of what was placed here after the backup. So a copy
whose marker names a version that the log does not have is left where it is, and the repository is frozen (G7).
"""

from __future__ import annotations

import logging
from contextlib import ExitStack

from cluster import history
from cluster.errors import NotFound
from cluster.logs import fields
from cluster.node import Node

_log = logging.getLogger(__name__)

BATCH = 1000
"""Copies that the database is asked for at once."""

LOCKS = ("sync", "verify", "upkeep", "objects", "write")
"""All that somebody who works in a copy may hold."""


def set_aside(node: Node, repository_id: int) -> bool:
    """Move this disk's copy of a repository that is not placed here to the trash; whether that was done.

    False: there is none, it is placed here (again), somebody is at work in it, or it knows more than the database.
    """
    store = node.store
    if store.folder(repository_id) is None:
        return False
    with ExitStack() as locks:
        if not all(locks.enter_context(store.holding(repository_id, kind, 0.0)) for kind in LOCKS):
            return False
        # With the sync lock held: placed again from here on, it has no copy yet, and a sync waits for us.
        try:
            snapshot = node.db.snapshot_of(repository_id)
        except NotFound:  # deleted, or never heard of: upkeep.tidy and history.strangers see to these
            return False
        if snapshot.of(node.name) is not None:
            return False
        marker = history.unknown_marker(node, snapshot.repository)
        if marker is not None:
            _freeze(node, repository_id, snapshot.repository.name, marker.version)
            return False
        store.set_aside(repository_id, "removed")
    _log.info("its copy was set aside: it is not kept here any more", extra=fields(repository=repository_id))
    return True


def _freeze(node: Node, repository_id: int, name: str, version: int) -> None:
    why = (
        f"device {node.name}, which does not hold it as far as the database knows, has a copy at version {version}, "
        f"which the database does not know; look at it with `git-cluster repo place {name} --add {node.name}`"
    )
    if node.db.snapshot_of(repository_id).repository.frozen is None:
        node.db.freeze(repository_id, why, device=node.name)
        _log.warning("%s is frozen: %s", name, why)


def sweep(node: Node) -> None:
    """The same for every copy on this disk: what was taken away while this device was off."""
    copies = node.store.copies()
    for start in range(0, len(copies), BATCH):
        batch = copies[start : start + BATCH]
        held = node.db.held_among(node.name, batch)
        for repository_id in batch:
            if repository_id not in held:
                set_aside(node, repository_id)
