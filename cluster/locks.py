"""The write lock of a repository: who may intend next. Fairness and speed only; safety is the database's (G3).

It is a PostgreSQL advisory lock on a connection of its own, so the database gives it back the moment that its
holder's connection ends, however that came about. Within one process a queue comes first (`Turns`), so that a
device needs one such connection for a repository, not one for each client that waits.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC
from threading import Event, Lock

from cluster.db import Connection, Database, lock_label
from cluster.errors import ClientGone, LockTimeout
from cluster.model import Snapshot

QUIET = 1.0
"""Seconds of waiting before the person is told: in an ordinary queue of pushes nobody waits that long."""

SLICE = 1.0
"""Seconds between two looks whether the client that waits is still there."""


@dataclass(frozen=True, slots=True)
class Held:
    """The write lock: the connection that holds it, and the repository as it was seen right after it was got."""

    connection: Connection
    seen: Snapshot


class Turns:
    """A queue for each repository, first come first served, within this process."""

    def __init__(self) -> None:
        self._mutex = Lock()
        self._queues: dict[int, deque[Event]] = {}

    def enter(self, repository_id: int) -> Event:
        """Join the queue. The event is set when it is our turn; `leave` in any case."""
        turn = Event()
        with self._mutex:
            queue = self._queues.setdefault(repository_id, deque())
            queue.append(turn)
            if len(queue) == 1:
                turn.set()
        return turn

    def leave(self, repository_id: int, turn: Event) -> None:
        with self._mutex:
            queue = self._queues[repository_id]
            queue.remove(turn)
            if queue:
                queue[0].set()
            else:
                del self._queues[repository_id]


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
) -> Iterator[Held]:
    """Hold the write lock inside. Leaving it hands the lock on at once, without waiting for PostgreSQL to say so.

    Says who has it once the wait is worth mentioning. LockTimeout after `timeout` seconds, ClientGone when there is
    nobody left to wait for.

    break_after: seconds of silence after which the lock of a device that was stopped, or cut off without a word, is
    taken from it. `device` must have been up for as long itself (Database.break_write_lock).
    """
    waiting = _Waiting(db, repository_id, device, timeout, break_after, say, gone)
    turn = turns.enter(repository_id)
    try:
        while not turn.wait(waiting.slice()):
            waiting.go_on()
        with db.dedicated() as connection:
            seen = db.try_write_lock(connection, repository_id, lock_label(device, actor))
            while seen is None:
                seen = db.wait_write_lock(connection, repository_id, waiting.slice())
                if seen is None:
                    waiting.go_on()
            yield Held(connection, seen)
    finally:
        turns.leave(repository_id, turn)


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

    def slice(self) -> float:
        left = self._begun + self._timeout - time.monotonic()
        return min(SLICE, max(0.01, left))

    def go_on(self) -> None:
        """Called when a slice has passed in vain."""
        if self._gone():
            raise ClientGone("the client hung up while it waited for the write lock")
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
