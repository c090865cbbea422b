"""A client of Git's over HTTP: one request's body to read from, one response to write to.

The session runs in a thread and blocks; the server's loop may not. Between them are two buffers with an end: who is
slow slows the other side down, and no more than they hold is in memory, whatever is carried (guarantee G5).

    loop    feed: body ──▶ buffer ──▶ read           thread
            drain: response ◀── buffer ◀── write

A body may be compressed (Git compresses requests over 1 KiB). It is expanded as it is read, never further than asked
for, so that a few bytes which mean gigabytes cost nobody memory.
"""

from __future__ import annotations

import asyncio
import logging
import os
import zlib
from collections import deque
from collections.abc import Callable, Mapping
from threading import Condition
from typing import Any, TypeVar

import anyio
import anyio.to_thread

from cluster.client import CHUNK, PREFIX, write_all
from cluster.errors import ClientGone
from cluster.http.bands import Bands

MOST = 1 << 20
"""Bytes that each buffer holds before it makes its writer wait."""

PIECE = 256 * 1024
"""Bytes of a response that are handed to the server at once, at the most."""

FINISH = 30.0
"""Seconds in which a client has to take the last bytes of an answer, once its session has ended."""

MOST_HEAD = 64 * 1024
MOST_WORDS = 4096
"""Bytes that are remembered of how a body begins, and of what Git says on its standard error."""

_log = logging.getLogger(__name__)

T = TypeVar("T")
Receive = Callable[[], Any]
Send = Callable[[Mapping[str, Any]], Any]


class HttpClient:
    """A Client (cluster/client.py). Made in the server's loop; read, write and the like are called by other threads.

    first: what the response begins with, before anything that is written.
    gzip: whether the body is compressed. most: bytes that it may have, expanded; None: any number.
    abort: ends the connection at once.
    """

    def __init__(
        self,
        receive: Receive,
        send: Send,
        abort: Callable[[], None],
        *,
        headers: list[tuple[bytes, bytes]],
        first: bytes = b"",
        gzip: bool = False,
        most: int | None = None,
    ) -> None:
        self._receive, self._send, self._abort = receive, send, abort
        self._headers, self._first = headers, first
        self._loop = asyncio.get_running_loop()
        self._changed = Condition()
        self._body: deque[bytes] = deque()
        self._in_size = self._out_size = 0
        self._ended = self._gone = self._sealed = False
        self._out: deque[bytes] = deque()
        self._room, self._more, self._drained = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self._room.set()
        self._expand = zlib.decompressobj(wbits=31) if gzip else None
        self._packed = b""
        self._expanded, self._most = 0, most
        self._bands = Bands()
        self.started = False
        """Whether the response has begun, so that its status cannot be another any more."""
        self.fault = ""
        """What is wrong with the body, where something is."""
        self.head = b""
        """How the body begins, expanded."""
        self.words = b""
        """What Git has said on its standard error, the end of it."""
        self._tail = b""

    # ------------------------------------------------------------------------------------ the session's side

    def read(self, size: int) -> bytes:
        if self._expand is None:
            data = self._read(size)
        else:
            data = self._inflated(size)
        self._expanded += len(data)
        if len(self.head) < MOST_HEAD:
            self.head += data[:MOST_HEAD]
        if self._most is not None and self._expanded > self._most:
            return self._spoiled(f"this request has more than {self._most >> 20} MiB")
        return data

    def _read(self, size: int) -> bytes:
        with self._changed:
            self._changed.wait_for(lambda: self._body or self._ended or self._gone)
            if self._gone or not self._body:
                return b""
            piece = self._body.popleft()
            if len(piece) > size:
                self._body.appendleft(piece[size:])
                piece = piece[:size]
            self._in_size -= len(piece)
            if self._in_size < MOST:
                self._call(self._room.set)
            return piece

    def _inflated(self, size: int) -> bytes:
        assert self._expand is not None
        while not self._expand.eof:
            if not self._packed and not (packed := self._read(CHUNK)):
                return b"" if self.gone or not self._expanded else self._spoiled("its gzip ends too early")
            self._packed = self._packed or packed
            try:
                data = self._expand.decompress(self._packed, size)
            except zlib.error:
                return self._spoiled("it is not the gzip that it says it is")
            self._packed = self._expand.unconsumed_tail
            if data:
                return data
        while self._read(CHUNK):  # whatever follows
            pass
        return b""

    def _spoiled(self, why: str) -> bytes:
        """The rest of the body is not for Git, which ends there."""
        self.fault = self.fault or why
        self._expand = None
        with self._changed:
            self._ended = True
            self._body.clear()
        return b""

    def write(self, data: bytes) -> None:
        self._put(self._bands.feed(data))

    def _put(self, data: bytes) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._out_size < MOST or self._gone)
            if self._gone:
                raise ClientGone("the client hung up")
            if not data:
                return
            self.started = True
            self._tail = (self._tail + data[-4:])[-4:]
            self._out.append(data)
            self._out_size += len(data)
        self._call(self._more.set)

    @property
    def whole(self) -> bool:
        """Whether what was written ends as a whole answer of Git's does, with a flush."""
        return self._tail == b"0000"

    def write_error(self, data: bytes) -> None:
        for line in data.decode(errors="replace").splitlines():
            if line.startswith(PREFIX):  # of another device, which has said it to its standard error
                self.say(line.removeprefix(PREFIX))
            elif line:
                self.words = (self.words + line.encode() + b"\n")[-MOST_WORDS:]
                _log.debug("git: %s", line)

    def say(self, line: str) -> None:
        with self._changed:
            gone = self._gone
        if not gone:
            _log.debug("said: %s", line)
            self._bands.say(line)

    def send_from(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None:
        while data := os.read(fd, PIECE):
            self.write(data)
            stirred()

    def receive_into(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None:
        while data := self.read(CHUNK):
            write_all(fd, data)
            stirred()

    @property
    def gone(self) -> bool:
        return self._gone

    def hang_up(self, why: str = "") -> None:
        if why:
            self.say(f"error: {why}")
        self._vanished()
        self._call(self._abort)

    def unsaid(self) -> list[str]:
        """The lines that the response had no place for."""
        return list(self._bands.lines)

    def _vanished(self) -> None:
        with self._changed:
            self._gone = True
            self._out.clear()
            self._changed.notify_all()
        self._call(self._more.set)
        self._call(self._room.set)

    def _call(self, function: Callable[[], object]) -> None:
        try:
            self._loop.call_soon_threadsafe(function)
        except RuntimeError:  # the loop has ended, and the connection with it
            _log.debug("the server's loop has ended")

    # ------------------------------------------------------------------------------------- the server's side

    async def carry(self, serve: Callable[[], T | None], limiter: anyio.CapacityLimiter) -> T | None:
        """Run `serve` in a thread, which reads and writes, until the client has its whole answer or is gone.

        What `serve` returns is to be answered instead: it has written nothing.
        """
        feed, drain = asyncio.create_task(self.feed()), asyncio.create_task(self.drain())
        try:
            instead = await anyio.to_thread.run_sync(serve, limiter=limiter, abandon_on_cancel=True)
            if instead is not None:
                return instead
            self.seal()
            async with asyncio.timeout(FINISH):
                await drain
                await self.end()
        except TimeoutError:
            self.hang_up()
        finally:
            feed.cancel()
            drain.cancel()
        return None

    async def feed(self) -> None:
        """Take in the body as it is read, then notice when the client leaves. Until it is cancelled."""
        while True:
            await self._room.wait()
            message = await self._receive()
            if message["type"] == "http.disconnect":
                self._vanished()
                return
            data = message.get("body", b"")
            with self._changed:
                if data and not self._ended:
                    self._body.append(data)
                    self._in_size += len(data)
                self._ended |= not message.get("more_body", False)
                if self._in_size >= MOST:
                    self._room.clear()
                self._changed.notify_all()

    async def drain(self) -> None:
        """Send what is written, until `seal` or the client has gone."""
        while True:
            await self._more.wait()
            self._more.clear()
            while data := self._take():
                await self._begin()
                await self._send({"type": "http.response.body", "body": data, "more_body": True})
            if self._gone or (self._sealed and not self._out):
                return

    def _take(self) -> bytes:
        with self._changed:
            parts, size = [], 0
            while self._out and size < PIECE:
                parts.append(self._out.popleft())
                size += len(parts[-1])
            self._out_size -= size
            self._changed.notify_all()
            return b"".join(parts)

    async def _begin(self) -> None:
        if self._headers:
            start = {"type": "http.response.start", "status": 200, "headers": self._headers}
            self._headers = []
            await self._send(start)
            if self._first:
                await self._send({"type": "http.response.body", "body": self._first, "more_body": True})

    def seal(self) -> None:
        """Nothing more is going to be written. In the server's loop."""
        with self._changed:
            if rest := self._bands.end():
                self.started = True
                self._out.append(rest)
                self._out_size += len(rest)
            self._sealed = True
        self._more.set()

    async def end(self) -> None:
        """End a response whose every byte `drain` has sent."""
        if not self._gone:
            await self._begin()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
