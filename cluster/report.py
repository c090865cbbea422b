"""The two ends of a push in Git's own words: the commands that a client sends, and the report that it gets.

Formats: Documentation/gitprotocol-pack.txt ("Reference Update Request", "Report Status").
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from threading import Event
from typing import IO

from dulwich.errors import GitProtocolError, HangupException
from dulwich.protocol import Protocol, pkt_line

from cluster.model import RefUpdate

MOST_COMMANDS = 64 << 20
"""Bytes of commands that are read along: about 400,000 refs in one push. Longer lists are still Git's to judge."""

BAND = 65515
"""Most bytes in one packet of side-band-64k, behind its length and its band."""


@dataclass(frozen=True, slots=True)
class Packet:
    """One pkt-line: its payload, whether it is a flush, and the bytes that it came as."""

    payload: bytes
    flush: bool
    raw: bytes


def packets(stream: IO[bytes]) -> Iterator[Packet]:
    """The pkt-lines of `stream`, until it ends or stops making sense."""
    protocol = Protocol(stream.read, lambda data: None)
    while True:
        try:
            payload = protocol.read_pkt_line()
        except (HangupException, GitProtocolError, ValueError):
            return
        yield Packet(payload or b"", payload is None, pkt_line(payload))


def read_some(stream: IO[bytes]) -> bytes:
    """What there is to read of a process's output now, waiting for the first byte; b"" at its end."""
    assert isinstance(stream, io.BufferedReader)
    return stream.read1(65536)


def frame(band: bytes, data: bytes) -> bytes:
    """`data` as side-band packets."""
    return b"".join(pkt_line(band + data[start : start + BAND]) for start in range(0, len(data), BAND))


class Commands:
    """What the client asks receive-pack for, read along while it passes by."""

    def __init__(self) -> None:
        self.updates: list[RefUpdate] = []
        self.capabilities: frozenset[bytes] = frozenset()
        self._known = Event()
        self._buffer = b""

    @property
    def side_band(self) -> bool:
        return self._known.is_set() and b"side-band-64k" in self.capabilities

    @property
    def wants_report(self) -> bool:
        return bool({b"report-status", b"report-status-v2"} & self.capabilities)

    def wait(self) -> None:
        """Until the client has sent its list, or never will."""
        self._known.wait()

    @property
    def known(self) -> bool:
        """Whether the list is complete: what comes next is not looked at."""
        return self._known.is_set()

    def end(self) -> None:
        """There is no more to come."""
        self._known.set()
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        """Bytes on their way to Git. What comes behind the list (push options, the pack) is not looked at."""
        if self._known.is_set():
            return None
        self._buffer += data
        while len(self._buffer) >= 4:
            length = _length(self._buffer, 0)
            if length is None or length < 4 or len(self._buffer) > MOST_COMMANDS:
                return self.end()
            if len(self._buffer) < length:
                return None
            self._line(self._buffer[4:length])
            self._buffer = self._buffer[length:]
        return None

    def _line(self, payload: bytes) -> None:
        command, _, capabilities = payload.partition(b"\0")
        if capabilities:
            self.capabilities = frozenset(capabilities.split())
        words = command.rstrip(b"\n").decode("utf-8", "surrogateescape").split(" ", 2)
        if len(words) == 3 and words[0] != "shallow":
            self.updates.append(RefUpdate(words[2], words[0], words[1]))


class Report:
    """Git's report, held until the session lets it go; given out once, as it was or corrected."""

    def __init__(self) -> None:
        self.trailer = b""
        self._inner = b""
        self._seen = 0
        self._complete = False
        self._ended = False
        self._taken = False

    def feed(self, data: bytes) -> None:
        """More of the report. It is whole once its own flush packet is there."""
        self._inner += data
        while not self._complete and len(self._inner) - self._seen >= 4:
            length = _length(self._inner, self._seen)
            if length is None or length > len(self._inner) - self._seen:
                return  # garbage is whole when Git has ended
            self._complete = length < 4
            self._seen += max(length, 4)

    @property
    def unpack_failed(self) -> bool:
        """Whether Git could not even store what came."""
        return self._inner[4:].startswith(b"unpack ") and not self._inner[4:].startswith(b"unpack ok")

    def end(self) -> None:
        """receive-pack has closed its output."""
        self._ended = True

    def take(self, commands: Commands, reasons: Mapping[str, str], failed: str | None) -> bytes:
        """What may go to the client now: the report once it is whole, the closing flush once Git has ended."""
        out = b""
        if not self._taken and (self._complete or self._ended):
            self._taken = True
            if commands.wants_report and (self._inner or failed is not None):
                text = _failure(commands, failed) if failed is not None else _corrected(self._inner, reasons)
                out = frame(b"\1", text) if commands.side_band else text
        if self._taken and self._ended:
            out, self.trailer = out + self.trailer, b""
        return out


def _failure(commands: Commands, why: str) -> bytes:
    lines = [pkt_line(b"unpack ok\n")]
    lines += [_ng(update.ref.encode("utf-8", "surrogateescape"), why) for update in commands.updates]
    return b"".join(lines) + pkt_line(None)


def _corrected(report: bytes, reasons: Mapping[str, str]) -> bytes:
    out, at = [], 0
    while (length := _length(report, at)) is not None:
        end = at + max(length, 4)
        raw = report[at:end]
        words = raw[4:].rstrip(b"\n").split(b" ", 2)
        ref = words[1].decode("utf-8", "surrogateescape") if len(words) > 1 else ""
        out.append(_ng(words[1], reasons[ref]) if words[0] == b"ng" and ref in reasons else raw)
        at = end
    return b"".join([*out, report[at:]])


def _length(data: bytes, at: int) -> int | None:
    """What the pkt-line at `at` says of its length; None where there is none."""
    digits = data[at : at + 4]
    return int(digits, 16) if re.fullmatch(rb"[0-9A-Fa-f]{4}", digits) else None


def _ng(ref: bytes, why: str) -> bytes:
    one_line = " ".join(why.split())[:1000]
    return pkt_line(b"ng " + ref + b" " + one_line.encode("utf-8", "replace") + b"\n")
