"""Where copies go (cluster/placement.py): each row of its tables, and what holds for any devices."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.errors import ClusterError, NotFound, Refused, StillNeeded, UsageError
from cluster.model import (
    Device,
    DeviceMode,
    Intent,
    PlacementRule,
    Position,
    Replica,
    Repository,
    Snapshot,
    WhenShort,
)
from cluster.placement import Candidate, change, choose, refuse_removal, rule_for, surplus, where
from cluster.versions import checksum_of

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENABLED, DRAINING, DISABLED = DeviceMode.ENABLED, DeviceMode.DRAINING, DeviceMode.DISABLED
MODES = {"draining": DRAINING, "disabled": DISABLED}


def candidate(text: str) -> Candidate:
    """ "b rack-1 5 offline leads": name, zone ("-": none), load, then anything that is not as usual."""
    name, zone, load, *more = text.split()
    mode = next((MODES[word] for word in more if word in MODES), ENABLED)
    return Candidate(name, zone.strip("-"), int(load), "offline" not in more, mode, "leads" in more)


# ------------------------------------------------------------------------------------------------------ choosing


@pytest.mark.parametrize("devices, copies, keep, chosen", [
    (["b - 1", "a - 1"], 1, "", "a"),                                      # the name
    (["a - 2", "b - 1"], 1, "", "b"),                                      # the least load
    (["a x 0", "b x 1", "c y 9"], 2, "", "a c"),                           # another zone before less load
    (["a x 0", "b x 1", "c y 9"], 3, "", "a c b"),
    (["a x 0", "b x 1", "c y 9"], 2, "c", "c a"),                          # the zone of what is kept is used
    (["a x 0", "b x 1", "c y 9"], 2, "a", "a c"),
    (["a - 0", "b - 0", "c x 0"], 3, "", "a b c"),                         # no zone: one of its own
    (["a - 5", "b x 0", "c x 1"], 2, "", "b a"),
    (["a x 0 offline", "b y 9", "c y 8"], 2, "", "c b"),                   # online before another zone
    (["a x 0 offline", "b y 9"], 2, "", "b a"),                            # offline is better than nothing
    (["a x 0 draining", "b y 9", "c z 1 disabled"], 2, "", "b"),           # enabled ones alone
    (["a x 0 draining", "b y 9"], 2, "a", "a b"),                          # what is kept is kept
    (["a x 0", "b y 9"], 1, "b a", "b a"),                                 # all of it
    ([], 3, "", ""),
    (["a - 0"], 0, "", ""),
])  # fmt: skip
def test_choosing(devices: list[str], copies: int, keep: str, chosen: str) -> None:
    assert choose([candidate(text) for text in devices], copies, keep.split()) == chosen.split()


@pytest.mark.parametrize("holders, copies, keep, gone", [
    (["a - 1 leads", "b - 1 leads"], 2, "", ""),
    (["a - 1 leads", "b - 1 leads"], 1, "", "b"),                          # the last by name
    (["a - 2 leads", "b - 1 leads"], 1, "", "a"),                          # the most loaded
    (["a x 1 leads", "b x 0 leads", "c y 9 leads"], 2, "", "a"),           # whose zone is doubled
    (["a x 1 leads", "b x 0 leads", "c y 9 leads"], 1, "", "a c"),
    (["a - 1 leads", "b - 1 leads", "c - 9 leads", "d - 0 leads draining"], 3, "", "d"),
    (["a - 1 leads", "b - 0 leads offline", "c - 9 leads"], 2, "", "b"),
    (["a - 1 leads", "b - 0 leads disabled", "c - 9 leads"], 1, "", "b c"),
    (["a - 9 leads", "b - 1"], 1, "", "b"),                                # never the last leader
    (["a - 9 leads draining", "b - 1", "c - 2"], 1, "", "c b"),
    (["a - 9 leads", "b - 1 leads offline", "c - 0"], 1, "", "b c"),       # a leader that is away is none
    (["a - 9 leads disabled", "b - 1"], 1, "", ""),
    (["a - 9", "b - 1"], 1, "", ""),                                       # nobody leads: nobody goes
    (["a - 1 leads", "b - 1 leads"], 1, "b", "a"),                         # fixed
    (["a - 1 leads", "b - 1"], 1, "b", ""),
])  # fmt: skip
def test_what_is_one_too_many(holders: list[str], copies: int, keep: str, gone: str) -> None:
    assert surplus([candidate(text) for text in holders], copies, keep.split()) == gone.split()


some = st.lists(
    st.builds(
        Candidate,
        st.sampled_from("abcdefgh"),
        st.sampled_from(["", "x", "y", "z"]),
        st.integers(0, 5),
        st.booleans(),
        st.sampled_from(DeviceMode),
        st.booleans(),
    ),
    unique_by=lambda c: c.name,
    max_size=8,
)


def zones(candidates: list[Candidate]) -> int:
    return len({c.place for c in candidates})


@given(some, st.integers(0, 9))
def test_as_many_as_asked_for_and_as_many_zones_as_there_are(devices: list[Candidate], copies: int) -> None:
    by_name = {c.name: c for c in devices}
    chosen = [by_name[name] for name in choose(devices, copies)]
    enabled = [c for c in devices if c.mode is ENABLED]
    online = [c for c in enabled if c.online]
    assert len(chosen) == min(copies, len(enabled))
    assert all(c.mode is ENABLED for c in chosen)
    up = [c for c in chosen if c.online]
    assert len(up) == min(copies, len(online))
    assert zones(up) == min(copies, zones(online))
    if len(up) == len(online):  # those that are away have filled the rest
        assert zones(chosen) == min(zones(enabled), zones(online) + len(chosen) - len(up))


@given(some, st.integers(0, 9), st.randoms())
def test_the_order_of_the_devices_does_not_matter(devices: list[Candidate], copies: int, random: Any) -> None:
    shuffled = random.sample(devices, len(devices))
    assert choose(shuffled, copies) == choose(devices, copies)
    assert surplus(shuffled, copies) == surplus(devices, copies)


@given(some, st.integers(0, 8))
def test_one_copy_more_moves_none_of_the_others(devices: list[Candidate], copies: int) -> None:
    chosen = choose(devices, copies)
    assert choose(devices, copies + 1)[: len(chosen)] == chosen
    assert choose(devices, copies, chosen) == chosen
    assert choose(devices, copies + 1, chosen) == choose(devices, copies + 1)


@given(some, st.integers(0, 9), st.sets(st.sampled_from("abcdefgh")))
def test_taking_away_leaves_a_leader_and_what_is_fixed(
    devices: list[Candidate], copies: int, keep: set[str]
) -> None:
    gone = surplus(devices, copies, keep)
    left = [c for c in devices if c.name not in gone]
    assert len(gone) <= max(0, len(devices) - copies)
    assert not keep & set(gone)
    assert not gone or any(c.leads and c.up for c in left)


# ------------------------------------------------------------------------------------------------------ removing


def device(name: str, **more: Any) -> Device:
    values: dict[str, Any] = {
        "id": ord(name[0]),
        "name": name,
        "ssh_url": f"ssh://git@{name}",
        "http_url": None,
        "public_key": "",
        "host_key": "",
        "mode": ENABLED,
        "last_seen_at": NOW,
        "silent_for": 1.0,
        "stopped": False,
    }
    return Device(**(values | more))


def at(version: int) -> Position:
    return Position(version, checksum_of({"refs/heads/main": f"{version:040x}"} if version else {}))


def replica(text: str) -> Replica:
    """ "a 3 offline": name, version ("-": absent), then: offline, draining, disabled, writing, quarantined, ahead."""
    name, version, *more = text.split()
    return Replica(
        device(
            name,
            stopped="offline" in more,
            mode=next((MODES[word] for word in more if word in MODES), ENABLED),
        ),
        None if version == "-" else at(int(version)),
        "damaged" if "quarantined" in more else None,
        Intent(uuid4(), uuid4(), "anna", "ssh", "", NOW, ()) if "writing" in more else None,
        NOW,
        0,
        None,
        None,
        marker=9 if "ahead" in more else None,
        marker_checksum="x" if "ahead" in more else None,
    )


def snapshot(*replicas: str, min_copies: int = 1, version: int = 3) -> Snapshot:
    repository = Repository(1, "team/app", "sha1", at(version), min_copies, WhenShort.WARN, None, None, NOW)
    return Snapshot(repository, tuple(map(replica, replicas)))


@pytest.mark.parametrize("replicas, min_copies, error, says", [
    (["b 3"], 1, NotFound, "device a does not hold team/app"),
    (["a 3 writing", "b 3"], 1, StillNeeded, "a push by anna on a is not committed yet"),
    (["a 3", "b 3 writing", "c 3"], 1, StillNeeded, "a push by anna on b is not committed yet"),
    (["a 3 ahead", "b 3"], 1, Refused, "its disk knows versions that the database does not"),
    (["a 3"], 1, StillNeeded, "it is the last that holds its newest version, 3"),
    (["a 3", "b 2"], 1, StillNeeded, "it is the last that holds its newest version, 3"),
    (["a 3", "b -"], 1, StillNeeded, "it is the last that holds its newest version, 3"),
    (["a 3", "b 3 quarantined"], 1, StillNeeded, "it is the last that holds its newest version, 3"),
    (["a 2", "b 2"], 1, StillNeeded, "no other device holds its newest version, 3"),
    (["a -", "b -"], 1, StillNeeded, "no other device holds its newest version, 3"),
    (["a 3", "b 3 offline"], 1, StillNeeded, "are away: b (offline)"),
    (["a 2", "b 3 disabled", "c 3 offline"], 1, StillNeeded, "are away: b (disabled), c (offline)"),
    (["a -", "b 3 offline"], 1, None, ""),
    (["a 3", "b 3"], 2, Refused, "more than its 1 device"),
    (["a 3", "b 3", "c -"], 2, None, ""),
    (["a 3", "b 3"], 1, None, ""),
    (["a 3 offline", "b 3 draining"], 1, None, ""),
    (["a 2 quarantined", "b 3"], 1, None, ""),
])  # fmt: skip
def test_removing_a_replica(
    replicas: list[str], min_copies: int, error: type[ClusterError] | None, says: str
) -> None:
    now = snapshot(*replicas, min_copies=min_copies)
    if error is None:
        refuse_removal(now, "a")
        return
    with pytest.raises(ClusterError) as raised:
        refuse_removal(now, "a")
    assert type(raised.value) is error
    assert says in raised.value.what
    assert raised.value.hint


DEVICES = [
    device("a", zone="x"),
    device("b", zone="x"),
    device("c", zone="y"),
    device("d", zone="z", mode=DRAINING),
    device("e", zone="z", stopped=True),
]
LOADS = {"a": 5, "b": 4, "c": 9, "d": 0, "e": 0}


@pytest.mark.parametrize("replicas, asked, outcome", [
    (["a 3"], {"add": ["c"]}, "+c"),
    (["a 3"], {"add": ["c", "c"]}, "+c"),
    (["a 3"], {"add": ["a"]}, ""),
    (["a 3", "c 3"], {"remove": ["a"]}, "-a"),
    (["a 3"], {"add": ["c"], "remove": ["a"]}, "+c -a"),
    (["a 3"], {"copies": 2}, "+c"),
    (["a 3"], {"copies": 3}, "+c +b"),
    (["a 3"], {"copies": 4}, "+c +b +e"),
    (["a 3"], {"copies": 5}, "5 copies are asked for, and only 4 devices could hold them"),
    (["a 3"], {"copies": 2, "add": ["b"]}, "+b"),
    (["a 3"], {"copies": 1, "remove": ["a"]}, "+b -a"),
    (["a 3", "b 3", "c 3"], {"copies": 2}, "-a"),
    (["a 3", "b 3", "c 3"], {"copies": 2, "add": ["a"]}, "-b"),
    (["a 3", "b 3", "c 3"], {"copies": 2, "remove": ["c"]}, "-c"),
    (["a 3", "b 2"], {"copies": 1}, "-b"),
    (["a 3", "b 2"], {"copies": 1, "add": ["b"]}, "cannot go down to 1 copy now"),
    (["a 3", "b 2"], {"copies": 2}, ""),
    (["a 3", "b 3"], {"remove": ["c"]}, "device c does not hold team/app"),
    (["a 3"], {"add": ["zz"]}, "there is no device zz"),
    (["a 3"], {"add": ["d"]}, "device d is draining and takes no new repositories"),
    (["a 3"], {"add": ["a"], "remove": ["a"]}, "cannot be both added and removed"),
    (["a 3"], {"remove": ["a"]}, "team/app would be on no device any more"),
])  # fmt: skip
def test_a_change(replicas: list[str], asked: dict[str, Any], outcome: str) -> None:
    try:
        found = change(snapshot(*replicas), DEVICES, LOADS, **asked)
    except ClusterError as error:
        assert outcome and outcome in error.what
        assert error.hint
    else:
        said = [*(f"+{name}" for name in found.add), *(f"-{name}" for name in found.remove)]
        assert " ".join(said) == outcome
        before = {text.split()[0] for text in replicas}
        assert set(found.after) == (before | {*found.add}) - {*found.remove}


def test_min_copies_stays_possible() -> None:
    now = snapshot("a 3", "b 3", "c 3", min_copies=3)
    for asked in ({"remove": ["a"]}, {"copies": 2}):
        with pytest.raises(Refused) as error:
            change(now, DEVICES, LOADS, **asked)
        assert "more than its 2 devices" in error.value.what
        assert "repo set team/app --min-copies 2" in error.value.hint
    assert change(now, DEVICES, LOADS, add=["e"], remove=["a"]).after == ("b", "c", "e")
    assert change(snapshot("a 3", "b 3", min_copies=3), DEVICES, LOADS, add=["c"]).add == ("c",)


# ------------------------------------------------------------------------------------------------------ new ones


@pytest.mark.parametrize("patterns, name, decides", [
    ([], "team/app", None),
    (["other/*"], "team/app", None),
    (["*"], "team/app", "*"),
    (["*", "team/*", "team/a*"], "team/app", "team/a*"),
    (["*", "team/*", "team/app"], "team/app", "team/app"),
    (["team/app"], "team/app2", None),
    (["team/*p", "team/a*"], "team/app", "team/a*"),
    (["team/a*p", "team/ap*"], "team/app", "team/ap*"),
])  # fmt: skip
def test_the_most_specific_rule_decides(patterns: list[str], name: str, decides: str | None) -> None:
    for rules in (patterns, patterns[::-1]):
        found = rule_for([PlacementRule(pattern, 2, None) for pattern in rules], name)
        assert (found.pattern if found else None) == decides


RULES = [PlacementRule("small/*", 1, None), PlacementRule("big/*", 9, 3), PlacementRule("safe/*", 9, 5)]


@pytest.mark.parametrize("name, asked, outcome", [
    ("r", {}, "a b c e 2"),
    ("r", {"wanted": ["c", "a", "c"]}, "c a 2"),
    ("r", {"wanted": ["c"]}, "c 1"),
    ("r", {"copies": 2}, "b c 2"),
    ("r", {"copies": 2, "wanted": ["a"]}, "a c 2"),
    ("r", {"copies": 1, "wanted": ["a", "c"]}, "2 devices are named, and only 1 copy asked for"),
    ("r", {"copies": 5}, "5 copies are asked for, and only 4 devices could hold them"),
    ("r", {"copies": 2, "min_copies": 1}, "b c 1"),
    ("r", {"wanted": ["a"], "min_copies": 2}, "min_copies 2 is more than its 1 device"),
    ("r", {"wanted": ["zz"]}, "there is no device zz"),
    ("r", {"wanted": ["d"]}, "device d is draining"),
    ("small/r", {}, "b 1"),
    ("small/r", {"copies": 2}, "b c 2"),
    ("small/r", {"wanted": ["a", "c"]}, "a c 2"),
    ("small/r", {"min_copies": 2}, "which the placement rule for small/* gives it"),
    ("big/r", {}, "b c a e 3"),
    ("safe/r", {}, "min_copies 5 is more than its 4 devices, which the placement rule for safe/* gives it"),
])  # fmt: skip
def test_where_a_new_repository_goes(name: str, asked: dict[str, Any], outcome: str) -> None:
    try:
        found = where(name, DEVICES, LOADS, RULES, **asked)
    except ClusterError as error:
        assert outcome in error.what
        assert error.hint
    else:
        assert " ".join([*(d.name for d in found.devices), str(found.min_copies)]) == outcome


def test_without_devices_there_is_nowhere_to_go() -> None:
    for devices in ([], [device("a", mode=DISABLED)]):
        with pytest.raises(Refused, match="no device could hold it"):
            where("r", devices, {}, RULES)


def test_copies_asked_for_in_vain_are_a_usage_error() -> None:
    with pytest.raises(UsageError):
        where("r", DEVICES, LOADS, [], wanted=["a", "c"], copies=1)
