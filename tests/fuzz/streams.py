"""Fuzz targets for pkt-lines as they pass: what a client sends, what Git answers, in whatever pieces they arrive.

The first byte of an input says in what pieces the rest comes (core.SIZES); what comes of it must not depend on that.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence

from dulwich.protocol import pkt_line

from cluster import report as reports
from cluster import upload
from cluster.client import CHUNK, Input
from cluster.errors import ClusterError, PeerFailed
from cluster.model import RefUpdate
from cluster.pulling import MOST_NAMED, named
from cluster.report import Commands, Report, frame, packets
from cluster.stage import listed
from tests.fuzz.core import SIZES, Far, Target, cut, git_reads, one_line, packet_length, pieces

ZERO = b"0" * 40
ONE = b"1" * 40
FLUSH = pkt_line(None)
LONGEST = 65535


# ------------------------------------------------------------------------------------------------- what is sent


def reading(data: bytes) -> None:
    """Every byte comes out once, in order, however it is asked for; no more is kept than was asked for and a chunk."""
    sizes, rest = cut(data)
    asked, sent = rest[:16], rest[16:]
    stream, position = Input(Far(sent, sizes)), 0
    for how in asked:
        if how < 128:
            size = (0, 1, 4, 5, 100, 3000)[how % 6]
            got = stream.read(size)
            assert len(got) == min(size, len(sent) - position)
        elif how < 192:
            got = stream.read1()
            assert got or position == len(sent)
        else:
            got = stream.read(how - 190)
            stream.unread(got)
            got = b""
        assert got == sent[position : position + len(got)]
        position += len(got)
        assert _kept(stream) <= 2 * CHUNK
    while got := stream.read1():
        assert got == sent[position : position + len(got)]
        position += len(got)
    assert position == len(sent)


def _kept(stream: Input) -> int:
    return sum(len(value) for value in vars(stream).values() if isinstance(value, bytes))


class _Passed:
    """What became of a conversation: runs of bytes that went to Git, and requests that were answered here."""

    def __init__(self, sent: bytes, sizes: Sequence[int]) -> None:
        self.events: list[tuple[str, list[bytes]]] = []
        self.error = ""
        stream = Input(Far(sent, sizes))
        try:
            for data in upload._without_listings(stream, lambda request: self._note("answer", request)):
                self._note("git", data)
            while data := stream.read1():
                self._note("git", data)
        except ClusterError as error:
            one_line(error)
            self.error = error.what
        self.runs = [(who, b"".join(parts)) for who, parts in self.events]

    def _note(self, who: str, data: bytes) -> None:
        assert data
        if who == "git" and self.events and self.events[-1][0] == "git":
            self.events[-1][1].append(data)
        else:
            self.events.append((who, [data]))


def listings(data: bytes) -> None:
    """Git itself never gets to read an ls-refs; each is answered whole; every byte goes one way or the other, once."""
    sizes, sent = cut(data)
    passed = _Passed(sent, sizes)
    whole = b"".join(part for _, part in passed.runs)
    assert whole == sent if not passed.error else sent.startswith(whole), (whole, sent)
    assert not _lists(b"".join(part for who, part in passed.runs if who == "git"))
    for who, part in passed.runs:
        assert who == "git" or (b"command=ls-refs" in part and len(part) <= upload.MOST_REQUEST + LONGEST)
    if sizes != SIZES[0]:
        again = _Passed(sent, SIZES[0])
        assert (again.runs, again.error) == (passed.runs, passed.error)


def _lists(data: bytes) -> bool:
    """Whether Git, reading this with protocol v2, would list refs (serve.c, process_request)."""
    keys: list[bytes] = []
    arguments = listing = False
    for raw in git_reads(data):
        if raw == b"0002" and not arguments:
            return False  # it dies
        if raw in (FLUSH, b"0001", b"0002"):  # before 2.34, any of them ended a list of arguments
            if not keys and not arguments and raw == FLUSH:
                return False  # the client is done
            listing |= any(line.removesuffix(b"\n") == b"command=ls-refs" for line in keys)
            if listing and (arguments or raw == FLUSH):
                return True
            keys, arguments = [], raw == b"0001" and not arguments
        elif not arguments:
            keys.append(raw[4:])
    return False


def archive_request(data: bytes) -> None:
    """What was read and what is left are what was sent; whole: up to its first flush."""
    sizes, sent = cut(data)
    stream = Input(Far(sent, sizes))
    said, whole = upload.whole_request(stream)
    left = [said]
    while more := stream.read1():
        left.append(more)
    assert b"".join(left) == sent
    lines = git_reads(sent)
    assert whole == (FLUSH in lines and len(said) <= upload.MOST_REQUEST + LONGEST)
    if whole:
        assert said == b"".join(lines[: lines.index(FLUSH) + 1])


def advertisement(data: bytes) -> None:
    """The listing and what comes behind it are what Git said."""
    sizes, said = cut(data)

    class Pipe(io.BytesIO):
        """Reads as short as a pipe's."""

        def read(self, size: int | None = -1) -> bytes:
            return super().read(min(size or 0, max(sizes)))

    output = Pipe(said)
    begin = upload._advertisement(output)
    assert begin + said[output.tell() :] == said
    lines = git_reads(said)
    if FLUSH in lines:
        assert begin == b"".join(lines[: lines.index(FLUSH) + 1])
    output = Pipe(said)
    assert upload._archive_begins(output) + said[output.tell() :] == said


def staged_list(data: bytes) -> None:
    """Object ids up to the flush, and what is behind it left alone; or PeerFailed."""
    sizes, sent = cut(data)
    stream = Input(Far(sent, sizes))
    try:
        oids = listed(stream, "sha1")
    except PeerFailed as error:
        return one_line(error)
    assert all(len(oid) == 40 and set(oid) <= set("0123456789abcdef") for oid in oids)
    head = b"".join(pkt_line(oid.encode()) for oid in oids) + FLUSH
    assert sent[: len(head)].lower() == head or sent[len(head) - 4 : len(head)] == b"0001"
    assert stream.read(len(sent) + 1) == sent[len(head) :]
    return None


def pulled_names(data: bytes) -> None:
    """Object ids, some behind "^", up to the flush; or PeerFailed. Nothing else gets to Git."""
    sizes, sent = cut(data)
    try:
        names = named(Input(Far(sent, sizes)), "sha1")
    except PeerFailed as error:
        return one_line(error)
    assert all(re.fullmatch("\\^?[0-9a-f]{40}", name) for name in names)
    assert len(names) <= MOST_NAMED
    return None


# ------------------------------------------------------------------------------------------------ a push's list


def commands(data: bytes) -> None:
    """Read along as Git reads it, whatever the pieces; a line and a chunk are all that is kept of it."""
    sizes, sent = cut(data)
    found = Commands()
    for piece in pieces(sent, sizes):
        found.feed(piece)
        assert len(found._buffer) <= LONGEST
    done = found._known.is_set()
    updates, capabilities, ended = _commands(sent)
    assert (found.updates, found.capabilities, done) == (updates, capabilities, ended)
    found.end()
    found.wait()
    assert not found._buffer


def _commands(sent: bytes) -> tuple[list[RefUpdate], frozenset[bytes], bool]:
    """The same, in the plainest way (receive-pack.c, read_head_info)."""
    updates: list[RefUpdate] = []
    capabilities: set[bytes] = set()
    at = 0
    while len(sent) - at >= 4:
        length = packet_length(sent, at)
        if length is None or length < 4:
            return updates, frozenset(capabilities), True
        if at + length > len(sent):
            break
        line, _, features = sent[at + 4 : at + length].partition(b"\0")
        capabilities |= set(features.split())
        words = line.rstrip(b"\n").decode("utf-8", "surrogateescape").split(" ", 2)
        if len(words) == 3 and words[0] != "shallow":
            updates.append(RefUpdate(words[2], words[0], words[1]))
        at += length
    return updates, frozenset(capabilities), False


# ---------------------------------------------------------------------------------------------------- the report

REASONS = {"refs/heads/main": "fetch first:\nit moved", "refs/heads/\udcff": "why " * 600, "": "none"}
SAID = b"".join(
    pkt_line(line)
    for line in (
        ZERO + b" " + ONE + b" refs/heads/main\0 report-status side-band-64k agent=x",
        ONE + b" " + ZERO + b" refs/heads/\xff",
        ZERO + b" " + ONE + b" refs/heads/" + b"x" * 300,
    )
)
PLAIN = SAID.replace(b"side-band-64k", b"atomic-or-so-")


def report(data: bytes) -> None:
    """Git's report in pieces: as it came; or with other reasons; or, where the commit failed, "ng" for every ref."""
    sizes, said = cut(data)
    for sent in (SAID, PLAIN):
        banded = sent is SAID
        for reasons, failed in ((REASONS, None), ({}, "the database stayed away"), ({}, None)):
            out = _reported(sent, said, sizes, reasons, failed)
            assert out == _reported(sent, said, SIZES[0], reasons, failed)
            inner = _unbanded(out) if banded else out
            if failed is not None:
                _all_failed(inner)
            elif not reasons:
                assert inner == said
            else:
                _only_reasons_changed(inner, said)


def _reported(
    sent: bytes, said: bytes, sizes: Sequence[int], reasons: Mapping[str, str], failed: str | None
) -> bytes:
    found, report = Commands(), Report()
    found.feed(sent + FLUSH)
    out = b""
    for piece in pieces(said, sizes):
        report.feed(piece)
    out += report.take(found, reasons, failed)
    report.end()
    return out + report.take(found, reasons, failed)


def _unbanded(out: bytes) -> bytes:
    lines = git_reads(out)
    assert b"".join(lines) == out and all(raw[4:5] == b"\1" for raw in lines)
    return b"".join(raw[5:] for raw in lines)


def _all_failed(inner: bytes) -> None:
    first, *more, last = git_reads(inner)
    assert b"".join((first, *more, last)) == inner and (first, last) == (pkt_line(b"unpack ok\n"), FLUSH)
    assert len(more) == 3 and all(raw[4:].startswith(b"ng refs/heads/") for raw in more)


def _only_reasons_changed(inner: bytes, said: bytes) -> None:
    before, after = git_reads(said), git_reads(inner)
    assert len(before) <= len(after) + 1
    for was, now in zip(before, after, strict=False):
        ref = was[4:].rstrip(b"\n").split(b" ", 2)[1:2]
        known = was[4:7] == b"ng " and ref and ref[0].decode("utf-8", "surrogateescape") in REASONS
        assert now == was or (known and now.startswith(now[:4] + b"ng " + ref[0] + b" ")), (was, now)
        assert b"\nok" not in now[4:-1] or was == now


def packet_stream(data: bytes) -> None:
    """The pkt-lines of Git's output: nothing invented, nothing lost before the first that makes no sense."""
    _, said = cut(data)
    found = list(packets(io.BytesIO(said)))
    raws = b"".join(packet.raw for packet in found)
    assert len(raws) <= len(said)
    assert raws.lower() == said[: len(raws)].lower() or b"0001" in said
    expected = git_reads(said)
    whole = [raw for raw in expected if raw != b"0002"]
    assert len(found) >= (expected.index(b"0002") if b"0002" in expected else len(whole))
    for packet in found:
        banded = frame(b"\2", packet.payload)
        assert b"".join(raw[5:] for raw in git_reads(banded)) == packet.payload


# -------------------------------------------------------------------------------------------------------- corpus


def _lines(*lines: bytes | None) -> bytes:
    return b"".join(b"0001" if line == b"DELIM" else pkt_line(line) for line in lines)


LISTING = _lines(b"command=ls-refs\n", b"agent=git/2.39", b"DELIM", b"peel\n", b"ref-prefix HEAD\n", None)
LATE = _lines(b"agent=git/2.39\n", b"object-format=sha1", b"command=ls-refs", b"DELIM", b"symrefs\n", None)
FETCH = _lines(b"command=fetch", b"DELIM", b"want " + ONE + b"\n", b"done\n", None)
ADVERTISED = _lines(ONE + b" HEAD\0multi_ack side-band-64k\n", ONE + b" refs/heads/main\n", None)
PUSHED = _lines(
    ZERO + b" " + ONE + b" refs/heads/main\0 report-status side-band-64k agent=x",
    ONE + b" " + ZERO + b" refs/heads/\xff\n",
    b"shallow " + ONE,
    None,
)
STATUS = _lines(b"unpack ok\n", b"ok refs/heads/main\n", b"ng refs/heads/\xff non-fast-forward\n", None)
REFUSED = _lines(b"unpack index-pack abnormal exit\n", b"ng refs/heads/main unpacker error\n", None)
IDS = _lines(ZERO, ONE, b"a" * 40, None)
KNOWN = _lines(ONE, b"^" + b"a" * 40, None)

PARTS = (
    b"0000", b"0001", b"0002", b"0003", b"0004", b"0005", b"0005\n", b"ffff", b"fff0", b"FFF0", b"+00a",
    b"-001", b"-000", b"0x14",
    b" 00a", b"0_0a", b"00", b"000", b"\0", b"\n", b"\xff", LISTING, LATE, FETCH, ADVERTISED, PUSHED, STATUS,
    IDS, REFUSED,
    pkt_line(b"command=ls-refs"), pkt_line(b"command=ls-refs\n"), pkt_line(b"command=ls-refs\n\n"),
    pkt_line(b"command=fetch"),
    pkt_line(b"agent=x"), pkt_line(b"ok refs/heads/main\n"), pkt_line(b"ng refs/heads/main x\n"),
    pkt_line(b"ng refs/heads/\xff"),
    pkt_line(b"ng  "), pkt_line(ONE), b"\x01", b"PACK", pkt_line(b"x" * 1000), pkt_line(b"argument HEAD"),
)  # fmt: skip


def _every_way(*corpus: bytes) -> tuple[bytes, ...]:
    return tuple(bytes([number]) + data for data in corpus for number in range(len(SIZES)))


def targets() -> list[Target]:
    asked = bytes((3, 130, 200, 9, 250, 4, 127, 191, 2, 60, 5, 11, 33, 220, 128, 1))
    v2 = _every_way(
        LISTING + FETCH + LISTING + FLUSH, LATE + FETCH, FETCH + LATE, FETCH + b"garbage", LISTING[:40]
    )
    archive = _lines(b"argument --format=tar\n", b"argument HEAD\n", None)
    return [
        Target("input", reading, _every_way(asked + LISTING * 3, asked + b"x" * 2000), PARTS),
        Target("listings", listings, v2, PARTS),
        Target("archive-request", archive_request, _every_way(archive, archive + b"more"), PARTS),
        Target("advertisement", advertisement, _every_way(ADVERTISED + b"more", ADVERTISED), PARTS),
        Target("staged-list", staged_list, _every_way(IDS + b"PACK", IDS), PARTS),
        Target("pulled-names", pulled_names, _every_way(KNOWN + IDS, IDS, KNOWN[:-4]), PARTS),
        Target("commands", commands, _every_way(PUSHED + b"PACK", PUSHED * 2, PUSHED[:-4]), PARTS),
        Target("report", report, _every_way(STATUS, REFUSED, STATUS * 2), PARTS),
        Target("packets", packet_stream, _every_way(ADVERTISED + STATUS, STATUS), PARTS),
    ]


assert reports.BAND < LONGEST
