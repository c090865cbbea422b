"""What a client of the built-in SSH endpoint may ask for and never gets: answered with no, and a line in the log.

One line a connection for each kind of thing, however often it is asked for: whoever looks at the log sees who tried
what, and nobody can fill it.
"""

from __future__ import annotations

import logging
from typing import Any

import paramiko  # type: ignore[import-untyped,unused-ignore]
from paramiko.common import (  # type: ignore[import-untyped,unused-ignore]
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
)

from cluster.names import shown

_USUAL_VARIABLES = (b"LANG", b"LC_", b"TERM", b"COLORTERM")
"""How the names begin of variables that stock clients send to everybody."""

_USUAL_REQUESTS = ("keepalive@", "no-more-sessions@", "hostkeys-prove")
"""How the names begin of global requests that stock clients make of everybody."""

# Its stubs describe only what is public. We build on more, so to the type checker it is Any.
_ServerInterface: Any = paramiko.ServerInterface

log = logging.getLogger("cluster.ssh")


class Refusals(_ServerInterface):  # type: ignore[misc]
    """The checks of paramiko's ServerInterface whose answer is always no."""

    @property
    def who(self) -> str:
        """The client, as the log names it."""
        raise NotImplementedError

    def __init__(self) -> None:
        self._noted: set[str] = set()

    def refused(self, kind: str, what: str = "") -> bool:
        """Note that somebody asked for `what` (default: `kind`), once for each kind; the answer: no."""
        if kind not in self._noted:
            self._noted.add(kind)
            log.info("%s: refused %s", self.who, what or kind)
        return False

    def refused_variable(self, name: bytes) -> bool:
        if name.startswith(_USUAL_VARIABLES):
            return False
        return self.refused("a variable", f"the variable {shown(name.decode('utf-8', 'replace'))}")

    def refused_channel(self, kind: str) -> int:
        self.refused("a channel", f"a channel of the kind {shown(kind)}")
        return int(OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED)

    def check_channel_pty_request(self, *_: Any) -> bool:
        return self.refused("a terminal")

    def check_channel_x11_request(self, *_: Any) -> bool:
        return self.refused("X11 forwarding")

    def check_channel_forward_agent_request(self, channel: Any) -> bool:
        return self.refused("agent forwarding")

    def check_channel_subsystem_request(self, channel: Any, name: str) -> bool:
        return self.refused("a subsystem", f"the subsystem {shown(name)}")

    def check_channel_direct_tcpip_request(self, chanid: int, origin: Any, destination: Any) -> int:
        return self.refused_channel("direct-tcpip")

    def check_port_forward_request(self, address: str, port: int) -> bool:
        return self.refused("port forwarding")

    def check_global_request(self, kind: str, message: Any) -> bool:
        if kind.startswith(_USUAL_REQUESTS):
            return False
        return self.refused("a request", f"the request {shown(kind)}")
