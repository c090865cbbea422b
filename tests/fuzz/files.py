"""Fuzz targets for what is on a disk, and for what another device answers: markers, journals, configuration, JSON."""

from __future__ import annotations

import json
import tempfile
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from uuid import UUID as Uuid

from cluster import config, journal, marker, operator, restore
from cluster.errors import ClusterError, ConfigError, PeerFailed
from cluster.marker import Marker
from cluster.model import HEAD, Checksum, Device, DeviceMode, LogEntry, RefUpdate
from cluster.versions import checksum_of, updated
from tests.fuzz.core import Target, one_line
from tests.fuzz.words import UUID

ZERO = "0" * 40


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    memory = Path("/dev/shm")
    return tempfile.TemporaryDirectory(prefix="fuzz-", dir=memory if memory.is_dir() else None)


def _folder() -> Path:
    return Path(_scratch().name)


# ------------------------------------------------------------------------------------------- marker and journal


def on_disk_marker(data: bytes) -> None:
    """A marker, or None; and what it says can be written, and is then read."""
    (_folder() / marker.FILE).write_bytes(data)
    found = marker.read(_folder())
    if found is None:
        return
    texts = (found.cluster, found.device, found.checksum, found.created or "", found.name or "")
    assert all(isinstance(text, str) for text in texts), found
    assert type(found.repository) is int and type(found.version) is int, found
    assert 0 <= found.version < 2**63 and 0 <= found.repository < 2**63, found
    "".join(texts).encode()  # it goes to the database, and to people
    assert marker.read(_written(found)) == found


def _written(found: Marker) -> Path:
    folder = _folder() / "again"
    folder.mkdir(exist_ok=True)
    (folder / marker.FILE).write_text(json.dumps(asdict(found)))  # marker.write waits for the disk
    return folder


def on_disk_journal(data: bytes) -> None:
    """Only whole entries; each is written as it was read; they are put in order whatever they say."""
    file = _folder() / "journal"
    file.write_bytes(data)
    entries = journal.read(file)
    for entry in entries:
        _whole(entry)
    for newest in entries[:3]:
        found = journal.run(entries, newest.version, str(newest.checksum))
        assert not found or found[-1].version == newest.version
        assert [entry.version for entry in found] == list(
            range(newest.version - len(found) + 1, newest.version + 1)
        )
    restore.shown(entries[:3])


def _whole(entry: LogEntry) -> None:
    assert type(entry.version) is int and 0 <= entry.version < 2**63, entry
    words = (entry.actor, entry.device, entry.via, entry.address)
    assert "\0" not in "".join((*words, *(u.ref for u in entry.refs))), entry
    "".join(words).encode()
    assert journal.from_json(json.loads(json.dumps(journal.as_json(entry)))) == entry


def _entries() -> list[LogEntry]:
    checksum, found = checksum_of({HEAD: "ref: refs/heads/main"}), []
    for version in range(1, 4):
        refs = (RefUpdate("refs/heads/main", f"{version - 1:040x}", f"{version:040x}"),)
        checksum = updated(checksum, refs)
        at = datetime(2026, 2, 3, 4, 5, version, tzinfo=UTC)
        found.append(LogEntry(version, Uuid(UUID), "anna", "a", "ssh", "192.0.2.1", at, checksum, refs))
    odd = RefUpdate("refs/heads/\udcff", ZERO, "f" * 40)
    return [
        *found,
        replace(found[2], version=4, refs=(odd,), checksum=Checksum(bytes(len(checksum.accumulator)))),
    ]


ENTRIES = [json.dumps(journal.as_json(entry)).encode() for entry in _entries()]
MARKER = {"cluster": UUID, "repository": 7, "device": "a", "version": 3, "checksum": "ab" * 20}
MARKERS = (
    json.dumps({**MARKER, "created": "2026-02-03T04:05:06+00:00", "name": "team/app"}).encode(),
    json.dumps(MARKER).encode(),
)
JSON_PARTS = (
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"null", b"true", b"1", b"-1", b"1e999", b"-1e999",
    b"1.5", b"NaN", b"Infinity",
    b"9" * 25, b"9" * 5000, b"[" * 3000, b'{"a":' * 1500, b'"version":', b'"repository":', b'"checksum":',
    b'"refs":',
    b'"at":', b'"created":', b'"\\ud800"', b'"\\udcff"', b'"\\u0000"', b"\n", b"\0", b"\xff", b"\xfe\xff",
    b"\xef\xbb\xbf",
    b'"0001-01-01T00:00:00+14:00"', b'"9999-12-31T23:59:59-14:00"', b'"2026-02-03"', b'"say":', b'"result":{}',
    b'"error":',
    b'"hint":', b'"x"', b"{}", b"[]", b'["refs/heads/main","' + b"0" * 40 + b'","' + b"1" * 40 + b'"]',
    b'"entries":', b'"fork":',
)  # fmt: skip


# ------------------------------------------------------------------------------------------------ another device

DEVICE = Device(
    id=2, name="b", ssh_url="ssh://git@b.example", http_url=None, public_key="", host_key="", mode=DeviceMode.ENABLED,
    last_seen_at=None, silent_for=0.0, stopped=False,
)  # fmt: skip


def operators_answer(data: bytes) -> None:
    """A line of a device's answer: a table, or PeerFailed; its error is fit to be shown."""
    try:
        answer = operator._answer(DEVICE, data)
    except PeerFailed as error:
        return one_line(error)
    refusal = operator._refusal(DEVICE, answer)
    assert isinstance(refusal, ClusterError)
    return one_line(refusal, most=1 << 20)


def told_history(data: bytes) -> None:
    """What a device says of its disk: whole entries, or PeerFailed."""
    try:
        told = restore._told("b", operator._answer(DEVICE, data))
    except PeerFailed as error:
        return one_line(error)
    assert type(told.version) is int and isinstance(told.checksum, str)
    for entry in told.entries:
        _whole(entry)
    restore.shown(told.entries)
    return None


TOLD = json.dumps(
    {"known": False, "version": 3, "checksum": "ab" * 20, "fork": None, "exact": True, "whole": True,
         "entries": [json.loads(entry) for entry in ENTRIES]}
).encode()  # fmt: skip
ANSWERS = (
    b'{"say":"working"}',
    b'{"result":{"a":[1,2]}}',
    b'{"error":"no","hint":"yes"}',
    b'{"error":"\\u001b[2J\xc3\xa9"}',
)


# ------------------------------------------------------------------------------------------------- configuration


def configuration(data: bytes) -> None:
    """A configuration, or ConfigError in a line."""
    file = _folder() / "config.toml"
    file.write_bytes(data)
    try:
        found = config.load(file, {})
    except ConfigError as error:
        one_line(error, most=1000)
        assert "hunter2" not in error.what or "[cluster] database" not in error.what
        return
    for seconds in (found.writes.lock_timeout, found.writes.commit_timeout, found.limits.login_grace):
        assert 0 < seconds <= config.MAX_DURATION
    assert found.ssh is None or 0 <= found.ssh.listen.port < 65536
    config.redact(found.cluster.database)


CONFIGURATIONS = (
    b"""[cluster]
database = "postgresql://ann:hunter2@db.example/cluster"
name = "example"
[device]
name = "a"
data_dir = "/var/lib/git-cluster"
key = "keys/device_ed25519"
[ssh]
listen = "0.0.0.0:2222"
advertise = "ssh://git@a.example:2222"
host_key = "/etc/git-cluster/ssh_host_ed25519"
[http]
listen = "[::1]:8080"
""",
    b"""[cluster]
database = "host=db password=hunter2 dbname=cluster"
[writes]
lock_timeout = "120s"
commit_timeout = 300
fence_after = 0.5
heal = "auto"
[reads]
stale = "allow"
[proxy]
when = "behind"
[limits]
login_grace = "30s"
push_size = "10GiB"
push_refs = 100000
[upkeep]
verify_every = "7d"
prune_after = "14d"
most_packs = 20
""",
)
TOML_PARTS = (
    b"[", b"]", b"[[", b"]]", b"=", b'"', b"'''", b'"""', b"#", b"\n", b"\r", b"\0", b"\xff", b"\xef\xbb\xbf",
    b"\xc3\xa9", b".",
    b"cluster", b"database", b"device", b"ssh", b"listen", b"writes", b"lock_timeout", b"limits", b"push_size",
    b"push_refs",
    b"most_packs", b"= ", b"0", b"-1", b"1" + b"0" * 400, b"9" * 5000, b"0x" + b"f" * 4500, b"0b1", b"1e400",
    b"inf", b"nan", b"true",
    b"2026-02-03T04:05:06Z", b"[[[[" * 300, b"{a=1}", b"\\u0000", b"\\ud800", b'"5m"', b'"10GiB"', b'"x"',
    b'"' + b"9" * 400 + b's"',
    b"a." * 300, b'"\\n"', b"zone", b"'~/x'", b'"[::1%lo]:1"', b'"a:99999"',
)  # fmt: skip


def targets() -> list[Target]:
    lines = b"\n".join(ENTRIES)
    return [
        Target("marker", on_disk_marker, MARKERS, JSON_PARTS),
        Target("journal", on_disk_journal, (lines, ENTRIES[0], lines[:-40] + b"\n" + ENTRIES[2]), JSON_PARTS),
        Target("operators-answer", operators_answer, ANSWERS, JSON_PARTS),
        Target("told-history", told_history, (TOLD,), JSON_PARTS),
        Target("configuration", configuration, CONFIGURATIONS, TOML_PARTS),
    ]
