"""What a doctor makes of figures: each judgement as a table."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest

from cluster import __version__
from cluster.db import Alike, Server
from cluster.db.condition import Tick
from cluster.db.schema import SCHEMA_VERSION
from cluster.doctor import Finding, Verdict, copies, database, devices, judge
from cluster.doctor.devices import Answer
from cluster.doctor.finding import some
from cluster.errors import ClusterError, PeerFailed
from cluster.model import Device, DeviceMode
from cluster.ping import LINE, Pong, _pong

OK, WARNING, PROBLEM = "ok", "warning", "problem"
GIB = 2**30


def is_told(finding: Finding, verdict: str, words: str = "") -> None:
    """What and what to do, a line each; a hint wherever there is something to do."""
    assert finding.verdict.value == verdict, finding
    assert words in finding.what, finding
    assert bool(finding.hint) == (finding.verdict is not Verdict.OK)
    assert finding.what.isprintable() and finding.hint.isprintable()


@pytest.mark.parametrize(
    ("text", "verdict", "words"),
    [
        ("git version 2.39.5", OK, "Git 2.39.5"),
        ("git version 2.39.5\n", OK, "Git 2.39.5"),
        ("git version 2.39.5 (Apple Git-154)\n", OK, "Git 2.39.5"),
        ("git version 2.54.0.rc1.12.gabcdef", OK, "Git 2.54.0"),
        ("git version 2.100", OK, "Git 2.100"),
        ("git version 2.38.1", WARNING, "was not tried"),
        ("git version 2.37.0", WARNING, "was not tried"),
        ("git version 3.0.1", WARNING, "was not tried"),
        ("git version 2.36.9", PROBLEM, "too old"),
        ("git version 2.20.1", PROBLEM, "too old"),
        ("git version 1.8.3.1", PROBLEM, "too old"),
        ("git version 2.GIT", PROBLEM, "does not say its version"),
        ("git version", PROBLEM, "does not say its version"),
        ("", PROBLEM, "does not say its version"),
        ("\x1b[31mhub version 9\n" * 50, PROBLEM, "?[31mhub"),
    ],
)
def test_git_version(text: str, verdict: str, words: str) -> None:
    is_told(judge.git_version(text), verdict, words)


@pytest.mark.parametrize(
    ("mode", "secret", "exposed", "verdict"),
    [
        (0o600, True, True, OK),
        (0o640, True, True, OK),
        (0o660, True, True, OK),
        (0o644, False, True, OK),
        (0o644, True, False, OK),
        (0o644, True, True, WARNING),
        (0o604, True, True, WARNING),
        (0o646, True, True, PROBLEM),
        (0o602, False, True, PROBLEM),
        (0o666, False, False, OK),
    ],
)
def test_configuration(mode: int, secret: bool, exposed: bool, verdict: str) -> None:
    is_told(judge.configuration(0o100000 | mode, secret=secret, exposed=exposed, path="/c"), verdict, "/c")


SERVER = Server(
    version=150004, host="db.example port 5432", fsync=True, full_page_writes=True, synchronous_commit="on",
    synchronous_standbys=False, most=97, used=10, writes=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "round_trip", "verdict", "words"),
    [
        ({}, 0.0004, OK, "PostgreSQL 15.4 at db.example port 5432, 0.4 ms away"),
        ({"host": ""}, 0.0004, OK, "PostgreSQL 15.4, 0.4 ms away"),
        ({"writes": None}, 0.020, OK, "20 ms away"),
        ({}, 0.021, WARNING, "slow"),
        ({"version": 140019}, 0.5, PROBLEM, "PostgreSQL 14.19 at db.example port 5432, 500 ms away: too old"),
        ({"writes": False}, 0.0004, PROBLEM, "may not write"),
    ],
)
def test_postgres(changes: dict[str, Any], round_trip: float, verdict: str, words: str) -> None:
    is_told(judge.postgres(replace(SERVER, **changes), round_trip), verdict, words)


@pytest.mark.parametrize(
    ("found", "verdict", "words"),
    [
        (SCHEMA_VERSION, OK, f"version {SCHEMA_VERSION}"),
        (SCHEMA_VERSION - 1, PROBLEM, "older"),
        (SCHEMA_VERSION + 1, PROBLEM, "newer"),
        (None, PROBLEM, "no git-cluster schema yet"),
    ],
)
def test_schema(found: int | None, verdict: str, words: str) -> None:
    is_told(judge.schema(found), verdict, words)


@pytest.mark.parametrize(
    ("changes", "verdict", "words"),
    [
        ({}, OK, "fsync is on, synchronous_commit is on"),
        ({"synchronous_standbys": True}, OK, "with a synchronous standby"),
        ({"synchronous_commit": "remote_apply", "synchronous_standbys": True}, OK, "remote_apply"),
        ({"synchronous_commit": "local"}, OK, "local"),
        ({"synchronous_commit": "local", "synchronous_standbys": True}, WARNING, "fail-over"),
        ({"synchronous_commit": "off"}, WARNING, "synchronous_commit is off"),
        ({"full_page_writes": False}, PROBLEM, "full_page_writes is off"),
        ({"fsync": False, "synchronous_commit": "off"}, PROBLEM, "fsync is off"),
    ],
)
def test_durability(changes: dict[str, Any], verdict: str, words: str) -> None:
    is_told(judge.durability(replace(SERVER, **changes)), verdict, words)


@pytest.mark.parametrize(
    ("most", "used", "count", "verdict", "words"),
    [
        (97, 10, 3, OK, "97 database sessions, 87 of them free; 70 may be needed"),
        (30, 0, 1, OK, "30 may be needed"),
        (29, 0, 1, WARNING, "29 database sessions for 1 device, which may need 30"),
        (97, 10, 9, WARNING, "97 database sessions for 9 devices, which may need 190"),
        (97, 92, 3, OK, "5 of them free"),
        (97, 93, 3, PROBLEM, "4 of 97 database sessions are left"),
        (97, 100, 3, PROBLEM, "0 of 97 database sessions are left"),
    ],
)
def test_connections(most: int, used: int, count: int, verdict: str, words: str) -> None:
    is_told(judge.connections(most, used, count), verdict, words)


def test_connections_of_devices_with_workers() -> None:
    is_told(judge.connections(97, 25, 2, workers=4), "warning", "may need 98")
    is_told(judge.connections(98, 25, 2, workers=4), "ok", "98 may be needed")


@pytest.mark.parametrize(
    ("skew", "verdict", "words"),
    [
        (0.0, OK, "within 0.001 s"),
        (-1.0, OK, "within 1.000 s"),
        (1.1, WARNING, "this machine's clock is 1.1 s behind the database's"),
        (-9.9, WARNING, "this machine's clock is 9.9 s ahead of the database's"),
        (10.1, PROBLEM, "10 s behind"),
        (-3600.0, PROBLEM, "60 min ahead of"),
        (86400.0 * 400, PROBLEM, "400 days behind"),
    ],
)
def test_clock(skew: float, verdict: str, words: str) -> None:
    is_told(judge.clock(skew), verdict, words)


def test_the_fastest_look_at_a_clock_counts() -> None:
    ticks = [Tick(theirs=105.0, ours=100.0, taken=2.0), Tick(104.5, 100.0, 0.01), Tick(90.0, 100.0, 1.0)]
    assert database.skew(ticks) == pytest.approx(4.495)


@pytest.mark.parametrize(
    ("skew", "doubt", "certain"),
    [(5.0, 0.0, 5.0), (5.0, 1.0, 4.0), (-5.0, 1.0, -4.0), (0.5, 1.0, 0.0), (-0.5, 1.0, 0.0), (0.0, 9.0, 0.0)],
)
def test_a_slow_answer_accuses_no_clock(skew: float, doubt: float, certain: float) -> None:
    assert judge.at_least(skew, doubt) == certain


@pytest.mark.parametrize(
    ("free", "total", "verdict"),
    [
        (50 * GIB, 100 * GIB, OK),
        (15 * GIB, 100 * GIB, OK),
        (14 * GIB, 100 * GIB, WARNING),
        (5 * GIB, 100 * GIB, WARNING),
        (4 * GIB, 100 * GIB, PROBLEM),
        (GIB - 1, 2 * GIB, PROBLEM),
        (2 * GIB, 10 * GIB, OK),
        (99 * GIB, 10_000 * GIB, WARNING),
        (100 * GIB, 10_000 * GIB, OK),
        (49 * GIB, 10_000 * GIB, PROBLEM),
        (0, 0, PROBLEM),
    ],
)
def test_disk_space(free: int, total: int, verdict: str) -> None:
    is_told(judge.disk_space(free, total), verdict)


@pytest.mark.parametrize(
    ("free", "total", "verdict"),
    [
        (500_000, 1_000_000, None),
        (100_000, 1_000_000, None),
        (0, 0, None),  # a file system without a fixed number
        (99_999, 1_000_000, WARNING),
        (19_999, 1_000_000, PROBLEM),
        (999, 10_000, PROBLEM),
        (0, 10_000, PROBLEM),
    ],
)
def test_inodes(free: int, total: int, verdict: str | None) -> None:
    finding = judge.inodes(free, total)
    if verdict is None:
        assert finding is None
    else:
        assert finding is not None
        is_told(finding, verdict, "more files")


@pytest.mark.parametrize(("taken", "verdict"), [(0.0007, OK), (0.1, OK), (0.101, WARNING)])
def test_disk_writes(taken: float, verdict: str) -> None:
    is_told(judge.disk_writes(taken), verdict)


@pytest.mark.parametrize(
    ("most", "verdict"), [(None, OK), (65536, OK), (4096, OK), (4095, WARNING), (256, WARNING)]
)
def test_open_files(most: int | None, verdict: str) -> None:
    is_told(judge.open_files(most, "the daemon"), verdict, "the daemon may have")


@pytest.mark.parametrize(
    ("mode", "verdict"),
    [(0o600, None), (0o400, None), (0o640, WARNING), (0o660, WARNING), (0o644, PROBLEM), (0o601, PROBLEM)],
)
def test_private_file(mode: int, verdict: str | None) -> None:
    finding = judge.private_file("device key", 0o100000 | mode, "/k")
    if verdict is None:
        assert finding is None
    else:
        assert finding is not None
        is_told(finding, verdict, f"(mode {mode:04o})")


@pytest.mark.parametrize(
    ("mode", "mine", "root", "verdict", "words"),
    [
        (0o700, True, False, OK, "/d"),
        (0o711, True, True, OK, "/d"),
        (0o755, True, False, WARNING, "list"),
        (0o777, True, True, PROBLEM, "write"),
        (0o700, False, True, WARNING, "belongs to git, not to root"),
        (0o700, False, False, PROBLEM, "belongs to git, not to the user that runs this"),
    ],
)
def test_data_dir(mode: int, mine: bool, root: bool, verdict: str, words: str) -> None:
    is_told(judge.data_dir("/d", owner="git", mine=mine, mode=0o40000 | mode, root=root), verdict, words)


@pytest.mark.parametrize(
    ("amount", "words"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (10.0, "10 s"), (119, "119 s"), (120, "2 min"), (7200, "2 h"), (2e5, "2 days")],
)  # fmt: skip
def test_seconds(amount: float, words: str) -> None:
    assert judge.seconds(amount) == words


# Devices


def device(**changes: Any) -> Device:
    fields: dict[str, Any] = {
        "id": 2, "name": "b", "ssh_url": "ssh://git@b.example:2222", "http_url": None, "public_key": "",
        "host_key": "", "mode": DeviceMode.ENABLED, "last_seen_at": None, "silent_for": 1.0, "stopped": False,
    }  # fmt: skip
    return Device(**{**fields, **changes})


UNREACHED = PeerFailed("device b cannot be reached", hint="is it up?")


def pong(**changes: Any) -> Pong:
    return replace(Pong(device="b", version=__version__, clock=1e9, taken=0.0012), **changes)


@pytest.mark.parametrize(
    ("row", "answer", "verdict", "words"),
    [
        ({}, Answer(pong(), 0.1), OK, f"online, 1.2 ms away, git-cluster {__version__}"),
        ({"mode": DeviceMode.DRAINING}, Answer(pong(), 0.1), OK, "draining, 1.2 ms away"),
        ({}, Answer(), OK, "online; it answers with the registered host key"),
        ({}, Answer(pong()), OK, "online, "),
        (
            {},
            Answer(pong(version="9.9"), 99.0),
            WARNING,
            f"it runs git-cluster 9.9, this one is {__version__}",
        ),
        ({}, Answer(pong(version=None)), WARNING, "of an older version"),
        ({}, Answer(pong(), 1.5), WARNING, "its clock is 1.5 s ahead of the database's"),
        ({}, Answer(pong(), -11.0), PROBLEM, "its clock is 11 s behind the database's"),
        ({}, Answer(pong(device="c")), PROBLEM, "at device b's address answers device c"),
        ({}, UNREACHED, PROBLEM, "device b cannot be reached"),
        ({}, ClusterError("it says no"), PROBLEM, "it says no"),
        ({"silent_for": None}, UNREACHED, PROBLEM, "it was never started: "),
        ({"silent_for": 300.0, "stopped": True}, UNREACHED, PROBLEM, "offline: it was stopped 5 min ago: "),
        ({"silent_for": 300.0}, UNREACHED, PROBLEM, "offline: last seen 5 min ago: "),
        ({"silent_for": 300.0, "mode": DeviceMode.DRAINING}, UNREACHED, PROBLEM, "offline: last seen"),
        ({"silent_for": 300.0}, Answer(pong(), 0.0), PROBLEM, "no sign of life from it for 5 min"),
        ({"silent_for": None}, Answer(pong(), 0.0), PROBLEM, "no sign of life from it ever"),
    ],
)
def test_peer(row: dict[str, Any], answer: Answer | ClusterError, verdict: str, words: str) -> None:
    finding = devices.peer(device(**row), answer)
    assert finding.check == "peer b"
    is_told(finding, verdict, words)


def test_a_disabled_peer_is_no_problem() -> None:
    is_told(devices.disabled(device(mode=DeviceMode.DISABLED)), OK, "disabled")


@pytest.mark.parametrize(
    ("answer", "locally", "verdict", "words"),
    [
        (Answer(pong()), False, OK, "ssh://git@b.example:2222 answers"),
        (Answer(), False, OK, "ssh://git@b.example:2222 answers"),
        (Answer(pong()), True, WARNING, "answers where it listens, but from here not at ssh://git@b.example"),
        (Answer(pong(device="c")), False, PROBLEM, "answers device c"),
        (Answer(pong(version="9.9")), False, WARNING, "the daemon runs git-cluster 9.9"),
        (Answer(pong(version=None)), False, WARNING, "of an older version"),
        (UNREACHED, False, PROBLEM, "cannot be reached"),
        (ClusterError("it says no"), False, PROBLEM, "it says no"),
    ],
)
def test_own_endpoint(answer: Answer | ClusterError, locally: bool, verdict: str, words: str) -> None:
    is_told(devices.own(device(), answer, locally=locally), verdict, words)


@pytest.mark.parametrize(
    ("row", "advertise", "verdict", "words"),
    [
        ({}, None, OK, "device b at ssh://git@b.example:2222"),
        ({}, "ssh://git@b.example:2222/", OK, "device b at"),
        ({"mode": DeviceMode.DRAINING}, None, OK, "drains"),
        ({}, "ssh://git@c.example", WARNING, "and [ssh] advertise says ssh://git@c.example"),
        ({"mode": DeviceMode.DISABLED}, None, WARNING, "disabled"),
    ],
)
def test_registration(row: dict[str, Any], advertise: str | None, verdict: str, words: str) -> None:
    is_told(devices.registration(device(**row), advertise), verdict, words)


@pytest.mark.parametrize(
    ("row", "held", "verdict", "words"),
    [
        ({}, True, OK, "it runs, seen 1.0 s ago"),
        (None, True, OK, "it runs"),
        (None, False, PROBLEM, "no daemon serves"),
        ({"silent_for": 60.0}, False, PROBLEM, "no daemon serves"),
        ({"stopped": True}, False, PROBLEM, "no daemon serves"),
        ({}, False, WARNING, "device b is alive, but nobody serves from this data_dir"),
        ({"silent_for": None}, True, PROBLEM, "no sign of life"),
        ({"stopped": True}, True, PROBLEM, "no sign of life"),
        ({"silent_for": 300.0}, True, PROBLEM, "no sign of life from it for 5 min"),
    ],
)
def test_daemon(row: dict[str, Any] | None, held: bool, verdict: str, words: str) -> None:
    is_told(devices.daemon(None if row is None else device(**row), held=held), verdict, words)


@pytest.mark.parametrize(
    "said",
    [
        b"", b"\n", b"nonsense", b"[]", b"{}", b"7", b'{"device": "b", "version": "1"}', b"\xff\xfe",
        b'{"device": "b", "version": "1", "clock": "soon"}', b'{"device": "b", "version": "1", "clock": NaN}',
        b'{"device": "b", "version": "1", "clock": -1}', b'{"device": "b", "version": "1", "clock": 1e999}',
        b'{"device": "b", "version": "1", "clock": null}', b"[" * LINE, b'{"clock": ' + b"9" * 4000 + b"}",
    ],
)  # fmt: skip
def test_an_answer_that_is_none(said: bytes) -> None:
    with pytest.raises(PeerFailed, match="device b gave an answer that is not understood"):
        _pong(device(), said, 0.1)


def test_an_answer_is_made_fit_to_be_shown() -> None:
    said = json.dumps({"device": "b" * 999, "version": "\x1b[31m1\n", "clock": 1.5}).encode()
    answer = _pong(device(), said, 0.1)
    assert answer == Pong("b" * 64, "?[31m1?", 1.5, 0.1)


# Copies


def alike(
    *names: str, state: str = "healthy", on: str = "ab", min_copies: int = 2, count: int = 0
) -> copies.Group:
    entry = {"state": state, "min_copies": min_copies, "replicas": [{"device": place} for place in on]}
    return copies.Group(Alike(count or len(names), names), entry)


def zones(**named: str) -> list[Device]:
    return [device(name=name, zone=zone) for name, zone in named.items()]


@pytest.mark.parametrize(
    ("groups", "verdict", "words"),
    [
        ([], OK, "no repositories yet"),
        ([alike("x")], OK, "1 repository, all healthy"),
        ([alike("x", "y"), alike("z")], OK, "3 repositories, all healthy"),
        ([alike("x"), alike("y", state="degraded")], WARNING, "of 2 repositories: 1 degraded (y)"),
        ([alike("x", state="degraded"), alike("y", state="frozen")], PROBLEM, "1 frozen (y); 1 degraded (x)"),
        ([alike("x", state="unavailable")], PROBLEM, "of 1 repository: 1 unavailable (x)"),
        ([alike(*"vwx", state="degraded", count=5)], WARNING, "5 degraded (v, w, x and 2 more)"),
        (
            [alike(*"cde", state="degraded", count=99), alike("a", state="degraded")],
            WARNING,
            "100 degraded (a, c, d and 97 more)",
        ),
    ],
)
def test_states_of_copies(groups: list[copies.Group], verdict: str, words: str) -> None:
    (finding,) = copies.judge(groups, zones(a="", b=""))
    is_told(finding, verdict, words)


def test_copies_that_were_not_looked_at_are_counted() -> None:
    (finding,) = copies.judge([alike("x")], [], unseen=9)
    is_told(finding, OK, "10 repositories, all healthy but for 9 at work, which were not looked at")


@pytest.mark.parametrize(
    ("subject", "zoned", "found"),
    [
        (alike("x"), zones(a="", b=""), []),
        (alike("x"), zones(a="east", b="east"), []),  # there is no other zone to go to
        (alike("x"), zones(a="east", b="east", c="west"), ["zones"]),
        (alike("x"), zones(a="east", b="west"), []),
        (alike("x"), zones(a="", b="", c="west", d="east"), ["zones"]),
        (alike("x", on="a", min_copies=1), zones(a="east", b="west"), []),
        (alike("x", on="a"), zones(a="east", b="west"), ["min_copies"]),
        (alike("x", on="", min_copies=1), zones(a=""), ["min_copies"]),
        (alike("x", min_copies=3), zones(a="east", b="east", c="west"), ["min_copies", "zones"]),
    ],
)
def test_where_copies_are(subject: copies.Group, zoned: list[Device], found: list[str]) -> None:
    _, *findings = copies.judge([subject], zoned)
    assert [finding.check for finding in findings] == found
    for finding in findings:
        is_told(finding, WARNING, "x")


def test_some() -> None:
    assert some([], 0) == ""
    assert some(["a", "b", "c"], 3) == "a, b, c"
    assert some(["a", "b", "c", "d"], 4) == some(["a", "b", "c"], 4) == "a, b, c and 1 more"
