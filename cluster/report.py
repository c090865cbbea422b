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

BYTES_A_REF = 512
"""Most bytes of a list of commands for each ref that is allowed, on average: two object ids, and its name."""

MOST_LINE = 16 << 10
"""Bytes of one command. The file system ends names earlier; the first command brings the client's capabilities."""

MOST_OPTIONS = 256 << 10
"""Bytes of push options, which become the environment of hooks."""

DRAIN = 16 << 20
"""Bytes of commands that are read on with after a push was found to have too many, to answer each by its name."""

BAND = 65515
"""Most bytes in one packet of side-band-64k, behind its length and its band."""

_LENGTH = re.compile(rb"[0-9A-Fa-f]{4}")


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


def up_to_flush(stream: IO[bytes]) -> Iterator[bytes]:
    """The bytes of `stream` up to its first flush, its end or its first nonsense, in pieces as they come. What is
    behind a flush is not touched.

    A listing of 100,000 refs is as many pkt-lines: one by one, they cost many times what Git takes to make them.
    """
    assert isinstance(stream, io.BufferedReader)
    digits, left, over = b"", 0, False
    while not over and (data := stream.peek()):
        at = 0
        while at < len(data) and not over:
            if left:
                step = min(left, len(data) - at)
                left -= step
            else:
                step = min(4 - len(digits), len(data) - at)
                digits += data[at : at + step]
                if len(digits) == 4:
                    size = int(digits, 16) if _LENGTH.fullmatch(digits) else 0
                    digits, left, over = b"", max(0, size - 4), size == 0
            at += step
        yield stream.read(at)


def read_some(stream: IO[bytes]) -> bytes:
    """What there is to read of a process's output now, waiting for the first byte; b"" at its end."""
    assert isinstance(stream, io.BufferedReader)
    return stream.read1(65536)


def frame(band: bytes, data: bytes) -> bytes:
    """`data` as side-band packets."""
    return b"".join(pkt_line(band + data[start : start + BAND]) for start in range(0, len(data), BAND))


class Commands:
    """What the client asks receive-pack for, read along while it passes by.

    most: refs that it may ask for; None: any number. Where it asks for more, or in more bytes than so many refs can
    need, `excess` says so: nothing of what came with that call of `feed`, or comes later, may reach Git. The list is
    then read on to its end, for its names alone, so that each ref can be answered; for DRAIN bytes at the most.
    """

    def __init__(self, most: int | None = None) -> None:
        self.updates: list[RefUpdate] = []
        self.capabilities: frozenset[bytes] = frozenset()
        self.excess: tuple[str, str] | None = None
        self._names: list[bytes] = []
        self._most = most
        self._bytes = 0
        self._known = Event()
        self._ended = False
        self._buffer = b""

    @property
    def side_band(self) -> bool:
        return self._known.is_set() and b"side-band-64k" in self.capabilities

    @property
    def wants_report(self) -> bool:
        return bool({b"report-status", b"report-status-v2"} & self.capabilities)

    @property
    def known(self) -> bool:
        """Whether the client has sent its list, or never will."""
        return self._known.is_set()

    @property
    def over(self) -> bool:
        """Whether nothing of what comes next is looked at."""
        return self._ended

    def wait(self) -> None:
        """Until it is known."""
        self._known.wait()

    @property
    def refs(self) -> list[bytes]:
        """What the client wants to change, by name."""
        return [update.ref.encode("utf-8", "surrogateescape") for update in self.updates] + self._names

    def end(self) -> None:
        """There is no more to come."""
        self._known.set()
        self._ended = True
        self._buffer = b""

    def feed(self, data: bytes) -> None:
        """Bytes on their way to Git. What comes behind the list is not looked at, but for the size of its options."""
        if self._ended:
            return None
        at, buffer = 0, self._buffer + data
        while len(buffer) - at >= 4:
            length = _length(buffer, at)
            if length is None or length < 4:
                if (
                    self.known
                    or self.excess
                    or self._most is None
                    or b"push-options" not in self.capabilities
                ):
                    return self.end()
                self._known.set()  # its options follow
                self._bytes, length = 0, 4
            if len(buffer) - at < length:
                break
            self._count(length)
            if not self.known:
                self._line(buffer[at + 4 : at + length])
            elif self.excess:
                return self.end()
            at += length
        self._buffer = buffer[at:]
        if self.excess and self._bytes > DRAIN:
            self._names, self.capabilities = [], frozenset()  # nobody listens for a report
            return self.end()
        return None

    def _count(self, length: int) -> None:
        self._bytes += length
        if self._most is None or self.excess:
            return
        if self.known and self._bytes > MOST_OPTIONS:
            self._refuse("the options of this push are too long", "push with fewer options")
        elif not self.known and length > MOST_LINE:
            self._refuse("a ref's name in this push is too long", "choose a shorter name")
        elif not self.known and self._bytes > max(DRAIN, self._most * BYTES_A_REF):
            self._refuse("this push's list of refs is too long", "push fewer refs at a time")

    def _refuse(self, what: str, hint: str) -> None:
        self.excess = (what, hint)
        self._bytes = 0

    def _line(self, payload: bytes) -> None:
        command, _, capabilities = payload.partition(b"\0")
        if capabilities:
            self.capabilities |= frozenset(capabilities.split())  # Git takes those of every line
        words = command.rstrip(b"\n").split(b" ", 2)
        if len(words) != 3 or words[0] == b"shallow":
            return
        if self._most is not None and not self.excess and len(self.updates) == self._most:
            refs = "1 ref" if self._most == 1 else f"{self._most} refs"
            what = f"this push changes more than {refs}, the most that this device takes in one"
            self._refuse(what, "push fewer refs at a time, or ask an administrator")
        if self.excess:
            self._names.append(words[2])
        else:
            old, new, ref = (word.decode("utf-8", "surrogateescape") for word in words)
            self.updates.append(RefUpdate(ref, old, new))


class Report:
    """Git's report, held until the session lets it go; given out once, as it was or corrected."""

    def __init__(self) -> None:
        self.trailer = b""
        self._inner = b""
        self._seen = 0
        self._complete = False
        self._ended = False
        self._taken = False
        self.unpack_why: str | None = None
        """What to say of objects that could not be stored, instead of what Git says."""

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
                text = _failure(commands, failed) if failed is not None else self._corrected(reasons)
                out = frame(b"\1", text) if commands.side_band else text
        if self._taken and self._ended:
            out, self.trailer = out + self.trailer, b""
        return out

    def _corrected(self, reasons: Mapping[str, str]) -> bytes:
        text = _corrected(self._inner, reasons)
        length = _length(text, 0)
        if self.unpack_why is None or not self.unpack_failed or length is None:
            return text
        return pkt_line(b"unpack " + _one_line(self.unpack_why) + b"\n") + text[length:]


def _failure(commands: Commands, why: str) -> bytes:
    lines = [pkt_line(b"unpack ok\n")]
    lines += [_ng(ref, why) for ref in commands.refs]
    return b"".join(lines) + pkt_line(None)


def _corrected(report: bytes, reasons: Mapping[str, str]) -> bytes:
    out, at = [], 0
    while (length := _length(report, at)) is not None:
        end = at + max(length, 4)
        raw = report[at:end]
        words = raw[4:].rstrip(b"\n").split(b" ", 2)
        ref = words[1].decode("utf-8", "surrogateescape") if len(words) > 1 and words[0] == b"ng" else None
        out.append(raw if ref is None or ref not in reasons else _ng(words[1], reasons[ref]))
        at = end
    return b"".join([*out, report[at:]])


def _length(data: bytes, at: int) -> int | None:
    """What the pkt-line at `at` says of its length; None where there is none."""
    digits = data[at : at + 4]
    return int(digits, 16) if re.fullmatch(rb"[0-9A-Fa-f]{4}", digits) else None


def _ng(ref: bytes, why: str) -> bytes:
    line = b"ng " + ref + b" " + _one_line(why)
    return pkt_line(line[:BAND] + b"\n")


def _one_line(why: str) -> bytes:
    return " ".join(why.split())[:1000].encode("utf-8", "replace")
