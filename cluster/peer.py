"""Connections to other devices, as a client: strict host keys, connections that are reused, deadlines everywhere.

    Peers.run(device, command)      a Remote: the command's input, output, stderr and exit status (cluster/remote.py)
        _Pool                       the connections to one device, one for each command that runs
            Wire                    one connection, as the SSH endpoint has them too (cluster/wire.py)

A handshake costs some 20 ms and a channel under one, so a connection is kept and used for one command after
another. A device that answers nothing is given up after PROBES keepalives, even in the middle of a transfer.
"""

from __future__ import annotations

import base64
import binascii
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paramiko  # type: ignore[import-untyped,unused-ignore]
from paramiko.common import cMSG_CHANNEL_REQUEST  # type: ignore[import-untyped,unused-ignore]

from cluster.errors import PeerFailed
from cluster.keyfiles import load_key
from cluster.model import Device
from cluster.remote import Remote
from cluster.wire import LOST, Wire

KEPT = 4
"""Connections to a device that are kept with nothing to do."""

HANDSHAKES = 8
"""Connections to a device that may be in the making: it admits 64 that have not logged in yet, whoever they are."""

CONNECT_TIMEOUT = 5.0
CHANNEL_TIMEOUT = 10.0
"""Seconds for a TCP connection, and for a device to begin a command."""


@dataclass(frozen=True, slots=True)
class _Login:
    """With which key, under which name, and the words for a key that is refused."""

    key: Any
    user: str
    whose: str
    if_refused: str


class _Pool:
    """The connections to one device at one address. Each carries one command at a time.

    SSH could carry more. But paramiko reads and answers in one thread: where both ends are about to answer and
    large transfers fill the connection both ways, neither reads, and it stands still for ever. Commands on
    connections of their own cannot do that to each other, nor does one that is lost take others with it.
    """

    def __init__(self, device: Device, login: _Login) -> None:
        self.name, self.url, self.host_key = device.name, device.ssh_url, device.host_key
        self._login = login
        self._lock = threading.Lock()
        self._idle: list[Wire] = []
        self._busy: set[Wire] = set()
        self._closed = False
        self._handshakes = threading.BoundedSemaphore(HANDSHAKES)

    def open(self, command: str, protocol: str) -> tuple[Wire, Any]:
        """A connection, and a channel on it on which the device has been asked to run `command`.

        A kept connection may have died unnoticed, or the device may take no more on it: then a new one, once.
        Nothing has been sent to the command by then, so beginning it again repeats nothing.
        """
        wire = self._take()
        if wire:
            try:
                return wire, _begin(wire, command, protocol)
            except LOST:
                self.give_back(wire, broken=True)
        if not self._handshakes.acquire(timeout=CHANNEL_TIMEOUT):  # it does not answer those before us either
            what = f"device {self.name} is too slow to begin what it is asked for"
            raise PeerFailed(what, hint="Its log may say why.")
        try:
            wire = self._handshake()
        finally:
            self._handshakes.release()
        with self._lock:
            self._busy.add(wire)
        try:
            return wire, _begin(wire, command, protocol)
        except LOST as error:
            self.give_back(wire, broken=True)
            what = f"device {self.name} did not begin what it was asked for"
            raise PeerFailed(what, hint=f"Its log says why; over SSH it said: {_plain(error)}") from error

    def _take(self) -> Wire | None:
        with self._lock:
            while self._idle:
                wire = self._idle.pop()
                if wire.is_active():
                    self._busy.add(wire)
                    return wire
        return None

    def give_back(self, wire: Wire, *, broken: bool = False) -> None:
        """Its command has ended."""
        with self._lock:
            self._busy.discard(wire)
            keep = not (broken or self._closed) and wire.is_active() and len(self._idle) < KEPT
            if keep:
                self._idle.append(wire)
        if not keep:
            wire.close()

    def close(self, *, busy: bool = True) -> None:
        """Hang up, where nothing runs or everywhere; the others follow when their command ends."""
        with self._lock:
            self._closed = True
            wires = [*self._idle, *(self._busy if busy else ())]
            self._idle.clear()
        for wire in wires:
            wire.close()

    def greet(self) -> None:
        """Make sure that whoever answers has the registered host key, without logging in."""
        transport = self._connect()
        try:
            self._verify(transport)
        finally:
            transport.close()

    def _handshake(self) -> Wire:
        transport = self._connect()
        try:
            self._verify(transport)
            self._log_in(transport, urlsplit(self.url).username or self._login.user)
        except BaseException:
            transport.close()
            raise
        transport.watch()
        return transport

    def _connect(self) -> Wire:
        url = urlsplit(self.url)
        host, port = url.hostname or "", url.port or 22
        try:
            sock = socket.create_connection((host, port), CONNECT_TIMEOUT)
        except OSError as error:
            why = "no answer" if isinstance(error, TimeoutError) else error.strerror or "no such host"
            what = f"device {self.name} cannot be reached at {host} port {port}: {why}"
            raise PeerFailed(
                what, hint="Is git-cluster running there, and is the port open from here?"
            ) from error
        return Wire(sock)

    def _verify(self, transport: Wire) -> None:
        kind, blob = _public_key(self.host_key, self.name)
        transport._preferred_keys = ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)
        try:
            transport.start_client(timeout=transport.handshake_timeout)
            shown = transport.get_remote_server_key().asbytes()
        except LOST as error:
            if "acceptable host key" not in str(error):
                what = f"device {self.name} did not complete the SSH handshake: {_plain(error)}"
                hint = "Is its SSH URL that of git-cluster, and does it run the same version?"
                raise PeerFailed(what, hint=hint) from error
            shown = b""
        if shown != blob:
            raise PeerFailed(
                f"device {self.name} shows another host key than the one registered",
                hint="If its key was replaced, register the new one; if not, something else answers at its address.",
            )

    def _log_in(self, transport: Wire, user: str) -> None:
        try:
            transport.auth_publickey(user, self._login.key)
        except paramiko.AuthenticationException as error:
            what = f"device {self.name} does not accept {self._login.whose}"
            raise PeerFailed(what, hint=self._login.if_refused) from error
        except LOST as error:
            what = f"device {self.name} hung up during the login: {_plain(error)}"
            raise PeerFailed(what, hint="Its log says why.") from error


def greet(device: Device) -> None:
    """Make sure that something answers at a device's SSH URL, and with its registered host key. PeerFailed.

    For whoever has no key that the device knows.
    """
    _Pool(device, _Login(None, "git", "", "")).greet()


def _begin(wire: Wire, command: str, protocol: str) -> Any:
    channel = wire.open_session(timeout=CHANNEL_TIMEOUT)
    if protocol:
        channel.set_environment_variable("GIT_PROTOCOL", protocol)
    _ask_to_run(channel, command)
    return channel


def _ask_to_run(channel: Any, command: str) -> None:
    """paramiko's exec_command, without a round trip for the answer: what is sent next is read after it in any case.
    A device that says no closes the channel, so that whoever waits for the command finds it at its end."""
    request = paramiko.Message()
    request.add_byte(cMSG_CHANNEL_REQUEST)
    request.add_int(channel.remote_chanid)
    request.add_string("exec")
    request.add_boolean(True)
    request.add_string(command)
    channel._event_pending()
    channel.get_transport()._send_user_message(request)


class Peers:
    """The way to every other device, with the key that proves who asks.

    whose: the key, as the error says it where a device refuses it; if_refused: the hint of that error.
    """

    def __init__(
        self,
        key: Any,
        *,
        user: str = "git",
        whose: str = "this device's key",
        if_refused: str = (
            "The [device] key of this machine must be the one registered for it, and the device enabled."
        ),
    ) -> None:
        self._login = _Login(key, user, whose, if_refused)
        self._lock = threading.Lock()
        self._pools: dict[int, _Pool] = {}

    @classmethod
    def from_file(cls, path: Path) -> Peers:
        """A device's, with the key in its file. ConfigError where that cannot be used."""
        return cls(load_key(path, "the key of this device"))

    @contextmanager
    def run(self, device: Device, command: str, *, protocol: str = "") -> Iterator[Remote]:
        """`command` on `device`, with GIT_PROTOCOL set to `protocol`; abandoned where the block is left early."""
        pool = self._pool(device)
        wire, channel = pool.open(command, protocol)
        remote = Remote(device.name, channel)
        try:
            yield remote
        finally:
            with suppress(*LOST):
                channel.close()
            pool.give_back(wire)

    def _pool(self, device: Device) -> _Pool:
        with self._lock:
            pool = self._pools.get(device.id)
            if pool and (pool.url, pool.host_key) == (device.ssh_url, device.host_key):
                return pool
            if pool:
                pool.close(busy=False)
            self._pools[device.id] = pool = _Pool(device, self._login)
            return pool

    def close(self) -> None:
        """Hang up everywhere. A command that still runs fails with PeerFailed."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()


def _public_key(line: str, device: str) -> tuple[str, bytes]:
    """The type and the bytes of a public key in OpenSSH's one-line form."""
    try:
        kind, encoded = line.split()[:2]
        return kind, base64.b64decode(encoded, validate=True)
    except (ValueError, binascii.Error) as error:
        what = f"device {device} is registered with a host key that is none"
        raise PeerFailed(what, hint="Register its key as it stands in its .pub file.") from error


def _plain(error: BaseException) -> str:
    """What a stranger's bytes may have had a part in, made fit to be shown."""
    text = str(error) or type(error).__name__
    return ascii(text[:200])[1:-1]
