"""The far end of an SSH channel, as the session sees any client."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from threading import Thread, Timer
from typing import Any

from cluster.client import CHUNK, spoken, write_all
from cluster.errors import ClientGone
from cluster.wire import LOST, WINDOW

LAST_WORDS = 2.0
"""Seconds to hang up in good order: where the network takes nothing any more, the connection is cut."""

ROOM = 4096
"""Bytes that a client must be willing to take for its last words to be sent."""


class ChannelClient:
    """A Client (cluster/client.py). `finish` is for whoever ran its command."""

    def __init__(self, channel: Any) -> None:
        self._channel = channel
        self._ahead = memoryview(b"")

    def read(self, size: int) -> bytes:
        if not self._ahead:
            try:  # all there is: paramiko's buffer is cheap to empty and dear to take pieces from
                self._ahead = memoryview(self._channel.recv(WINDOW))
            except LOST:
                return b""
        data, self._ahead = self._ahead[:size], self._ahead[size:]
        return bytes(data)

    def write(self, data: bytes) -> None:
        self._send(self._channel.send, data)

    def write_error(self, data: bytes) -> None:
        with suppress(ClientGone):
            self._send(self._channel.send_stderr, data)

    def _send(self, send: Callable[[bytes], int], data: bytes) -> None:
        view, most = memoryview(data), self._channel.out_max_packet_size - 64  # 64: paramiko's own margin
        while view:
            try:
                sent = send(bytes(view[:most]))
            except LOST as error:
                raise ClientGone("the client hung up") from error
            # paramiko drops what is sent to a dead connection without a word.
            if not sent or not self._channel.get_transport().is_active():
                raise ClientGone("the client hung up")
            view = view[sent:]

    def say(self, line: str) -> None:
        self.write_error(spoken(line))

    def send_from(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None:
        while data := os.read(fd, CHUNK):
            self.write(data)
            stirred()

    def receive_into(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None:
        while data := self.read(CHUNK):
            write_all(fd, data)
            stirred()

    @property
    def gone(self) -> bool:
        return bool(self._channel.closed or not self._channel.get_transport().is_active())

    def hang_up(self, why: str = "") -> None:
        Thread(target=self._hang_up, args=(why,), name="ssh hang up", daemon=True).start()

    def _hang_up(self, why: str) -> None:
        cut = Timer(LAST_WORDS, self._channel.get_transport().close)
        cut.daemon = True
        cut.start()
        if why and self._channel.out_window_size > ROOM:
            self.say(f"error: {why}")
        self.finish(1)
        cut.cancel()

    def finish(self, code: int) -> None:
        """The exit status, the end of output, and the close, in the order that clients expect them."""
        with self._channel.get_transport().together():
            with suppress(*LOST):
                if not self.gone:
                    self._channel.send_exit_status(code & 0xFF)
            with suppress(*LOST):
                self._channel.close()  # which ends the output first
