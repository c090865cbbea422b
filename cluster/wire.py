"""One SSH connection, as both of its ends need it: paramiko's transport, bounded, repaired and quiet.

    Wire                    its algorithms, its timeouts, its keepalives; what it may say while keys change
        _BoundedPacketizer  no more memory for a stranger's bytes than SSH asks for

The endpoint builds on it (cluster/ssh_wire.py), and so do the connections to other devices (cluster/peer.py).
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import paramiko  # type: ignore[import-untyped,unused-ignore]
from paramiko.common import cMSG_GLOBAL_REQUEST  # type: ignore[import-untyped,unused-ignore]
from paramiko.packet import Packetizer  # type: ignore[import-untyped,unused-ignore]

WIRE_LOG = "cluster.wire"
"""paramiko's own words, down to each algorithm agreed on and a traceback for each port scanner. What matters of
them is said again by the module that uses the connection; set this logger to DEBUG to read the rest."""

WINDOW = 16 * 1024 * 1024
"""Bytes a sender may have on the way: at 100 ms of round trip that still carries 160 MB a second."""

PACKET = 128 * 1024
"""The largest packet that we ask for. RFC 4253 obliges nobody beyond 32 KiB; OpenSSH sends what is asked for."""

MAX_PACKET = 256 * 1024
"""The largest packet that we read: OpenSSH's own limit. paramiko would allocate whatever a stranger writes."""

AHEAD = 32 * 1024
"""Bytes that are read at once; longer pieces are read as they are asked for."""

MAX_FIRST_LINES = 16 * 1024
"""Bytes before and with the far side's version line."""

AUTH_TIMEOUT = 10.0
"""Seconds for each step of a handshake."""

KEEPALIVE = 15.0
PROBES = 3
"""Seconds, and keepalives that may go unanswered before a connection counts as dead."""

LOST = (paramiko.SSHException, EOFError, OSError)
"""What paramiko raises where a connection or a channel is at its end."""

logging.getLogger(WIRE_LOG).setLevel(logging.CRITICAL)

# Its stubs describe only what is public. We build on more, so to the type checker these are Any.
_Transport: Any = paramiko.Transport
_Packetizer: Any = Packetizer


class _Stream:
    """A connection's socket, as paramiko reads and writes it.

    It asks for each packet in two pieces or three, and each piece costs it two system calls, around which every other
    thread may get in between: what has come is read at once and kept.

    prompt: acknowledge at once what has come (TCP_QUICKACK). Once keys are agreed on, OpenSSH's client sends two small
    messages. Its kernel keeps the second until the first is acknowledged (Nagle's algorithm: before a session begins
    it does not set TCP_NODELAY), and ours would wait 40 ms for something to send along (delayed acknowledgement).
    """

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._ahead = memoryview(b"")
        self.flags = 0
        self.prompt = hasattr(socket, "TCP_QUICKACK")

    def recv(self, size: int) -> bytes:
        if not self._ahead:
            if size >= AHEAD:
                return self._sock.recv(size)
            self._ahead = memoryview(self._sock.recv(AHEAD))
            if self.prompt:  # the kernel forgets it
                with suppress(OSError):
                    self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return bytes(data)

    @property
    def read_ahead(self) -> bool:
        return bool(self._ahead)

    def send(self, data: bytes) -> int:
        return self._sock.send(data, self.flags)

    def close(self) -> None:
        self._sock.close()


class _BoundedPacketizer(_Packetizer):  # type: ignore[misc]
    """paramiko's takes a first line and packets of any length, from anybody; and starts a thread for each connection
    to tell that its handshake takes too long."""

    _first_lines = 0
    _until: float | None = None

    def __init__(self, sock: socket.socket) -> None:
        self.stream = _Stream(sock)
        super().__init__(self.stream)

    def start_handshake(self, timeout: float) -> None:
        self._until = time.monotonic() + timeout

    def handshake_timed_out(self) -> bool:
        return self._until is not None and time.monotonic() > self._until

    def complete_handshake(self) -> None:
        self._until = None

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

    It reaches into paramiko where that has no public way; tests/test_ssh_*.py and tests/test_peer.py hold it to
    each repair.
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

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is sent inside goes out at its end, as one piece: short messages that belong together wake the far side
        once."""
        self.packetizer.stream.flags = getattr(socket, "MSG_MORE", 0)
        try:
            yield
        finally:
            self.packetizer.stream.flags = 0
            with suppress(OSError):
                self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # which sends what is held

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
        self.packetizer.stream.prompt = False

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
