"""The gate: what a request passes before it may read or write a replica.

Reading (docs/architecture.md, "The life of a read"):

    snapshot ─▶ newest here and nothing in flight ─▶ serve          one query, no lock
             ─▶ a commit in flight ─▶ wait for it, look again       milliseconds
             ─▶ behind, or not what it should be ─▶ sync, look again

Writing (docs/write-protocol.md). The invariant: refs of a replica move only while its intent stands in the
database, and the intent is cleared only by a commit that accounts for every ref that moved, or when none did.
Hence the order:

    lock    the cluster's write lock: one writer at a time, in the order of arrival
    clear   another's intent in spite of the lock means an interrupted write: heal it, or refuse
    settle  be at the newest version, for the intent is held against it
    intend  from here on an interruption leaves a trace
    apply   Git moves the refs
    commit  the trace becomes a version; only now may anybody be told "ok"
    mark    the disk says so too
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from threading import Thread
from uuid import UUID, uuid4

from cluster import git
from cluster.client import Client
from cluster.db import Connection
from cluster.disk import ReplicaLock
from cluster.errors import (
    DatabaseUnavailable,
    Frozen,
    LockTimeout,
    Refused,
    ReplicaUnfit,
    WriteConflict,
)
from cluster.faults import Step
from cluster.heal import met
from cluster.interrupted import resolved
from cluster.locks import Held
from cluster.logs import fields
from cluster.model import (
    Checksum,
    Intent,
    LogEntry,
    Position,
    RefUpdate,
    Repository,
    Request,
    Snapshot,
)
from cluster.node import Node
from cluster.sync import Say, catch_up, interrupted, wait_for
from cluster.versions import Fit, Local, fit_to_read, updated

_log = logging.getLogger(__name__)

ROUNDS = 50
"""How often a reader looks again before it gives up: each round waited for a commit or made a sync."""

STUCK_ELSEWHERE = 5.0
"""Seconds after which a commit that is stuck on another device is not waited for: nobody was told of it yet."""

INTENT_WITHDRAWAL = 15.0
"""Seconds for which a write that was called off before refs moved tries to withdraw its intent."""


# ---------------------------------------------------------------------------------------------------- reading


def fresh(node: Node, snapshot: Snapshot, say: Say, gone: Callable[[], bool]) -> Snapshot:
    """Return once this device may show the repository: a snapshot whose newest version is on this disk.

    A commit in flight on another device is waited for once, and not for ever: whatever begins after that was not
    acknowledged to anybody when this request came. On this device's own it has to be: its refs are moving here.
    """
    repository_id = snapshot.repository.id
    waited = False
    for _ in range(ROUNDS):
        owner = snapshot.intent_owner
        matters = owner is not None and (not waited or owner.device.name == node.name)
        locked = matters and node.db.write_lock_holder(repository_id) is not None
        local = Local(_on_disk(node, snapshot))
        fit = fit_to_read(snapshot, node.name, local, write_locked=locked)
        if fit is Fit.SERVE:
            return snapshot
        if fit is Fit.WAIT:
            _wait_for_commit(node, snapshot, say, gone)
            waited = True
        elif fit is Fit.UNCOMMITTED and not _knows_more(node, snapshot):
            assert owner is not None
            if not resolved(node, snapshot, say, gone, at_most=OWN_HEALING):
                raise _elsewhere(snapshot, interrupted(snapshot, owner), node.name)
        else:
            snapshot = catch_up(node, repository_id, say, gone)
            continue
        snapshot = node.db.snapshot_of(repository_id)
    raise LockTimeout("this repository changes faster than this device can follow", hint="try again")


def _on_disk(node: Node, snapshot: Snapshot) -> Checksum | None:
    """The checksum of the refs here. None: nothing that counts, as where the disk knows of a version that the
    database does not; a sync looks closer then, and freezes the repository if that is so (guarantee G7)."""
    marker = node.store.marker(snapshot.repository.id)
    if marker is not None and marker.version > snapshot.repository.version:
        return None
    return node.store.checksum(snapshot.repository.id)


def _knows_more(node: Node, snapshot: Snapshot) -> bool:
    """Whether this disk was found to know versions that the database has lost: then a sync says so."""
    mine = snapshot.of(node.name)
    return mine is not None and mine.knows_more


def _wait_for_commit(node: Node, snapshot: Snapshot, say: Say, gone: Callable[[], bool]) -> None:
    owner = snapshot.intent_owner
    assert owner is not None and owner.intent is not None
    token, repository_id = owner.intent.token, snapshot.repository.id

    def settled() -> bool:
        now = node.db.snapshot_of(repository_id).intent_owner
        return (
            now is None
            or now.intent is None
            or now.intent.token != token
            or node.db.write_lock_holder(repository_id) is None
        )

    if wait_for(settled, 1.0, gone, node.bell):
        return
    say(f"waiting for a push by {owner.intent.actor} on {owner.device.name} that is being committed")
    here = owner.device.name == node.name
    patience = node.writes.lock_timeout if here else STUCK_ELSEWHERE
    if not wait_for(settled, patience, gone, node.bell) and here:
        raise LockTimeout(
            f"a push by {owner.intent.actor} on {owner.device.name} is being committed for too long",
            hint="try again later; `git-cluster status` shows it",
        )


def _elsewhere(snapshot: Snapshot, error: Frozen, device: str) -> Frozen:
    """The same error, with the devices that can still be read from."""
    others = [r.device for r in snapshot.leaders if r.device.name != device and r.device.online]
    if not others:
        return error
    return Frozen(
        error.what, hint=f"read from {' or '.join(d.ssh_url for d in others)} meanwhile; {error.hint}"
    )


# ---------------------------------------------------------------------------------------------------- writing


OWN_HEALING = 10.0
"""Seconds that a reader waits for this device's own interrupted write: healing it takes milliseconds."""


def refuse_frozen(node: Node, snapshot: Snapshot, say: Say, gone: Callable[[], bool]) -> None:
    """Raise Frozen where a push would be refused at "clear" anyway: before its objects are sent to peers."""
    refuse_frozen_by_hand(snapshot)
    owner = snapshot.intent_owner
    if owner is None or node.db.write_lock_holder(snapshot.repository.id) is not None:
        return
    if not resolved(node, snapshot, say, gone):
        raise interrupted(snapshot, owner)


MOST_REF_BYTES = 1024
"""A ref name has to fit an index entry of the push log (PostgreSQL: about 2,700 bytes)."""


def refuse_unspeakable(updates: Sequence[RefUpdate]) -> None:
    """Raise Refused for ref names that the push log cannot hold: bytes that are not UTF-8, or very many of them."""
    for update in updates:
        try:
            size = len(update.ref.encode())
        except UnicodeEncodeError:
            shown = update.ref.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
            raise Refused(
                f"the ref name {shown[:100]} is not UTF-8", hint="rename it and push again"
            ) from None
        if size > MOST_REF_BYTES:
            raise Refused(
                f"the ref name {update.ref[:60]}… is longer than {MOST_REF_BYTES} bytes",
                hint="choose a shorter name",
            )


def refuse_frozen_by_hand(snapshot: Snapshot) -> None:
    """Raise Frozen where a person, or a disk that knows more than the database, stopped all writes."""
    repository = snapshot.repository
    if repository.frozen is not None:
        raise Frozen(
            f"{repository.name} is frozen: {repository.frozen}",
            hint=f"an administrator ends this with `git-cluster thaw {repository.name}`",
        )


class Write:
    """One write of one repository on this device, from "clear" to "mark". "commit" lets go of the write lock."""

    def __init__(
        self, node: Node, repository: Repository, request: Request, held: Held, lock: ReplicaLock
    ) -> None:
        self._node, self._repository, self._request = node, repository, request
        self._connection, self._seen, self._lock = held.connection, held.seen, lock
        self._caught_up, self._let_go = held.caught_up, held.let_go
        self._session = held.connection.info.backend_pid
        self._intent: Intent | None = None
        self._doubtful = False
        self._base: Position | None = None
        self._begun = False

    def clear(self) -> Snapshot | None:
        """Make sure that no interrupted write is in the way: heal it, where that is ours to do. Frozen.

        A snapshot: there is one that only another device can resolve, and it needs the lock that we hold for that.
        """
        node = self._node
        node.reach(Step.CLEAR)
        refuse_frozen_by_hand(self._seen)
        if self._seen.intent_owner is None:
            return None
        if not node.heals or not met(node, self._seen, self._connection):
            return self._seen
        self._seen = node.db.snapshot_of(self._repository.id)
        return None

    def settle(self, say: Say, gone: Callable[[], bool]) -> Position:
        """Be at the newest version. Nobody else can commit now, so it stays the newest."""
        self._node.reach(Step.SETTLE)
        snapshot = self._seen
        mine = snapshot.of(self._node.name)
        current = (
            mine is not None
            and mine.position == snapshot.repository.position
            and not mine.quarantined
            and _on_disk(self._node, snapshot) == snapshot.repository.position.checksum
        )
        if not current:
            snapshot = catch_up(self._node, self._repository.id, say, gone)
            self._caught_up()
        self._base = snapshot.repository.position
        return self._base

    def conflicts(self, updates: Sequence[RefUpdate]) -> dict[str, str]:
        """Which of `updates` Git is going to refuse because their old values are no longer true, and why."""
        node, repository = self._node, self._repository
        now = node.store.values(repository.id, [update.ref for update in updates])
        zero = git.ZERO[repository.object_format]
        reasons = {}
        for update in updates:
            value = now.get(update.ref, zero)
            if value != update.old:
                entry = node.db.last_change(repository.id, update.ref)
                to = "was deleted" if value == zero else f"moved to {value[:12]}"
                by = f" by {entry.actor} on {entry.device}" if entry else ""
                reasons[update.ref] = f"fetch first: {update.ref} {to}{by}"
        return reasons

    def intend(self, push_id: UUID, updates: Sequence[RefUpdate], copies: Sequence[str] = ()) -> None:
        """Write down what is about to happen; `copies` hold what it brings. Only `commit` or `withdraw` clears it."""
        node, request = self._node, self._request
        node.reach(Step.INTEND)
        assert self._base is not None
        if not self._lock.acquire(node.writes.lock_timeout):
            raise LockTimeout(
                "another write to this replica has not ended yet", hint="push again; see `git-cluster status`"
            )
        if self._lock.folder != node.store.folder(self._repository.id):
            raise ReplicaUnfit("this device's copy was made anew during the upload", hint="push again")
        node.store.remove_stale_locks(self._repository.id, suspected=True)
        self._intent = Intent(
            token=uuid4(),
            push_id=push_id,
            actor=request.actor.name,
            via=request.via,
            address=request.address,
            at=datetime.now(UTC),
            refs=tuple(updates),
        )
        self._doubtful = True
        node.db.intend(self._connection, self._repository.id, node.name, self._base, self._intent, copies)
        self._doubtful = False

    def begins(self) -> None:
        """Git may move refs from now on: from here on the intent is not withdrawn just because something failed."""
        self._begun = True

    @property
    def lock_socket(self) -> int | None:
        """Of the connection that holds the write lock; None where that has ended already."""
        return None if self._connection.closed else self._connection.fileno()

    def lock_lost(self) -> None:
        """That connection ended while Git moves refs. Have the daemon hold the lock instead (heal.stand_in), before
        anybody takes this write for an interrupted one."""

        def nudge() -> None:
            with suppress(DatabaseUnavailable):
                self._node.db.nudge(self._repository.id)

        Thread(target=nudge, name="lock lost", daemon=True).start()

    def really_moved(self, said: tuple[RefUpdate, ...] | None) -> tuple[RefUpdate, ...]:
        """What Git says it moved; where it ended without a word (killed), what the refs on disk say."""
        if said is not None:
            return tuple(update for update in said if update.old != update.new)
        assert self._intent is not None
        zero = git.ZERO[self._repository.object_format]
        now = self._node.store.values(self._repository.id, [u.ref for u in self._intent.refs])
        return tuple(
            RefUpdate(u.ref, u.old, now.get(u.ref, zero))
            for u in self._intent.refs
            if now.get(u.ref, zero) != u.old
        )

    def commit(self, moved: Sequence[RefUpdate], say: Say) -> LogEntry:
        """Make a version of the refs that moved. Keeps trying for commit_timeout when the database goes away.

        The intent keeps everybody else out, so a late commit is as safe as an early one. A commit whose answer was
        lost is found in the log by the push's id.
        """
        node, repository, intent, base = self._node, self._repository, self._intent, self._base
        assert intent is not None and base is not None
        node.reach(Step.COMMIT)
        checksum = updated(base.checksum, moved)
        deadline = time.monotonic() + node.writes.commit_timeout
        connection: Connection | None = self._connection
        pause, told, void = 0.05, False, False
        while True:
            try:
                if connection is None and (position := node.db.committed(repository.id, intent.push_id)):
                    (entry,) = node.db.log(repository.id, limit=1, before=position.version + 1)
                    break
                entry = node.db.commit(
                    repository.id, node.name, base, checksum, intent, moved, connection=connection
                )
                break
            except WriteConflict:
                # By an earlier try of our own, perhaps: where only its connection was cut, PostgreSQL goes on with it.
                if void:
                    raise
                connection, void = None, True
            except DatabaseUnavailable as error:
                if time.monotonic() > deadline:
                    raise DatabaseUnavailable(
                        f"the database stayed away for {node.writes.commit_timeout:g} s, so this push is not committed",
                        hint="fetch before you push again: an administrator may still complete this push",
                    ) from error
                if not told and connection is None:
                    told = True
                    say("the database is away; still trying to commit this push")
                if connection is None:
                    time.sleep(pause)
                    pause = min(pause * 2, 1.0)
                connection = None
        self._intent = None
        with suppress(OSError):
            node.store.remember(repository.id, entry.checksum)
        self._let_go()  # what is left to do is this replica's own affair, and its lock is held
        node.measures.committed()
        _log.info(
            "committed",
            extra=fields(
                repository=repository.name,
                version=entry.version,
                push=intent.push_id,
                actor=intent.actor,
                refs=len(moved),
            ),
        )
        return entry

    def mark(self, entry: LogEntry) -> None:
        """Note on disk what was committed. The commit stands whether this works or not."""
        node = self._node
        node.reach(Step.MARK)
        try:
            node.store.mark(self._repository, entry.position, [entry])
        except OSError:
            _log.exception("the marker of %s could not be written", self._repository.name)

    def withdraw(self, patience: float | None = None) -> None:
        """Clear the intent of a write that moved nothing; tries for `patience` seconds, then leaves it (G6).

        Where it is not known whether it was written, because its connection was cut, PostgreSQL may still be about to:
        that session has to have ended before there is nothing to clear.
        """
        if self._intent is None:
            return
        deadline, pause = time.monotonic() + (patience or self._node.writes.commit_timeout), 0.05
        token = self._intent.token
        while True:
            try:
                cleared = self._node.db.clear_intent(self._repository.id, token)
                if cleared or not self._doubtful or not self._node.db.end_session(self._session):
                    self._intent = None
                    return
                if time.monotonic() > deadline:
                    raise DatabaseUnavailable("it cannot be told whether this push's intent was written")
            except DatabaseUnavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(pause)
            pause = min(pause * 2, 1.0)

    def close(self) -> None:
        """Leave nothing behind but what must stay: an intent under which refs may have moved."""
        try:
            if not self._begun:
                self.withdraw(INTENT_WITHDRAWAL)
        except DatabaseUnavailable:
            _log.warning("the intent of a push to %s that moved nothing stays", self._repository.name)
        finally:
            self._lock.release()


@contextmanager
def writing(
    node: Node, snapshot: Snapshot, request: Request, lock: ReplicaLock, say: Say, client: Client
) -> Iterator[Write]:
    """Hold the cluster's write lock of a repository inside, with no interrupted write in the way ("lock", "clear").

    `snapshot` was taken a moment ago. `lock` is the replica's own, given back at the end. What was pushed elsewhere
    during the upload is fetched before the lock is taken: with it, only what came since.
    """
    gone = lambda: client.gone  # noqa: E731
    repository = snapshot.repository
    mine = snapshot.of(node.name)
    if mine is not None and mine.position != snapshot.repository.position and snapshot.intent_owner is None:
        catch_up(node, repository.id, say, gone)
    node.reach(Step.LOCK)
    until = time.monotonic() + node.writes.lock_timeout
    while True:
        with node.write_lock(
            repository.id,
            actor=request.actor.name,
            timeout=max(0.01, until - time.monotonic()),
            say=say,
            gone=gone,
        ) as held:
            write = Write(node, repository, request, held, lock)
            blocked = write.clear()
            if blocked is None:
                try:
                    yield write
                finally:
                    write.close()
                return
        owner = blocked.intent_owner
        assert owner is not None
        left = until - time.monotonic()
        if left <= 0 or not resolved(node, blocked, say, gone, at_most=left):
            raise interrupted(blocked, owner)
