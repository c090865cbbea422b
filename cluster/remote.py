"""A command that runs on another device: its input, its output, its errors, its exit status, each with a deadline."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cluster.client import PREFIX
from cluster.errors import PeerFailed
from cluster.wire import LOST, PACKET, WINDOW

STALL = 600.0
"""Seconds that a device which answers keepalives may take to read what it was sent."""

STDERR = 64 * 1024
"""Bytes of a command's stderr that are kept: its last."""

TICK = 1.0
"""Seconds after which whoever waits looks around: at its deadline, and at stderr."""


class Remote:
    """From Peers.run. Used by one thread for sending and one for receiving at the most, and one for stderr."""

    def __init__(self, device: str, channel: Any) -> None:
        self.device, self._channel = device, channel
        self._stopping = False
        self._ahead = memoryview(b"")
        self._stderr = bytearray()
        self._stderr_lock = threading.Lock()
        self._stderr_passed_on = False
        # Nothing blocks for longer: stderr must be read while we wait, or it fills the window it shares.
        channel.settimeout(TICK)

    @property
    def stderr(self) -> str:
        """What the device said so far, its last 64 KiB, without the "remote: cluster: " before each line."""
        self._drain()
        with self._stderr_lock:
            lines = self._stderr.decode(errors="replace").splitlines()
        return "\n".join(line.removeprefix(PREFIX) for line in lines)

    @property
    def over(self) -> bool:
        """Whether the device has ended the command; its connection stands."""
        return bool(self._channel.eof_received and self._channel.get_transport().is_active())

    def pass_stderr_on(self, hear: Callable[[bytes], None], wanted: Callable[[], bool]) -> None:
        """Call `hear` with what the command says on stderr, as it comes, to its end; `stderr` is empty then.

        In a thread of its own, so that `hear` may take its time. As soon as it is not `wanted` any more, the command
        is abandoned: within a second, even where it says nothing.
        """
        self._stderr_passed_on = True
        while wanted():
            try:
                data: bytes = self._channel.recv_stderr(PACKET)
            except TimeoutError:
                continue
            except LOST:
                return
            if not data:
                return
            hear(data)
        self.abandon()

    def abandon(self) -> None:
        """End the command: whoever waits for it gets PeerFailed."""
        with suppress(*LOST):
            self._channel.close()

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
                    what = f"device {self.device} has read nothing for {STALL:.0f} seconds"
                    raise PeerFailed(what, hint="Its log may say why.") from error
                continue
            except LOST as error:
                raise self._lost() from error
            if not sent:
                raise self._lost()
            view, deadline = view[sent:], time.monotonic() + STALL

    def send_eof(self) -> None:
        """The command's input ends here. A connection that is lost is noticed by whoever receives."""
        with suppress(*LOST):
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
            except LOST as error:
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
        name = f"peer {self.device}"
        inward = threading.Thread(target=self._pump_in, args=(ours,), name=f"{name} in", daemon=True)
        outward = threading.Thread(target=self._pump_out, args=(ours,), name=f"{name} out", daemon=True)
        inward.start()
        outward.start()
        try:
            yield theirs.fileno(), theirs.fileno()
        except BaseException:
            self._stopping = True
            with suppress(*LOST):
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
        if self._stderr_passed_on:
            return
        with self._stderr_lock:
            while self._channel.recv_stderr_ready():
                self._stderr += self._channel.recv_stderr(WINDOW)
            del self._stderr[:-STDERR]

    def _late(self) -> PeerFailed:
        return PeerFailed(f"device {self.device} did not finish in time", hint="Its log may say why.")

    def _lost(self) -> PeerFailed:
        return PeerFailed(
            f"the connection to device {self.device} was lost",
            hint="git-cluster status shows when it was last seen.",
        )
