"""uvicorn in a thread of the daemon: the one that serves HTTP, with or without TLS.

What it adds to uvicorn's own protocol: nobody may take for ever to send a request's first lines, and there is an end to
how many connections are open at once.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import threading
import time
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from cluster.config import Address, HttpSection
from cluster.errors import ConfigError

_log = logging.getLogger(__name__)

START = 30.0
"""Seconds for the server to answer after its start."""

KEEP_ALIVE = 75
"""Seconds for which an idle connection is kept for the next request."""

MOST_HEAD = 64 * 1024
"""Bytes of a request's first lines."""

ABORT = "git-cluster.abort"
"""In a scope's extensions: ends the connection at once, whatever is still to be sent."""


class HttpServer:
    """Serves `app` (an ASGI application) where `section` says, once `start` was called."""

    def __init__(self, section: HttpSection, app: Any, *, grace: float) -> None:
        self._section = section
        config = uvicorn.Config(
            app,
            http=_protocol(section.connections, grace),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=1,
            h11_max_incomplete_event_size=MOST_HEAD,
            backlog=1024,
            proxy_headers=bool(section.trusted_proxies),
            forwarded_allow_ips=list(section.trusted_proxies),
        )
        config.load()
        if section.certificate is not None and section.key is not None:
            config.ssl = _tls(section)
        self._server = uvicorn.Server(config)
        self._thread: threading.Thread | None = None

    def start(self) -> Address:
        """Listen, and where. ConfigError where that cannot be done."""
        listen = self._section.listen
        family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
        try:
            sock = socket.create_server((listen.host, listen.port), family=family, backlog=1024)
        except (OSError, OverflowError) as error:
            raise ConfigError(
                f"[http] cannot listen on {listen}: {getattr(error, 'strerror', None) or error}",
                hint="choose another address or port",
            ) from error
        bound = Address(*sock.getsockname()[:2])
        self._thread = threading.Thread(
            target=self._server.run, kwargs={"sockets": [sock]}, name="http", daemon=True
        )
        self._thread.start()
        deadline = time.monotonic() + START
        while not self._server.started:
            if time.monotonic() > deadline or not self._thread.is_alive():
                raise ConfigError("[http] the server did not start", hint="the log says why")
            time.sleep(0.005)
        return bound

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._server.server_state.connections)

    def stop_accepting(self) -> None:
        """No new connections; those that are idle end."""
        self._server.should_exit = True

    def close(self, seconds: float) -> None:
        """Wait for the requests under way, for so long at the most."""
        if self._thread is not None:
            self._thread.join(seconds)
            self._server.force_exit = True


def _tls(section: HttpSection) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    assert section.certificate is not None and section.key is not None
    try:
        context.load_cert_chain(section.certificate, section.key, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        why = getattr(error, "strerror", None) or "they are no PEM files that belong together"
        raise ConfigError(
            f"[http] certificate and key cannot be used: {why}",
            hint="certificate: the server's and those that signed it; key: its own, without a passphrase",
        ) from error
    return context


def _protocol(connections: int, grace: float) -> type[asyncio.Protocol]:
    """uvicorn's, bounded. grace: seconds for a request's first lines."""

    class Bounded(H11Protocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._late: asyncio.TimerHandle | None = None
            inner = self.app

            async def app(scope: Any, receive: Any, send: Any) -> None:
                scope.setdefault("extensions", {})[ABORT] = self.transport.abort
                await inner(scope, receive, send)

            self.app = app

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            if len(self.connections) > connections:
                body = b"cluster: error: this server has as many connections as it takes\n"
                transport.write(
                    b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 5\r\n"
                    b"Content-Type: text/plain\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
                )
                transport.close()
                return
            self._look()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._look()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._look()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def _look(self) -> None:
            """Whether a request's first lines are awaited, or the rest of one that was answered already."""
            theirs, cycle = self.conn.their_state, self.cycle
            head = theirs is h11.IDLE and (cycle is None or bool(self.conn.trailing_data[0]))
            rest = theirs is h11.SEND_BODY and cycle is not None and cycle.response_complete
            if head or rest:
                if self._late is None:
                    self._late = self.loop.call_later(grace, self._end_late)
            else:
                self._disarm()

        def _end_late(self) -> None:
            self._late = None
            _log.info(
                "%s: hung up: no whole request after %g s", self.client[0] if self.client else "?", grace
            )
            self.transport.abort()

        def _disarm(self) -> None:
            if self._late is not None:
                self._late.cancel()
                self._late = None

    return Bounded
