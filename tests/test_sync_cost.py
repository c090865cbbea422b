"""The cost of a push and of a sync follows what changed: counted in writes, processes, connections and bytes."""

from __future__ import annotations

import io
from threading import Event

import pytest
from dulwich.protocol import pkt_line

from cluster.outbox import Outbox
from cluster.report import up_to_flush
from tests.many_refs import branch

# ------------------------------------------------------------------------------------------- listings of many refs


def test_a_listing_is_passed_on_in_large_pieces_up_to_its_flush() -> None:
    lines = [f"{'1' * 40} {branch(number)}\n".encode() for number in range(10_000)]
    listing = b"".join(map(pkt_line, lines)) + b"0000"
    stream = io.BufferedReader(io.BytesIO(listing + b"and more"), 65536)
    pieces = list(up_to_flush(stream))
    assert b"".join(pieces) == listing
    assert len(pieces) < 20
    assert stream.read() == b"and more", "what comes behind the flush is nobody's yet"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_pieces_may_end_anywhere(size: int) -> None:
    listing = pkt_line(b"one") + pkt_line(b"") + b"0001" + pkt_line(b"three" * 10) + b"0000"
    stream = io.BufferedReader(io.BytesIO(listing + pkt_line(b"x")), size)
    assert b"".join(up_to_flush(stream)) == listing
    assert stream.read() == pkt_line(b"x")


@pytest.mark.parametrize("torn", [b"", b"00", b"0010abc", b"oops, no pkt-line"])
def test_a_listing_that_is_cut_off_ends(torn: bytes) -> None:
    stream = io.BufferedReader(io.BytesIO(pkt_line(b"one") + torn), 16)
    assert pkt_line(b"one") in b"".join(up_to_flush(stream))


class SlowClient:
    """Takes what it is sent once it is told to."""

    def __init__(self) -> None:
        self.go, self.got = Event(), list[bytes]()

    def write(self, data: bytes) -> None:
        self.go.wait()
        self.got.append(data)

    def write_error(self, data: bytes) -> None:
        self.write(b"error:" + data)

    def say(self, line: str) -> None:
        self.write(b"said:" + line.encode())


def test_what_waits_for_a_client_goes_out_together_and_in_its_order() -> None:
    client = SlowClient()
    outbox = Outbox(client)  # type: ignore[arg-type]
    for number in range(1000):
        outbox.write(b"%03d" % number)
    outbox.write_error(b"oh")
    outbox.say("hear")
    outbox.write(b"end")
    client.go.set()
    outbox.flush()
    outbox.close()
    listing = b"".join(b"%03d" % number for number in range(1000))
    assert b"".join(client.got) == listing + b"error:oh" + b"said:hear" + b"end"
    assert len(client.got) <= 6
