"""The table of states: rows in, the words of `status` out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from uuid import UUID

import pytest

from cluster import status
from cluster.model import (
    CHECKSUM_BYTES,
    Checksum,
    Device,
    DeviceMode,
    Intent,
    Position,
    RefUpdate,
    Replica,
    Repository,
    Snapshot,
    WhenShort,
)

AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
ID = 7


def position(version: int, content: int | None = None) -> Position:
    return Position(version, Checksum(bytes([version if content is None else content]) * CHECKSUM_BYTES))


def intent(*refs: str) -> Intent:
    updates = tuple(RefUpdate(ref, "0" * 40, "1" * 40) for ref in refs or ("refs/heads/main",))
    return Intent(UUID(int=1), UUID(int=2), "ann", "ssh", "192.0.2.1", AT, updates)


@dataclass(frozen=True)
class R:
    """A replica in a row of the table: a device's state, then what differs from an online, current copy."""

    version: int | None = 3
    device: str = "online"
    quarantined: str | None = None
    intent: Intent | None = None
    content: int | None = None
    error: str | None = None
    damage: str | None = None
    marker: tuple[int, str] | None = None
    demoted: bool = False


def device(name: str, state: str) -> Device:
    modes = {"draining": DeviceMode.DRAINING, "disabled": DeviceMode.DISABLED}
    return Device(
        id=ord(name),
        name=name,
        ssh_url=f"ssh://git@{name}.example",
        http_url=None,
        public_key="",
        host_key="",
        mode=modes.get(state, DeviceMode.ENABLED),
        last_seen_at=AT,
        silent_for=None if state == "never" else 60.0 if state == "offline" else 1.0,
        stopped=state == "stopped",
    )


def snapshot(*rows: R, version: int = 3, min_copies: int = 2, frozen: str | None = None) -> Snapshot:
    replicas = tuple(
        Replica(
            device=device(name, row.device),
            position=None if row.version is None else position(row.version, row.content),
            quarantined=row.quarantined,
            intent=row.intent,
            synced_at=AT,
            attempts=4 if row.error else 0,
            last_error=row.error,
            next_try_at=None,
            damage=row.damage,
            demoted=row.demoted,
            marker=row.marker and row.marker[0],
            marker_checksum=row.marker and row.marker[1],
        )
        for name, row in zip("abcdefghi", rows, strict=False)
    )
    repository = Repository(
        id=ID,
        name="team/app",
        object_format="sha1",
        position=position(version),
        min_copies=min_copies,
        when_short=WhenShort.WARN,
        frozen=frozen,
        frozen_at=AT if frozen else None,
        created_at=AT,
    )
    return Snapshot(repository, replicas)


OK, ABSENT, BEHIND = R(), R(version=None), R(version=1)
OFF = R(device="offline")
WRITES = R(intent=intent())
BAD = R(quarantined="its refs are not those of version 3")

TABLE = [
    # replicas                       version min held   repository     copies  replica states
    ((OK, OK), 3, 2, False, "healthy", 2, "current current"),
    ((OK,), 3, 1, False, "healthy", 1, "current"),
    ((OK, OK), 3, 2, True, "healthy", 2, "current current"),
    ((OK, R(device="draining")), 3, 2, False, "healthy", 2, "current current"),
    ((R(0), R(0)), 0, 2, False, "healthy", 2, "current current"),
    # writing: nothing is wrong while the lock is held
    ((WRITES, OK), 3, 2, True, "healthy", 2, "writing current"),
    ((WRITES, BEHIND), 3, 1, True, "degraded", 1, "writing behind"),
    # frozen: before everything else
    ((WRITES, OK), 3, 2, False, "frozen", 2, "frozen current"),
    ((WRITES, OFF), 3, 2, False, "frozen", 2, "frozen current"),
    ((R(intent=intent(), device="offline"),), 3, 1, False, "frozen", 1, "frozen"),
    ((R(intent=intent(), quarantined="why"), OK), 3, 1, False, "frozen", 1, "quarantined current"),
    # degraded
    ((OK, BEHIND), 3, 1, False, "degraded", 1, "current behind"),
    ((OK, ABSENT), 3, 1, False, "degraded", 1, "current absent"),
    ((OK, BAD), 3, 1, False, "degraded", 1, "current quarantined"),
    ((OK, R(None, quarantined="why")), 3, 1, False, "degraded", 1, "current quarantined"),
    ((OK, OFF), 3, 2, False, "degraded", 2, "current current"),
    ((OK, R(device="stopped")), 3, 1, False, "degraded", 2, "current current"),
    ((OK, R(device="never")), 3, 1, False, "degraded", 2, "current current"),
    ((OK, R(device="disabled")), 3, 1, False, "degraded", 2, "current current"),
    ((OK, OK), 3, 3, False, "degraded", 2, "current current"),
    # the right number with other content is no copy (G7)
    ((OK, R(3, content=9)), 3, 1, False, "degraded", 1, "current behind"),
    # unavailable
    ((OFF, BEHIND), 3, 1, False, "unavailable", 1, "current behind"),
    ((OFF, OFF), 3, 1, False, "unavailable", 2, "current current"),
    ((BAD, BEHIND), 3, 1, False, "unavailable", 0, "quarantined behind"),
    ((R(device="disabled"),), 3, 1, False, "unavailable", 1, "current"),
    ((), 3, 1, False, "unavailable", 0, ""),
    # version 0 can be made out of nothing, wherever a device serves
    ((ABSENT, ABSENT), 0, 2, False, "degraded", 0, "absent absent"),
    ((ABSENT, R(None, device="offline")), 0, 2, False, "degraded", 0, "absent absent"),
    ((R(None, device="offline"),), 0, 1, False, "unavailable", 0, "absent"),
    ((R(0, device="offline"), ABSENT), 0, 1, False, "degraded", 1, "current absent"),
]


@pytest.mark.parametrize(("rows", "version", "min_copies", "held", "state", "copies", "states"), TABLE)
def test_states(
    rows: tuple[R, ...], version: int, min_copies: int, held: bool, state: str, copies: int, states: str
) -> None:
    entry = status.repository(snapshot(*rows, version=version, min_copies=min_copies), locked=held)
    assert entry["state"] == state
    assert entry["copies"] == copies
    assert [replica["state"] for replica in entry["replicas"]] == states.split()
    assert (entry["reason"] is None) == (state == "healthy"), entry["reason"]


REASONS = [
    ((R(intent=intent("refs/heads/main", "refs/tags/v1")), OK), {},
     "a write by ann on device a was interrupted, begun 2026-02-03 04:05:06Z: refs/heads/main, refs/tags/v1; "
     "see what would be lost: `git-cluster thaw team/app --dry-run`"),
    ((R(intent=intent(*"abcde"), device="offline"), OK), {},
     "a write by ann on device a (offline) was interrupted, begun 2026-02-03 04:05:06Z: a, b, c and 2 more; "
     "see what would be lost: `git-cluster thaw team/app --dry-run`"),
    ((OK, OK), {"frozen": "moving house"},
     "frozen since 2026-02-03 04:05:06Z: moving house; end it with `git-cluster thaw team/app`"),
    ((OFF, BEHIND), {}, "no device that holds version 3 is serving; bring one back: a (offline)"),
    ((BAD, BEHIND), {},
     "no trusted copy of version 3 is left: put device a's disk back and run `git-cluster sync team/app`; "
     "or see what giving it up would lose: `git-cluster thaw team/app --demote a --dry-run`"),
    ((), {}, "no device holds it; add one: `git-cluster repo place team/app --add …`"),
    ((BAD, OK, ABSENT, BEHIND, OFF), {"min_copies": 4},
     "the copy on a is not trusted: its refs are not those of version 3; c has no copy yet; d is 2 behind; "
     "device e is offline; 2 of 4 copies"),
]  # fmt: skip


@pytest.mark.parametrize(("rows", "options", "reason"), REASONS)
def test_reasons_say_what_and_what_to_do(
    rows: tuple[R, ...], options: dict[str, object], reason: str
) -> None:
    assert status.repository(snapshot(*rows, **options), locked=False)["reason"] == reason  # type: ignore[arg-type]


def test_damage_is_told_with_what_ends_it() -> None:
    """Not in the middle of a write: what cannot be resolved there is told by the freeze, in its own words."""
    damaged = R(damage="its copy is damaged: missing blob 1234, reached from refs/heads/main")
    entry = status.repository(snapshot(damaged, R(2)), locked=False)
    assert entry["state"] == "degraded"
    assert entry["reason"].startswith(
        "a: its copy is damaged: missing blob 1234, reached from refs/heads/main; nothing was touched: bring another "
        "copy of version 3 back, or restore this one from a backup, then run `git-cluster verify team/app`; "
    )
    assert [replica["damage"] for replica in entry["replicas"]] == [damaged.damage, None]
    assert entry["replicas"][0]["state"] == "current"


@pytest.mark.parametrize(
    ("markers", "lost"),
    [
        ([(4, "x")], "it lacks version 4: a holds version 4"),
        ([(5, "x"), None, (5, "x")], "it lacks versions 4 and 5: a and c hold version 5"),
        (
            [(4, "x"), (7, "y"), (7, "y")],
            "it lacks versions 4 to 7: b and c hold version 7, a holds version 4",
        ),
        ([(3, "x")], "a holds a version 3 of its own"),
        (
            [(4, "x"), (4, "y")],
            "it lacks version 4: a holds a version 4 of its own, b holds a version 4 of its own",
        ),
        (
            [(2, "x"), (2, "x"), (4, "z")],
            "it lacks version 4: c holds version 4, a and b hold a version 2 of their own",
        ),
    ],
)
def test_a_database_that_lacks_versions(markers: list[tuple[int, str] | None], lost: str) -> None:
    """G7: which versions, and which devices have them; a copy that is ahead serves nothing, so it is frozen, too."""
    rows = [R(marker=marker) for marker in markers]
    entry = status.repository(snapshot(*rows, frozen="the database is older than the disks"), locked=False)
    assert entry["state"] == "frozen"
    assert entry["reason"] == (
        f"frozen since 2026-02-03 04:05:06Z: the database is older than the disks; {lost}; "
        "see what would be put back: `git-cluster thaw team/app --dry-run`"
    )
    for marker, shown in zip(markers, entry["replicas"], strict=True):
        assert shown["state"] == ("frozen" if marker else "current")
        assert shown["disk_version"] == (marker and marker[0])
        if marker is None:
            assert shown["reason"] is None
        elif marker[0] > 3:
            assert shown["reason"] == f"its disk is at version {marker[0]}, which the database does not know"
        else:
            assert shown["reason"] == f"its disk is at another version {marker[0]} than the database's"


def test_what_was_given_up_is_not_lacked() -> None:
    given_up = R(quarantined="demoted by an administrator", demoted=True, marker=(5, "x"))
    entry = status.repository(snapshot(given_up, OK), locked=False)
    assert entry["state"] == "degraded" and "lacks" not in entry["reason"]
    assert [shown["disk_version"] for shown in entry["replicas"]] == [None, None]


def test_the_document_has_exactly_these_keys() -> None:
    """design.md section 8, and `reason`, which is for people."""
    subject = snapshot(WRITES, R(1, error="connection refused"))
    document = status.document(
        "example", [device("a", "online"), device("b", "offline")], [subject], {ID: "x"}
    )
    newest = str(position(3).checksum)
    assert document == {
        "cluster": "example",
        "devices": [
            {"name": "a", "state": "online", "last_seen_at": "2026-02-03T04:05:06+00:00"},
            {"name": "b", "state": "offline", "last_seen_at": "2026-02-03T04:05:06+00:00"},
        ],
        "repositories": [
            {
                "name": "team/app",
                "version": 3,
                "state": "degraded",
                "reason": "b is 2 behind; 1 of 2 copies",
                "min_copies": 2,
                "copies": 1,
                "replicas": [
                    {
                        "device": "a", "version": 3, "behind": 0, "checksum": newest, "state": "writing",
                        "reason": None, "is_writing": True, "writer": "ann",
                        "writing_since": "2026-02-03T04:05:06+00:00",
                        "last_synced_at": "2026-02-03T04:05:06+00:00", "attempts": 0, "last_error": None,
                        "verified_at": None, "damage": None, "disk_version": None,
                    },
                    {
                        "device": "b", "version": 1, "behind": 2, "checksum": str(position(1).checksum),
                        "state": "behind", "reason": None, "is_writing": False, "writer": None,
                        "writing_since": None, "last_synced_at": "2026-02-03T04:05:06+00:00",
                        "attempts": 4, "last_error": "connection refused", "verified_at": None, "damage": None,
                        "disk_version": None,
                    },
                ],
            }
        ],
    }  # fmt: skip


def test_an_absent_replica_is_behind_by_everything() -> None:
    (replica,) = status.repository(snapshot(ABSENT), locked=False)["replicas"]
    assert (replica["version"], replica["behind"], replica["checksum"]) == (None, 3, None)


def test_locks_are_known_modulo_2_31() -> None:
    subject = snapshot(WRITES, OK)
    subject = replace(subject, repository=replace(subject.repository, id=ID + 2**31))
    (entry,) = status.document("x", [], [subject], {ID: "x"})["repositories"]
    assert entry["state"] == "healthy"


@pytest.mark.parametrize(
    ("devices", "rows", "healthy"),
    [
        (["online"], (OK, OK), True),
        (["draining", "disabled"], (OK, OK), True),
        (["offline"], (OK, OK), False),
        (["online"], (OK, BEHIND), False),
    ],
)
def test_healthy(devices: list[str], rows: tuple[R, ...], healthy: bool) -> None:
    found = [device(name, state) for name, state in zip("abc", devices, strict=False)]
    assert status.healthy(status.document("x", found, [snapshot(*rows)], {})) is healthy
