"""A disk that knows more than the database (guarantee G7): noticed here, by the device that has the disk.

Every marker names a version that was committed. So where the database does not know that version, or knows another one
by its number, it came back older than this disk: a restored backup, or a fail-over that lost commits. Then the device
reports its marker on its replica's row, the repository is frozen, and this copy is neither served nor changed until a
person decides: `git-cluster thaw` puts the lost versions back from the journals (restore.py), or gives a history up.

    the marker's version    in the log            then
    known                   with its checksum     all is well
    newer than the log      –                     the database is older
    known                   with another one      it is older, and has gone on from there: two histories
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from cluster import git, journal
from cluster.db import Held
from cluster.errors import Frozen, NotFound, Refused, ReplicaUnfit
from cluster.marker import Marker
from cluster.model import HEAD, LogEntry, Position, Replica, Repository, Snapshot
from cluster.node import Node
from cluster.versions import checksum_of

_log = logging.getLogger(__name__)

BATCH = 1000
"""Copies that the database is asked for at once."""

MOMENT = 2.0
"""Seconds to wait for a step of a write or of a sync of this replica to end; they take milliseconds."""


# ------------------------------------------------------------------------------------------------------ noticing


def other_history(node: Node, snapshot: Snapshot) -> str | None:
    """Where the disk was told of a version that the database does not know, or knows otherwise: in words."""
    marker = unknown_marker(node, snapshot.repository)
    return None if marker is None else _words(node, snapshot.repository, marker)


def unknown_marker(
    node: Node, repository: Repository, *, known: Iterable[Position | None] = ()
) -> Marker | None:
    """This replica's marker, where it names what the log does not have. One of another repository says nothing.
    known: positions that the log has, as those of rows are by their foreign keys: those are not asked for."""
    store = node.store
    marker = store.marker(repository.id)
    if marker is None or store.foreign(repository.id) or store.former(repository):
        return None
    named = (marker.version, marker.checksum)
    if any(
        position is not None and (position.version, str(position.checksum)) == named for position in known
    ):
        return None
    found = node.db.position_at(repository.id, marker.version)
    return None if found is not None and str(found.checksum) == marker.checksum else marker


def refuse_other_history(node: Node, snapshot: Snapshot) -> None:
    """Report the disk's marker, and raise Frozen, where the disk's history is not the database's.

    Not where a person gave up just that: the replica was demoted after its marker was reported. A fence demotes
    without having seen the disk, so it gives up nothing that the disk knows.
    """
    repository, mine = snapshot.repository, snapshot.of(node.name)
    marker = unknown_marker(node, repository, known=(repository.position, mine.position if mine else None))
    if marker is None:
        if mine is not None and mine.knows_more:
            node.db.forget_marker(repository.id, node.name)
        return
    reported = mine is not None and (mine.marker, mine.marker_checksum) == (marker.version, marker.checksum)
    if reported and mine is not None and mine.demoted:
        return
    reason = _words(node, repository, marker)
    if not reported or repository.frozen is None:
        why = reason
        if marker.version > repository.version and _fork(node, repository, marker) is None:
            why = f"the database is older than the disks: it knows versions up to {repository.version}"
        if not node.db.report_marker(repository.id, node.name, marker.version, marker.checksum, why):
            return
        _log.warning("%s is frozen: %s", repository.name, reason)
    raise Frozen(
        f"{repository.name} is frozen: {reason}",
        hint="an administrator puts back what the database lost: "
        f"`git-cluster thaw {repository.name} --dry-run` shows what that is; nothing is lost meanwhile",
    )


def _words(node: Node, repository: Repository, marker: Marker) -> str:
    fork = _fork(node, repository, marker)
    if fork is None:
        return (
            f"the database is older than device {node.name}'s disk: it knows versions up to "
            f"{repository.version}, the disk is at {marker.version}"
        )
    return f"the database and device {node.name}'s disk disagree on what version {fork} is"


def _fork(node: Node, repository: Repository, marker: Marker) -> int | None:
    """The first version that this disk and the database both know, each another one; None: as far as one can see, the
    disk only goes further."""
    entries = journal.run(node.store.journal(repository.id), marker.version, marker.checksum)
    shared = {entry.version: str(entry.checksum) for entry in entries if entry.version <= repository.version}
    if marker.version <= repository.version:
        shared[marker.version] = marker.checksum
    known = node.db.checksums(repository.id, list(shared))
    return min((v for v, checksum in known.items() if str(checksum) != shared[v]), default=None)


def ahead(node: Node, held: Held) -> bool:
    """Whether the marker here names a newer version than the database's newest was, or another one by its number: then
    it is to be looked at. A small file is read."""
    marker = node.store.marker(held.repository_id)
    return marker is not None and (
        marker.version > held.newest.version
        or (marker.version == held.newest.version and marker.checksum != str(held.newest.checksum))
    )


def strangers(node: Node) -> list[str]:
    """The copies on this disk of repositories that the database has never heard of, in words: they were created after
    the backup that it came back from. Nothing touches them; once their number is given anew, they are set aside."""
    copies = node.store.copies()
    found = []
    for repository_id in sorted(
        unknown
        for start in range(0, len(copies), BATCH)
        for unknown in node.db.unknown(copies[start : start + BATCH])
    ):
        marker = node.store.marker(repository_id)
        if marker is not None and marker.cluster == node.store.cluster_id:
            found.append(
                f"the database does not know the repository {marker.name or '(of unknown name)'}, whose copy "
                f"{repository_id // 1000:03d}/{repository_id}.git is here, at version {marker.version}"
            )
    return found


# ------------------------------------------------------------------------------------------------------- marking


def mark(
    node: Node, repository: Repository, position: Position, entries: Sequence[LogEntry] | None = None
) -> None:
    """Journal what this disk has been brought to, and mark it. entries: what leads there, where the caller has it;
    None: the newest ones are read from the log."""
    if entries is None:
        since = position.version - journal.MOST_CAUGHT_UP
        entries = node.db.entries(repository.id, since, position.version, most_refs=journal.MOST_REFS)
    node.store.mark(repository, position, [entry for entry in entries if entry.version > 0])


def mark_again(node: Node, repository: Repository, position: Position) -> None:
    """The same for a replica that is at `position` already, where its marker or its journal does not say so."""
    marker = node.store.marker(repository.id)
    if (
        marker is None
        or marker.created is None
        or (marker.version, marker.checksum) != (position.version, str(position.checksum))
        or (position.version > 0 and not node.store.journals(repository.id))
    ):
        mark(node, repository, position)


def reclaimed(node: Node, snapshot: Snapshot) -> Snapshot:
    """Claim a newer position than the row's where the marker, the refs on disk and the log all name it: what was lost
    is the claim, not the content. By whoever holds the replica's write lock; returns the row as it is then."""
    repository, mine = snapshot.repository, snapshot.of(node.name)
    if mine is None or mine.position is None or mine.quarantined or mine.intent is not None:
        return snapshot
    marker = node.store.marker(repository.id)
    if marker is None or marker.version <= mine.position.version or node.store.former(repository):
        return snapshot
    known = node.db.position_at(repository.id, marker.version)
    if known is None or str(known.checksum) != marker.checksum:
        return snapshot
    if node.store.checksum(repository.id) != known.checksum:
        return snapshot
    node.db.synced(repository.id, node.name, mine.position, known)
    return node.db.snapshot_of(repository.id)


# ------------------------------------------------------------------------------------------------------- telling


def tell(node: Node, snapshot: Snapshot) -> dict[str, Any]:
    """What this disk knows that the database does not, for `git-cluster thaw`; it is reported, too.

    known: the log has what the marker names. fork: the first version that both have, each another one. exact: the refs
    on disk are the marker's. whole: everything that those versions reach is here. entries: of the journal, those that
    lead from the database's newest version (or from before the fork) to the marker.
    """
    repository = snapshot.repository
    with node.store.holding(repository.id, "write", MOMENT) as still:
        if not still:
            raise Refused(
                f"a process on device {node.name} is still writing", hint="it ends by itself; try again"
            )
        snapshot = node.db.snapshot_of(repository.id)
        mine = snapshot.of(node.name)
        if mine is None:
            raise NotFound(f"device {node.name} does not hold {repository.name}")
        return _tell(node, snapshot, mine)


def _tell(node: Node, snapshot: Snapshot, mine: Replica) -> dict[str, Any]:
    repository, store = snapshot.repository, node.store
    marker = unknown_marker(node, repository)
    with suppress(Frozen):
        refuse_other_history(node, snapshot)
    if marker is None:
        return {"known": True}
    fork = _fork(node, repository, marker)
    since = repository.version if fork is None else fork - 1
    entries = [
        entry
        for entry in journal.run(store.journal(repository.id), marker.version, marker.checksum)
        if entry.version > since
    ]
    checksum = store.checksum(repository.id)
    exact = checksum is not None and str(checksum) == marker.checksum
    whole = False
    if fork is None:
        entries, whole = _verified(node, repository, entries, exact=exact)
    return {
        "known": False,
        "version": marker.version,
        "checksum": marker.checksum,
        "fork": fork,
        "exact": exact,
        "whole": whole,
        "entries": [journal.as_json(entry) for entry in entries],
    }


def _verified(
    node: Node, repository: Repository, entries: list[LogEntry], *, exact: bool
) -> tuple[list[LogEntry], bool]:
    """The entries, completed from the disk where one lacks its refs, and whether all that they lead to is here."""
    base = node.db.refs_at(repository.id, repository.version)
    zero = git.ZERO[repository.object_format]
    disk: dict[str, str] = {}
    if exact:
        try:
            disk = node.store.refs(repository.id)
        except ReplicaUnfit:
            exact = False
    reaches_back = bool(entries) and entries[0].version == repository.version + 1
    if exact and reaches_back:
        entries = journal.filled(entries, base, disk, zero)
    if not exact:
        if not reaches_back:
            return entries, False
        disk = dict(base)
        for entry in entries:
            disk.update((update.ref, update.new) for update in entry.refs)
        if checksum_of(disk) != entries[-1].checksum:
            return entries, False
    wanted = {value for ref, value in disk.items() if ref != HEAD and value.strip("0")}
    known = node.store.existing(repository.id, sorted({v for ref, v in base.items() if ref != HEAD}))
    return entries, node.store.connected(repository.id, wanted, known)
