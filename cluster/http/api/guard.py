"""Around the API: no answer is kept by anybody, and an error that was told goes no further.

How large and how slow a body may be is the same for all that is below /-/: cluster/http/guard.py.
"""

from __future__ import annotations

from typing import Any

from starlette.datastructures import MutableHeaders


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
                MutableHeaders(scope=message)["Cache-Control"] = "no-store"
            await send(message)

        try:
            await self._inner(scope, receive, sent)
        except Exception:  # Starlette raises it once more when it has answered
            if not begun:
                raise
