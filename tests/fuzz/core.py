"""What every fuzz target shares: its inputs, the mutations that make more of them, and a watch for processes.

A target is a function from bytes to nothing. It raises where a contract is broken, and returns where the input was
taken or refused as it should be.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from random import Random

from cluster.errors import ClusterError

MOST_LINE = 400
"""Characters of the longest sentence that any input may draw: it goes to a client and to the log."""


@dataclass(frozen=True)
class Target:
    """check: the function. corpus: whole inputs that are right, or nearly. tokens: what they are made of."""

    name: str
    check: Callable[[bytes], None]
    corpus: tuple[bytes, ...]
    tokens: tuple[bytes, ...]

    def __str__(self) -> str:
        return self.name


def one_line(error: ClusterError, *, most: int = MOST_LINE, ascii_only: bool = False) -> None:
    """Assert that an error is fit for a terminal, a log, and somebody who must not see what is behind it."""
    assert error.what, "an error says what"
    for line in error.lines():
        assert line.isprintable() and len(line) <= most, ascii(line)
        assert line.isascii() or not ascii_only, ascii(line)


# --------------------------------------------------------------------------------------------------- mutations


def made(chance: Random, target: Target) -> bytes:
    """An input: a few tokens in a row, or something of the corpus with up to six mutations."""
    if chance.random() < 0.2:
        return b"".join(_piece(chance, target) for _ in range(chance.randrange(12)))
    data = bytearray(chance.choice(target.corpus))
    for _ in range(chance.choice((0, 1, 1, 1, 2, 3, 6))):
        _mutate(chance, target, data)
    return bytes(data)


def _piece(chance: Random, target: Target) -> bytes:
    return chance.choice(target.tokens) if chance.random() < 0.85 else chance.randbytes(chance.randrange(6))


def _mutate(chance: Random, target: Target, data: bytearray) -> None:
    at = chance.randrange(len(data) + 1)
    to = min(len(data), at + chance.choice((1, 1, 2, 4, 8, 40)))
    match chance.randrange(9):
        case 0 if data:
            data[at % len(data)] ^= 1 << chance.randrange(8)
        case 1 if data:
            data[at % len(data)] = chance.randrange(256)
        case 2:
            data[at:at] = _piece(chance, target)
        case 3:
            del data[at:to]
        case 4:
            data[at:at] = data[at:to] * chance.choice((1, 1, 2, 20))
        case 5:
            del data[at:]
        case 6:  # splice
            other = chance.choice(target.corpus)
            data[at:] = other[chance.randrange(len(other) + 1) :]
        case 7:
            data[at:to] = _piece(chance, target)
        case _:  # one token for another, wherever it is first
            found = data.find(chance.choice(target.tokens), at)
            if found >= 0:
                data[found : found + 4] = chance.choice(target.tokens)


# ------------------------------------------------------------------------------------------- no process, no wire

FORBIDDEN = (
    "subprocess.Popen", "os.exec", "os.posix_spawn", "os.spawn", "os.fork", "os.forkpty", "os.system", "pty.spawn",
    "socket.connect", "socket.bind",
)  # fmt: skip

_watched = threading.local()
_hooked = False


class Started(BaseException):
    """The input made the code start a process, or connect to something. No `except Exception` takes it."""


def _audit(event: str, arguments: object) -> None:
    if event in FORBIDDEN and getattr(_watched, "on", False):
        raise Started(event)


@contextmanager
def nothing_starts() -> Iterator[None]:
    """Inside, and in this thread, every attempt to start a process or to connect raises Started."""
    global _hooked
    if not _hooked:  # an audit hook stays for good
        sys.addaudithook(_audit)
        _hooked = True
    _watched.on = True
    try:
        yield
    finally:
        _watched.on = False


# ------------------------------------------------------------------------------------------------------- streams

SIZES: tuple[tuple[int, ...], ...] = (
    (65536,),
    (1,),
    (2, 3),
    (4,),
    (5, 1, 64),
    (3, 65536),
    (1024,),
    (7, 2, 4096),
)


def cut(data: bytes) -> tuple[Sequence[int], bytes]:
    """An input of a stream target: its first byte says in what pieces the rest arrives."""
    return SIZES[data[0] % len(SIZES)] if data else SIZES[0], data[1:]


def pieces(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """`data`, cut into pieces of `sizes` over and over."""
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        yield data[at : at + size]
        at, number = at + size, number + 1


class Far:
    """A client that sends `data` in pieces, and hears nothing."""

    gone = False

    def __init__(self, data: bytes, sizes: Sequence[int]) -> None:
        self._pieces = pieces(data, sizes)
        self._rest = b""

    def read(self, size: int) -> bytes:
        self._rest = self._rest or next(self._pieces, b"")
        out, self._rest = self._rest[:size], self._rest[size:]
        return out

    def write(self, data: bytes) -> None: ...

    def write_error(self, data: bytes) -> None: ...

    def say(self, line: str) -> None: ...

    def hang_up(self, why: str = "") -> None: ...

    def send_from(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None: ...

    def receive_into(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None: ...


def packet_length(data: bytes, at: int) -> int | None:
    """Git's own reading of a pkt-line's length (pkt-line.c, packet_length): four hex digits. None: it would die."""
    digits = data[at : at + 4]
    if len(digits) != 4 or any(digit not in b"0123456789abcdefABCDEF" for digit in digits):
        return None
    return int(digits, 16)


def git_reads(data: bytes) -> list[bytes]:
    """The pkt-lines that Git reads from `data`, as they came, until the end or until it dies."""
    found, at = [], 0
    while (length := packet_length(data, at)) is not None and length != 3 and at + length <= len(data):
        found.append(data[at : at + max(length, 4)])
        at += max(length, 4)
    return found
