"""The write lock of a repository: who may intend next. Fairness and speed only; safety is the database's (G3).

It is a PostgreSQL advisory lock on a connection of its own, so the database gives it back the moment that its
holder's connection ends, however that came about. Within one process a queue comes first (`Turns`), so that a
device needs one such connection for a repository, not one for each client that waits.

Who leaves hands the lock on to the next of that queue, connection and all, IN_A_ROW times at the most: what comes next
here needs no sync, and the other devices catch up with several pushes at once.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC
from threading import Event, Lock, Thread

from psycopg.pq import TransactionStatus

from cluster.db import Connection, Database, Link, lock_label
from cluster.errors import ClientGone, DatabaseUnavailable, LockTimeout
from cluster.measure import Measures
from cluster.model import Snapshot

COUNTS_NOTHING = Measures()

QUIET = 1.0
"""Seconds of waiting before the person is told: in an ordinary queue of pushes nobody waits that long."""

SLICE, LATER = 1.0, 5.0
"""Seconds until the first look whether the client that waits is still there, and between two more."""

LAST_WORDS = 5.0
"""Seconds to call off a wait in PostgreSQL's queue."""


IN_A_ROW, AT_MOST = 4, 1.0
"""Writes of one device under one lock, and seconds after which none is added, while others may be waiting for it
elsewhere: a push takes milliseconds, but a hook may take its time. Seconds for a sync before the first of them do not
count: where other devices are far it takes longer than several writes, and is worth it for several."""


@dataclass(frozen=True, slots=True)
class Held:
    """The write lock: the connection that holds it, and the repository as it was seen right after it was got.

    caught_up: to be told that what other devices wrote is here now. let_go: hand the lock on, or give it back, before
    the context is left. The connection is another one's then.
    """

    connection: Connection
    seen: Snapshot
    caught_up: Callable[[], None]
    let_go: Callable[[], None]


@dataclass(frozen=True, slots=True)
class _Handed:
    """A lock on its way to the next one here. place: gives the connection, and so the lock, back. row: how many have
    had it, since `since` without a sync."""

    place: ExitStack
    connection: Connection
    since: float
    row: int = 1

    @property
    def goes_on(self) -> bool:
        return self.row < IN_A_ROW and time.monotonic() - self.since < AT_MOST


@dataclass(eq=False, slots=True)
class Turn:
    """One place in the queue. come: set when it is our turn."""

    come: Event = field(default_factory=Event)
    handed: _Handed | None = None


class Turns:
    """A queue for each repository, first come first served, within this process."""

    def __init__(self) -> None:
        self._mutex = Lock()
        self._queues: dict[int, deque[Turn]] = {}

    def enter(self, repository_id: int) -> Turn:
        """Join the queue; `leave` in any case."""
        turn = Turn()
        with self._mutex:
            queue = self._queues.setdefault(repository_id, deque())
            queue.append(turn)
            if len(queue) == 1:
                turn.come.set()
        return turn

    def leave(self, repository_id: int, turn: Turn, handed: _Handed | None = None) -> None:
        """Hand the lock on, where there is one, or give it back. `handed`: what we had; it may just have come to us."""
        with self._mutex:
            handed, turn.handed = handed or turn.handed, None
            queue = self._queues[repository_id]
            first = queue[0] is turn
            queue.remove(turn)
            if not queue:
                del self._queues[repository_id]
            elif first:
                if handed is not None and handed.goes_on:
                    queue[0].handed, handed = handed, None
                queue[0].come.set()
        if handed is not None:
            handed.place.close()


@contextmanager
def write_lock(
    turns: Turns,
    db: Database,
    repository_id: int,
    *,
    device: str,
    actor: str,
    timeout: float,
    break_after: float | None = None,
    say: Callable[[str], None] = lambda line: None,
    gone: Callable[[], bool] = lambda: False,
    measures: Measures = COUNTS_NOTHING,
) -> Iterator[Held]:
    """Hold the write lock inside. Leaving it hands the lock on at once, without waiting for PostgreSQL to say so.

    Says who has it once the wait is worth mentioning. LockTimeout after `timeout` seconds, ClientGone when there is
    nobody left to wait for.

    break_after: seconds of silence after which the lock of a device that was stopped, or cut off without a word, is
    taken from it. `device` must have been up for as long itself (Database.break_write_lock).
    """
    waiting = _Waiting(db, repository_id, device, timeout, break_after, say, gone)
    turn = turns.enter(repository_id)
    handed: _Handed | None = None
    since: float | None = None
    left = False

    def caught_up() -> None:
        nonlocal handed
        if handed is not None:
            handed = replace(handed, since=time.monotonic())

    def let_go() -> None:
        nonlocal left
        if left:
            return
        left = True
        if since is not None:
            measures.lock_held(time.monotonic() - since)
        keep = handed if handed is not None and _stands(handed.connection) else None
        if handed is not None and keep is None:
            handed.place.close()
        turns.leave(repository_id, turn, keep)

    try:
        try:
            handed, seen = _got(turn, waiting, db, repository_id, lock_label(device, actor))
            waiting.refuse_gone()
        except BaseException as error:
            measures.lock_waited(waiting.so_far, error)
            raise
        since = time.monotonic()
        measures.lock_waited(waiting.so_far)
        yield Held(handed.connection, seen, caught_up, let_go)
    finally:
        let_go()


def _got(
    turn: Turn, waiting: _Waiting, db: Database, repository_id: int, label: str
) -> tuple[_Handed, Snapshot]:
    """The lock, from the one before us or from PostgreSQL's queue."""
    while not turn.come.wait(waiting.slice()):
        waiting.go_on()
    if turn.handed is not None:
        with suppress(DatabaseUnavailable):
            return _taken_over(turn, turn.handed, db, repository_id, label)
    with ExitStack() as place:
        connection = place.enter_context(db.dedicated())
        seen = db.try_write_lock(connection, repository_id, label)
        while seen is None:
            with _looking_around(waiting, connection):
                seen = db.wait_write_lock(connection, repository_id, waiting.left)
            if seen is None:
                waiting.go_on()
        return _Handed(place.pop_all(), connection, time.monotonic()), seen


@contextmanager
def _looking_around(waiting: _Waiting, connection: Link) -> Iterator[None]:
    """While this thread keeps its place in PostgreSQL's queue, another one sees now and then whether that is worth it.
    Where not, the wait is called off, and raises what was found."""
    over, found = Event(), list[BaseException]()

    def look() -> None:
        while not over.wait(waiting.slice()):
            try:
                waiting.go_on()
            except BaseException as error:
                found.append(error)
                connection.call_off(over, LAST_WORDS)
                return

    watcher = Thread(target=look, name="wait for a write lock", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        if found:
            connection.close()  # what calls it off may come late, and meet whatever is asked next
            raise found[0]


def _taken_over(
    turn: Turn, handed: _Handed, db: Database, repository_id: int, label: str
) -> tuple[_Handed, Snapshot]:
    """The lock that the one before us handed on. DatabaseUnavailable: it was lost, and its connection is given back."""
    try:
        seen = db.keep_write_lock(handed.connection, repository_id, label)
    except DatabaseUnavailable:
        turn.handed = None
        handed.place.close()
        raise
    turn.handed = None
    return replace(handed, row=handed.row + 1), seen


def _stands(connection: Connection) -> bool:
    """Whether a connection still holds its locks, and nothing is open on it."""
    return not connection.closed and connection.info.transaction_status is TransactionStatus.IDLE


class _Waiting:
    """One wait for the write lock: how long still, what the person was told."""

    def __init__(
        self,
        db: Database,
        repository_id: int,
        device: str,
        timeout: float,
        break_after: float | None,
        say: Callable[[str], None],
        gone: Callable[[], bool],
    ) -> None:
        self._db, self._id, self._say, self._gone = db, repository_id, say, gone
        self._device, self._timeout, self._break_after = device, timeout, break_after
        self._begun = time.monotonic()
        self._told = ""

    @property
    def so_far(self) -> float:
        """Seconds."""
        return time.monotonic() - self._begun

    @property
    def left(self) -> float:
        """Seconds until it is given up; a little more than none, so that there is something to wait for."""
        return max(0.01, self._begun + self._timeout - time.monotonic())

    def slice(self) -> float:
        return min(SLICE if self.so_far < SLICE else LATER, self.left)

    def refuse_gone(self) -> None:
        if self._gone():
            raise ClientGone("the client hung up while it waited for the write lock")

    def go_on(self) -> None:
        """Called when a slice has passed in vain."""
        self.refuse_gone()
        if self._break_after is not None:
            self._db.break_write_lock(self._id, self._device, self._break_after)
        waited = time.monotonic() - self._begun
        holder = self._holder()
        if waited >= self._timeout:
            raise LockTimeout(
                f"gave up after waiting {round(self._timeout, 1):g} s for the write lock: {holder}",
                hint="push again later",
            )
        if waited >= QUIET and holder != self._told:
            self._told = holder
            self._say(f"waiting for the write lock: {holder}")

    def _holder(self) -> str:
        holder = self._db.write_lock_holder(self._id)
        if holder is None:
            return "it is just being handed on"
        return f"{holder.actor} holds it on {holder.device} since {holder.since.astimezone(UTC):%H:%M:%S} UTC"
