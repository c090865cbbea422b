"""The far end of a request, as the session sees it. Endpoints implement it; nothing else knows which one it is."""

from __future__ import annotations

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

    @property
    def gone(self) -> bool:
        """Whether the client hung up."""


CHUNK = 65536


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
        out, self._rest, self._at = self._rest[self._at :], b"", 0
        return out or self._client.read(CHUNK)

    def unread(self, data: bytes) -> None:
        """Have `data` be read next."""
        self._rest, self._at = data + self._rest[self._at :], 0
