"""Connections to other devices, as a client: strict host keys, connections that are reused, deadlines everywhere.

    Peers.run(device, command)      a Remote: the command's input, output, stderr and exit status
        _Pool                       the connections to one device, one for each command that runs
            Wire                    paramiko's transport, bounded; the SSH endpoint builds on it too

A handshake costs some 20 ms and a channel under one, so a connection is kept and used for one command after
another. A device that answers nothing is given up after PROBES keepalives, even in the middle of a transfer.
"""

from __future__ import annotations

import base64
import binascii
import io
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import paramiko  # type: ignore[import-untyped,unused-ignore]
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from paramiko.common import cMSG_GLOBAL_REQUEST  # type: ignore[import-untyped,unused-ignore]
from paramiko.packet import Packetizer  # type: ignore[import-untyped,unused-ignore]

from cluster.errors import ConfigError, PeerFailed
from cluster.model import Device

WIRE_LOG = "cluster.wire"
"""paramiko's own words, down to each algorithm agreed on and a traceback for each port scanner. What matters of
them is said again by the module that uses the connection; set this logger to DEBUG to read the rest."""

WINDOW = 16 * 1024 * 1024
"""Bytes a sender may have on the way: at 100 ms of round trip that still carries 160 MB a second."""

PACKET = 128 * 1024
"""The largest packet that we ask for. RFC 4253 obliges nobody beyond 32 KiB; OpenSSH sends what is asked for."""

MAX_PACKET = 256 * 1024
"""The largest packet that we read: OpenSSH's own limit. paramiko would allocate whatever a stranger writes."""

MAX_FIRST_LINES = 16 * 1024
"""Bytes before and with the far side's version line."""

KEPT = 4
"""Connections to a device that are kept with nothing to do."""

HANDSHAKES = 8
"""Connections to a device that may be in the making: it admits 64 that have not logged in yet, whoever they are."""

CONNECT_TIMEOUT = 5.0
AUTH_TIMEOUT = 10.0
CHANNEL_TIMEOUT = 10.0
KEEPALIVE = 15.0
PROBES = 3
"""Seconds, and keepalives that may go unanswered before a connection counts as dead."""

STALL = 600.0
"""Seconds that a device which answers keepalives may take to read what it was sent."""

STDERR = 64 * 1024
TICK = 1.0
PREFIX = "remote: cluster: "

_LOST = (paramiko.SSHException, EOFError, OSError)

logging.getLogger(WIRE_LOG).setLevel(logging.CRITICAL)


# Its stubs describe only what is public. We build on more, so to the type checker these are Any.
_Transport: Any = paramiko.Transport
_Packetizer: Any = Packetizer


class _BoundedPacketizer(_Packetizer):  # type: ignore[misc]
    """paramiko's takes a first line and packets of any length, from anybody."""

    _first_lines = 0

    def _read_timeout(self, timeout: float) -> Any:
        data = super()._read_timeout(timeout)
        self._first_lines += len(data)
        if self._first_lines > MAX_FIRST_LINES:
            raise paramiko.SSHException("no end of the first line")
        return data

    def read_all(self, n: int, check_rekey: bool = False) -> Any:
        if n > MAX_PACKET:
            raise paramiko.SSHException(f"a packet of {n} bytes")
        return super().read_all(n, check_rekey)


class Wire(_Transport):  # type: ignore[misc]
    """paramiko's transport with the choices and the repairs that both ends of a connection need.

    It reaches into paramiko where that has no public way; tests/test_ssh_endpoint.py holds it to each repair.
    """

    _active_check_timeout = 0.5  # an idle connection wakes up this often (paramiko: 10 times a second)

    def __init__(self, sock: socket.socket) -> None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, seconds in (("TCP_KEEPIDLE", 60), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 4)):
            if hasattr(socket, option):
                sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), seconds)
        super().__init__(sock, WINDOW, PACKET, packetizer_class=_BoundedPacketizer)
        self.local_version = "SSH-2.0-GitCluster"
        self.set_log_channel(WIRE_LOG)
        self.banner_timeout = self.handshake_timeout = self.auth_timeout = AUTH_TIMEOUT
        self._held: list[Any] = []
        self._unanswered = 0
        # Both ends of ours agree on the first of each; a stranger on the first of his that is listed.
        self._preferred_ciphers = _known(
            self._cipher_info,
            "aes128-gcm@openssh.com",
            "aes256-gcm@openssh.com",
            "aes128-ctr",
            "aes256-ctr",
        )
        self._preferred_macs = _known(
            self._mac_info,
            "hmac-sha2-256-etm@openssh.com",
            "hmac-sha2-512-etm@openssh.com",
            "hmac-sha2-256",
            "hmac-sha2-512",
        )
        self._preferred_kex = _known(
            self._kex_info,
            "mlkem768x25519-sha256",
            "curve25519-sha256@libssh.org",
            "ecdh-sha2-nistp256",  # no classic Diffie-Hellman: it holds every thread up for 0.1 s
        )

    def run(self) -> None:
        try:
            super().run()
        finally:
            self.packetizer.complete_handshake()  # else its timer, a thread, outlives a connection cut short

    def _send_message(self, data: Any) -> None:
        """While new keys are agreed on, hold what this thread has to say: only the agreement may be spoken.

        RFC 4253, 7.1: no message above 49 between KEXINIT and NEWKEYS. paramiko confirms a new channel none the
        less, at which the far side hangs up; and for its other replies it waits, in the one thread that could end
        the waiting, until it hangs up itself.
        """
        if threading.current_thread() is self and self._changing_keys and data.asbytes()[0] > 49:
            self._held.append(data)
        else:
            super()._send_message(data)

    def _send_user_message(self, data: Any) -> None:
        if threading.current_thread() is self:
            self._send_message(data)
        else:
            super()._send_user_message(data)

    @property
    def _changing_keys(self) -> bool:
        return self.initial_kex_done and not self.clear_to_send.is_set()

    def _parse_newkeys(self, m: Any) -> None:
        held, self._held = self._held, []
        for message in held:
            super()._send_message(message)
        super()._parse_newkeys(m)

    def watch(self) -> None:
        """From now on, notice a far side that is silent: powered off, unplugged, stopped."""
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # while sending is stuck, no keepalive can be sent either
            milliseconds = int(KEEPALIVE * PROBES * 1000)
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)
        self.packetizer.set_keepalive(KEEPALIVE, self._probe)

    def _probe(self) -> None:
        if self._unanswered >= PROBES:
            raise EOFError("keepalives went unanswered")
        self._unanswered += 1
        message = paramiko.Message()
        message.add_byte(cMSG_GLOBAL_REQUEST)
        message.add_string("keepalive@openssh.com")
        message.add_boolean(True)  # paramiko's own keepalive wants no reply, and so notices nothing
        self._send_user_message(message)

    def _parse_request_failure(self, m: Any) -> None:  # how everybody answers a keepalive
        self._unanswered = 0
        super()._parse_request_failure(m)

    def _parse_request_success(self, m: Any) -> None:
        self._unanswered = 0
        super()._parse_request_success(m)


def _known(available: dict[str, Any], *names: str) -> tuple[str, ...]:
    return tuple(name for name in names if name in available)


# Keys


def load_key(path: Path, purpose: str) -> Any:
    """The private key in `path`, as a paramiko.PKey. ConfigError that says what to do where it cannot be used."""
    make = f"Make one: ssh-keygen -t ed25519 -N '' -f {path}"
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{purpose}: there is no file {path}", hint=make) from error
    except OSError as error:
        what = f"{purpose}: {path} cannot be read: {error.strerror}"
        raise ConfigError(what, hint="It must belong to the user that runs git-cluster.") from error
    except (paramiko.PasswordRequiredException, TypeError) as error:
        what = f"{purpose}: {path} is encrypted with a passphrase, and nobody is here to type it"
        raise ConfigError(what, hint=f"Take it off: ssh-keygen -p -N '' -f {path}") from error
    except Exception as error:  # the parsers of paramiko and cryptography raise whatever they like
        raise ConfigError(f"{purpose}: {path} holds no private key that can be used", hint=make) from error


def generate_key() -> Any:
    """A new paramiko.Ed25519Key; paramiko itself can only load them."""
    return paramiko.Ed25519Key(file_obj=io.StringIO(_new_private_key()))


def _new_private_key() -> str:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


def write_keypair(path: Path, comment: str) -> str:
    """A new Ed25519 key in `path` (mode 0600) and `path`.pub. Returns the public line; never overwrites."""
    text = _new_private_key()
    key = paramiko.Ed25519Key(file_obj=io.StringIO(text))
    line = f"{key.get_name()} {key.get_base64()} {comment}".strip()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} is there already", hint="Name another file, or move that one away."
        ) from error
    path.with_name(path.name + ".pub").write_text(line + "\n")
    return line


# Connections


class _Pool:
    """The connections to one device at one address. Each carries one command at a time.

    SSH could carry more. But paramiko reads and answers in one thread: where both ends are about to answer and
    large transfers fill the connection both ways, neither reads, and it stands still for ever. Commands on
    connections of their own cannot do that to each other, nor does one that is lost take others with it.
    """

    def __init__(self, device: Device, key: Any, user: str) -> None:
        self.name, self.url, self.host_key = device.name, device.ssh_url, device.host_key
        self._key, self._user = key, user
        self._lock = threading.Lock()
        self._idle: list[Wire] = []
        self._busy: set[Wire] = set()
        self._closed = False
        self._handshakes = threading.BoundedSemaphore(HANDSHAKES)

    def open(self, command: str, protocol: str) -> tuple[Wire, Any]:
        """A connection, and a channel on it on which the device has begun `command`.

        A kept connection may have died unnoticed, or the device may take no more on it: then a new one, once.
        Nothing has been sent to the command by then, so beginning it again repeats nothing.
        """
        wire = self._take()
        if wire:
            try:
                return wire, _begin(wire, command, protocol)
            except _LOST:
                self.give_back(wire, broken=True)
        with self._handshakes:
            wire = self._handshake()
        with self._lock:
            self._busy.add(wire)
        try:
            return wire, _begin(wire, command, protocol)
        except _LOST as error:
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

    def _handshake(self) -> Wire:
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
        transport = Wire(sock)
        try:
            self._authenticate(transport, url.username or self._user)
        except BaseException:
            transport.close()
            raise
        transport.watch()
        return transport

    def _authenticate(self, transport: Wire, user: str) -> None:
        kind, blob = _public_key(self.host_key, self.name)
        transport._preferred_keys = ("rsa-sha2-512", "rsa-sha2-256") if kind == "ssh-rsa" else (kind,)
        try:
            transport.start_client(timeout=AUTH_TIMEOUT)
            shown = transport.get_remote_server_key().asbytes()
        except _LOST as error:
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
        try:
            transport.auth_publickey(user, self._key)
        except paramiko.AuthenticationException as error:
            what = f"device {self.name} does not accept the key of this device"
            hint = (
                "The [device] key of this machine must be the one registered for it, and the device enabled."
            )
            raise PeerFailed(what, hint=hint) from error
        except _LOST as error:
            what = f"device {self.name} hung up while this device was logging in: {_plain(error)}"
            raise PeerFailed(what, hint="Its log says why.") from error


def _begin(wire: Wire, command: str, protocol: str) -> Any:
    channel = wire.open_session(timeout=CHANNEL_TIMEOUT)
    if protocol:
        channel.set_environment_variable("GIT_PROTOCOL", protocol)
    channel.exec_command(command)
    return channel


class Peers:
    """The way to every other device, with the key that proves which device this one is."""

    def __init__(self, key: Any, *, user: str = "git") -> None:
        self._key, self._user = key, user
        self._lock = threading.Lock()
        self._pools: dict[int, _Pool] = {}

    @classmethod
    def from_file(cls, path: Path) -> Peers:
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
            with suppress(*_LOST):
                channel.close()
            pool.give_back(wire)

    def _pool(self, device: Device) -> _Pool:
        with self._lock:
            pool = self._pools.get(device.id)
            if pool and (pool.url, pool.host_key) == (device.ssh_url, device.host_key):
                return pool
            if pool:
                pool.close(busy=False)
            self._pools[device.id] = pool = _Pool(device, self._key, self._user)
            return pool

    def close(self) -> None:
        """Hang up everywhere. A command that still runs fails with PeerFailed."""
        with self._lock:
            pools = list(self._pools.values())
            self._pools.clear()
        for pool in pools:
            pool.close()


class Remote:
    """A command that runs on another device. Used by one thread for sending and one for receiving at the most."""

    def __init__(self, device: str, channel: Any) -> None:
        self._device, self._channel = device, channel
        self._stopping = False
        self._ahead = memoryview(b"")
        self._stderr = bytearray()
        self._stderr_lock = threading.Lock()
        # Nothing blocks for longer: stderr must be read while we wait, or it fills the window it shares.
        channel.settimeout(TICK)

    @property
    def stderr(self) -> str:
        """What the device said so far, its last 64 KiB, without the "remote: cluster: " before each line."""
        self._drain()
        with self._stderr_lock:
            lines = self._stderr.decode(errors="replace").splitlines()
        return "\n".join(line.removeprefix(PREFIX) for line in lines)

    def send(self, data: bytes) -> None:
        """All of `data` to the command's input. PeerFailed when it will never be read."""
        view, deadline = memoryview(data), time.monotonic() + STALL
        most = self._channel.out_max_packet_size - 64  # 64: paramiko's own margin
        while view and not self._stopping:
            try:
                sent = self._channel.send(bytes(view[:most]))
            except TimeoutError as error:
                self._drain()
                if time.monotonic() > deadline:
                    what = f"device {self._device} has read nothing for {STALL:.0f} seconds"
                    raise PeerFailed(what, hint="Its log may say why.") from error
                continue
            except _LOST as error:
                raise self._lost() from error
            if not sent:
                raise self._lost()
            view, deadline = view[sent:], time.monotonic() + STALL

    def send_eof(self) -> None:
        """The command's input ends here. A connection that is lost is noticed by whoever receives."""
        with suppress(*_LOST):
            self._channel.shutdown_write()

    def receive(self, size: int, timeout: float | None = None) -> bytes:
        """At most `size` bytes of the command's output, b"" at its end. PeerFailed where it was cut off, or where
        nothing came for `timeout` seconds."""
        if not self._ahead:
            self._ahead = memoryview(self._next(None if timeout is None else time.monotonic() + timeout))
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return bytes(data)

    def _next(self, deadline: float | None) -> bytes:
        """All that has arrived: paramiko's buffer is cheap to empty and dear to take pieces from."""
        while not self._stopping:
            if deadline and time.monotonic() > deadline:
                raise self._late()
            try:
                data: bytes = self._channel.recv(WINDOW)
            except TimeoutError:
                self._drain()
                continue
            except _LOST as error:
                raise self._lost() from error
            if not data and not self._channel.eof_received:
                raise self._lost()
            return data
        return b""

    def finish(self, timeout: float) -> int:
        """The command's exit status, once the rest of its output is read and thrown away."""
        deadline = time.monotonic() + timeout
        self.send_eof()
        while self._next(deadline):
            pass
        if not self._channel.status_event.wait(max(0.0, deadline - time.monotonic())):
            raise self._late()
        status: int = self._channel.exit_status
        if status < 0:
            raise self._lost()
        return status

    @contextmanager
    def pipes(self) -> Iterator[tuple[int, int]]:
        """The command's output and input as file descriptors of this process, for a child to inherit.

        Both are one socket, and so the same number, for `git fetch fd::<read>,<write>`: Git then ends its input by
        shutdown(2). With two pipes it closes its end, but git and its helper both hold one; under protocol 2 the
        far side waits for that end, and the helper for the far side, for ever.

        Leaving the block ends the command's input, once everything written has been delivered.
        """
        ours, theirs = socket.socketpair()
        name = f"peer {self._device}"
        inward = threading.Thread(target=self._pump_in, args=(ours,), name=f"{name} in", daemon=True)
        outward = threading.Thread(target=self._pump_out, args=(ours,), name=f"{name} out", daemon=True)
        inward.start()
        outward.start()
        try:
            yield theirs.fileno(), theirs.fileno()
        except BaseException:
            self._stopping = True
            with suppress(*_LOST):
                self._channel.close()
            raise
        finally:
            with suppress(OSError):
                theirs.shutdown(socket.SHUT_RDWR)  # a grandchild (git gc) may hold it open
            theirs.close()
            inward.join()
            self._stopping, before = True, self._stopping
            outward.join()
            self._stopping = before
            ours.close()

    def _pump_in(self, sock: socket.socket) -> None:
        """From the child to the device. Ends when all holders of the other socket are gone, or have shut it down."""
        try:
            while data := sock.recv(PACKET):
                self.send(data)
        except (PeerFailed, OSError):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RD)  # the child's next write fails: nobody is left to read it
        self.send_eof()

    def _pump_out(self, sock: socket.socket) -> None:
        """From the device to the child. Where the child has gone, the rest is for finish() or close() to end."""
        with suppress(PeerFailed, OSError):
            while data := self.receive(PACKET):
                sock.sendall(data)
        with suppress(OSError):
            sock.shutdown(socket.SHUT_WR)

    def _drain(self) -> None:
        with self._stderr_lock:
            while self._channel.recv_stderr_ready():
                self._stderr += self._channel.recv_stderr(WINDOW)
            del self._stderr[:-STDERR]

    def _late(self) -> PeerFailed:
        return PeerFailed(f"device {self._device} did not finish in time", hint="Its log may say why.")

    def _lost(self) -> PeerFailed:
        return PeerFailed(
            f"the connection to device {self._device} was lost",
            hint="git cluster status shows when it was last seen.",
        )


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
