"""Maintenance of one replica: few packs, an index over all of them, bitmaps, a commit-graph, packed refs.

    repack     what pushes and syncs scattered goes into packs that grow geometrically: each is at least twice as large
               as all smaller ones together, so their number grows with the logarithm of the repository, and an object
               is written again only as often. Then a multi-pack-index with bitmaps, and a commit-graph
    collect    now and then everything goes into one pack, and what no ref reaches into another ("cruft"), from which it
               is dropped after the grace period
    refs       into packed-refs

"Never between intent and commit": nothing of this begins while the replica's row has an intent or somebody holds its
write lock, and what could stand in a push's way, packing refs, is done under that lock. A repack takes longer than
pushes can wait, so pushes begin and end beside it. That is harmless, because it takes no object away from anybody:

- repack removes a pack, or a loose object, only when its objects are in a new pack that is in its place already.
  Whoever looks in vain looks at the list of packs again, as Git always does.
- collect drops only objects that were in a cruft pack when it began and have been in one for the whole grace period.
  No ref reached them all that time; refs/cluster/staged/ and refs/cluster/lost/ are refs. Git writes an object anew
  that is pushed while it is in a cruft pack. What else became unreachable, however old it is, counts as young:
  its grace begins now.
- a sync may find such an object here and refer to it while it is being dropped. So what refs reach is looked at once
  more afterwards; a replica that lost something is verified, and made anew.

An interrupted write whose intent stands for weeks keeps collect away: its old values may be needed.
"""

from __future__ import annotations

import json
import logging
import os
import time
import zlib
from contextlib import suppress
from enum import Enum, auto

from cluster.config import UpkeepSection
from cluster.errors import GitFailed
from cluster.git import DURABLE
from cluster.model import HEAD
from cluster.node import Node
from cluster.store import COLLECTED, Store

_log = logging.getLogger(__name__)

COLLECT_EVERY = 7 * 24 * 3600.0
"""Seconds between two times that a replica which changes is collected, give or take a tenth."""

LOOSE_TO_PACKS = 10
REFS_TO_PACKS = 5
"""Loose objects, and ref files, that count as one pack."""

LARGE = 16 << 20
"""Bytes of packs from which a multi-pack-index with bitmaps is worth having, however few they are."""

WRITE_WAIT = 5.0
"""Seconds to wait for the moment between two pushes."""

SURE = {**DURABLE, "core.fsync": "all", "core.hooksPath": os.devnull}
"""What is derived from objects is flushed, too: the files that it replaces go away next."""


class Need(Enum):
    """What a replica is in need of."""

    REPACK = auto()
    COLLECT = auto()


def needed(store: Store, repository_id: int, settings: UpkeepSection) -> Need | None:
    """A look at a few folders."""
    scatter, most = store.scatter(repository_id), settings.most_packs
    if (
        scatter.packs > most
        or scatter.loose > LOOSE_TO_PACKS * most
        or (scatter.size > LARGE and not scatter.indexed)
        or _many_loose_refs(store, repository_id, REFS_TO_PACKS * most)
    ):
        return Need.REPACK
    if _collect_is_due(store, repository_id):
        return Need.COLLECT
    return None


def maintain(node: Node, repository_id: int, need: Need) -> bool:
    """Do what is needed. False: not now. GitFailed, NotFound."""
    store = node.store
    with store.holding(repository_id, "upkeep", 0.0) as mine:
        if not mine or not _quiet(node, repository_id):
            return False
        begun, was = time.monotonic(), store.scatter(repository_id)
        _repack(node, repository_id)
        if need is Need.COLLECT:
            _collect(node, repository_id)
        _write_commit_graph(node, repository_id, anew=need is Need.COLLECT)
        _pack_refs(node, repository_id)
        _log.info(
            "maintenance (%s) of repository %s: %s packs and about %s loose objects became %s packs, in %.1f s",
            need.name.lower(),
            repository_id,
            was.packs,
            was.loose,
            store.scatter(repository_id).packs,
            time.monotonic() - begun,
        )
    return True


def _quiet(node: Node, repository_id: int) -> bool:
    """Whether no write is between intent and commit here, nor interrupted there."""
    with node.store.holding(repository_id, "write", WRITE_WAIT) as free:
        if not free or not node.store.exists(repository_id):
            return False
        mine = node.db.snapshot_of(repository_id).of(node.name)
        return mine is not None and mine.intent is None and not mine.quarantined


def _many_loose_refs(store: Store, repository_id: int, most: int) -> bool:
    """More than `most`, and not few against the packed ones, all of which are written again with them."""
    loose = store.loose_refs(repository_id)
    return loose > most and loose * 100 > store.packed_refs(repository_id)


# ---------------------------------------------------------------------------------------------------- the steps


def _run(node: Node, repository_id: int, *arguments: str) -> None:
    """Git at the lowest priority. It inherits the upkeep lock: after a kill, the next daemon waits for it."""
    node.background.do(
        arguments,
        git_dir=node.store.path(repository_id),
        config=SURE,
        pass_fds=node.store.inherits(repository_id, "upkeep"),
    )


_ALWAYS = ("-d", "-l", "-n", "-q", "--write-midx", "--write-bitmap-index")


def _repack(node: Node, repository_id: int) -> None:
    """Everything loose into a pack, small packs into larger ones.

    A push that lands at the wrong moment leaves the bitmaps without something that they need; Git then leaves all as
    it was, and the second try has it.
    """
    try:
        _run(node, repository_id, "repack", "--geometric=2", *_ALWAYS)
    except GitFailed as error:
        _log.info("repacking repository %s once more: %s", repository_id, error.what)
        _run(node, repository_id, "repack", "--geometric=2", *_ALWAYS)


def _collect(node: Node, repository_id: int) -> None:
    """One pack of what refs reach, one of what they do not, less what has been there for the whole grace period."""
    store = node.store
    before = _values(store, repository_id)
    for pack in (store.objects(repository_id) / "pack").glob("*.pack"):
        if not pack.with_suffix(".mtimes").exists():
            with suppress(FileNotFoundError):
                os.utime(pack)  # the grace period of what it holds, and no ref reaches, begins now
    expiration = f"--cruft-expiration={int(node.upkeep.prune_after)}.seconds.ago"
    _run(node, repository_id, "repack", "-a", "--cruft", expiration, *_ALWAYS)
    _note_collected(store, repository_id)
    look_again(store, repository_id, before)


def look_again(store: Store, repository_id: int, before: set[str]) -> None:
    """Whether what refs reach now is all there, where it was when their values were `before`. GitFailed."""
    now = _values(store, repository_id)
    if now - before and not store.connected(repository_id, now - before, before):
        raise GitFailed(
            "a ref refers to objects that were dropped at the same moment", hint="verify this copy"
        )


def _values(store: Store, repository_id: int) -> set[str]:
    return {oid for ref, oid in store.every_ref(repository_id).items() if ref != HEAD}


def _write_commit_graph(node: Node, repository_id: int, *, anew: bool) -> None:
    """With the new commits in a file of their own, and small files merged; anew where commits may have gone."""
    arguments = ("commit-graph", "write", "--reachable", "--no-progress")
    try:
        _run(node, repository_id, *arguments, "--split=replace" if anew else "--split")
    except GitFailed as error:
        _log.warning("the commit-graph of repository %s is made anew: %s", repository_id, error.what)
        node.store.drop_commit_graph(repository_id)
        _run(node, repository_id, *arguments, "--split=replace")


def _pack_refs(node: Node, repository_id: int) -> None:
    """Where a push is going on after all, the next time will do."""
    if not _many_loose_refs(node.store, repository_id, 0):
        return
    with node.store.holding(repository_id, "write", WRITE_WAIT) as free:
        if free:
            node.store.remove_stale_locks(repository_id)
            node.store.pack_refs(repository_id)


# ------------------------------------------------------------------------------------------- when it was collected


def _collect_is_due(store: Store, repository_id: int) -> bool:
    """Whether the last time is a week ago (each replica at an hour of its own) and something changed since."""
    note = store.path(repository_id) / "cluster" / COLLECTED
    try:
        age = time.time() - note.stat().st_mtime
        version = json.loads(note.read_text())["version"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        _note_collected(store, repository_id, version=-1)  # of an older git-cluster: in a week
        return False
    share = zlib.crc32(f"{store.device} {repository_id}".encode()) / 2**32
    if age < COLLECT_EVERY * (0.9 + 0.2 * share):
        return False
    scatter = store.scatter(repository_id)
    return (
        scatter.packs > 1 or scatter.loose > 0 or scatter.cruft or version != _version(store, repository_id)
    )


def _note_collected(store: Store, repository_id: int, version: int | None = None) -> None:
    note = store.path(repository_id) / "cluster" / COLLECTED
    text = json.dumps({"version": _version(store, repository_id) if version is None else version})
    with suppress(FileNotFoundError):
        note.write_text(text + "\n")


def _version(store: Store, repository_id: int) -> int:
    marker = store.marker(repository_id)
    return marker.version if marker else 0
