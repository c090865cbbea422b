"""A client behind three file descriptors: sshd's pipes, handed over by a hook, or this process's own.

Git's pipes are joined to them by splice(2): what a clone or a push carries is moved by the kernel, page by page, and
never comes through this process's memory. The descriptors are switched to non-blocking, and every wait also watches
`control`, the socket of the hook that handed them over: when that process is gone, so is the client.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from threading import Condition

from cluster.client import CHUNK, spoken, write_all
from cluster.errors import ClientGone

SPLICE = 1 << 20
"""Bytes that one splice(2) may move; a pipe holds 64 KiB unless somebody enlarged it."""


class FdClient:
    """A Client (cluster/client.py) of `stdin`, `stdout` and `stderr`, which `close` closes.

    control: ends when whoever handed the descriptors over does; None: they are this process's own.
    """

    def __init__(self, stdin: int, stdout: int, stderr: int, control: socket.socket | None = None) -> None:
        self._in, self._out, self._err, self._control = stdin, stdout, stderr, control
        self._hung_up, self._wake = os.pipe()  # readable once hang_up was called
        self._users = 0
        self._left = Condition()
        self._closed = False
        for fd in (stdin, stdout, stderr):
            os.set_blocking(fd, False)

    def read(self, size: int) -> bytes:
        with self._using() as there:
            while there:
                try:
                    return os.read(self._in, size)
                except BlockingIOError:
                    there = self._wait(self._in, select.POLLIN)
                except OSError:
                    break
        return b""

    def write(self, data: bytes) -> None:
        self._write(self._out, data)

    def write_error(self, data: bytes) -> None:
        with suppress(ClientGone):
            self._write(self._err, data)

    def say(self, line: str) -> None:
        self.write_error(spoken(line))

    def _write(self, fd: int, data: bytes) -> None:
        view = memoryview(data)
        with self._using() as there:
            while view and there:
                try:
                    view = view[os.write(fd, view) :]
                except BlockingIOError:
                    there = self._wait(fd, select.POLLOUT)
                except OSError as error:
                    raise ClientGone("the client hung up") from error
        if view:
            raise ClientGone("the client hung up")

    def send_from(self, fd: int) -> None:
        with self._using() as there:
            while there and self._wait(fd, select.POLLIN) and self._wait(self._out, select.POLLOUT):
                try:
                    if not os.splice(fd, self._out, SPLICE, flags=os.SPLICE_F_NONBLOCK):
                        return
                except BlockingIOError:
                    continue
                except OSError as error:
                    if error.errno != errno.EINVAL:
                        raise ClientGone("the client hung up") from error
                    # What stands behind sshd, or behind whoever runs the hook, may be something that cannot splice.
                    while data := os.read(fd, CHUNK):
                        self.write(data)
                    return
        raise ClientGone("the client hung up")

    def receive_into(self, fd: int) -> None:
        with self._using() as there:
            while there and self._wait(self._in, select.POLLIN) and self._wait(fd, select.POLLOUT):
                try:
                    if not os.splice(self._in, fd, SPLICE, flags=os.SPLICE_F_NONBLOCK):
                        return
                except BlockingIOError:
                    continue
                except BrokenPipeError:
                    raise
                except OSError as error:
                    if error.errno == errno.EINVAL:
                        while data := self.read(CHUNK):
                            write_all(fd, data)
                    return

    @contextmanager
    def _using(self) -> Iterator[bool]:
        """`close` waits until everybody has left: a descriptor's number is another file's a moment later."""
        with self._left:
            there = not self._closed
            self._users += 1
        try:
            yield there
        finally:
            with self._left:
                self._users -= 1
                self._left.notify_all()

    def _wait(self, fd: int, event: int) -> bool:
        """Wait until `fd` is ready, or at its end: the next call says which. False: the client is gone."""
        poll = self._watch()
        poll.register(fd, event)
        return {number for number, _ in poll.poll()} == {fd}

    def _watch(self) -> select.poll:
        poll = select.poll()
        poll.register(self._hung_up, select.POLLIN)
        if self._control is not None:
            poll.register(self._control, select.POLLIN)
        return poll

    @property
    def gone(self) -> bool:
        with self._using() as there:
            if not there:
                return True
            poll = self._watch()
            poll.register(self._out, 0)  # POLLERR or POLLHUP: nobody reads it
            return bool(poll.poll(0))

    def hang_up(self) -> None:
        """From another thread: the client counts as gone from now on."""
        with self._using() as there:
            if there:
                os.write(self._wake, b".")

    def close(self) -> None:
        """Once its command has ended."""
        self.hang_up()
        with self._left:
            self._closed = True
            self._left.wait_for(lambda: not self._users)
        for fd in (self._in, self._out, self._err, self._hung_up, self._wake):
            os.close(fd)
