"""Lines for the person inside what Git answers, where there is no standard error: side-band 2 (gitprotocol-pack.txt).

Git's answers may begin with pkt-lines of their own: acknowledgements, shallow commits, the names of sections. Where the
first packet of a band comes, others may stand before it; sooner, or where none comes, nothing can be said. Pure.
"""

from __future__ import annotations

import re

from dulwich.protocol import pkt_line

MOST_LINE = 990
"""Bytes of a line, so that it fits where the client knows only the smaller packets of plain side-band."""

_LENGTH = re.compile(rb"[0-9A-Fa-f]{4}")
_BANDS = (b"\1", b"\2", b"\3")


def progress(line: str) -> bytes:
    """A line for the person as a packet of band 2; Git shows it behind "remote: "."""
    shown = "".join(character if character.isprintable() else "?" for character in line)
    return pkt_line(b"\2" + f"cluster: {shown}".encode(errors="replace")[:MOST_LINE] + b"\n")


class Bands:
    """An answer of Git's on its way, and the lines that are to go into it. Feed it everything, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        """Said, and not in the answer yet. Those that are left at its end have not been told."""
        self._rest = b""
        self._over = False

    def say(self, line: str) -> None:
        self.lines.append(line)

    def feed(self, data: bytes) -> bytes:
        """What goes out, of what Git answers."""
        if self._over:
            return data
        at, data = 0, self._rest + data
        while len(data) - at >= 5 and _LENGTH.fullmatch(data, at, at + 4):
            length = int(data[at : at + 4], 16)
            if length > 4 and data[at + 4 : at + 5] in _BANDS:
                self._rest = b""
                out = data[:at] + self._told() + data[at:]
                self._over = True  # what follows is not looked at: nothing can be said between its packets
                return out
            if length > 4 and len(data) - at < length:
                break
            at += max(length, 4)
        if len(data) - at >= 4 and not _LENGTH.fullmatch(data, at, at + 4):
            self._over = True  # a pack without bands
            at = len(data)
        if 4 <= len(data) - at < 5 and data[at : at + 4] in (b"0000", b"0001", b"0002"):
            at += 4
        self._rest = data[at:]
        return data[:at]

    def end(self) -> bytes:
        """What was held back, where there is no more to come."""
        rest, self._rest = self._rest, b""
        return rest

    def _told(self) -> bytes:
        told, self.lines = b"".join(map(progress, self.lines)), []
        return told
