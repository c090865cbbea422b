"""From the push log to many listeners: one thread of a process reads, however many listen.

    reader (a thread)  number what is new ── read it ── ask what each listener may read ── hand it over ─┐
    event loop                                                       into the listeners' queues ◄────────┘

Rights are read after the changes: who lost a right before a change was committed does not hear of it. A listener's
queue is bounded. Where it overflows it is emptied, and the listener reads from the log itself until it has caught up:
the queue holds every change after `complete_after` that it may read, and for those before that it looks itself.

The thread runs while somebody listens. It looks when the bell rings, and every few seconds.
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence

from cluster import access, names
from cluster.db import Change, Database
from cluster.db.who import TOKEN
from cluster.errors import ClusterError, DatabaseUnavailable, Refused
from cluster.feed import document
from cluster.model import Actor, Grant, Level
from cluster.node import Node

_log = logging.getLogger(__name__)

LOOK = 5.0
"""Seconds after which the reader looks however quiet it is: a token may have run out."""

PAGE = 50
"""Changes that are read and handed over at once; each may be some 250 kB."""

MOST_WAITING, MOST_BYTES = 500, 1024 * 1024
"""Changes, and bytes of them, that wait for one listener; with more it reads from the log itself."""

MOST_LISTENERS = 1500
"""Of one device, so that something is left of its connections for Git."""

JOIN = 20.0
"""Seconds for the first look; only a database that is away takes longer, or a log that was never numbered."""


class NotNow(DatabaseUnavailable):
    """Nothing is wrong with the request; another device may answer it, or this one later."""


class Listener:
    """Who listens, and what waits for them. Used in the event loop only.

    complete_after: `waiting` holds every change of a greater number that this listener is to hear of.
    edge: how far the reader has read. ended: why there is nothing more to come; "": there is.
    """

    def __init__(self, actor: Actor, pattern: str | None) -> None:
        self.actor, self.pattern = actor, pattern
        self.token = int(actor.fingerprint.removeprefix(TOKEN)) if actor.fingerprint else None
        self.waiting: deque[tuple[int, bytes]] = deque()
        self.complete_after = self.edge = 0
        self.joined = False
        self.ended = ""
        self._bytes = 0
        self._news = asyncio.Event()

    def hears(self, grants: Sequence[Grant], repository: str) -> bool:
        """Whether it asked for this repository's changes and, by these grants, may read them."""
        if self.pattern is not None and not names.matches(self.pattern, repository):
            return False
        return access.decide(grants, self.actor, repository).allows(Level.READ)

    def put(self, number: int, block: bytes) -> None:
        self.waiting.append((number, block))
        self._bytes += len(block)

    def read_up_to(self, edge: int) -> None:
        """The reader has read so far, and put what was for this listener."""
        self.edge = edge
        if not self.joined or len(self.waiting) > MOST_WAITING or self._bytes > MOST_BYTES:
            self.joined, self.complete_after = True, edge
            self.waiting.clear()
            self._bytes = 0
        self._news.set()

    def take(self) -> tuple[int, bytes]:
        number, block = self.waiting.popleft()
        self._bytes -= len(block)
        return number, block

    def end(self, why: str) -> None:
        self.ended = self.ended or why
        self._news.set()

    async def news(self, seconds: float) -> bool:
        """Wait until the reader has been heard of; False: not for so many seconds."""
        try:
            async with asyncio.timeout(seconds):
                await self._news.wait()
        except TimeoutError:
            return False
        self._news.clear()
        return True


class Fanout:
    """The reader of a process, and who listens to it."""

    def __init__(self, node: Node, stopping: threading.Event) -> None:
        self._node, self._stopping = node, stopping
        self._mutex = threading.Lock()
        self._listeners: set[Listener] = set()
        self._thread: threading.Thread | None = None
        self._position = 0

    async def join(self, listener: Listener) -> None:
        """From its `edge` on it hears of everything. NotNow: too many listen, the database is away, we stop."""
        loop = asyncio.get_running_loop()
        with self._mutex:
            if len(self._listeners) >= MOST_LISTENERS:
                raise NotNow(
                    f"{MOST_LISTENERS} listen to this device already", hint="try another device, or later"
                )
            self._listeners.add(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, args=(loop,), name="events", daemon=True)
                self._thread.start()
        self._node.bell.ring()
        until = time.monotonic() + JOIN
        while not listener.joined:
            if listener.ended:
                raise NotNow(listener.ended)
            if not await listener.news(until - time.monotonic()) and not listener.joined:
                raise NotNow("the changes cannot be read at the moment", hint="try again in a moment")

    def leave(self, listener: Listener) -> None:
        with self._mutex:
            self._listeners.discard(listener)

    # In the reader's thread

    def _run(self, loop: asyncio.AbstractEventLoop) -> None:
        heard, first = -1, True
        while True:
            with self._mutex:
                listeners = list(self._listeners)
                if not listeners:
                    self._thread = None
                    return
            if self._stopping.is_set():
                loop.call_soon_threadsafe(_end, listeners, "this device is about to stop")
                with self._mutex:
                    self._listeners.difference_update(listeners)
                continue
            pause = LOOK
            try:
                self._look(loop, listeners, first)
                first = False
            except ClusterError as error:
                _log.info("events: %s", error.what)
                pause = 1.0
            except Exception:
                _log.exception("reading the changes failed; it is tried again")
                pause = 1.0
            heard = self._node.bell.wait(heard, pause)

    def _look(self, loop: asyncio.AbstractEventLoop, listeners: list[Listener], first: bool) -> None:
        db = self._node.db
        while db.number_changes() and not self._stopping.is_set():
            pass
        newest, given = db.numbers()
        if given < self._position:
            _log.warning("the database is older than what was told: numbers go on after %d", self._position)
            db.number_changes(known=self._position)
            newest, _ = db.numbers()
        if first:
            self._position = max(self._position, newest)
        tokens = sorted({each.token for each in listeners if each.token is not None})
        while True:
            found = db.feed(self._position, most=PAGE) if newest > self._position else []
            edge = found[-1].number if found else 0
            if len(found) < PAGE:
                edge = max(edge, newest, self._position)
            told = [(change.number, change.repository, block(change)) for change in found]
            done = threading.Event()
            loop.call_soon_threadsafe(_hand_over, listeners, told, db.still(tokens), edge, done)
            self._position = edge
            while not done.wait(1.0):  # so that no more is read than the loop can take
                if self._stopping.is_set() or loop.is_closed():
                    return
            if len(found) < PAGE:
                return


def _hand_over(
    listeners: list[Listener],
    told: list[tuple[int, str, bytes]],
    rights: Mapping[int | None, list[Grant]],
    edge: int,
    done: threading.Event,
) -> None:
    """In the event loop. Who joins with this look hears of what comes after it."""
    try:
        for listener in listeners:
            grants = rights.get(listener.token)
            if grants is None:
                listener.end("this token has ended")
                continue
            for number, repository, data in told if listener.joined else ():
                if listener.hears(grants, repository):
                    listener.put(number, data)
            listener.read_up_to(edge)
    finally:
        done.set()


def _end(listeners: list[Listener], why: str) -> None:
    for listener in listeners:
        listener.end(why)


def block(change: Change) -> bytes:
    """A change as Server-Sent Events have it."""
    data = json.dumps(document(change), ensure_ascii=True, separators=(", ", ": "))
    return f"id: {change.number}\nevent: push\ndata: {data}\n\n".encode()


def read_on(
    db: Database, listener: Listener, after: int, most: int = PAGE
) -> tuple[list[tuple[int, bytes]], int]:
    """From the log, for one listener: what it may hear of among the changes after `after`, and how far that reaches;
    0: to the end of what was numbered when this was asked. Refused: its token has ended."""
    found = db.feed(after, most=most)
    grants = db.still([] if listener.token is None else [listener.token]).get(listener.token)
    if grants is None:
        raise Refused("this token has ended")
    told = [(c.number, block(c)) for c in found if listener.hears(grants, c.repository)]
    return told, found[-1].number if len(found) == most else 0
