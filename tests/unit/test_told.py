"""What is on a disk or comes from another device is legible or it is not: no other error, and no other type."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster import journal, marker, operator, restore
from cluster.errors import PeerFailed
from tests.fuzz.files import DEVICE, ENTRIES

DEEP = b"[" * 100_000
MARKER = {
    "cluster": "c",
    "repository": 7,
    "device": "a",
    "version": 3,
    "checksum": "ab" * 20,
    "created": "2026",
    "name": "x",
}
ENTRY = json.loads(ENTRIES[0])


def told(**changes: Any) -> bytes:
    whole = {
        "known": False,
        "version": 3,
        "checksum": "ab",
        "fork": None,
        "exact": True,
        "whole": True,
        "entries": [ENTRY],
    }
    return json.dumps({**whole, **changes}).encode()


def test_what_is_legible_is_read(tmp_path: Path) -> None:
    (tmp_path / "position").write_text(json.dumps(MARKER))
    assert marker.read(tmp_path) == marker.Marker(**MARKER)  # type: ignore[arg-type]
    assert restore._told("b", json.loads(told())).entries == (journal.from_json(ENTRY),)


@pytest.mark.parametrize(
    "changes",
    [
        {"version": float("inf")}, {"repository": float("inf")}, {"version": -1}, {"version": 2**63},
        {"version": True}, {"version": "3"}, {"version": 3.5}, {"created": 7}, {"name": ["x"]},
        {"device": None}, {"device": "\ud800"}, {"name": "\udcff"},
    ],
)  # fmt: skip
def test_a_marker_that_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    (tmp_path / "position").write_text(json.dumps({**MARKER, **changes}))
    assert marker.read(tmp_path) is None


def test_a_marker_without_an_end(tmp_path: Path) -> None:
    (tmp_path / "position").write_bytes(DEEP)
    assert marker.read(tmp_path) is None


@pytest.mark.parametrize(
    "changes",
    [
        {"version": float("inf")}, {"version": -1}, {"version": 2**63}, {"version": True}, {"version": "1"},
        {"actor": "\ud800"}, {"actor": "a\0"}, {"refs": [["refs/heads/\ud800", "0" * 40, "1" * 40]]},
        {"refs": [["refs/heads/x", "\ud800", "1" * 40]]}, {"at": "0001-01-01T00:00:00+14:00"},
        {"refs": [["refs/heads/\0", "0" * 40, "1" * 40]]},
    ],
)  # fmt: skip
def test_an_entry_that_is_none(tmp_path: Path, changes: dict[str, Any]) -> None:
    """A half of a character cannot be hashed, nor a NUL be put into the database."""
    line = json.dumps({**ENTRY, **changes})
    (tmp_path / "journal").write_bytes(line.encode() + b"\n" + DEEP + b"\n" + ENTRIES[1] + b"\n")
    assert [entry.version for entry in journal.read(tmp_path / "journal")] == [2]
    with pytest.raises(PeerFailed):
        restore._told("b", json.loads(told(entries=[json.loads(line)])))


def test_an_answer_that_is_none() -> None:
    for line in (DEEP, b"[]", b"\xff", b""):
        with pytest.raises(PeerFailed, match="not understood"):
            operator._answer(DEVICE, line)
    assert str(operator._refusal(DEVICE, {"error": "", "hint": "x"})) == str(operator._not_understood(DEVICE))
    bad: list[dict[str, Any]] = [
        {"version": float("inf")},
        {"fork": float("-inf")},
        {"entries": 7},
        {"entries": [[]]},
    ]
    for changes in bad:
        with pytest.raises(PeerFailed, match="not understood"):
            restore._told("b", json.loads(told(**changes)))
