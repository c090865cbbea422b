"""The decisions (cluster/versions.py): each table's rows, and the algebra of checksums."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.model import (
    HEAD,
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
from cluster.versions import (
    Fit,
    Healing,
    Local,
    checksum_of,
    difference,
    fit_to_read,
    head_of,
    healing,
    inspect,
    keepers,
    newest_without,
    sources,
    stage_peers,
    updated,
)

ZERO = "0" * 40
NOW = datetime(2026, 1, 1, tzinfo=UTC)

# ------------------------------------------------------------------------------------------------ checksums

oids = st.text("0123456789abcdef", min_size=40, max_size=40).filter(lambda oid: oid != ZERO)
names = st.text(st.characters(codec="utf-8", exclude_categories=["Cc"]), min_size=1, max_size=20)
refs = st.dictionaries(names.map("refs/heads/{}".format), oids, max_size=8)


@given(refs)
def test_the_order_of_refs_does_not_matter(some: dict[str, str]) -> None:
    assert checksum_of(some) == checksum_of(dict(reversed(some.items())))


@given(refs, refs)
def test_updated_is_recomputed(have: dict[str, str], want: dict[str, str]) -> None:
    assert updated(checksum_of(have), difference(have, want, ZERO)) == checksum_of(want)


@given(refs, refs, refs)
def test_updates_in_steps_are_updates_at_once(
    a: dict[str, str], b: dict[str, str], c: dict[str, str]
) -> None:
    steps = [*difference(a, b, ZERO), *difference(b, c, ZERO)]
    assert updated(checksum_of(a), steps) == checksum_of(c)
    assert updated(checksum_of(a), reversed(steps)) == checksum_of(c)


@given(refs, refs)
def test_different_refs_have_different_checksums(a: dict[str, str], b: dict[str, str]) -> None:
    assert (checksum_of(a) == checksum_of(b)) == (a == b)


@given(refs, refs)
def test_difference_turns_one_into_the_other(have: dict[str, str], want: dict[str, str]) -> None:
    now = dict(have)
    for update in difference(have, want, ZERO):
        assert update.old == now.get(update.ref, ZERO) and update.old != update.new
        if update.deletes:
            del now[update.ref]
        else:
            now[update.ref] = update.new
    assert now == want
    assert difference(want, want, ZERO) == []


def test_a_ref_that_is_not_there_counts_for_nothing() -> None:
    assert checksum_of({"refs/heads/a": ZERO}) == checksum_of({}) == checksum_of({"refs/heads/a": ""})


def test_names_and_values_do_not_run_into_each_other() -> None:
    assert checksum_of({"refs/heads/a": "bc"}) != checksum_of({"refs/heads/ab": "c"})


def test_names_that_are_not_utf8_have_a_checksum() -> None:
    assert checksum_of({b"refs/heads/\xff".decode("utf-8", "surrogateescape"): "1" * 40}) != checksum_of({})


def test_two_exchanged_values_are_noticed() -> None:
    one, two = "1" * 40, "2" * 40
    a, b = "refs/heads/a", "refs/heads/b"
    assert checksum_of({a: one, b: two}) != checksum_of({a: two, b: one})


# ------------------------------------------------------------------------------------------------ snapshots


def checksum(number: int) -> Checksum:
    return checksum_of({"refs/heads/main": f"{number:040x}"} if number else {})


def at(version: int) -> Position:
    return Position(version, checksum(version))


def device(name: str, **more: Any) -> Device:
    values: dict[str, Any] = {
        "id": ord(name),
        "name": name,
        "ssh_url": f"ssh://git@{name}",
        "http_url": None,
        "public_key": "",
        "host_key": "",
        "mode": DeviceMode.ENABLED,
        "last_seen_at": NOW,
        "silent_for": 1.0,
        "stopped": False,
    }
    return Device(**(values | more))


def replica(name: str, position: Position | None, **more: Any) -> Replica:
    of_device = {k: more.pop(k) for k in ("mode", "silent_for", "stopped", "zone") if k in more}
    values: dict[str, Any] = {
        "quarantined": None,
        "intent": None,
        "synced_at": NOW,
        "attempts": 0,
        "last_error": None,
        "next_try_at": None,
    }
    return Replica(device(name, **of_device), position, **(values | more))


def snapshot(version: int, *replicas: Replica) -> Snapshot:
    repository = Repository(1, "team/app", "sha1", at(version), 1, WhenShort.WARN, None, None, NOW)
    return Snapshot(repository, replicas)


def intent(*updates: RefUpdate) -> Intent:
    return Intent(uuid4(), uuid4(), "alice", "ssh", "", NOW, updates)


# ------------------------------------------------------------------------------------------------ reading


@pytest.mark.parametrize("position, disk, quarantined, fit", [
    (at(3), checksum(3), None, Fit.SERVE),
    (at(2), checksum(2), None, Fit.SYNC),
    (at(3), checksum(2), None, Fit.SYNC),
    (at(3), None, None, Fit.SYNC),
    (at(3), checksum(3), "damaged", Fit.SYNC),
    (None, None, None, Fit.SYNC),
    (None, checksum(3), None, Fit.SYNC),
])  # fmt: skip
def test_a_reader_where_nobody_writes(
    position: Position | None, disk: Checksum | None, quarantined: str | None, fit: Fit
) -> None:
    now = snapshot(3, replica("a", position, quarantined=quarantined), replica("b", at(3)))
    assert fit_to_read(now, "a", Local(disk), write_locked=False) is fit


@pytest.mark.parametrize("owner, locked, disk, fit", [
    ("a", True, checksum(3), Fit.WAIT),
    ("a", True, checksum(4), Fit.WAIT),
    ("b", True, checksum(3), Fit.WAIT),
    ("a", False, checksum(3), Fit.SERVE),
    ("a", False, checksum(4), Fit.UNCOMMITTED),
    ("a", False, None, Fit.UNCOMMITTED),
    ("b", False, checksum(3), Fit.SERVE),
    ("b", False, checksum(4), Fit.SYNC),
])  # fmt: skip
def test_a_reader_where_somebody_writes(owner: str, locked: bool, disk: Checksum | None, fit: Fit) -> None:
    replicas = [replica(name, at(3), intent=intent() if name == owner else None) for name in "ab"]
    assert fit_to_read(snapshot(3, *replicas), "a", Local(disk), write_locked=locked) is fit


def test_a_lock_without_an_intent_delays_no_reader() -> None:
    """G5: a pusher who holds the lock and has not written its intent is in nobody's way."""
    assert (
        fit_to_read(snapshot(3, replica("a", at(3))), "a", Local(checksum(3)), write_locked=True) is Fit.SERVE
    )


def test_a_device_without_a_replica_never_serves() -> None:
    assert (
        fit_to_read(snapshot(3, replica("b", at(3))), "a", Local(checksum(3)), write_locked=False) is Fit.SYNC
    )


def test_the_same_version_with_another_checksum_is_not_the_newest() -> None:
    wrong = Position(3, checksum(9))
    now = snapshot(3, replica("a", wrong))
    assert fit_to_read(now, "a", Local(checksum(9)), write_locked=False) is Fit.SYNC
    assert now.leaders == ()


# ------------------------------------------------------------------------------------------- whom to ask


def test_sources_are_trusted_leaders_online_first() -> None:
    now = snapshot(
        3,
        replica("a", at(3)),
        replica("b", at(2)),
        replica("c", at(3), quarantined="damaged"),
        replica("d", at(3), silent_for=60.0),
        replica("e", at(3), silent_for=2.0),
        replica("f", at(3), silent_for=1.0),
        replica("g", at(3), mode=DeviceMode.DISABLED),
        replica("h", at(3), mode=DeviceMode.DRAINING, silent_for=3.0),
        replica("i", at(3), stopped=True, silent_for=0.5),
        replica("j", None),
    )
    assert [r.device.name for r in sources(now, "a")] == ["f", "e", "h", "i", "d"]


def test_others_may_hold_staged_objects_when_no_leader_answers() -> None:
    now = snapshot(
        3,
        replica("a", at(2)),
        replica("b", at(3)),
        replica("c", at(2)),
        replica("d", at(2), silent_for=60.0),
        replica("e", at(2), mode=DeviceMode.DISABLED),
        replica("f", at(3), quarantined="damaged"),
    )
    assert [r.device.name for r in keepers(now, "a")] == ["c", "f"]


def test_copies_go_to_enabled_devices_that_are_up_current_first() -> None:
    now = snapshot(
        3,
        replica("a", at(3)),
        replica("b", at(1)),
        replica("c", None),
        replica("d", at(3), mode=DeviceMode.DRAINING),
        replica("e", at(3), silent_for=60.0),
        replica("f", at(3), quarantined="damaged"),
        replica("g", at(3)),
        replica("h", at(3), silent_for=6.0),
    )
    assert [r.device.name for r in stage_peers(now, "a")] == ["g", "f", "b", "c", "h"]


@pytest.mark.parametrize("mine, zones, best", [
    ("", {"b": "", "c": "", "d": ""}, "bcd"),
    ("x", {"b": "x", "c": "y", "d": "y"}, "cbd"),       # c; then both zones have a copy: by name
    ("x", {"b": "x", "c": "y", "d": "z"}, "cdb"),
    ("x", {"b": "x", "c": "x", "d": ""}, "dbc"),        # no zone: one of its own
    ("", {"b": "y", "c": "y", "d": "z"}, "bdc"),        # the second copy is in another zone than the first
])  # fmt: skip
def test_copies_go_to_other_zones_where_that_is_as_good(mine: str, zones: dict[str, str], best: str) -> None:
    others = [replica(name, at(3), zone=zone) for name, zone in zones.items()]
    now = snapshot(3, replica("a", at(3), zone=mine), *others)
    assert "".join(r.device.name for r in stage_peers(now, "a")) == best


def test_a_copy_that_is_there_soon_comes_before_another_zone() -> None:
    now = snapshot(
        3,
        replica("a", at(3), zone="x"),
        replica("b", at(2), zone="y"),
        replica("c", at(3), zone="y", silent_for=6.0),
        replica("d", at(3), zone="y", quarantined="damaged"),
        replica("e", at(3), zone="x"),
    )
    assert [r.device.name for r in stage_peers(now, "a")] == ["e", "d", "b", "c"]


@pytest.mark.parametrize("others, newest", [
    ([], None),
    ([("b", None, None)], None),
    ([("b", at(3), "demoted")], None),
    ([("b", at(1), None), ("c", at(2), None)], at(2)),
    ([("b", at(1), None), ("c", at(2), "damaged")], at(1)),
])  # fmt: skip
def test_what_is_left_without_a_device(
    others: list[tuple[str, Position | None, str | None]], newest: Position | None
) -> None:
    rest = [replica(name, position, quarantined=why) for name, position, why in others]
    assert newest_without(snapshot(3, replica("a", at(3)), *rest), "a") == newest


# --------------------------------------------------------------------------------------- interrupted writes

ONE, TWO, SIX = "1" * 40, "2" * 40, "6" * 40
CHANGE = RefUpdate("refs/heads/change", ONE, TWO)
CREATE = RefUpdate("refs/heads/create", ZERO, TWO)
DELETE = RefUpdate("refs/heads/delete", ONE, ZERO)


@pytest.mark.parametrize("refs, moved, unmoved, elsewhere", [
    ({CHANGE.ref: ONE, DELETE.ref: ONE}, (), (CHANGE, CREATE, DELETE), ()),
    ({CHANGE.ref: TWO, CREATE.ref: TWO}, (CHANGE, CREATE, DELETE), (), ()),
    ({CHANGE.ref: TWO, DELETE.ref: ONE}, (CHANGE,), (CREATE, DELETE), ()),
    ({CHANGE.ref: SIX, CREATE.ref: TWO, DELETE.ref: ONE}, (CREATE,), (DELETE,), ((CHANGE, SIX),)),
    ({CHANGE.ref: TWO, CREATE.ref: SIX}, (CHANGE, DELETE), (), ((CREATE, SIX),)),
    ({}, (DELETE,), (CREATE,), ((CHANGE, ZERO),)),
])  # fmt: skip
def test_an_intent_held_against_the_disk(
    refs: dict[str, str],
    moved: tuple[RefUpdate, ...],
    unmoved: tuple[RefUpdate, ...],
    elsewhere: tuple[tuple[RefUpdate, str], ...],
) -> None:
    found = inspect(intent(CHANGE, CREATE, DELETE), refs, ZERO)
    assert (found.moved, found.unmoved, found.elsewhere) == (moved, unmoved, elsewhere)


ALL = {CHANGE.ref: TWO, CREATE.ref: TWO}
NONE = {CHANGE.ref: ONE, DELETE.ref: ONE}
SOME = {CHANGE.ref: TWO, DELETE.ref: ONE}
STRANGE = {CHANGE.ref: SIX, DELETE.ref: ONE}


@pytest.mark.parametrize("refs, others_right, newest, another_leader, then", [
    (NONE, True, 3, True, Healing.CALL_OFF),
    (NONE, False, 3, True, Healing.CALL_OFF),
    (NONE, True, 4, True, Healing.CALL_OFF),
    (ALL, True, 3, True, Healing.COMMIT),
    (ALL, True, 3, False, Healing.COMMIT),
    (ALL, False, 3, True, Healing.PUT_BACK),
    (ALL, True, 4, True, Healing.PUT_BACK),
    (SOME, True, 3, True, Healing.PUT_BACK),
    (SOME, False, 3, False, Healing.PUT_BACK),
    (STRANGE, True, 3, True, Healing.PERSON),
    (STRANGE, True, 4, False, Healing.PERSON),
    (None, True, 3, True, Healing.GIVE_UP),
    (None, True, 3, False, Healing.PERSON),
])  # fmt: skip
def test_what_becomes_of_an_interrupted_write(
    refs: dict[str, str] | None, others_right: bool, newest: int, another_leader: bool, then: Healing
) -> None:
    """`refs`: what the disk shows of the intent; `newest`: the repository's version, the intent was written at 3."""
    write = intent(CHANGE, CREATE, DELETE)
    mine = replica("a", at(3), intent=write)
    now = snapshot(newest, mine, *([replica("b", at(newest))] if another_leader else []))
    found = None if refs is None else inspect(write, refs, ZERO)
    disk = None
    if found is not None:
        disk = updated(
            at(3).checksum, found.moved if others_right else [RefUpdate("refs/heads/x", ZERO, SIX)]
        )
    assert healing(now, mine, found, disk) is then
    if found is None:
        assert healing(now, mine, found, disk, rebuildable=True) is Healing.GIVE_UP


def test_head() -> None:
    assert head_of({HEAD: "ref: refs/heads/main"}) == "refs/heads/main"
