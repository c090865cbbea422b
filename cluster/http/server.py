"""uvicorn in a thread of the daemon: the one that serves HTTP, with or without TLS.

connection.py hardens each connection, guard.py each request; tls.py has the certificate.
"""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from contextlib import suppress
from typing import Any

import uvicorn

from cluster.config import Address, HttpSection
from cluster.errors import ConfigError
from cluster.http.connection import protocol
from cluster.http.guard import Guard
from cluster.http.tls import LOOK, Certificate

START = 30.0
"""Seconds for the server to answer after its start."""

KEEP_ALIVE = 75
"""Seconds for which an idle connection is kept for the next request."""

MOST_HEAD = 64 * 1024
"""Bytes of a request's first lines."""

HANDSHAKE = 15.0
"""Seconds for a TLS handshake, at the most."""


class HttpServer:
    """Serves `app` (an ASGI application) where `section` says, once `start` was called.

    grace: seconds for a request's first lines. finish: seconds for the requests under way at a clean stop. ConfigError
    where the certificate cannot be used.
    """

    def __init__(self, section: HttpSection, app: Any, *, grace: float, finish: float) -> None:
        self._section = section
        config = uvicorn.Config(
            Guard(app, section.trusted_proxies),
            http=protocol(connections=section.connections, grace=grace),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE,
            timeout_graceful_shutdown=round(finish),
            h11_max_incomplete_event_size=MOST_HEAD,
            backlog=1024,
        )
        config.load()
        self._certificate: Certificate | None = None
        if section.certificate is not None and section.key is not None:
            self._certificate = Certificate(section.certificate, section.key)
            config.ssl = self._certificate.context
        self._server = _Server(config, min(grace, HANDSHAKE))
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self, listener: socket.socket | None = None) -> Address:
        """Listen, and where. ConfigError where that cannot be done.

        listener: what `bind` made, where other processes of this device listen there, too.
        """
        sock = listener or bind(self._section.listen)
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
        if self._certificate is not None:
            threading.Thread(target=self._look, name="certificate", daemon=True).start()
        return bound

    def _look(self) -> None:
        while not self._stopping.wait(LOOK) and self._certificate is not None:
            self._certificate.look()

    def renew(self) -> bool:
        """Take the certificate's files anew, now. False: there is none."""
        if self._certificate is None:
            return False
        self._certificate.renew()
        return True

    @property
    def open(self) -> int:
        """Connections that are open now."""
        return len(self._server.server_state.connections)

    def stop_accepting(self) -> None:
        """No new connections; those that are idle end."""
        self._stopping.set()
        self._server.should_exit = True

    def close(self, seconds: float) -> None:
        """Wait for the requests under way, for so long at the most."""
        if self._thread is not None:
            self._thread.join(seconds)
            self._server.force_exit = True


def bind(listen: Address) -> socket.socket:
    """A socket that listens there. ConfigError."""
    family = socket.AF_INET6 if ":" in listen.host else socket.AF_INET
    try:
        return socket.create_server((listen.host, listen.port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        raise ConfigError(
            f"[http] cannot listen on {listen}: {getattr(error, 'strerror', None) or error}",
            hint="choose another address or port",
        ) from error


class _Server(uvicorn.Server):
    """uvicorn's, which would give a TLS handshake a minute."""

    def __init__(self, config: uvicorn.Config, handshake: float) -> None:
        super().__init__(config)
        self._handshake = handshake

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        config, loop = self.config, asyncio.get_running_loop()
        await self.lifespan.startup()

        def connected() -> asyncio.Protocol:
            made: asyncio.Protocol = config.http_protocol_class(  # type: ignore[call-arg]
                config=config, server_state=self.server_state, app_state=self.lifespan.state, _loop=loop
            )
            return made

        self.servers = [
            await loop.create_server(
                connected,
                sock=sock,
                backlog=config.backlog,
                ssl=config.ssl,
                ssl_handshake_timeout=self._handshake if config.ssl else None,
                ssl_shutdown_timeout=self._handshake if config.ssl else None,
            )
            for sock in sockets or ()
        ]
        self.started = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        with suppress(OSError):
            await super().shutdown(sockets)
