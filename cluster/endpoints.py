"""Everything that answers somebody, in one process: the daemon itself, or each of its workers."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from cluster import openssh, ssh
from cluster.config import Address, Config
from cluster.meters import Meters
from cluster.node import Node
from cluster.openssh import HookServer
from cluster.requests import Requests
from cluster.sharing import Shared, State
from cluster.ssh import SshServer

if TYPE_CHECKING:  # what HTTP needs takes longer to import than all else: only where it is served
    from cluster.http.figures import Figures
    from cluster.http.server import HttpServer
    from cluster.http.site import Site

GRACE = 10.0
"""Seconds for requests under way at a clean stop. A commit takes milliseconds; a slow client is not waited for."""


@dataclass(frozen=True, slots=True)
class Sockets:
    """What listens. None: nothing is said there."""

    hooks: socket.socket
    ssh: socket.socket | None
    http: socket.socket | None

    @classmethod
    def bind(cls, config: Config, folder: Path) -> Sockets:
        """Where the configuration says, and in the run directory `folder`. ConfigError."""
        return cls(
            openssh.bind(folder),
            ssh.bind(config.ssh.listen) if config.ssh else None,
            _bind_http(config.http.listen) if config.http else None,
        )

    def close(self) -> None:
        """Here: where other processes have them too, those go on listening."""
        for each in (self.hooks, self.ssh, self.http):
            if each is not None:
                each.close()

    def where(self, config: Config) -> str:
        """For people."""
        text = "SSH through OpenSSH's hooks"
        if self.ssh:
            text = "SSH on {} port {}".format(*self.ssh.getsockname()[:2])
        if self.http and config.http:
            name = "HTTPS" if config.http.certificate else "HTTP"
            text += " and {} on {} port {}".format(name, *self.http.getsockname()[:2])
        return text


def _bind_http(listen: Address) -> socket.socket:
    from cluster.http.server import bind

    return bind(listen)


class Endpoints:
    """figures: what the processes of this device say for /-/metrics; None: this is the only one."""

    def __init__(
        self,
        node: Node,
        config: Config,
        meters: Meters,
        shared: Shared,
        *,
        figures: Callable[[], Figures] | None = None,
    ) -> None:
        requests = Requests(node, shared.running)
        self._node = node
        self._hooks = HookServer(node.store.run_directory(), requests)
        self._ssh: SshServer | None = None
        self._http: HttpServer | None = None
        self._site: Site | None = None
        if config.ssh is not None:
            self._ssh = SshServer(
                config.ssh.listen, config.ssh.host_key, requests, node.limits, shared.ssh_logins
            )
        if config.http is not None:
            from cluster.http.app import App
            from cluster.http.server import HttpServer
            from cluster.http.site import open_site

            self._site = open_site(node, requests, config.http, shared.http_logins, figures)
            self._http = HttpServer(config.http, App(self._site), grace=node.limits.login_grace, finish=GRACE)
        self._servers = [each for each in (self._hooks, self._ssh, self._http) if each is not None]
        meters.connections.update({name: self._open(name) for name in self.state().connections})

    def start(self, sockets: Sockets) -> None:
        """ConfigError."""
        self._hooks.start(sockets.hooks)
        if self._ssh is not None:
            self._ssh.start(sockets.ssh)
        if self._http is not None:
            self._http.start(sockets.http)

    def state(self) -> State:
        """What is open now."""
        by_name = {"openssh": self._hooks, "ssh": self._ssh, "http": self._http}
        return State(
            {name: server.open for name, server in by_name.items() if server is not None},
            self._node.db.usage(),
        )

    def _open(self, name: str) -> Callable[[], int]:
        return lambda: self.state().connections[name]

    def renew(self) -> bool:
        """Take the certificate's files anew. False: there is none."""
        return self._http is not None and self._http.renew()

    def say_that_it_stops(self) -> None:
        """Whoever asks how this device is hears it; streams end."""
        if self._site is not None:
            self._site.stopping.set()

    def stop_accepting(self) -> None:
        """No new connections, and no new commands on those that are open."""
        for server in self._servers:
            server.stop_accepting()

    def close(self) -> None:
        """Wait GRACE for what is under way; then hang up."""
        until = time.monotonic() + GRACE
        for server in self._servers:
            server.close(max(0.0, until - time.monotonic()))
