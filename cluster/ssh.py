"""The built-in SSH endpoint: one thread a connection, one a command, and no way to a shell.

    SshServer        listens; knows every connection; ends those that do not log in
        _Connection  one client: which key it proved, what it may ask for (nothing but exec)
            _Session one channel: its GIT_PROTOCOL, its command
                ChannelClient   the Client that the command's handler speaks to (cluster/ssh_channel.py)

What a connection's thread (paramiko's) does must not block others: a database lookup here delays this client alone.
Everybody on the network can reach what runs before authentication; it is bounded in time, number and memory.
What paramiko itself lacks for that is in cluster/wire.py and cluster/ssh_wire.py.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import logging
import re
import secrets
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import paramiko  # type: ignore[import-untyped,unused-ignore]
from paramiko.common import (  # type: ignore[import-untyped,unused-ignore]
    AUTH_FAILED,
    AUTH_SUCCESSFUL,
    MIN_WINDOW_SIZE,
    OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED,
    OPEN_FAILED_RESOURCE_SHORTAGE,
    OPEN_SUCCEEDED,
)

from cluster.certificates import is_certificate
from cluster.client import Client
from cluster.errors import ClientGone, ClusterError, ConfigError, DatabaseUnavailable, Refused, SchemaMismatch
from cluster.keyfiles import load_key
from cluster.model import Actor, ActorKind
from cluster.names import Command, parse_command
from cluster.ssh_channel import ChannelClient
from cluster.ssh_wire import ServerWire, UnusableKey

LOGIN_GRACE = 30.0
"""Seconds from connecting to a proven key."""

MAX_STRANGERS = 64
"""Connections that have not proven a key; more are closed at once."""

MAX_CHANNELS = 10
"""Commands at once on one connection, as OpenSSH's MaxSessions."""

FAREWELL = 1.0
"""Seconds for a client to hang up by itself, once its command has ended."""

_PROTOCOL = re.compile(r"version=[0-2](:[a-z0-9=-]+)*")
_AWAY = "the cluster's database is away; try again in a moment"
_CLOSING = "this device is shutting down"

# Its stubs describe only what is public. We build on more, so to the type checker it is Any.
_ServerInterface: Any = paramiko.ServerInterface

log = logging.getLogger(__name__)


class Handlers(Protocol):
    """What the endpoint serves. Called from many threads."""

    def authenticate(self, key_type: str, key_base64: str, fingerprint: str) -> Actor | None:
        """Whose key this is (fingerprint: "SHA256:…" without padding); None: nobody's.

        Refused: nobody's as far as can be told, with words for whoever has no other key. Any other ClusterError: that
        cannot be told.
        """

    def certified(self, key_type: str, certificate: str, address: str) -> Actor | None:
        """The same of a certificate, in base64, which a client at `address` offers."""

    def run(self, actor: Actor, command: Command, client: Client, *, protocol: str, address: str) -> int:
        """Do it; the exit code. A ClusterError is told to the client, with its exit code."""

    def greeting(self, actor: Actor) -> str:
        """What somebody reads who logs in without a command."""


class SshServer:
    """Listens on `listen`. Nothing is read or opened before start()."""

    def __init__(self, listen: tuple[str, int], host_key: Path, handlers: Handlers) -> None:
        self._listen, self._key_path, self.handlers = listen, host_key, handlers
        self._lock = threading.Lock()
        self._change = threading.Condition(self._lock)
        self._connections: set[_Connection] = set()
        self._socket: socket.socket | None = None
        self._running = 0
        self._stopping = threading.Event()
        self._turned_away = 0
        self._told_at = float("-inf")

    def start(self) -> tuple[str, int]:
        """Listen, from a thread of its own; the address that was bound. ConfigError where that cannot be."""
        self._host_key = load_key(self._key_path, "the host key of the SSH endpoint")
        self._socket = listener = _bind(self._listen)
        listener.settimeout(1.0)  # how often the accepting thread looks for those that do not log in
        threading.Thread(target=self._accept, args=(listener,), name="ssh accept", daemon=True).start()
        host, port = listener.getsockname()[:2]
        return host, port

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
        while not self._stopping.is_set():
            try:
                sock, address = listener.accept()
            except TimeoutError:
                sock = None
            except OSError as error:
                if self._stopping.is_set():
                    break
                log.error("accepting SSH connections: %s", error.strerror)  # most likely: too many open files
                time.sleep(0.1)
                continue
            self._end_strangers()
            if sock:
                self._admit(sock, str(address[0]).removeprefix("::ffff:"))

    def _admit(self, sock: socket.socket, address: str) -> None:
        with self._lock:
            strangers = sum(1 for connection in self._connections if connection.stranger)
        if strangers >= MAX_STRANGERS:
            sock.close()
            self._turned_away += 1
            if time.monotonic() - self._told_at > 10:  # one line for a flood
                what = "%d connections have not logged in yet: turned away %d more, the last from %s"
                log.warning(what, strangers, self._turned_away, address)
                self._turned_away, self._told_at = 0, time.monotonic()
            return
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

    def _end_strangers(self) -> None:
        now = time.monotonic()
        with self._lock:
            late = [each for each in self._connections if each.stranger and now - each.since > LOGIN_GRACE]
        for connection in late:
            connection.hang_up(f"not logged in after {LOGIN_GRACE:.0f} seconds")

    def ended(self, connection: _Connection) -> None:
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


class _Connection(_ServerInterface):  # type: ignore[misc]
    """One client. paramiko calls the check_… methods from the connection's own thread, one at a time.

    Where the lookup of a key fails, the key is accepted into a state in which nothing can be run: each command is
    answered with the reason. "Permission denied (publickey)" would send people to look for a fault in their keys.
    """

    def __init__(self, server: SshServer, sock: socket.socket, address: str) -> None:
        self.server, self.address = server, address
        self.since = time.monotonic()
        self.served_at = float("-inf")
        self._found: dict[str, Actor | ClusterError | None] = {}
        self._proven: Actor | ClusterError | None = None
        self._sessions: dict[int, _Session] = {}
        self._opened = 0
        self._why = ""
        self._sock = sock
        self._wire = ServerWire(sock)

    def start(self, host_key: Any) -> None:
        self._wire.name = f"ssh {self.address}"
        self._wire.add_server_key(host_key)
        self._wire.start_server(event=threading.Event(), server=self)

    @property
    def stranger(self) -> bool:
        """Whether it has not proven a key that somebody owns."""
        return not (isinstance(self._proven, Actor) and self._wire.is_authenticated())

    def hang_up(self, why: str = "") -> None:
        self._why = why
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # wakes the connection's thread up; close alone does not
        self._wire.close()

    def ended(self, error: BaseException | None) -> None:
        """The connection's thread is about to end."""
        self.server.ended(self)
        if not self._wire.authenticated:
            why = self._why or ascii(str(error or "hung up")[:200])[1:-1] or "hung up"
            log.info("%s: ended before logging in: %s", self.address, why)

    # Authentication

    def get_allowed_auths(self, username: str) -> str:
        return "publickey"

    def check_auth_publickey(self, username: str, key: Any) -> int:
        """Asked when a key is offered and again when it is proven. The last answer given is the one that counts."""
        if isinstance(key, UnusableKey):
            self._proven = None
            return int(AUTH_FAILED)
        # Of a certificate, paramiko keeps the whole aside; that is what the client signs for.
        certificate = key.public_blob
        kind, blob = (
            (certificate.key_type, certificate.key_blob) if certificate else (key.get_name(), key.asbytes())
        )
        fingerprint = "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")
        if fingerprint not in self._found:
            self._found[fingerprint] = self._look_up(kind, blob, fingerprint)
        self._proven = self._found[fingerprint]
        return int(AUTH_FAILED if self._proven is None else AUTH_SUCCESSFUL)

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
            away = isinstance(error, DatabaseUnavailable) and not isinstance(error, SchemaMismatch)
            return DatabaseUnavailable(_AWAY) if away else error
        except Exception:
            return _unexpected(self.address)
        if found:
            log.debug("%s: %s %s by key %s", self.address, found.kind, found.name, fingerprint)
        return found

    # Channels

    def check_channel_request(self, kind: str, chanid: int) -> int:
        if kind != "session":
            return int(OPEN_FAILED_ADMINISTRATIVELY_PROHIBITED)
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
        if not session or name != b"GIT_PROTOCOL" or len(text) > 256 or not _PROTOCOL.fullmatch(text):
            return False
        session.protocol = text
        return True

    def check_channel_exec_request(self, channel: Any, command: bytes) -> bool:
        return self._grant(channel, command)

    def check_channel_shell_request(self, channel: Any) -> bool:
        return self._grant(channel, None)

    def _grant(self, channel: Any, command: bytes | None) -> bool:
        session = self._sessions.get(channel.get_id())
        if not session or session.granted:
            return False
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
            if not counted:
                raise ClusterError(_CLOSING)
            code = self._answer(session, client)
        except ClientGone:
            log.debug("%s: hung up", self.address)
        except ClusterError as error:
            code = _tell(client, error)
        except Exception:
            code = _tell(client, _unexpected(self.address))
        finally:
            client.finish(code)
            if not (isinstance(self._proven, Actor) and self._proven.kind is ActorKind.DEVICE):
                self.served_at = time.monotonic()  # a peer keeps its connections, and forgets nothing
            self._sessions.pop(session.channel.get_id(), None)
            if counted:
                self.server.end()

    def _answer(self, session: _Session, client: ChannelClient) -> int:
        actor, handlers = self._proven, self.server.handlers
        if isinstance(actor, ClusterError):
            raise actor
        assert actor
        if session.command is None:
            greeting = handlers.greeting(actor)
            client.write((greeting.rstrip("\n") + "\n").encode(errors="replace"))
            return 1
        command = parse_command(session.command.decode(errors="surrogateescape"))
        return handlers.run(actor, command, client, protocol=session.protocol, address=self.address)


def _tell(client: ChannelClient, error: ClusterError) -> int:
    client.say(f"error: {error.what}")
    for line in error.lines()[1:]:
        client.say(line)
    return error.exit_code


def _unexpected(address: str) -> ClusterError:
    """For an exception that is being handled and that nobody foresaw: the log gets it, the client its number."""
    number = secrets.token_hex(4)
    log.exception("%s: %s: unexpected", address, number)
    return ClusterError(
        f"something went wrong on this device; the administrator finds it in the log as {number}"
    )


def _bind(listen: tuple[str, int]) -> socket.socket:
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
