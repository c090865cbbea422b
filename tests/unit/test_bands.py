"""Lines for the person between the packets of an answer."""

from __future__ import annotations

import pytest
from dulwich.protocol import pkt_line

from cluster.http.bands import MOST_LINE, Bands, progress

ACK, NAK, FLUSH = bytes(pkt_line(b"ACK " + b"a" * 40 + b" ready\n")), bytes(pkt_line(b"NAK\n")), b"0000"
PACK = bytes(pkt_line(b"\1PACK" + b"x" * 300))
DONE = bytes(pkt_line(b"\2done\n"))
LINE = progress("wait")

TABLE = {
    "v0: behind the acknowledgements": (NAK + PACK + FLUSH, NAK + LINE + PACK + FLUSH),
    "v2: behind the section's name": (
        ACK + b"0001" + bytes(pkt_line(b"packfile\n")) + DONE + PACK + FLUSH,
        ACK + b"0001" + bytes(pkt_line(b"packfile\n")) + LINE + DONE + PACK + FLUSH,
    ),
    "a push: first": (DONE + PACK + FLUSH, LINE + DONE + PACK + FLUSH),
    "shallow": (
        b"0034shallow " + b"a" * 40 + FLUSH + NAK + PACK,
        b"0034shallow " + b"a" * 40 + FLUSH + NAK + LINE + PACK,
    ),
    "a listing has no place": (ACK + NAK + FLUSH, ACK + NAK + FLUSH),
    "a pack without bands": (NAK + b"PACK\0\0\0\2" + PACK, NAK + b"PACK\0\0\0\2" + PACK),
    "nothing": (b"", b""),
    "cut off in a length": (NAK + b"00", NAK + b"00"),
    "cut off in a packet": (NAK + NAK[:6], NAK + NAK[:6]),
}


@pytest.mark.parametrize(("answer", "goes_out"), TABLE.values(), ids=TABLE)
@pytest.mark.parametrize("size", [1, 3, 4, 5, 64, 10_000])
def test_where_a_line_goes_however_the_answer_is_cut(answer: bytes, goes_out: bytes, size: int) -> None:
    bands = Bands()
    bands.say("wait")
    out = b"".join(bands.feed(answer[at : at + size]) for at in range(0, len(answer), size)) + bands.end()
    assert out == goes_out
    assert bands.lines == ([] if LINE in goes_out else ["wait"])


def test_without_lines_nothing_changes() -> None:
    bands = Bands()
    assert bands.feed(NAK + PACK) + bands.feed(FLUSH) + bands.end() == NAK + PACK + FLUSH


@pytest.mark.parametrize("line", ["x" * 5000, "two\nlines \x1b[31m", "é" * 900])
def test_a_line_stays_one_that_every_client_takes(line: str) -> None:
    packet = progress(line)
    assert packet[4:5] == b"\2" and packet.endswith(b"\n") and packet.count(b"\n") == 1
    assert len(packet) <= MOST_LINE + 6 and b"\x1b" not in packet
