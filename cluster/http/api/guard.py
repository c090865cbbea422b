"""Around the API: how large and how slow a request may be, and what no answer lacks.

A body is read whole before anything looks at it, so that neither a slow nor an endless one keeps more than a megabyte.
Whatever goes wrong inside, unforeseen, is one sentence here and a traceback in the log.
"""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.datastructures import MutableHeaders
from starlette.responses import JSONResponse

from cluster.endpoint import unforeseen
from cluster.http.who import address_of

MOST_BODY = 1 << 20
"""Bytes of a request's body."""

PATIENCE = 30.0
"""Seconds for a request's body to come."""


class Guard:
    """An ASGI application around another."""

    def __init__(self, inner: Any) -> None:
        self._inner = inner

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        begun = False

        async def sent(message: Any) -> None:
            nonlocal begun
            if message["type"] == "http.response.start":
                begun = True
                headers = MutableHeaders(scope=message)
                headers["Cache-Control"] = "no-store"
                headers["X-Content-Type-Options"] = "nosniff"
            await send(message)

        try:
            async with asyncio.timeout(PATIENCE):
                body = await _whole(receive)
        except TimeoutError:
            body = 408
        if body is None:
            return
        if isinstance(body, int):
            what = (
                "the body has more than 1 MiB"
                if body == 413
                else f"the body did not come within {PATIENCE:g} s"
            )
            refusal = JSONResponse({"error": what, "hint": "see docs/api.md"}, body, {"Connection": "close"})
            await refusal(scope, receive, sent)
            return
        told = False

        async def again() -> Any:
            nonlocal told
            if told:
                return await receive()
            told = True
            return {"type": "http.request", "body": body, "more_body": False}

        try:
            await self._inner(scope, again, sent)
        except Exception:
            error = unforeseen(address_of(scope))
            if not begun:
                await JSONResponse({"error": error.what, "hint": error.hint}, 500)(scope, receive, sent)


async def _whole(receive: Any) -> bytes | int | None:
    """A request's body; 413: it is too large; None: the client has gone."""
    body = b""
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            return None
        body += message.get("body", b"")
        if len(body) > MOST_BODY:
            return 413
        if not message.get("more_body"):
            return body
