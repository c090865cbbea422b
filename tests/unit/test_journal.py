"""The journal: what is written is read again, what is cut off is absent, and what leads to a marker is found."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from uuid import uuid4

import pytest

from cluster import journal
from cluster.model import HEAD, Checksum, LogEntry, RefUpdate
from cluster.versions import checksum_of, updated

ZERO = "0" * 40
EMPTY = {HEAD: "ref: refs/heads/main"}


def oid(number: int) -> str:
    return f"{number:040x}"


def pushes(*changes: list[RefUpdate], after: Checksum | None = None, first: int = 1) -> list[LogEntry]:
    """Entries that follow one another from an empty repository, or from `after`."""
    checksum, entries = after or checksum_of(EMPTY), []
    for version, refs in enumerate(changes, first):
        checksum = updated(checksum, refs)
        at = datetime(2026, 2, 3, 4, 5, 6, version, tzinfo=UTC)
        entries.append(LogEntry(version, uuid4(), "anna", "a", "ssh", "192.0.2.1", at, checksum, tuple(refs)))
    return entries


def moves(count: int, ref: str = "refs/heads/main") -> list[list[RefUpdate]]:
    """A ref that moves `count` times."""
    return [[RefUpdate(ref, oid(n) if n else ZERO, oid(n + 1))] for n in range(count)]


def led(entries: list[LogEntry], to: LogEntry) -> list[int]:
    return [entry.version for entry in journal.run(entries, to.version, str(to.checksum))]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def test_what_is_written_is_read_again(file: Path) -> None:
    entries = pushes(*moves(3))
    entries[1] = replace(
        entries[1], actor="änna \u2028 \n", at=datetime(2026, 2, 3, tzinfo=timezone(timedelta(hours=5)))
    )
    assert journal.read(file) == []
    journal.append(file, [])
    assert not file.exists()
    journal.append(file, entries[:2])
    journal.append(file, entries[2:])
    assert journal.read(file) == entries


def test_a_line_that_was_cut_off_is_absent_and_spoils_nothing(file: Path) -> None:
    entries = pushes(*moves(3))
    journal.append(file, entries[:2])
    whole = file.read_bytes()
    for end in range(whole.index(b"\n") + 1, len(whole)):
        file.write_bytes(whole[:end])
        assert journal.read(file) == entries[: 1 + (end == len(whole) - 1)]
    file.write_bytes(whole[:-20])
    journal.append(file, entries[1:])
    assert journal.read(file) == entries


@pytest.mark.parametrize(
    "spoil",
    [
        {"push": "no"},
        {"at": "2026-02-03T04:05:06"},
        {"refs": [["x"]]},
        {"refs": [["x", None, "y"]]},
        {"refs": None},
        {"actor": 1},
        {"checksum": "00"},
        {"version": "x"},
    ],
)
def test_what_is_no_entry_is_not_taken_for_one(spoil: dict[str, object], file: Path) -> None:
    (entry,) = pushes(*moves(1))
    values = journal.as_json(entry)
    assert journal.from_json(values) == entry
    with pytest.raises(ValueError):
        journal.from_json(values | spoil)
    file.write_text(f"{json.dumps(values | spoil)}\n[]\n7\n\xff\n{json.dumps(values)}\n", encoding="latin-1")
    assert journal.read(file) == [entry]


def test_it_stays_small_and_keeps_the_newest(file: Path) -> None:
    entries = pushes(*moves(4000))
    for start in range(0, len(entries), 100):
        journal.append(file, entries[start : start + 100])
        assert file.stat().st_size <= journal.MOST_BYTES
    kept = journal.read(file)
    assert kept == entries[-len(kept) :]
    assert len(kept) > 500
    assert [path.name for path in file.parent.iterdir()] == ["journal"]


def test_an_entry_with_very_many_refs_is_written_without_them(file: Path) -> None:
    many = [RefUpdate(f"refs/tags/{n}", ZERO, oid(n + 1)) for n in range(journal.MOST_REFS + 1)]
    entries = pushes(many[:-1], many)
    journal.append(file, entries)
    assert journal.read(file) == [entries[0], replace(entries[1], refs=())]


def test_what_leads_to_a_marker() -> None:
    entries = pushes(*moves(6))
    assert led(entries, entries[-1]) == [1, 2, 3, 4, 5, 6]
    assert led(entries, entries[3]) == [1, 2, 3, 4], "of a marker that is older than the journal"
    assert led(entries[:2] + entries[3:], entries[-1]) == [4, 5, 6], "a gap"
    assert led(entries[:5], entries[5]) == [], "the newest is not there"
    assert led([*entries, replace(entries[5], checksum=entries[4].checksum)], entries[5]) == []


def test_what_leads_to_a_marker_is_the_history_that_counts() -> None:
    """Version 3 and 4 were given up once; what was written later is what became of them."""
    old = pushes(*moves(4))
    new = pushes(*moves(3, "refs/heads/other"), after=old[1].checksum, first=3)
    assert led(old + new, new[-1]) == [1, 2, 3, 4, 5]
    assert journal.run(old + new, 5, str(new[-1].checksum)) == old[:2] + new
    assert led(old + new[1:], new[-1]) == [4, 5], "the old version 3 does not lead to the new version 4"
    bare = [replace(new[0], refs=()), *new[1:]]
    assert led(old + bare, new[-1]) == [1, 2, 3, 4, 5]


def test_one_entry_without_refs_is_worked_out_from_the_disk() -> None:
    """From the refs before the first entry and after the last; also where refs went, came back, or moved again."""
    base = {**EMPTY, "refs/heads/main": oid(1), "refs/heads/gone": oid(2)}
    changes = [
        [RefUpdate("refs/heads/main", oid(1), oid(3))],
        [
            RefUpdate("refs/heads/main", oid(3), oid(4)),
            RefUpdate("refs/heads/gone", oid(2), ZERO),
            RefUpdate("refs/tags/new", ZERO, oid(5)),
            RefUpdate(HEAD, "ref: refs/heads/main", "ref: refs/heads/new"),
        ],
        [RefUpdate("refs/heads/main", oid(4), oid(6)), RefUpdate("refs/heads/gone", ZERO, oid(7))],
    ]
    entries = pushes(*changes, after=checksum_of(base))
    disk = {
        HEAD: "ref: refs/heads/new",
        "refs/heads/main": oid(6),
        "refs/heads/gone": oid(7),
        "refs/tags/new": oid(5),
    }
    for bare in range(3):
        partly = [replace(e, refs=()) if n == bare else e for n, e in enumerate(entries)]
        found = journal.filled(partly, base, disk, ZERO)
        assert [set(entry.refs) for entry in found] == [set(entry.refs) for entry in entries]
        assert all(map(journal.follows, found, [checksum_of(base), *(e.checksum for e in entries)]))
    nothing = [replace(entry, refs=()) for entry in entries]
    assert journal.filled(nothing, base, disk, ZERO) == nothing
    assert journal.filled(entries, base, disk, ZERO) == entries
