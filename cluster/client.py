"""The far end of a request, as the session sees it. Endpoints implement it; nothing else knows which one it is."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Protocol


class Client(Protocol):
    """A connected Git client: its standard input, output and error, and whether it is still there.

    Reads and writes may block for as long as the client pleases: whoever calls them holds no lock and no
    database connection (guarantee G5).
    """

    def read(self, size: int) -> bytes:
        """At most `size` bytes of what the client sends; b"" once it has closed its side or is gone."""

    def write(self, data: bytes) -> None:
        """All of `data` to the client's standard output. ClientGone when it hung up."""

    def write_error(self, data: bytes) -> None:
        """All of `data` to the client's standard error. Never raises: a client that is gone reads nothing."""

    def say(self, line: str) -> None:
        """One line for the person, `line` without "cluster: "; shown as "remote: cluster: <line>"."""

    def send_from(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None:
        """Everything that can be read from the pipe `fd`, until its end, to the client's output. ClientGone.
        stirred: called whenever something has passed."""

    def receive_into(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None:
        """Everything that the client still sends, until its end, into the pipe `fd`. BrokenPipeError where nobody
        reads it any more. `fd` is not to be written to by others meanwhile."""

    @property
    def gone(self) -> bool:
        """Whether the client hung up, or was hung up on."""

    def hang_up(self, why: str = "") -> None:
        """End it as if the client had: reads return b"", writes raise ClientGone, and it is gone.

        why: told on standard error where that can be done without waiting. Returns at once; may be called from any
        thread, and again.
        """


CHUNK = 65536

PREFIX = "remote: cluster: "
"""Before each line that a device says to a person, on stderr."""


def spoken(line: str) -> bytes:
    """A line for the person, as it goes out on stderr: whatever it quotes, it is one line and steers no terminal."""
    shown = "".join(character if character.isprintable() else "?" for character in line)
    return f"{PREFIX}{shown}\n".encode(errors="replace")


class Input:
    """What a client sends, to be read exactly or as it comes."""

    def __init__(self, client: Client) -> None:
        self._client, self._rest, self._at = client, b"", 0

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer where the client sends no more."""
        if len(self._rest) - self._at < size:
            parts = [self._rest[self._at :]]
            have = len(parts[0])
            while have < size and (data := self._client.read(CHUNK)):
                parts.append(data)
                have += len(data)
            self._rest, self._at = b"".join(parts), 0
        out = self._rest[self._at : self._at + size]
        self._at += len(out)
        return out

    def read1(self) -> bytes:
        """What there is, waiting for the first byte; b"" at the end."""
        return self.rest() or self._client.read(CHUNK)

    def rest(self) -> bytes:
        """What was read ahead, without waiting for more."""
        out, self._rest, self._at = self._rest[self._at :], b"", 0
        return out

    def receive_into(self, fd: int) -> None:
        """Client.receive_into, with what was read ahead."""
        write_all(fd, self.rest())
        self._client.receive_into(fd)

    def unread(self, data: bytes) -> None:
        """Have `data` be read next."""
        self._rest, self._at = data + self._rest[self._at :], 0


def write_all(fd: int, data: bytes) -> None:
    """All of `data` into a pipe of ours. BrokenPipeError where nobody reads it any more."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
