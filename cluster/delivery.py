"""One delivery of a webhook: to the very address that was checked, within a time that nobody can stretch."""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache

import httpx

from cluster import webhooks
from cluster.db import Webhook
from cluster.errors import Refused, UsageError
from cluster.status import timestamp
from cluster.webhooks import DEADLINE, Target, target

TIMEOUT = 10.0
"""Seconds to connect, and between two signs of life of an answer."""

MOST_ANSWER = 64 * 1024
"""Bytes of an answer that are read, so that its connection ends well. Nothing is done with them."""

MOST_ADDRESSES = 4
"""Of one host, that are tried one after another."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a delivery. status: of HTTP; None: there was no answer. error: "" where it was taken."""

    status: int | None
    error: str = ""

    @property
    def gone(self) -> bool:
        """Whether the receiver wants nothing more, ever."""
        return self.status == 410


def check(url: str, *, private: bool) -> None:
    """Of a URL that somebody wants to add. UsageError; Refused: its host is private now. One that cannot be resolved
    here may be so later; every delivery looks again."""
    where = target(url)
    try:
        found = _resolve(where)
    except OSError:
        return
    if not private:
        webhooks.refuse_private(where.host, found)


def ping(webhook: Webhook, secret: str, *, private: bool) -> Outcome:
    """A delivery that tells of nothing, to see whether it arrives. One try."""
    now = datetime.now(UTC)
    said = {"event": "ping", "repository": webhook.repository, "webhook": webhook.id, "at": timestamp(now)}
    message = f"msg_ping_{webhook.id}_{time.time_ns()}"
    outcome = send(webhook.url, secret, message, json.dumps(said).encode(), private=private)
    assert outcome is not None
    return outcome


def send(
    url: str,
    secret: str,
    message: str,
    body: bytes,
    *,
    private: bool,
    ready: Callable[[], bool] = lambda: True,
) -> Outcome | None:
    """Sign and POST it. message: the id by which a receiver knows it again. private: whether any address is good.

    ready: asked once the host is resolved, which may take long; None, and nothing is sent, where it says no.
    """
    try:
        where = target(url)
        found = _resolve(where)
        if not private:
            webhooks.refuse_private(where.host, found)
    except OSError:
        return Outcome(None, "its host cannot be resolved")
    except (UsageError, Refused) as error:
        return Outcome(None, error.what)
    if not ready():
        return None
    headers = webhooks.headers(secret, message, int(time.time()), body)
    try:
        return asyncio.run(_post(where, found, {"Host": where.authority, **headers}, body))
    except TimeoutError:
        return Outcome(None, f"no whole answer within {DEADLINE:g} s")


def _resolve(where: Target) -> list[str]:
    """The addresses of its host. OSError: it has none."""
    try:
        found = socket.getaddrinfo(where.host, where.port, type=socket.SOCK_STREAM)
    except UnicodeError as error:  # a label that is too long
        raise OSError("no host") from error
    return list(dict.fromkeys(str(each[4][0]) for each in found))


async def _post(where: Target, addresses: list[str], headers: Mapping[str, str], body: bytes) -> Outcome:
    """TimeoutError: DEADLINE has passed."""
    tls = _tls() if where.scheme == "https" else False
    outcome = Outcome(None, "cannot connect")
    async with (
        asyncio.timeout(DEADLINE),
        httpx.AsyncClient(verify=tls, trust_env=False, timeout=TIMEOUT) as client,
    ):
        for address in addresses[:MOST_ADDRESSES]:
            url = httpx.URL(scheme=where.scheme, host=address, port=where.port, raw_path=where.path.encode())
            extensions = {"sni_hostname": where.host}
            try:
                async with client.stream(
                    "POST", url, headers=headers, content=body, extensions=extensions
                ) as response:
                    await _drain(response)
                    return _judged(response.status_code)
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                outcome = Outcome(None, _why(error))
            except httpx.HTTPError as error:
                return Outcome(None, _why(error))
    return outcome


async def _drain(response: httpx.Response) -> None:
    """What it says beyond its status does not matter, nor whether that can be read."""
    size = 0
    try:
        async for chunk in response.aiter_raw():
            size += len(chunk)
            if size > MOST_ANSWER:
                return
    except httpx.HTTPError:
        return


def _judged(status: int) -> Outcome:
    if 200 <= status < 300:
        return Outcome(status)
    if 300 <= status < 400:
        return Outcome(
            status, f"it answered {status}: redirects are not followed; add the URL that it leads to"
        )
    if status == 410:
        return Outcome(status, "it answered 410 Gone: disabled")
    return Outcome(status, f"it answered {status}")


def _why(error: httpx.HTTPError) -> str:
    """In words that need no knowledge of httpx, and tell nothing of our network."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not good: {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return "it does not speak TLS as we do"
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, httpx.ConnectTimeout):
        return f"no connection within {TIMEOUT:g} s"
    if isinstance(error, httpx.ConnectError):
        return "cannot connect"
    if isinstance(error, httpx.TimeoutException):
        return f"no answer within {TIMEOUT:g} s"
    return "the connection ended without an answer of HTTP"


@cache
def _tls() -> ssl.SSLContext:
    """The machine's own list of authorities, so that a company's own are among them."""
    return ssl.create_default_context()
