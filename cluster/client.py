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
