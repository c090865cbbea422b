"""What a push says to its client, on its way: so that nobody who holds a lock ever waits for a client (guarantee G5).

A client that reads slowly slows down whoever writes to it. That is as it should be while it uploads; but between
"propose" and "acknowledge" the writer is a session with the write lock, or the Git process that moves refs under it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from threading import Condition, Thread
from typing import Any

from cluster.client import Client
from cluster.errors import ClientGone

MOST = 1 << 20
"""Bytes that wait for a client. Beyond them the writer waits too, or, while it is urgent, its words are dropped."""

TOGETHER = 1 << 16
"""Bytes beyond which nothing is added to what is sent at once: Git writes an advertisement ref by ref."""


class Outbox:
    """A Client whose writes are carried out by a thread of its own, in their order. `close` in any case."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._parts: deque[tuple[Callable[[Any], None], bytes | str]] = deque()
        self._size = 0
        self._changed = Condition()
        self._urgent = self._lost = self._closed = False
        Thread(target=self._send, daemon=True, name="outbox").start()

    def read(self, size: int) -> bytes:
        return self._client.read(size)

    def receive_into(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None:
        self._client.receive_into(fd, stirred)

    @property
    def gone(self) -> bool:
        return self._client.gone

    def write(self, data: bytes) -> None:
        self._put(self._client.write, data)
        if self._lost:
            raise ClientGone("the client hung up")

    def write_error(self, data: bytes) -> None:
        self._put(self._client.write_error, data)

    def say(self, line: str) -> None:
        self._put(self._client.say, line)

    def urgent(self, urgent: bool) -> None:
        """While it is urgent nobody waits here, and what finds no room is dropped: it is never more than words."""
        with self._changed:
            self._urgent = urgent
            self._changed.notify_all()

    def flush(self) -> None:
        """Wait until the client has everything, or is gone."""
        with self._changed:
            self._changed.wait_for(lambda: self._lost or not self._size)

    def close(self) -> None:
        """Take nothing more; what is there still goes out."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _put(self, send: Callable[[Any], None], data: bytes | str) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._lost or self._urgent or self._size < MOST)
            if self._lost or self._size >= MOST:
                return
            self._parts.append((send, data))
            self._size += len(data)
            self._changed.notify_all()

    def _next(self) -> tuple[Callable[[Any], None], bytes | str, int]:
        """What to send next, to where, and how much of it was counted: what waits for the same output goes as one."""
        send, first = self._parts.popleft()
        if isinstance(first, str):
            return send, first, len(first)
        pieces, size = [first], len(first)
        while self._parts and self._parts[0][0] == send and size < TOGETHER:
            more = self._parts.popleft()[1]
            assert isinstance(more, bytes)
            pieces.append(more)
            size += len(more)
        return send, b"".join(pieces), size

    def _send(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._parts or self._closed)
                if not self._parts:
                    return
                send, data, taken = self._next()
            try:
                send(data)
            except ClientGone:
                self._lost = True
            with self._changed:
                self._size -= taken
                if self._lost:
                    self._parts.clear()
                    self._closed = True
                self._changed.notify_all()
