"""The commands and the report of a push, read along and rewritten: from Git itself, from enemies, in any pieces."""

from __future__ import annotations

import io
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from dulwich.protocol import pkt_line
from hypothesis import given
from hypothesis import strategies as st

from cluster.model import RefUpdate
from cluster.report import (
    BAND,
    DRAIN,
    MOST_LINE,
    MOST_OPTIONS,
    Commands,
    Report,
    frame,
    packets,
)

ZERO = "0" * 40
FLUSH = pkt_line(None)

OIDS = st.sampled_from([ZERO, "1" * 40, "abcdef0000" * 4, "a" * 64])
REFS = st.sampled_from(["main", "x0000", "0000", "a b", "caf\xe9", "\udcff", "x" * 300, "0", "ok", "ng"]).map(
    "refs/heads/{}".format
)
UPDATES = st.lists(st.builds(RefUpdate, REFS, OIDS, OIDS), min_size=1, max_size=6)
CAPABILITIES = st.frozensets(
    st.sampled_from([b"report-status", b"report-status-v2", b"side-band-64k", b"atomic", b"agent=git/2.39"])
)
LENGTHS = st.sampled_from(
    [b"0000", b"0001", b"0003", b"0004", b"0005", b"ffff", b"FFF0", b"-001", b"+00a", b"0_0a", b" 00a"]
)
SCRAPS = st.sampled_from([b"\0", b"ng refs/heads/main x", b"unpack ok\n"])
HOSTILE = st.lists(st.one_of(st.binary(max_size=40), LENGTHS, SCRAPS), max_size=12).map(b"".join)


def raw(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def command_list(updates: Sequence[RefUpdate], capabilities: frozenset[bytes]) -> bytes:
    """As a client sends it: the capabilities behind the first command."""
    lines = [raw(f"{u.old} {u.new} {u.ref}") for u in updates]
    lines[0] += b"\0 " + b" ".join(sorted(capabilities))
    return b"".join(pkt_line(line) for line in lines) + FLUSH


def report_of(lines: Sequence[bytes]) -> bytes:
    return b"".join(pkt_line(line) for line in lines) + FLUSH


LINES = st.lists(
    st.one_of(
        REFS.map(lambda ref: b"ok " + raw(ref) + b"\n"),
        REFS.map(lambda ref: b"ng " + raw(ref) + b" non-fast-forward\n"),
        st.just(b"option old-oid " + b"0" * 40 + b"\n"),
    ),
    max_size=8,
).map(lambda lines: [b"unpack ok\n", *lines])


def pieces(data: bytes, sizes: Sequence[int]) -> Iterator[bytes]:
    """`data`, cut into pieces of `sizes` over and over."""
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        yield data[at : at + size]
        at, number = at + size, number + 1


SIZES = st.lists(st.sampled_from([1, 2, 3, 4, 5, 7, 64, 65536]), min_size=1, max_size=4)


# Commands


@given(UPDATES, CAPABILITIES, st.binary(max_size=50), SIZES)
def test_commands_are_read_whatever_the_pieces(
    updates: list[RefUpdate], capabilities: frozenset[bytes], pack: bytes, sizes: list[int]
) -> None:
    commands = Commands()
    for piece in pieces(command_list(updates, capabilities) + pack, sizes):
        commands.feed(piece)
    commands.wait()
    assert commands.updates == updates
    assert commands.capabilities == capabilities
    assert commands.side_band == (b"side-band-64k" in capabilities)
    assert commands.wants_report == bool(capabilities & {b"report-status", b"report-status-v2"})


@given(HOSTILE, SIZES)
def test_any_bytes_as_commands_are_survived(data: bytes, sizes: list[int]) -> None:
    whole, cut = Commands(), Commands()
    whole.feed(data)
    for piece in pieces(data, sizes):
        cut.feed(piece)
    assert (cut.updates, cut.capabilities) == (whole.updates, whole.capabilities)
    cut.end()
    cut.wait()
    assert cut.side_band in (True, False) and cut.wants_report in (True, False)


@pytest.mark.parametrize("length", [b"+00a", b"-001", b"0_0a", b" 00a", b"0x0a", b"\xd9\xa1\xd9\xa1"])
def test_a_length_is_four_hex_digits_and_nothing_else(length: bytes) -> None:
    """Python's int() reads more than Git does: what Git refuses must not be read differently here."""
    commands = Commands()
    commands.feed(length + b"a b refs/heads/main\0report-status" + FLUSH)
    commands.wait()
    assert commands.updates == [] and not commands.wants_report


def test_shallow_lines_are_no_commands() -> None:
    commands = Commands()
    update = RefUpdate("refs/heads/main", ZERO, "1" * 40)
    commands.feed(pkt_line(b"shallow " + b"1" * 40) + command_list([update], frozenset({b"report-status"})))
    assert commands.updates == [update] and commands.wants_report


def many(count: int) -> list[RefUpdate]:
    return [RefUpdate(f"refs/heads/{number}", ZERO, "1" * 40) for number in range(count)]


@given(st.integers(1, 5), st.integers(1, 9), SIZES)
def test_a_list_with_more_refs_than_allowed(most: int, count: int, sizes: list[int]) -> None:
    """It is read to its end for the names; and Git never sees that end."""
    commands, passed = Commands(most), b""
    data = command_list(many(count), frozenset({b"report-status"})) + b"PACK"
    for piece in pieces(data, sizes):
        commands.feed(piece)
        passed += b"" if commands.excess else piece
    assert commands.known
    assert commands.refs == [f"refs/heads/{number}".encode() for number in range(count)]
    assert len(commands.updates) == min(most, count)
    assert (commands.excess is not None) == (count > most)
    assert passed == data if count <= most else len(passed) < len(data) - len(FLUSH + b"PACK")


def test_a_list_of_refs_without_an_end_is_not_kept() -> None:
    commands, fed = Commands(10), 0
    line = pkt_line(f"{ZERO} {'1' * 40} refs/heads/{'x' * 200}\0report-status".encode())
    while not commands.known:
        commands.feed(line * 100)
        fed += len(line) * 100
        assert fed < 2 * DRAIN
    assert commands.excess == (
        "this push changes more than 10 refs, the most that this device takes in one",
        "push fewer refs at a time, or ask an administrator",
    )
    assert len(commands.updates) == 10 and commands.refs == [each.ref.encode() for each in commands.updates]
    assert not commands.wants_report


@pytest.mark.parametrize("line", [b"shallow " + b"1" * 40, b"x" * 1000])
def test_a_list_of_anything_without_an_end_is_refused(line: bytes) -> None:
    commands, fed = Commands(10), 0
    while commands.excess is None:
        commands.feed(pkt_line(line) * 100)
        fed += len(line) * 100
        assert fed < 2 * DRAIN
    assert commands.excess == ("this push's list of refs is too long", "push fewer refs at a time")


def test_a_command_of_any_length_is_refused() -> None:
    commands = Commands(10)
    commands.feed(pkt_line(f"{ZERO} {'1' * 40} refs/heads/{'x' * MOST_LINE}".encode()))
    assert commands.excess == ("a ref's name in this push is too long", "choose a shorter name")


@given(SIZES)
def test_push_options_pass_and_too_many_are_refused(sizes: list[int]) -> None:
    begin = command_list(many(1), frozenset({b"push-options"}))
    option = pkt_line(b"x" * 1000)
    few, lots = Commands(10), Commands(10)
    for piece in pieces(begin + option * 3 + FLUSH + b"PACK" + option * 1000, [*sizes, 1 << 16]):
        few.feed(piece)
    assert few.known and few.excess is None and few.updates == many(1)
    for piece in pieces(begin + option * (MOST_OPTIONS // 1000), [1 << 16]):
        lots.feed(piece)
    assert lots.excess == ("the options of this push are too long", "push with fewer options")
    assert lots.known and lots.updates == many(1)


def test_an_operator_may_ask_for_any_number() -> None:
    commands = Commands()
    commands.feed(command_list(many(1000), frozenset({b"report-status"})))
    assert len(commands.updates) == 1000 and commands.excess is None


# The report


def answered(lines: bytes, capabilities: frozenset[bytes], sizes: Sequence[int], **why: object) -> bytes:
    """What the client gets when receive-pack reports `lines`, piece by piece, and is asked after each."""
    commands, report = Commands(), Report()
    commands.feed(command_list([RefUpdate("refs/heads/main", ZERO, "1" * 40)], capabilities))
    reasons, failed = why.get("reasons", {}), why.get("failed")
    out = b""
    for piece in pieces(lines, sizes):
        report.feed(piece)
        out += report.take(commands, reasons, failed)  # type: ignore[arg-type]
    report.trailer = FLUSH if b"side-band-64k" in capabilities else b""
    report.end()
    return out + report.take(commands, reasons, failed)  # type: ignore[arg-type]


PLAIN = frozenset({b"report-status"})
BANDED = PLAIN | {b"side-band-64k"}


@given(LINES, SIZES)
def test_a_report_without_reasons_is_byte_for_byte_gits(lines: list[bytes], sizes: list[int]) -> None:
    text = report_of(lines)
    assert answered(text, PLAIN, sizes) == text
    assert answered(text, BANDED, sizes) == frame(b"\1", text) + FLUSH


@given(LINES, SIZES)
def test_only_the_refs_with_a_reason_are_told_another(lines: list[bytes], sizes: list[int]) -> None:
    reasons = {"refs/heads/main": "fetch first: it\nmoved", "refs/heads/caf\xe9": "why"}
    wanted = []
    for line in lines:
        word, _, rest = line.partition(b" ")
        ref = rest.split(b" ")[0].decode("utf-8", "surrogateescape").rstrip("\n")
        told = word == b"ng" and ref in reasons
        wanted.append(
            b"ng " + raw(ref) + b" " + raw(" ".join(reasons[ref].split())) + b"\n" if told else line
        )
    assert answered(report_of(lines), PLAIN, sizes, reasons=reasons) == report_of(wanted)


@given(LINES, SIZES)
def test_a_failed_commit_is_ng_for_every_ref(lines: list[bytes], sizes: list[int]) -> None:
    text = answered(report_of(lines), PLAIN, sizes, failed="the database stayed away")
    assert text == report_of([b"unpack ok\n", b"ng refs/heads/main the database stayed away\n"])
    assert b"ok refs/" not in text


@given(HOSTILE, SIZES, st.sampled_from([PLAIN, BANDED, frozenset[bytes]()]))
def test_any_bytes_as_a_report_are_survived(
    data: bytes, sizes: list[int], capabilities: frozenset[bytes]
) -> None:
    out = answered(data, capabilities, sizes, reasons={"refs/heads/main": "why", "": "none"})
    assert out == b"" or capabilities
    assert b"ok refs/" not in answered(data, capabilities, sizes, failed="no")


def test_nothing_is_told_to_who_did_not_ask() -> None:
    assert answered(report_of([b"unpack ok\n"]), frozenset(), [7]) == b""


def test_a_long_report_takes_time_in_proportion() -> None:
    """100,000 refs: a second, not minutes."""
    text = report_of([b"unpack ok\n", *(b"ng refs/heads/%06d no\n" % number for number in range(100_000))])
    begun = time.monotonic()
    assert answered(text, PLAIN, [65536]) == text
    assert time.monotonic() - begun < 10


def test_a_report_longer_than_a_band() -> None:
    text = report_of([b"unpack ok\n", *(b"ok refs/heads/%05d\n" % number for number in range(10_000))])
    framed = list(packets(io.BytesIO(answered(text, BANDED, [65536]))))
    assert all(len(packet.payload) <= BAND + 1 for packet in framed)
    assert b"".join(packet.payload[1:] for packet in framed if not packet.flush) == text
    assert [packet.flush for packet in framed].count(True) == 1 and framed[-1].flush


# Packets


@given(st.lists(st.one_of(st.none(), st.binary(min_size=1, max_size=300)), max_size=20))
def test_packets_are_byte_for_byte_what_they_came_as(payloads: list[bytes | None]) -> None:
    data = b"".join(pkt_line(payload) for payload in payloads)
    found = list(packets(io.BytesIO(data)))
    assert b"".join(packet.raw for packet in found) == data
    assert [None if packet.flush else packet.payload for packet in found] == payloads


@given(HOSTILE)
def test_any_bytes_as_packets_come_to_an_end(data: bytes) -> None:
    found = list(packets(io.BytesIO(data)))
    assert sum(len(packet.raw) for packet in found) <= len(data)


# A real conversation


@pytest.mark.parametrize("version", ["0", "1"])
def test_what_git_itself_says_passes_unchanged(tmp_path: Path, version: str) -> None:
    """A push by stock Git, recorded on both sides of stock receive-pack, read along as the session does."""
    recorder = tmp_path / "record"
    recorder.write_text(
        '#!/bin/sh\nfor name; do :; done\ntee "$RECORD/sent" | git receive-pack "$name" | tee "$RECORD/heard"\n'
    )
    recorder.chmod(0o755)
    env = {
        **{key: value for key, value in os.environ.items() if not key.startswith("GIT_")},
        **dict.fromkeys(("GIT_AUTHOR_NAME", "GIT_COMMITTER_NAME"), "T"),
        **dict.fromkeys(("GIT_AUTHOR_EMAIL", "GIT_COMMITTER_EMAIL"), "t@example.com"),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_CONFIG_NOSYSTEM": "1",
        "RECORD": str(tmp_path),
    }

    def git(*arguments: str, code: int = 0) -> None:
        done = subprocess.run(["git", *arguments], cwd=tmp_path, env=env, capture_output=True, check=False)
        assert done.returncode == code, done.stderr

    git("init", "--quiet", "--bare", "origin")
    git("init", "--quiet", "-b", "main", ".")
    git("commit", "--quiet", "--allow-empty", "-m", "one")
    git("push", "--quiet", "origin", "main:taken/by/this")
    git(
        "-c", f"protocol.version={version}", "push", f"--receive-pack={recorder}", "origin",
        "main", "main:new/one", "main:taken", code=1,
    )  # fmt: skip
    sent, heard = (tmp_path / "sent").read_bytes(), (tmp_path / "heard").read_bytes()
    commands, report = Commands(), Report()
    commands.feed(sent)
    assert {update.ref for update in commands.updates} == {
        "refs/heads/main",
        "refs/heads/new/one",
        "refs/heads/taken",
    }
    assert commands.side_band and commands.wants_report
    stream, out = io.BytesIO(heard), b""
    for packet in packets(stream):
        out += packet.raw
        if packet.flush:
            break
    for packet in packets(stream):
        if packet.payload[:1] == b"\1":
            report.feed(packet.payload[1:])
        elif packet.flush:
            report.trailer = packet.raw
        else:
            out += packet.raw
    report.end()
    assert out + report.take(commands, {}, None) == heard


# What fuzzing found (tests/fuzz)


def test_the_capabilities_of_every_line_count() -> None:
    """Git takes them wherever they stand (receive-pack.c, read_head_info), and adds them up."""
    first, second = f"{ZERO} {'1' * 40} refs/heads/a", f"{ZERO} {'1' * 40} refs/heads/b"
    commands = Commands()
    commands.feed(
        pkt_line(raw(first) + b"\0report-status") + pkt_line(raw(second) + b"\0side-band-64k") + FLUSH
    )
    assert commands.side_band and commands.wants_report


def test_a_reason_does_not_make_a_line_too_long_for_its_length() -> None:
    ref = "refs/heads/" + "x" * 65_400
    text = answered(
        report_of([b"unpack ok\n", b"ng " + raw(ref) + b" no\n"]), PLAIN, [65536], reasons={ref: "w" * 999}
    )
    assert [packet.payload[:4] for packet in packets(io.BytesIO(text))] == [b"unpa", b"ng r", b""]
    commands, report = Commands(), Report()
    commands.feed(command_list([RefUpdate(ref, ZERO, "1" * 40)], PLAIN))
    report.end()
    text = report.take(commands, {}, "w" * 999)
    assert [packet.payload[:4] for packet in packets(io.BytesIO(text))] == [b"unpa", b"ng r", b""]


def test_a_line_of_a_report_without_a_ref() -> None:
    text = report_of([b"unpack ok\n", b"ng", b"ng\n", b"ng  x"])
    assert answered(text, PLAIN, [65536], reasons={"": "why"})
