"""Whom a request over HTTP is from: a token, as a password or a bearer, the browser that was shown one, or nobody.

Credentials are never guessed at twice as fast: an address from which they are wrong again and again waits for each
further no (limits.FailedLogins), the same memory for Git, pages and API.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import logging
import secrets
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import anyio
import anyio.to_thread
from starlette.requests import HTTPConnection

from cluster import tokens
from cluster.db import Database
from cluster.errors import DatabaseUnavailable, Refused
from cluster.limits import DELAYS, FailedLogins, Slowed, duration, network
from cluster.model import ANONYMOUS, Actor
from cluster.stale import Memory

COOKIE = "git_cluster_session"
SESSION = 12 * 3600.0
"""Seconds for which a browser need not be shown the token again."""

T = TypeVar("T")
_log = logging.getLogger(__name__)


class Unauthenticated(Refused):
    """Nobody is proven, or not enough: 401, which has Git and browsers ask for credentials."""


MOST_WAITING = 256
MOST_WAITING_THERE = 16
"""Refusals that wait at once, in all and of one address. One more is told at once to come later: whoever floods is not
slowed by that, but guesses at tokens of 256 bits."""

SLOWED_QUESTIONS = 2
"""Tokens from slowed addresses that are looked up at once; the others have the rest of the database to themselves."""


class TooManyRefused(Refused):
    """429: so many refusals wait already that this one does not."""


class Who:
    """Looks up whom requests are from."""

    def __init__(
        self,
        db: Database,
        *,
        anonymous: bool,
        failed_logins: int,
        memory: Memory | None = None,
        failed: FailedLogins | None = None,
    ) -> None:
        self._db, self._anonymous, self._memory = db, anonymous, memory
        self._failed = FailedLogins(failed_logins) if failed is None else failed
        self._most = failed_logins
        self._limiter = anyio.CapacityLimiter(16)
        self._slowed = anyio.CapacityLimiter(SLOWED_QUESTIONS)
        self._waiting = Counter[str]()

    async def asks(self, connection: HTTPConnection) -> Actor:
        """The actor of a request. Unauthenticated: its credentials are nobody's. Nobody asks without: ANONYMOUS.

        Unauthenticated, too, where a request without credentials is not answered at all ([http] anonymous).
        """
        secret = credentials(connection)
        if secret is not None:
            return await self.prove(secret, address_of(connection))
        if cookie := connection.cookies.get(COOKIE):
            digest = _digest(cookie)
            found = await self._ask(lambda: self._db.whose_web_session(digest))
            if found is not None:
                return found
        if not self._anonymous:
            raise Unauthenticated("this server answers nobody without a token", hint=GET_ONE)
        return ANONYMOUS

    async def prove(self, secret: str, address: str) -> Actor:
        """Whom a token proves. Unauthenticated, after a while where it was wrong before."""
        digest, found = tokens.digest(secret), None
        if digest:
            limiter = self._slowed if self._failed.slowed(address) else self._limiter
            found = await anyio.to_thread.run_sync(lambda: self._look_up(digest, address), limiter=limiter)
        if found is not None:
            self._failed.succeeded(address)
            return found
        slowed = self._failed.failed(address)
        if slowed is Slowed.FROM_NOW:
            _log.warning("%s: more than %d failed logins in a minute: slowed down", address, self._most)
        if slowed is not Slowed.ALREADY:
            _log.info("%s: a token that is nobody's", address)
        if delay := self._failed.delay(address):
            await self._wait(delay, network(address))
        raise Unauthenticated("this token is not known here, or has ended", hint=GET_ONE)

    async def _wait(self, delay: float, address: str) -> None:
        if self._waiting.total() >= MOST_WAITING or self._waiting[address] >= MOST_WAITING_THERE:
            raise TooManyRefused(
                "too many wrong tokens come at once", hint=f"try again in {duration(DELAYS[-1])}"
            )
        self._waiting[address] += 1
        try:
            await asyncio.sleep(delay)
        finally:
            self._waiting[address] -= 1
            if not self._waiting[address]:
                del self._waiting[address]

    def _look_up(self, digest: bytes, address: str) -> Actor | None:
        try:
            return self._db.whose_token(digest, address)
        except DatabaseUnavailable:
            if self._memory is None:
                raise
            return self._memory.token(digest)

    # Browsers

    async def begin(self, actor: Actor) -> str:
        """A session for whom a token proved; the cookie."""
        cookie = secrets.token_urlsafe(32)
        await self._ask(lambda: self._db.begin_web_session(_digest(cookie), actor, seconds=SESSION))
        return cookie

    async def end(self, cookie: str) -> None:
        await self._ask(lambda: self._db.end_web_session(_digest(cookie)))

    async def _ask(self, question: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(question, limiter=self._limiter)


GET_ONE = "an administrator makes one: git-cluster token add USER; give it as the password"


def csrf_token(cookie: str) -> str:
    """What a form of that browser's session has to bring along: another site cannot read it."""
    return hmac.new(cookie.encode(), b"csrf", hashlib.sha256).hexdigest()


def credentials(connection: HTTPConnection) -> str | None:
    """The token that a request brings; None: it brings none. Basic: as the password, whatever the name; or as the name
    alone. Bearer: as it is. Anything else is a token that is nobody's."""
    header = connection.headers.get("authorization")
    if header is None:
        return None
    scheme, _, value = header.partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() != "basic":
        return ""
    try:
        name, _, password = base64.b64decode(value.strip(), validate=True).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError, ValueError):
        return ""
    return name if name.startswith(tokens.PREFIX) and not password.startswith(tokens.PREFIX) else password


def address_of(connection: HTTPConnection | dict[str, Any]) -> str:
    """Of the client, as the server or a trusted proxy tells it; "" where nobody does."""
    scope = connection if isinstance(connection, dict) else connection.scope
    client = scope.get("client")
    return str(client[0]) if client else ""


def _digest(cookie: str) -> bytes:
    return hashlib.sha256(cookie.encode()).digest()
