"""The built-in SSH endpoint: one thread a connection, one a command, and no way to a shell.

    SshServer        listens; knows every connection; ends those that do not log in, or do nothing
        _Connection  one client: which key it proved, what it may ask for (nothing but exec)
            _Session one channel: its GIT_PROTOCOL, its command
                ChannelClient   the Client that the command's handler speaks to (cluster/ssh_channel.py)

What a connection's thread (paramiko's) does must not block others: a database lookup here delays this client alone.
Everybody on the network can reach what runs before authentication; it is bounded in time, number and memory.
What paramiko itself lacks for that is in cluster/wire.py and cluster/ssh_wire.py. Who has to leave:
cluster/ssh_room.py.
"""

from __future__ import annotations

import base64
import errno
import logging
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from paramiko.common import (  # type: ignore[import-untyped,unused-ignore]
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    MIN_WINDOW_SIZE,
    OPEN_FAILED_RESOURCE_SHORTAGE,
    OPEN_SUCCEEDED,
)

from cluster import keys
from cluster.certificates import is_certificate
from cluster.config import LimitsSection
from cluster.endpoint import Handlers, answer, git_protocol, unforeseen, unknown_for_now
from cluster.errors import ClusterError, ConfigError, Refused
from cluster.keyfiles import load_key
from cluster.limits import FailedLogins
from cluster.model import Actor, ActorKind
from cluster.ssh_channel import ChannelClient
from cluster.ssh_refusals import Refusals
from cluster.ssh_room import Room
from cluster.ssh_wire import ServerWire, UnusableKey

MAX_CHANNELS = 10
"""Commands at once on one connection, as OpenSSH's MaxSessions."""

TICK = 1.0
"""Seconds between two looks for connections whose time is over."""

FAREWELL = 1.0
"""Seconds for a client to hang up by itself, once its command has ended."""

_CLOSING = "this device is shutting down"

log = logging.getLogger(__name__)


class SshServer:
    """Listens on `listen`. Nothing is read or opened before start()."""

    def __init__(
        self,
        listen: tuple[str, int],
        host_key: Path,
        handlers: Handlers,
        limits: LimitsSection | None = None,
        failed_logins: FailedLogins | None = None,
    ) -> None:
        """failed_logins: where other processes of this device are told of some, too."""
        self._listen, self._key_path, self.handlers = listen, host_key, handlers
        self.room = Room(limits or LimitsSection(), failed_logins)
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)
        self._connections: set[_Connection] = set()
        self._socket: socket.socket | None = None
        self._running = 0
        self._stopping = threading.Event()

    def start(self, listener: socket.socket | None = None) -> tuple[str, int]:
        """Listen, from a thread of its own; the address that was bound. ConfigError where that cannot be.

        listener: what `bind` made, where other processes of this device listen there, too.
        """
        self._host_key = load_key(self._key_path, "the host key of the SSH endpoint")
        self._socket = listener = listener or bind(self._listen)
        listener.settimeout(TICK)
        threading.Thread(target=self._accept, args=(listener,), name="ssh accept", daemon=True).start()
        host, port = listener.getsockname()[:2]
        return host, port

    @property
    def open(self) -> int:
        """Connections that are open now."""
        with self._lock:
            return len(self._connections)

    def stop_accepting(self) -> None:
        """No new connections; whoever asks for a command on an open one is told that this device shuts down."""
        with self._lock:
            self._stopping.set()
        if self._socket:
            with suppress(OSError):
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes accept up; close alone does not
            self._socket.close()

    def close(self, grace: float) -> None:
        """Stop; wait `grace` seconds for the commands that run; then hang up on everybody.

        OpenSSH's client forgets the exit status it was given when it is hung up on before it has said goodbye.
        """
        self.stop_accepting()
        with self._change:
            self._change.wait_for(lambda: not self._running, grace)
            since = time.monotonic() - FAREWELL
            leaving = {each for each in self._connections if each.served_at > since}
            self._change.wait_for(lambda: not leaving & self._connections, min(grace, FAREWELL))
            connections = list(self._connections)
        for connection in connections:
            connection.hang_up()

    # Connections

    def _accept(self, listener: socket.socket) -> None:
        look = 0.0
        while not self._stopping.is_set():
            try:
                sock, address = listener.accept()
            except TimeoutError:
                sock = None
            except OSError as error:
                if (
                    self._stopping.is_set() or error.errno == errno.EINVAL
                ):  # shut down, here or in another process
                    break
                log.error("accepting SSH connections: %s", error.strerror)  # most likely: too many open files
                time.sleep(0.1)
                sock = None
            if time.monotonic() >= look:
                look = time.monotonic() + TICK
                self.room.end_late(self._present())
            if sock:
                self._admit(sock, str(address[0]).removeprefix("::ffff:"))

    def _admit(self, sock: socket.socket, address: str) -> None:
        self.room.make_room(self._present())
        try:
            connection = _Connection(self, sock, address)
        except OSError:  # gone already
            sock.close()
            return
        with self._lock:
            self._connections.add(connection)
        try:
            connection.start(self._host_key)
        except RuntimeError as error:  # no thread to be had
            log.error("%s: connection not served: %s", address, error)
            connection.hang_up()
            self.ended(connection)
        if self._stopping.is_set():  # close() may have looked before it was there
            connection.hang_up()

    def _present(self) -> list[_Connection]:
        with self._lock:
            return list(self._connections)

    def ended(self, connection: _Connection) -> None:
        self.room.ended(connection)
        with self._change:
            self._connections.discard(connection)
            self._change.notify_all()

    # Commands

    def begin(self) -> bool:
        """Count a command as running, unless this device shuts down."""
        with self._lock:
            if not self._stopping.is_set():
                self._running += 1
            return not self._stopping.is_set()

    def end(self) -> None:
        with self._change:
            self._running -= 1
            self._change.notify_all()


class _Session:
    """A channel. What it asks for is granted once, and started once the client knows; None: a shell."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel
        self.protocol = ""
        self.command: bytes | None = None
        self.granted = self.started = False


class _Connection(Refusals):
    """One client. paramiko calls the check_… methods from the connection's own thread, one at a time.

    Where the lookup of a key fails, the key is accepted into a state in which nothing can be run: each command is
    answered with the reason. "Permission denied (publickey)" would send people to look for a fault in their keys.
    """

    def __init__(self, server: SshServer, sock: socket.socket, address: str) -> None:
        super().__init__()
        self.server, self.address = server, address
        self.since = self._quiet_since = time.monotonic()
        self.served_at = float("-inf")
        self._found: dict[str, Actor | ClusterError | None] = {}
        self._proven: Actor | ClusterError | None = None
        self._sessions: dict[int, _Session] = {}
        self._opened = 0
        self._patience = (
            server.room.limits.login_grace / 2
        )  # who offers a few keys must get to the one that fits
        self._why = ""
        self._error: BaseException | None = None
        self._leaving = threading.Event()
        self._sock = sock
        self._wire = ServerWire(sock)

    def start(self, host_key: Any) -> None:
        self._wire.name = f"ssh {self.address}"
        self._wire.add_server_key(host_key)
        self._wire.start_server(event=threading.Event(), server=self)

    @property
    def stranger(self) -> bool:
        return not (isinstance(self._proven, Actor) and self._wire.is_authenticated())

    @property
    def user(self) -> str:
        proven = self._proven
        known = not self.stranger and isinstance(proven, Actor) and proven.kind is ActorKind.USER
        return proven.name if known and isinstance(proven, Actor) else ""

    @property
    def progress(self) -> int:
        return bool(self._wire.remote_version) + bool(self._wire.initial_kex_done)

    @property
    def idle_since(self) -> float | None:
        if isinstance(self._proven, Actor) and self._proven.kind is ActorKind.DEVICE:
            return None
        if any(session.started for session in list(self._sessions.values())):
            return None
        return self._quiet_since

    @property
    def leaving(self) -> bool:
        return self._leaving.is_set()

    @property
    def failed(self) -> str | None:
        if self._wire.authenticated:
            return None
        return self._why or ascii(str(self._error or "hung up")[:200])[1:-1] or "hung up"

    @property
    def who(self) -> str:
        return f"{self.address}: {self._proven.name}" if isinstance(self._proven, Actor) else self.address

    def hang_up(self, why: str = "") -> None:
        self._why = why
        self._leaving.set()
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the connection's thread up; close alone does not
        self._wire.close()

    def ended(self, error: BaseException | None) -> None:
        """The connection's thread is about to end."""
        self._error = error
        self.server.ended(self)
        if self._wire.authenticated and error is not None and not isinstance(error, EOFError | OSError):
            log.info("%s: hung up on: %s", self.who, ascii(str(error)[:200])[1:-1])

    # Authentication

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:
        """Asked when a key is offered and again when it is proven. The last answer given is the one that counts."""
        if isinstance(key, UnusableKey):
            self._proven = None
            return self._refuse()
        # Of a certificate, paramiko keeps the whole aside; that is what the client signs for.
        certificate = key.public_blob
        kind, blob = (
            (certificate.key_type, certificate.key_blob) if certificate else (key.get_name(), key.asbytes())
        )
        fingerprint = keys.fingerprint(blob)
        if fingerprint not in self._found:
            self._found[fingerprint] = self._look_up(kind, blob, fingerprint)
        self._proven = self._found[fingerprint]
        return self._refuse() if self._proven is None else int(AUTH_SUCCESSFUL)

    def _refuse(self) -> int:
        """Say no: to an address that fails again and again, not at once. Nobody but this client waits."""
        delay = min(self.server.room.delay(self.address), self._patience)
        self._patience -= delay
        self._leaving.wait(delay)
        return int(AUTH_FAILED)

    def _look_up(self, kind: str, blob: bytes, fingerprint: str) -> Actor | ClusterError | None:
        encoded = base64.b64encode(blob).decode()
        try:
            if is_certificate(kind):
                found = self.server.handlers.certified(kind, encoded, self.address)
            else:
                found = self.server.handlers.authenticate(kind, encoded, fingerprint)
        except Refused as error:
            self._wire.tell_stranger(f"cluster: {error.what}")
            return None
        except ClusterError as error:
            log.warning("%s: cannot look up key %s: %s", self.address, fingerprint, error)
            return unknown_for_now(error)
        except Exception:
            return unforeseen(self.address)
        if found:
            log.debug("%s: %s %s by key %s", self.address, found.kind, found.name, fingerprint)
        return found

    def check_auth_password(self, username: str, password: str) -> int:
        return self._refuse()

    def check_auth_interactive(self, username: str, submethods: str) -> int:
        return self._refuse()

    def logged_in(self) -> None:
        """A key was proven, and the client knows."""
        self._quiet_since = time.monotonic()
        if not self.stranger:
            self.server.room.logged_in(self.address)

    # Channels

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if kind != "session":
            return self.refused_channel(kind)
        for number, session in list(self._sessions.items()):
            if session.channel.closed and not session.started:
                self._sessions.pop(number, None)
        if self.stranger:
            self._wire.default_window_size = MIN_WINDOW_SIZE
        # A device that reuses its connections must not reuse one on which nothing can be run.
        if len(self._sessions) >= MAX_CHANNELS or (self.stranger and self._opened):
            return int(OPEN_FAILED_RESOURCE_SHORTAGE)
        return int(OPEN_SUCCEEDED)

    def opened(self, channel: Any) -> None:
        self._opened += 1
        self._sessions[channel.get_id()] = _Session(channel)

    def check_channel_env_request(self, channel: Any, name: bytes, value: bytes) -> bool:
        """GIT_PROTOCOL, in the form that Git gives it, is the one variable that reaches anything."""
        session = self._sessions.get(channel.get_id())
        text = value.decode("ascii", "replace")
        if not session or name != b"GIT_PROTOCOL" or git_protocol(text) is None:
            return self.refused_variable(name)
        session.protocol = text
        return True

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        return self._grant(channel, command)

    def check_channel_shell_request(self, channel: Any) -> bool:
        return self._grant(channel, None)

    def _grant(self, channel: Any, command: bytes | None) -> bool:
        session = self._sessions.get(channel.get_id())
        if not session or session.granted:
            return self.refused("a second command on one channel")
        session.granted, session.command = True, command
        return True

    def replied(self, channel: Any) -> None:
        """The client knows what became of its request; a command that was granted may begin."""
        session = self._sessions.get(channel.get_id())
        if session and session.granted and not session.started:
            session.started = True
            name = f"ssh {self.address} #{channel.get_id()}"
            threading.Thread(target=self._serve, args=(session,), name=name, daemon=True).start()

    def _serve(self, session: _Session) -> None:
        """A command, from its thread's first step to its last."""
        client = ChannelClient(session.channel)
        counted = self.server.begin()
        code = 1
        try:
            actor = self._proven if counted else ClusterError(_CLOSING)
            assert actor
            code = answer(
                self.server.handlers,
                actor,
                session.command,
                client,
                protocol=session.protocol,
                address=self.address,
            )
        finally:
            client.finish(code)
            if not (isinstance(self._proven, Actor) and self._proven.kind is ActorKind.DEVICE):
                self.served_at = time.monotonic()  # a peer keeps its connections, and forgets nothing
            self._quiet_since = time.monotonic()
            self._sessions.pop(session.channel.get_id(), None)
            if counted:
                self.server.end()


def bind(listen: tuple[str, int]) -> socket.socket:
    """A socket that listens there. ConfigError."""
    host, port = listen
    try:
        found = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, address = found[0][0], found[0][4]
        dual = family == socket.AF_INET6 and host in ("", "::") and socket.has_dualstack_ipv6()
        # It sets SO_REUSEADDR.
        return socket.create_server(address[:2], family=family, backlog=128, dualstack_ipv6=dual)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        hint = "Set [ssh] listen to an address of this machine and a free port."
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            hint = f"Another program holds the port (ss -ltnp shows which); stop it, or {hint[0].lower()}{hint[1:]}"
        raise ConfigError(f"cannot listen for SSH on {host or '*'} port {port}: {why}", hint=hint) from error
