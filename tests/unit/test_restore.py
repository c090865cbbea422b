"""What is put back, from which disk, and what is not without a person: answers of devices in, a plan or words out."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from cluster.model import Checksum, LogEntry, Position, Repository, WhenShort
from cluster.restore import Survey, Told, Undecided, plan, words
from cluster.versions import checksum_of
from tests.unit.test_journal import EMPTY, moves, pushes

AT = datetime(2026, 2, 3, 4, 5, 6, tzinfo=UTC)
LOG = pushes(*moves(5))
OTHER = pushes(*moves(3, "refs/heads/other"), after=LOG[1].checksum, first=3)


def repository(version: int) -> Repository:
    checksum = LOG[version - 1].checksum if version else checksum_of(EMPTY)
    return Repository(1, "team/app", "sha1", Position(version, checksum), 2, WhenShort.WARN, "older", AT, AT)


def told(
    device: str,
    entries: list[LogEntry],
    *,
    checksum: Checksum | None = None,
    version: int | None = None,
    fork: int | None = None,
    exact: bool = True,
    whole: bool = True,
) -> Told:
    newest = entries[-1]
    return Told(
        device,
        version or newest.version,
        str(checksum or newest.checksum),
        fork,
        exact,
        whole,
        tuple(entries),
    )


def survey(
    *ahead: Told,
    agree: str = "",
    silent: dict[str, str] | None = None,
    reported: dict[str, tuple[int, str]] | None = None,
) -> Survey:
    return Survey(ahead, frozenset(agree), silent or {}, reported or {})


def undecided(version: int, found: Survey) -> str:
    with pytest.raises(Undecided) as error:
        plan(repository(version), found)
    return "\n".join(error.value.lines())


def test_nothing_is_ahead() -> None:
    assert plan(repository(2), survey(agree="ab")) is None
    assert plan(repository(2), survey(agree="a", silent={"b": "offline"})) is None


def test_the_newest_disk_is_the_source_and_the_others_follow() -> None:
    ahead = told("a", LOG[2:4]), told("b", LOG[2:]), told("c", LOG[2:], exact=False)
    found = plan(repository(2), survey(*ahead, agree="d", silent={"e": "offline"}))
    assert found is not None
    assert found.entries == tuple(LOG[2:]) and found.device == "b"
    assert found.current == ("b",) and found.later == ("a", "c", "d")
    lines = words(found, dry_run=True)
    assert lines[0] == (
        "the database lacks versions 3 to 5; they would be put back, exactly as they were, from the disk of b:"
    )
    assert lines[-2:] == [
        "b holds version 5 already; a, c and d will sync",
        "e could not be asked (offline): if its disk knows more, that shows when it is back",
    ]


def test_what_one_journal_lacks_another_has() -> None:
    found = plan(repository(0), survey(told("a", LOG[3:]), told("b", LOG[:4])))
    assert found is not None and found.entries == tuple(LOG) and found.device == "a"
    bare = [LOG[0], replace(LOG[1], refs=()), *LOG[2:]]
    found = plan(repository(0), survey(told("a", bare), told("b", LOG[:4])))
    assert found is not None and found.entries == tuple(LOG)


def test_a_disk_that_is_whole_goes_before_one_that_is_not() -> None:
    found = plan(repository(2), survey(told("a", LOG[2:], whole=False), told("b", LOG[2:])))
    assert found is not None and found.device == "b"
    said = undecided(2, survey(told("a", LOG[2:], whole=False)))
    assert "device a's copy is not whole: its refs reach objects that are not there" in said


def test_a_journal_that_does_not_lead_to_the_marker() -> None:
    assert "device a's journal does not reach back to version 3" in undecided(2, survey(told("a", LOG[3:])))
    said = undecided(2, survey(told("a", [LOG[2], replace(LOG[3], refs=()), LOG[4]])))
    assert "device a's journal has version 4 without its refs, which were too many" in said
    lie = replace(LOG[3], checksum=LOG[0].checksum)
    said = undecided(2, survey(told("a", [LOG[2], lie, LOG[4]])))
    assert "what device a's journal says of version 4 does not lead there from version 3" in said
    said = undecided(2, survey(told("a", LOG[2:], checksum=LOG[0].checksum)))
    assert "device a's journal does not lead to what its disk holds" in said
    assert "`git-cluster thaw team/app --promote a --dry-run`" in said


def test_disks_that_went_different_ways() -> None:
    """Also where one of them is further than the other: its way is not the only one."""
    for found in (
        survey(told("a", LOG[2:]), told("b", OTHER)),
        survey(told("a", LOG[2:]), told("b", OTHER[:2])),
    ):
        said = undecided(2, found)
        assert "the disks went different ways: device b's version" in said
        assert (
            "version 3, by anna on a (ssh) at 2026-02-03 04:05:06 UTC:\n  refs/heads/other  (new) →" in said
        )
        assert "--demote b" in said


def test_a_database_that_has_gone_on() -> None:
    said = undecided(4, survey(told("b", OTHER, fork=3)))
    assert (
        "the database came back older than the disk of b and has gone on from there: from version 3 on"
        in said
    )
    assert "--demote b" in said and "--promote b" in said


def test_a_device_that_was_seen_ahead_and_cannot_be_asked() -> None:
    five, away = str(LOG[4].checksum), {"c": "cannot be reached"}
    said = undecided(2, survey(told("a", LOG[2:4]), silent=away, reported={"c": (5, five)}))
    assert (
        "device c's disk is at version 5, which the database does not know, and cannot be asked: cannot be"
        in said
    )
    assert "--demote c" in said
    assert "cannot be asked" in undecided(2, survey(agree="a", silent=away, reported={"c": (5, five)}))
    found = plan(repository(2), survey(told("a", LOG[2:]), silent=away, reported={"c": (5, five)}))
    assert found is not None, "it is known where it is, and that is among what is put back"
    assert "cannot be asked" in undecided(
        2, survey(told("a", LOG[2:]), silent=away, reported={"c": (5, str(LOG[0].checksum))})
    )
