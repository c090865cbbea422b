"""GET /-/api/v1/events: the committed changes, as they happen, as Server-Sent Events.

    retry: 2000
    id: 41                                     where it begins; each `id` is a position to resume from

    id: 42
    event: push
    data: {"position": 42, "repository": "team/app", "version": 7, …}

    :                                          every 15 s, so that who listens knows that somebody is there

docs/events.md is for those who listen. Reading the log and handing it to many is fanout.py.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import BaseRoute, Route

from cluster import access, names
from cluster.db import Database, no_repository
from cluster.errors import Refused, UsageError, WriteConflict
from cluster.http.connection import ABORT
from cluster.http.fanout import Fanout, Listener, read_on
from cluster.http.site import Site
from cluster.model import Actor, Level

HEARTBEAT = 15.0
"""Seconds without an event after which a comment says that the stream is alive."""

STALLED = 60.0
"""Seconds for which a listener may take nothing of what is sent; then it is hung up on, and resumes by its position."""

RETRY = 2000
"""Milliseconds after which a browser resumes."""

HEADERS = {
    "Cache-Control": "no-store",
    "X-Accel-Buffering": "no",  # nginx would keep events back
}


def routes(site: Site) -> list[BaseRoute]:
    fanout = Fanout(site.node, site.stopping)

    async def events(request: Request) -> Response:
        actor = await site.who.asks(request)
        after, pattern = _asked(request)
        await site.ask(lambda: _check(site.node.db, actor, after, pattern))
        if request.method == "HEAD":
            return Response(media_type=MEDIA_TYPE, headers=HEADERS)
        listener = Listener(actor, pattern)
        try:
            await fanout.join(listener)
        except BaseException:
            fanout.leave(listener)
            raise
        return EventStream(site, fanout, listener, after)

    return [Route("/-/api/v1/events", events, methods=["GET"])]


MEDIA_TYPE = "text/event-stream"


class EventStream(StreamingResponse):
    """A stream that ends when its listener goes, stalls, or may listen no more, and when the device stops."""

    def __init__(self, site: Site, fanout: Fanout, listener: Listener, after: int | None) -> None:
        super().__init__(_blocks(site, listener, after), media_type=MEDIA_TYPE, headers=HEADERS)
        self._fanout, self._listener = fanout, listener

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def guarded(message: Any) -> None:
            try:
                async with asyncio.timeout(STALLED):
                    await send(message)
            except TimeoutError:
                scope.get("extensions", {}).get(ABORT, lambda: None)()
                raise

        try:
            await super().__call__(scope, receive, guarded)
        except TimeoutError:
            pass  # whoever took nothing has been hung up on
        finally:
            self._fanout.leave(self._listener)


async def _blocks(site: Site, listener: Listener, after: int | None) -> AsyncIterator[bytes]:
    """position: everything up to it was sent, or is not for this listener; said: what the listener has heard of it."""
    position = said = listener.edge if after is None else after
    yield f"retry: {RETRY}\nid: {position}\n\n".encode()
    while not listener.ended:
        if position < listener.complete_after:
            edge = listener.complete_after
            try:
                told, upto = await site.ask(partial(read_on, site.node.db, listener, position))
            except Refused as error:
                listener.end(error.what)
                break
            for number, data in told:
                yield data
                said = number
            position = upto or max([edge, said])
        elif listener.waiting:
            number, data = listener.take()
            if number > position:
                yield data
                position = said = number
        else:
            position = max(position, listener.edge)
            if not await listener.news(HEARTBEAT):
                # An id alone is no event, but is resumed from: what was not for this listener is not read again.
                yield f":\nid: {position}\n\n".encode() if position > said else b":\n\n"
                said = position
    yield f": {listener.ended}\n\n".encode()


def _asked(request: Request) -> tuple[int | None, str | None]:
    """After which position, and of which repositories; None: from now on, and all. A browser that resumes repeats
    its first address, so what it says in the header counts more. UsageError."""
    text = request.headers.get("last-event-id") or request.query_params.get("after")
    unknown = sorted(set(request.query_params) - {"after", "repository"})
    if unknown:
        raise UsageError(
            f"there is no parameter {names.shown(unknown[0])} of events", hint="those are: after, repository"
        )
    after = None
    if text is not None and text != "":
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            raise UsageError(
                f"{names.shown(text)} is no position of an event",
                hint="give the last id that you have seen, or 0 for everything from the beginning",
            )
        after = int(text)
    pattern = request.query_params.get("repository")
    return after, None if pattern is None else names.pattern(pattern)


def _check(db: Database, actor: Actor, after: int | None, pattern: str | None) -> None:
    """WriteConflict: nobody was told of that position yet. NotFound: there is no such repository for this actor."""
    if after:
        _, given = db.numbers()
        if after > given:
            raise WriteConflict(
                f"position {after} is ahead of the newest, {given}: this database was restored from an older one, or "
                "the position is another cluster's",
                hint="see what the repositories are at now, then listen without a position, or with after=0",
            )
    if pattern is not None and "*" not in pattern:
        snapshot = db.snapshot(pattern, actor)
        if not access.decide(snapshot.grants, actor, pattern).allows(Level.READ):
            raise no_repository(pattern)
