"""Waiting for an interrupted write, which whoever can is to resolve meanwhile."""

from __future__ import annotations

import logging
from collections.abc import Callable

from cluster.errors import ClusterError, DatabaseUnavailable
from cluster.heal import alive, recover
from cluster.logs import fields
from cluster.model import Replica, Snapshot
from cluster.node import Node
from cluster.sync import Say, wait_for

_log = logging.getLogger(__name__)

RESTART = 10.0
"""Seconds that are granted to a device that is down and alone with the newest version: it may be restarting."""

SIGN_OF_LIFE = 2.0
"""Seconds for a device to show that a write which looks interrupted is going on: milliseconds where it is up."""


def resolved(
    node: Node, snapshot: Snapshot, say: Say, gone: Callable[[], bool], at_most: float = float("inf")
) -> bool:
    """Have the devices look at the intent in `snapshot`, and wait as long as there is hope that it is resolved.

    True: it is gone, or its write is going on after all; look again. False: it takes a person, or a device that is
    away. Another device takes over only after fence_after, so a writer may wait that long and is told.
    """
    owner, repository_id = snapshot.intent_owner, snapshot.repository.id
    assert owner is not None and owner.intent is not None

    def settled() -> bool:
        snapshot_now = node.db.snapshot_of(repository_id)
        now = snapshot_now.intent_owner
        return (
            now is None
            or now.intent != owner.intent
            or snapshot_now.repository.frozen != snapshot.repository.frozen
            or node.db.write_lock_holder(repository_id) is not None
        )

    patience = min(_hope(node, snapshot, owner), at_most)
    if settled():
        return True
    if not patience:
        return False
    node.db.nudge(repository_id)
    if node.alone and owner.device.name == node.name:
        _heal_here(node, repository_id)
    if wait_for(settled, min(1.0, patience), gone):
        return True
    if patience > SIGN_OF_LIFE:
        where = f"{owner.device.name} ({owner.device.state})"
        say(f"a push by {owner.intent.actor} on {where} was interrupted; waiting until that is resolved")
    return wait_for(settled, patience - 1.0, gone)


def _heal_here(node: Node, repository_id: int) -> None:
    """What the daemon would do that hears the nudge, if there were one (cluster/keeper.py)."""
    if not node.heals or node.db.write_lock_holder(repository_id) or alive(node, repository_id, 0.0):
        return
    try:
        for line in recover(node, repository_id):
            _log.warning("healed: %s", line, extra=fields(repository=repository_id))
    except DatabaseUnavailable:
        raise
    except ClusterError as error:
        _log.info("not healed: %s", error.what, extra=fields(repository=repository_id))


def _hope(node: Node, snapshot: Snapshot, owner: Replica) -> float:
    """Seconds for which an interrupted write may still be resolved by itself."""
    if owner.damage is not None:
        return 0.0
    if not node.heals:
        return SIGN_OF_LIFE if owner.device.online else 0.0
    others = any(r.device.online for r in snapshot.leaders if r.device.name != owner.device.name)
    return node.writes.lock_timeout if owner.device.online or others else RESTART
