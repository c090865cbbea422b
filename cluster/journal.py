"""The journal: the newest entries of the push log, as each replica keeps them beside its marker (`cluster/journal`).

Nothing reads it while all is well. When the database comes back older than the disks (a restored backup, a fail-over
that lost commits), the versions that it lacks are put back from here exactly as they were (cluster/restore.py).

A line is one whole entry, as JSON. It is written before the marker that names its version, so a journal is never older
than the marker by more than what was left out on purpose:

    refs left out    of an entry with very many (an import): `filled` works one such entry out from the disk
    entries left out what a replica skipped in one large sync, and what is older than MOST_BYTES allow

A line that a crash cut off is not legible and counts as absent. Lines may repeat, and those of a history that was
given up stay: `run` takes only what leads, checksum by checksum, to the marker.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

from cluster.marker import NEW, number_of, text_of
from cluster.model import Checksum, LogEntry, RefUpdate
from cluster.versions import difference, updated

MOST_BYTES = 1024 * 1024
"""A journal that grew beyond this is cut to its newest half: some 700 pushes of a few refs."""

MOST_REFS = 500
"""Refs of one entry; of more, none are written."""

MOST_CAUGHT_UP = 100
"""Entries that one sync writes at most: the newest ones."""


# -------------------------------------------------------------------------------------------------- on the disk


def append(file: Path, entries: Iterable[LogEntry]) -> None:
    """Write entries behind the others; on the platter before this returns, but for the name of a new file."""
    data = b"".join(_line(entry) for entry in entries)
    if not data:
        return
    fd = os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            data = b"\n" + data
        _write_all(fd, data)
        os.fdatasync(fd)
    finally:
        os.close(fd)
    if size + len(data) > MOST_BYTES:
        _cut(file)


def read(file: Path) -> list[LogEntry]:
    """Every legible entry, in the order of writing."""
    try:
        lines = file.read_bytes().splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        with suppress(ValueError, RecursionError):
            entries.append(from_json(json.loads(line)))
    return entries


def _line(entry: LogEntry) -> bytes:
    short = entry if len(entry.refs) <= MOST_REFS else replace(entry, refs=())
    return json.dumps(as_json(short), separators=(",", ":")).encode() + b"\n"


def _write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def _cut(file: Path) -> None:
    """Keep the newest lines that fit half of MOST_BYTES: whole or not at all."""
    kept: list[bytes] = []
    room = MOST_BYTES // 2
    for line in reversed(file.read_bytes().splitlines(keepends=True)):
        room -= len(line)
        if kept and room < 0:
            break
        kept.append(line)
    new = file.with_name(f"{NEW}{uuid4().hex}")
    try:
        with new.open("wb") as shorter:
            shorter.writelines(reversed(kept))
            shorter.flush()
            os.fsync(shorter.fileno())
        new.rename(file)
    finally:
        new.unlink(missing_ok=True)


def as_json(entry: LogEntry) -> dict[str, Any]:
    """An entry as a line of the journal, and as devices tell it to one another."""
    return {
        "version": entry.version,
        "push": str(entry.push_id),
        "actor": entry.actor,
        "device": entry.device,
        "via": entry.via,
        "address": entry.address,
        "at": entry.at.isoformat(),
        "checksum": entry.checksum.accumulator.hex(),
        "refs": [[update.ref, update.old, update.new] for update in entry.refs],
    }


def from_json(values: Any) -> LogEntry:
    """The entry that `as_json` made these values of. ValueError."""
    try:
        return LogEntry(
            version=number_of(values["version"]),
            push_id=UUID(text_of(values["push"])),
            actor=text_of(values["actor"]),
            device=text_of(values["device"]),
            via=text_of(values["via"]),
            address=text_of(values["address"]),
            at=_zoned(datetime.fromisoformat(text_of(values["at"]))),
            checksum=Checksum(bytes.fromhex(text_of(values["checksum"]))),
            refs=tuple(
                RefUpdate(text_of(ref, "surrogateescape"), text_of(old), text_of(new))
                for ref, old, new in values["refs"]
            ),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError("this is no entry of a push log") from error


def _zoned(at: datetime) -> datetime:
    if at.tzinfo is None:
        raise ValueError("an entry's time has a zone")
    try:
        at.astimezone(UTC)
    except OverflowError as error:
        raise ValueError("an entry's time is one that the calendar has") from error
    return at


# ------------------------------------------------------------------------------------------- what it amounts to


def follows(entry: LogEntry, before: Checksum) -> bool:
    """Whether an entry's refs lead from the checksum of the version before it to its own."""
    return updated(before, entry.refs) == entry.checksum


def run(entries: Sequence[LogEntry], version: int, checksum: str) -> list[LogEntry]:
    """The entries without a gap that lead to a marker (version, and the checksum as people see it), oldest first.

    Of one version written twice the later counts. Each leads to the next by its refs, or has none, and then the next
    ones decide; what came before a gap is left out, and so is what does not lead on.
    """
    by_version = {entry.version: entry for entry in entries}
    newest = by_version.get(version)
    if newest is None or str(newest.checksum) != checksum:
        return []
    found = [newest]
    while (before := by_version.get(found[-1].version - 1)) is not None:
        if found[-1].refs and not follows(found[-1], before.checksum):
            break
        found.append(before)
    return found[::-1]


def filled(
    entries: Sequence[LogEntry], base: Mapping[str, str], disk: Mapping[str, str], zero: str
) -> list[LogEntry]:
    """The same entries, where one at the most was written without its refs: they are what is left of the difference
    between the refs of the version before the first entry (`base`) and those of the last one (`disk`).

    What comes out has still to be held against the checksums.
    """
    bare = [number for number, entry in enumerate(entries) if not entry.refs]
    if len(bare) != 1:
        return list(entries)
    before, after = dict(base), dict(disk)
    for entry in entries[: bare[0]]:
        before.update((update.ref, update.new) for update in entry.refs)
    for entry in reversed(entries[bare[0] + 1 :]):
        after.update((update.ref, update.old) for update in entry.refs)
    refs = difference(_there(before), _there(after), zero)
    return [
        replace(entry, refs=tuple(refs)) if number == bare[0] else entry
        for number, entry in enumerate(entries)
    ]


def _there(refs: Mapping[str, str]) -> dict[str, str]:
    return {ref: value for ref, value in refs.items() if value.strip("0")}
