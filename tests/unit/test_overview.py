"""The one sentence on top of the status page, and how its figures are drawn and worded."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from cluster.db import Count, Lag, Piece
from cluster.errors import UsageError, WriteConflict
from cluster.http.pages import charts, words
from cluster.http.pages.doing import Choice, Plan, chosen, objection
from cluster.http.pages.guard import fields_of
from cluster.http.pages.render import prose
from cluster.http.pages.signing import local
from cluster.model import Device, DeviceMode, RefUpdate
from cluster.overview import Glance, Headline, Trouble, headline

NOW = datetime(2026, 1, 1, 12, 0, 30, tzinfo=UTC)


def device(name: str, *, silent: float = 1.0, mode: str = "enabled", free: int = 1 << 40) -> Device:
    return Device(
        ord(name), name, "ssh://h", None, "", "", DeviceMode(mode), NOW, silent, False, "", 1 << 41, free
    )


def glance(*troubles: Trouble, devices: str = "abc", down: str = "", others: int = 0) -> Glance:
    made = tuple(device(name, silent=99.0 if name in down else 1.0) for name in devices)
    lags: dict[str, Lag] = {}
    return Glance(NOW, made, lags, 10, troubles, others, 0.0)


FROZEN = Trouble("frozen", "team/a", 1, "a write was interrupted")
GONE = Trouble("unavailable", "team/b", 2, "bring one back: a")
SHORT = Trouble("degraded", "team/c", 1234, "device c is offline")
BEHIND = Trouble("behind", "team/d", 3, "b is 1 behind")
START = "start c again, or look at the machine; if it will not come back: git-cluster device drain c --move"


@pytest.mark.parametrize(
    ("seen", "made"),
    [
        (glance(), Headline("healthy", "Healthy")),
        (glance(BEHIND), Headline("busy", "Healthy; 3 repositories are being synced", "nothing to do")),
        (
            glance(SHORT),
            Headline("warning", "1,234 repositories are degraded", "device c is offline", "team/c"),
        ),
        (glance(others=1), Headline("warning", "1 repository is degraded")),
        (
            glance(SHORT, down="c"),
            Headline("warning", "Device c is offline; 1,234 repositories are degraded", START),
        ),
        (
            glance(FROZEN, SHORT, down="c"),
            Headline(
                "bad",
                "1 repository is frozen; device c is offline; 1,234 repositories are degraded",
                "a write was interrupted",
                "team/a",
            ),
        ),
        (
            glance(FROZEN, GONE),
            Headline(
                "bad",
                "1 repository is frozen; 2 repositories are unavailable",
                "a write was interrupted",
                "team/a",
            ),
        ),
        (
            glance(GONE, devices="ab", down="ab"),
            Headline(
                "bad",
                "2 repositories are unavailable; devices a and b are offline",
                "start a and b again, or look at the machines; if they will not come back: "
                "git-cluster device drain a --move",
            ),
        ),
        (
            glance(devices=""),
            Headline("bad", "No device serves", "register one: git-cluster device add, then serve"),
        ),
    ],
)
def test_the_headline_says_what_is_needed_first(seen: Glance, made: Headline) -> None:
    assert headline(seen, named=True) == made


def test_who_is_not_signed_in_reads_counts_and_no_names() -> None:
    seen = glance(FROZEN, SHORT, down="c")
    made = headline(seen, named=False)
    assert made.words == "1 repository is frozen; 1 device is offline; 1,234 repositories are degraded"
    assert made.todo == made.repository == ""


def test_a_full_disk_needs_somebody_and_a_disabled_device_nobody() -> None:
    full = replace(glance(), devices=(device("a", free=1 << 20), device("b")))
    assert headline(full, named=True).words == "The disk of a is nearly full"
    off = replace(glance(), devices=(device("a"), device("b", silent=1e6, mode="disabled")))
    assert headline(off, named=True).level == "healthy"


# ------------------------------------------------------------------------------------------------ words


@pytest.mark.parametrize(
    ("seconds", "made"),
    [
        (-5, "0 s"),
        (0.4, "0 s"),
        (59, "59 s"),
        (61, "1 min"),
        (7199, "119 min"),
        (7200, "2 h"),
        (172800, "2 d"),
    ],
)
def test_spans(seconds: float, made: str) -> None:
    assert words.span(seconds) == made


@pytest.mark.parametrize(
    ("count", "made"),
    [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (20 << 30, "20 GiB"), (5000 << 40, "5000 TiB")],
)
def test_sizes(count: int, made: str) -> None:
    assert words.size(count) == made


def test_what_a_push_did_to_a_ref() -> None:
    zero, old, new = "0" * 40, "a" * 40, "b" * 40
    assert words.change(RefUpdate("refs/heads/x", zero, new)) == ("x", "new", "bbbbbbbb")
    assert words.change(RefUpdate("refs/tags/v1", old, zero)) == ("tags/v1", "deleted", "was aaaaaaaa")
    assert words.change(RefUpdate("refs/heads/x", old, new)) == ("x", "moved", "aaaaaaaa → bbbbbbbb")
    assert words.change(RefUpdate("HEAD", "", "ref: refs/heads/main")) == ("HEAD", "set", "to main")


def test_what_is_typed_is_marked_and_nothing_becomes_html() -> None:
    assert prose("run `a <b>` & `c") == "run <code>a &lt;b&gt;</code> &amp; <code>c</code>"


# ------------------------------------------------------------------------------------------------ charts


def test_a_line_has_gaps_and_a_lone_value_is_a_dot() -> None:
    assert charts.line_path([0.0, 1.0, None, 1.0], 1.0) == "M0.0 120.0h0L200.0 0.0M600.0 0.0h0"
    assert charts.line_path([], 1.0) == charts.line_path([None], 1.0) == ""


@pytest.mark.parametrize(("most", "top"), [(0, 0.001), (0.003, 0.005), (1, 1), (1.1, 2), (700, 1000)])
def test_the_upper_edge_is_a_round_number(most: float, top: float) -> None:
    assert charts.nice(most) == pytest.approx(top)


def test_charts_count_all_devices_and_say_the_worst() -> None:
    at = NOW.replace(second=0)

    def bucket(name: str, pushes: int, p99: float | None, lag: float | None) -> Piece:
        return Piece(name, at, pushes, 5, 1, p99, p99, None, None, lag)

    pushes, lag, latency = charts.charts([bucket("a", 2, 0.25, None), bucket("b", 3, None, 4.0)], NOW, "hour")
    assert len(pushes.times) == 60 and pushes.times[-1] == at
    assert pushes.lines[0].values[-1] == 5 and pushes.lines[0].values[0] is None
    assert pushes.said == "5 pushes, 10 reads, 2 failed, in the last hour"
    assert [(line.name, line.values[-1]) for line in lag.lines] == [("a", 0.0), ("b", 4.0)]
    assert lag.said == "at most 4.0 s, on b, in the last hour"
    assert latency.said == "99 of 100 pushes within 250 ms at the worst"


def test_nothing_measured_is_no_chart_and_no_error() -> None:
    for span in charts.RANGES:
        assert all(chart.empty for chart in charts.charts([], NOW, span))
    assert charts.copies([], NOW) is None


def test_copies_last_until_they_change() -> None:
    hour = timedelta(hours=1)
    chart = charts.copies([Count(NOW - hour, 1, 2), Count(NOW - 2 * hour, 2, 2)], NOW)
    assert chart is not None
    assert chart.lines[0].path == "M0.0 0.0H300.0V60.0H600.0"
    assert chart.said == "1 of 2 copies now; at the fewest 1"


# ------------------------------------------------------------------------------------------------ forms

PLAN = Plan(7, ("one",), loss=False)
LOSS = Plan(7, ("LOST: one",), loss=True)


@pytest.mark.parametrize(
    ("plan", "fields", "made"),
    [
        (PLAN, {"seen": PLAN.digest}, None),
        (PLAN, {"seen": replace(PLAN, version=8).digest}, WriteConflict),
        (PLAN, {"seen": LOSS.digest}, WriteConflict),
        (PLAN, {"seen": "ü\ufffd"}, WriteConflict),
        (LOSS, {"seen": LOSS.digest}, UsageError),
        (LOSS, {"seen": LOSS.digest, "confirm": "team/other"}, UsageError),
        (LOSS, {"seen": LOSS.digest, "confirm": " team/app "}, None),
    ],
)
def test_a_confirmation_is_of_what_was_looked_at(
    plan: Plan, fields: dict[str, str], made: type[Exception] | None
) -> None:
    assert type(objection(plan, "team/app", fields)) is (made or type(None))


def test_ways_to_thaw() -> None:
    assert chosen("") == chosen("resolve") == Choice()
    assert chosen(Choice(demote="a").value) == Choice(demote="a")
    assert chosen(Choice(promote="b").value) == Choice(promote="b")
    for wrong in ("demote", "demote A B", "promote ../x", "resolve a", "drop everything", "\0"):
        with pytest.raises(UsageError):
            chosen(wrong)


@pytest.mark.parametrize(
    ("asked", "goes"),
    [
        ("/-/repositories/team/app?before=3", "/-/repositories/team/app?before=3"),
        ("", "/-/"),
        ("https://elsewhere.example/-/", "/-/"),
        ("//elsewhere.example/-/", "/-/"),
        ("/\\elsewhere.example", "/-/"),
        ("/-/\r\nSet-Cookie: a=b", "/-/"),
        ("javascript:alert(1)", "/-/"),
        ("/-/logout", "/-/"),
        ("/-/login?next=/-/login", "/-/"),
    ],
)
def test_after_signing_in_one_stays_here(asked: str, goes: str) -> None:
    assert local(asked) == goes


def test_a_form_is_read_whatever_is_in_it() -> None:
    assert fields_of(b"a=1&a=2&b=%ff&c") == {"a": "2", "b": "\ufffd", "c": ""}
    assert fields_of(b"\xff\0") == {"\ufffd\0": ""}
    with pytest.raises(UsageError):
        fields_of(b"&".join(b"a=1" for _ in range(99)))
