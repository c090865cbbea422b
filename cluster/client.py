"""The far end of a request, as the session sees it. Endpoints implement it; nothing else knows which one it is."""

from __future__ import annotations

import os
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

    def send_from(self, fd: int) -> None:
        """Everything that can be read from the pipe `fd`, until its end, to the client's output. ClientGone."""

    def receive_into(self, fd: int) -> None:
        """Everything that the client still sends, until its end, into the pipe `fd`. BrokenPipeError where nobody
        reads it any more. `fd` is not to be written to by others meanwhile."""

    @property
    def gone(self) -> bool:
        """Whether the client hung up."""


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
        self._client, self._rest = client, b""

    def read(self, size: int) -> bytes:
        """`size` bytes; fewer where the client sends no more."""
        while len(self._rest) < size and (data := self._client.read(CHUNK)):
            self._rest += data
        out, self._rest = self._rest[:size], self._rest[size:]
        return out

    def read1(self) -> bytes:
        """What there is, waiting for the first byte; b"" at the end."""
        out, self._rest = self._rest, b""
        return out or self._client.read(CHUNK)

    def receive_into(self, fd: int) -> None:
        """Client.receive_into, with what was read ahead."""
        out, self._rest = self._rest, b""
        write_all(fd, out)
        self._client.receive_into(fd)

    def unread(self, data: bytes) -> None:
        """Have `data` be read next."""
        self._rest = data + self._rest


def write_all(fd: int, data: bytes) -> None:
    """All of `data` into a pipe of ours. BrokenPipeError where nobody reads it any more."""
    view = memoryview(data)
    while view:
        view = view[os.write(fd, view) :]
