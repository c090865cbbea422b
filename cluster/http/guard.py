"""What holds for every request, whatever it asks for: an ASGI application around another one.

before      requests that no two readers understand alike are refused; X-Forwarded-… is believed or ignored
below /-/   a body has at most MOST_BODY bytes and BODY_TIME seconds; an answer that nobody takes is given up
answer      the usual headers of security are on it
after       a line in the log
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

from cluster.endpoint import unforeseen
from cluster.http.connection import ABORT
from cluster.http.forwarded import Proxies, scheme
from cluster.logs import fields

MOST_BODY = 1 << 20
BODY_TIME = 30.0
"""Bytes of a body below /-/, and seconds for it to come."""

TAKE_TIME = 60.0
"""Seconds for which an answer below /-/ waits for a client that takes none of it."""

MOST_HEADERS = 200
"""Headers of a request. Browsers send about twenty, proxies add ten."""

API = "/-/api/"
"""Below it an error is JSON."""

LOGGED = "git-cluster.logged"
"""In a scope's extensions: this request leaves a line in the log by itself."""

METHODS = {"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"}

_ABSOLUTE = re.compile(r"https?://[^/?#]*", re.IGNORECASE)
_SHOWN = 200
_log = logging.getLogger("cluster.http")


class Guard:
    def __init__(self, app: Any, trusted_proxies: Sequence[str] = ()) -> None:
        self._app, self._proxies = app, Proxies(trusted_proxies)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        begun = time.monotonic()
        self._forwarded(scope)
        refused = normalize(scope)
        exchange = _Exchange(scope, receive, send)
        try:
            if refused:
                await exchange.refuse(*refused, close=True)
            else:
                await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:  # the server stops
            exchange.abort()
        except Exception:
            if not exchange.gone:
                unforeseen(exchange.address)
            exchange.abort()
        finally:
            _tell(scope, exchange, time.monotonic() - begun)

    def _forwarded(self, scope: Any) -> None:
        client = scope.get("client")
        if client is None or not self._proxies.trusts(client[0]):
            return
        # The port stays that of the connection, which tells it from others.
        scope["client"] = (self._proxies.client(client[0], _all(scope, b"x-forwarded-for")), client[1])
        if proto := scheme(_all(scope, b"x-forwarded-proto")):
            scope["scheme"] = proto


def _all(scope: Any, name: bytes) -> str:
    return b",".join(value for key, value in scope["headers"] if key == name).decode("latin-1")


def normalize(scope: Any) -> tuple[int, str] | None:
    """Have a request's path begin with a slash; or why it is not answered, as a status and words.

    A length and chunks at once are read by some proxies as one request and by others as two.
    """
    names = [name for name, _ in scope["headers"]]
    if scope["http_version"] not in ("1.0", "1.1"):
        return 505, "this server speaks HTTP/1.1"
    if scope["method"] not in METHODS:
        return 405, "this method is not known here"
    if len(names) > MOST_HEADERS:
        return 431, f"a request has at most {MOST_HEADERS} headers"
    if b"transfer-encoding" in names and (b"content-length" in names or scope["http_version"] == "1.0"):
        return 400, "the length of this request is ambiguous"
    raw = scope["raw_path"].decode("latin-1")
    if not raw.startswith("/"):
        absolute = _ABSOLUTE.match(raw)
        rest = raw[absolute.end() :] or "/" if absolute else ""
        if not rest.startswith("/"):
            return 400, "this request has no path"
        scope["raw_path"], scope["path"] = rest.encode("latin-1"), unquote(rest)
    return None


class _Exchange:
    """One request and its answer, as they pass."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self._scope, self._receive, self._send = scope, receive, send
        self._ours = scope["path"].startswith("/-/")
        self._until = time.monotonic() + BODY_TIME
        self._size, self._whole = 0, False
        self._refusal: tuple[int, str] | None = None
        self.status: int | None = None
        self._ended = self._instead = False
        self.gone = False
        if self._ours and (length := _all(scope, b"content-length")).isdigit() and int(length) > MOST_BODY:
            self._refusal = _too_large()

    @property
    def address(self) -> str:
        client = self._scope.get("client")
        return str(client[0]) if client else ""

    def abort(self) -> None:
        """End the connection, unless everything was said."""
        if not self._ended:
            self._scope["extensions"][ABORT]()

    async def receive(self) -> Any:
        if not self._ours or self._whole:
            message = await self._receive()
        else:
            message = await self._bounded()
        self.gone |= message["type"] == "http.disconnect"
        return message

    async def _bounded(self) -> Any:
        if self._refusal is None:
            try:
                async with asyncio.timeout(self._until - time.monotonic()):
                    message = await self._receive()
            except TimeoutError:
                self._refusal = 408, f"the body of this request did not come within {BODY_TIME:g} seconds"
            else:
                self._size += len(message.get("body", b""))
                self._whole = not message.get("more_body", False)
                if self._size <= MOST_BODY:
                    return message
                self._refusal = _too_large()
        # Whoever reads the body ends, as if the client had gone; what it then says is not sent.
        await self.refuse(*self._refusal)
        return {"type": "http.disconnect"}

    async def send(self, message: Any) -> None:
        if self._instead:
            return
        if message["type"] == "http.response.start":
            if self.status is not None:  # too late for words
                self.abort()
                return
            self.status = message["status"]
            message = {**message, "headers": secured(message.get("headers", ()))}
        elif message["type"] == "http.response.body":
            self._ended = not message.get("more_body", False)
        if not self._ours:
            await self._send(message)
            return
        try:
            async with asyncio.timeout(TAKE_TIME):
                await self._send(message)
        except TimeoutError:
            self._ended = False
            self.abort()

    async def refuse(self, status: int, what: str, *, close: bool = False) -> None:
        """Answer with words, once."""
        if self.status is not None:
            self.abort()
            return
        kind, body = b"text/plain; charset=utf-8", f"cluster: error: {what}\n".encode()
        if self._scope["path"].startswith(API):
            kind, body = b"application/json", json.dumps({"error": what, "hint": ""}).encode()
        headers = [
            (b"content-type", kind),
            (b"content-length", str(len(body)).encode()),
            *([(b"connection", b"close")] if close else []),
            *([(b"allow", ", ".join(sorted(METHODS)).encode())] if status == 405 else []),
        ]
        await self.send({"type": "http.response.start", "status": status, "headers": headers})
        await self.send({"type": "http.response.body", "body": body, "more_body": False})
        self._instead = True


def _too_large() -> tuple[int, str]:
    return 413, f"the body of this request has more than {MOST_BODY >> 20} MiB"


def secured(headers: Any) -> list[tuple[bytes, bytes]]:
    """Headers of an answer, with those of security where they are not there: it is of the type that it says, tells
    other sites nothing, and is in no frame of theirs."""
    out = [(bytes(name).lower(), bytes(value)) for name, value in headers]
    there = {name for name, _ in out}
    for name, value in (
        (b"x-content-type-options", b"nosniff"),
        (b"referrer-policy", b"same-origin"),
        (b"x-frame-options", b"DENY"),
    ):
        if name not in there:
            out.append((name, value))
    if not any(name == b"content-security-policy" and b"frame-ancestors" in value for name, value in out):
        out.append((b"content-security-policy", b"frame-ancestors 'none'"))
    return out


def _tell(scope: Any, exchange: _Exchange, seconds: float) -> None:
    """Errors are worth a line; that Git's first try is without credentials is not."""
    status = exchange.status
    error = status is not None and status >= 400 and status != 401 and LOGGED not in scope["extensions"]
    level = logging.INFO if error else logging.DEBUG
    if _log.isEnabledFor(level):
        _log.log(
            level,
            "%s",
            scope["method"][:20].lower(),
            extra=fields(
                path=scope["path"][:_SHOWN],
                status=status,
                address=exchange.address,
                ms=round(seconds * 1000),
            ),
        )
