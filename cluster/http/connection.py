"""One connection of HTTP/1.1: uvicorn's own protocol, hardened.

What it adds: nobody may take for ever to send a request's first lines; where too many are open, one that only sits
there leaves; what is no HTTP is told so, in words, once, and leaves few lines in the log.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, cast

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.limits import least_welcome

_log = logging.getLogger("cluster.http")

ABORT = "git-cluster.abort"
"""In a scope's extensions: ends the connection at once, whatever is still to be sent."""

TELL = 10.0
"""Seconds between two lines of the log about the same kind of thing that many connections do."""

LINGER = 2.0
"""Seconds for which what still comes is thrown away after the last answer, so that the client gets to read that."""

WORDS = {
    400: "this is no request of HTTP/1.1",
    431: "the first lines of this request are too long",
    501: "this request's transfer encoding is not known here",
}


@dataclass(slots=True)
class Seldom:
    """Says what happens often seldom, with how often it did. Used in the server's loop alone."""

    _told_at: float = float("-inf")
    _since: int = 0

    def tell(self, what: str, *values: object) -> None:
        self._since += 1
        now = time.monotonic()
        if now - self._told_at >= TELL:
            more = f" (and {self._since - 1} like it since)" if self._since > 1 else ""
            _log.info(what + more, *values)
            self._told_at, self._since = now, 0


class Room:
    """What the connections of one server share: how many there may be, and what was told of them."""

    def __init__(self, *, connections: int, grace: float) -> None:
        self.most, self.grace = connections, grace
        self.late, self.rubbish, self.crowd = Seldom(), Seldom(), Seldom()

    def make_room(self, connections: Iterable[Connection], newcomer: Connection) -> bool:
        """End one connection on which nothing is asked for. False: on all of them something is."""
        idle = [each for each in connections if each.idle and each is not newcomer]
        if not idle:
            self.crowd.tell("%s: turned away: %d requests are being answered", newcomer.address, self.most)
            return False
        leaves = least_welcome(idle)
        leaves.leave()
        self.crowd.tell(
            "%d connections are open: ended an idle one of %s to make room", self.most, leaves.address
        )
        return True


class Connection(H11Protocol):
    """room: that of the server; made by `protocol`."""

    room: Room

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._late: asyncio.TimerHandle | None = None
        self._leaving = self._said = False
        self.since = time.monotonic()
        inner = self.app

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope.setdefault("extensions", {})[ABORT] = self.transport.abort
            await inner(scope, receive, send)

        self.app = app

    # ---------------------------------------------------------------------------- as least_welcome sees it

    @property
    def address(self) -> str:
        return self.client[0] if self.client else ""

    @property
    def idle(self) -> bool:
        """Whether no request is being answered here."""
        return not self._leaving and (self.cycle is None or self.cycle.response_complete)

    @property
    def progress(self) -> int:
        """How far it is: nothing said, a beginning, a request that was answered."""
        return 2 if self.cycle is not None else int(self._said)

    # ------------------------------------------------------------------------------------------- as asyncio

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        # asyncio sets it only on sockets that were made with the protocol's number. Without it each answer, which goes
        # out in two pieces, waits 40 ms for the acknowledgement of the first.
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._too_many() and not self.room.make_room(self._all(), self):
            body = b"cluster: error: this server has as many connections as it takes\n"
            self._say(503, body, b"Retry-After: 5\r\n")
            return
        self._look()

    def _too_many(self) -> bool:
        if len(self.connections) <= self.room.most:
            return False
        return sum(not each._leaving for each in self._all()) > self.room.most

    def _all(self) -> set[Connection]:
        return cast("set[Connection]", self.connections)

    def data_received(self, data: bytes) -> None:
        if self._leaving:
            return
        self._said = True
        super().data_received(data)
        self._look()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self.since = time.monotonic()
        if not self._leaving:
            self._look()

    def connection_lost(self, exc: Exception | None) -> None:
        self._disarm()
        super().connection_lost(exc)

    def leave(self) -> None:
        """End it, now."""
        self._leaving = True
        self.transport.abort()

    # ------------------------------------------------------------------------------------------ as uvicorn

    def send_400_response(self, msg: str) -> None:
        """What came is no HTTP. Called while h11's error is being handled, which says more than `msg`."""
        error = sys.exc_info()[1]
        status = getattr(error, "error_status_hint", 400)
        self.room.rubbish.tell("%s: hung up: what it sends is no HTTP/1.1: %s", self.address, error)
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            cycle.disconnected = True  # nobody is to answer after this
            cycle.message_event.set()
            if cycle.response_started:
                self.leave()
                return
        what = WORDS.get(status, WORDS[400])
        self._say(status, f"cluster: error: {what}\n".encode())

    def _say(self, status: int, body: bytes, more: bytes = b"") -> None:
        """The last answer on this connection."""
        self._leaving = True
        self._disarm()
        self._unset_keepalive_if_required()
        self.transport.write(
            b"HTTP/1.1 %d %s\r\nConnection: close\r\nContent-Type: text/plain; charset=utf-8\r\n"
            b"X-Content-Type-Options: nosniff\r\nContent-Length: %d\r\n%s\r\n%s"
            % (status, HTTPStatus(status).phrase.encode(), len(body), more, body)
        )
        if not self.transport.can_write_eof():  # TLS
            self.transport.close()
            return
        self.transport.write_eof()
        self.flow.resume_reading()
        self._late = self.loop.call_later(LINGER, self.transport.abort)

    def shutdown(self) -> None:
        if self._leaving:
            self.transport.abort()
        else:
            super().shutdown()

    # -------------------------------------------------------------------------------------------- deadlines

    def _look(self) -> None:
        """Whether a request's first lines are awaited, or the rest of one that was answered already."""
        if self._leaving:
            return
        theirs, cycle = self.conn.their_state, self.cycle
        head = theirs is h11.IDLE and (cycle is None or bool(self.conn.trailing_data[0]))
        rest = theirs is h11.SEND_BODY and cycle is not None and cycle.response_complete
        if head or rest:
            if self._late is None:
                self._late = self.loop.call_later(self.room.grace, self._end_late)
        else:
            self._disarm()

    def _end_late(self) -> None:
        self._late = None
        self.room.late.tell("%s: hung up: no whole request after %g s", self.address, self.room.grace)
        self.leave()

    def _disarm(self) -> None:
        if self._late is not None:
            self._late.cancel()
            self._late = None


def protocol(*, connections: int, grace: float) -> type[asyncio.Protocol]:
    """For one server. connections: open at once. grace: seconds for a request's first lines."""
    return type("Connection", (Connection,), {"room": Room(connections=connections, grace=grace)})
