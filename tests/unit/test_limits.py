"""The limits as pure decisions: who is counted, what is overdue, who is slowed, who leaves."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from cluster.errors import Refused
from cluster.limits import (
    MOST_ADDRESSES,
    Counts,
    FailedLogins,
    Sessions,
    Slowed,
    duration,
    least_welcome,
    network,
    overdue,
    size,
    surplus,
)
from cluster.model import Actor, ActorKind


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("2001:db8:1:3::9", "2001:db8:1:3::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("::1", "::/64"),
        ("nonsense", "nonsense"),
        ("", ""),
    ],
)
def test_who_is_taken_for_one_client(address: str, expected: str) -> None:
    assert network(address) == expected


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (1, "1 second"),
        (1.5, "1.5 seconds"),
        (90, "90 seconds"),
        (60, "1 minute"),
        (1800, "30 minutes"),
        (3600, "1 hour"),
        (5400, "90 minutes"),
        (43200, "12 hours"),
        (0.5, "0.5 seconds"),
    ],
)
def test_durations_in_words(seconds: float, words: str) -> None:
    assert duration(seconds) == words


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (1, "1 byte"),
        (1000, "1000 bytes"),
        (1024, "1 KiB"),
        (1536, "1536 bytes"),
        (10 * 2**30, "10 GiB"),
        (2**40, "1 TiB"),
        (1000000, "1000000 bytes"),
        (500 * 2**20, "500 MiB"),
    ],
)
def test_sizes_in_words(number: int, words: str) -> None:
    assert size(number) == words


# Commands at once

ADA, BOB = (Actor(ActorKind.USER, name, "SHA256:x") for name in ("ada", "bob"))
DEVICE, OPERATOR = Actor(ActorKind.DEVICE, "b", "SHA256:y"), Actor(ActorKind.OPERATOR, "root", "SHA256:z")


@pytest.mark.parametrize(
    ("running", "comes", "why"),
    [
        ([], (ADA, "192.0.2.1"), None),
        ([(ADA, "192.0.2.1")], (ADA, "192.0.2.2"), None),
        (
            [(ADA, "192.0.2.1"), (ADA, "192.0.2.2")],
            (ADA, "192.0.2.3"),
            "you have 2 sessions open on this device",
        ),
        ([(ADA, "192.0.2.1"), (ADA, "192.0.2.2")], (BOB, "192.0.2.3"), None),
        (
            [(ADA, "192.0.2.1"), (ADA, "192.0.2.1"), (BOB, "192.0.2.1")],
            (BOB, "192.0.2.1"),
            "192.0.2.1 has 3 sessions open on this device, the most that one address may have",
        ),
        ([(ADA, "::1"), (ADA, "::2"), (BOB, "::3")], (BOB, "::4"), "::/64 has 3 sessions"),
        ([(ADA, ""), (ADA, ""), (BOB, "")], (BOB, ""), None),
        ([(DEVICE, "192.0.2.1")] * 9, (DEVICE, "192.0.2.1"), None),
        ([(DEVICE, "192.0.2.1")] * 9, (ADA, "192.0.2.1"), None),
        ([(ADA, "192.0.2.1")] * 2, (OPERATOR, "192.0.2.1"), None),
        ([(OPERATOR, "192.0.2.1")] * 9, (ADA, "192.0.2.1"), None),
    ],
)
def test_sessions(running: list[tuple[Actor, str]], comes: tuple[Actor, str], why: str | None) -> None:
    counts = Counts()
    sessions = Sessions(per_address=3, per_user=2, counts=counts)
    with ExitStack() as stack:
        for each in running:
            stack.enter_context(sessions.one(*each))
        if why is None:
            with sessions.one(*comes):
                pass
        else:
            with pytest.raises(Refused, match=why) as caught, sessions.one(*comes):
                pass
            assert caught.value.hint == "end some, or try again when they have ended"
    with sessions.one(*comes):  # nothing of those that ended is left
        assert sum(counts._running.values()) in (0, 1, 2)
    assert not counts._running


def test_a_session_that_fails_counts_no_longer() -> None:
    sessions = Sessions(per_address=1, per_user=1)
    for _ in range(3):
        with pytest.raises(ValueError), sessions.one(ADA, "192.0.2.1"):
            raise ValueError
    with (
        pytest.raises(Refused, match="you have 1 session open"),
        sessions.one(ADA, ""),
        sessions.one(ADA, ""),
    ):
        pass


# Silence and age


@pytest.mark.parametrize(
    ("now", "begun", "stirred", "why"),
    [
        (100.0, 100.0, 100.0, None),
        (159.9, 100.0, 100.0, None),
        (160.0, 100.0, 100.0, "nothing was sent for 1 minute"),
        (699.0, 100.0, 698.0, None),
        (700.0, 100.0, 699.0, "a session lasts at most 10 minutes"),
    ],
)
def test_overdue(now: float, begun: float, stirred: float, why: str | None) -> None:
    assert overdue(now, begun, stirred, idle=60.0, total=600.0) == why


# Logins that fail


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def logins(clock: Clock) -> FailedLogins:
    return FailedLogins(3, clock)


def fail(logins: FailedLogins, times: int, address: str = "192.0.2.1") -> list[Slowed]:
    return [logins.failed(address) for _ in range(times)]


def test_more_than_the_limit_are_slowed_and_that_is_said_once(logins: FailedLogins) -> None:
    assert fail(logins, 3) == [Slowed.NOT] * 3
    assert logins.delay("192.0.2.1") == 0.0
    assert fail(logins, 4) == [Slowed.FROM_NOW, Slowed.ALREADY, Slowed.ALREADY, Slowed.ALREADY]
    assert [logins.delay("192.0.2.1") for _ in range(6)] == [1.0, 2.0, 4.0, 8.0, 8.0, 8.0]
    assert logins.delay("192.0.2.2") == 0.0


def test_who_logs_in_is_slowed_no_longer(logins: FailedLogins) -> None:
    fail(logins, 9)
    logins.succeeded("192.0.2.1")
    assert logins.delay("192.0.2.1") == 0.0
    assert fail(logins, 4) == [Slowed.NOT, Slowed.NOT, Slowed.NOT, Slowed.FROM_NOW]


@pytest.mark.parametrize(
    ("every", "slowed"),
    [(1.0, True), (10.0, True), (19.0, True), (20.1, False), (60.0, False)],
)
def test_as_many_in_a_minute_are_no_attack(
    logins: FailedLogins, clock: Clock, every: float, slowed: bool
) -> None:
    for _ in range(500):
        fail(logins, 1)
        clock.now += every
    clock.now -= every
    assert (logins.delay("192.0.2.1") > 0) is slowed


def test_a_flood_is_forgotten_two_minutes_later(logins: FailedLogins, clock: Clock) -> None:
    fail(logins, 10_000)
    clock.now += 119
    assert logins.delay("192.0.2.1") == 1.0
    clock.now += 2
    assert logins.delay("192.0.2.1") == 0.0
    assert len(logins) == 0


def test_an_ipv6_network_is_one_client(logins: FailedLogins) -> None:
    assert [logins.failed(f"2001:db8::{number}") for number in range(4)] == [
        Slowed.NOT,
        Slowed.NOT,
        Slowed.NOT,
        Slowed.FROM_NOW,
    ]
    assert logins.delay("2001:db8::ffff") == 1.0
    assert logins.delay("2001:db8:0:1::1") == 0.0


def test_memory_is_bounded_and_the_oldest_are_forgotten(logins: FailedLogins) -> None:
    for number in range(3 * MOST_ADDRESSES):
        fail(logins, 4, f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
    assert len(logins) == MOST_ADDRESSES
    assert logins.delay("10.0.0.0") == 0.0 and logins.delay("10.0.47.255") == 1.0


# Who leaves


@dataclass(frozen=True)
class Stranger:
    address: str
    since: float
    progress: int = 0


@pytest.mark.parametrize(
    ("strangers", "leaves"),
    [
        ([("a", 1.0)], 0),
        ([("a", 2.0), ("a", 1.0)], 1),
        ([("a", 1.0), ("b", 2.0), ("b", 3.0)], 1),
        ([("a", 1.0), ("b", 2.0, 1), ("b", 3.0, 0)], 2),
        ([("a", 1.0, 2), ("a", 2.0, 1), ("a", 3.0, 1)], 1),
        ([("192.0.2.1", 0.0), ("2001:db8::1", 2.0), ("2001:db8::2", 1.0)], 2),
    ],
)
def test_who_leaves(strangers: list[tuple[str, float]], leaves: int) -> None:
    found = [Stranger(*each) for each in strangers]
    assert least_welcome(found) is found[leaves]


@dataclass(frozen=True)
class Visitor:
    user: str
    address: str
    idle_since: float | None = None


@pytest.mark.parametrize(
    ("visitors", "leave"),
    [
        ([], []),
        ([("ada", "a"), ("ada", "b"), ("ada", "c")], []),
        ([("ada", "a", 1.0), ("ada", "b", 2.0)], []),
        ([("ada", "a", 1.0), ("ada", "b", 2.0), ("ada", "c")], [0]),
        ([("ada", "a", 1.0), ("ada", "b", 2.0), ("ada", "c", 0.5), ("bob", "d", 0.1)], [2]),
        ([("ada", "a"), ("ada", "b"), ("ada", "c", 3.0)], [2]),
        ([("ada", "a", 3.0), ("bob", "a", 2.0), ("cy", "a", 4.0), ("dan", "a", 1.0)], [3]),
    ],
)
def test_which_connections_are_too_many(visitors: list[tuple[str, str]], leave: list[int]) -> None:
    found = [Visitor(*each) for each in visitors]
    assert surplus(found, per_address=3, per_user=2) == [found[number] for number in leave]
