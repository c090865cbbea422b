"""The decision table of access.decide, row by row."""

from __future__ import annotations

from itertools import permutations

import pytest

from cluster.access import Decision, administers, decide
from cluster.model import Actor, ActorKind, Grant, Level

ANN = Actor(ActorKind.USER, "ann", "SHA256:a")
DEVICE = Actor(ActorKind.DEVICE, "ann", "SHA256:d")
OPERATOR = Actor(ActorKind.OPERATOR, "ann", "SHA256:o")


def grants(*lines: str) -> list[Grant]:
    """Grants from "ann write team/*"; "-" is everyone."""
    words = [line.split() for line in lines]
    return [Grant(None if actor == "-" else actor, pattern, Level(level)) for actor, level, pattern in words]


@pytest.mark.parametrize(
    ("given", "level", "because"),
    [
        ([], None, "ann may nothing: no grant to ann or to everyone covers team/app"),
        (["bob admin team/app", "bob admin *"], None, "ann may nothing"),
        (["ann write team/other", "- read t/*"], None, "ann may nothing"),
        (["ann write team/*"], Level.WRITE, "ann may write: grant write to ann on team/*"),
        (["- read *"], Level.READ, "ann may read: grant read to everyone on *"),
        (["ann admin *", "ann read team/*"], Level.READ, "grant read to ann on team/*"),
        (["ann read *", "ann admin team/*"], Level.ADMIN, "grant admin to ann on team/*"),
        (["ann write team/a*", "ann read team/app"], Level.READ, "on team/app"),
        (["ann write team/*", "- read team/app"], Level.READ, "grant read to everyone on team/app"),
        (["ann read team/*", "- write team/*"], Level.READ, "grant read to ann on team/*"),
        (["ann write *", "- read *", "bob admin team/app"], Level.WRITE, "grant write to ann on *"),
        (["ann write team/*pp", "ann read team/ap*"], Level.WRITE, "grant write to ann on team/*pp"),
        (["ann read team/*pp", "ann read team/ap*"], Level.READ, "grant read to ann on team/ap*"),
    ],
)
def test_a_user(given: list[str], level: Level | None, because: str) -> None:
    for order in permutations(grants(*given)):
        decision = decide(order, ANN, "team/app")
        assert decision.level == level
        assert because in decision.because
        assert decision.grant is None if level is None else decision.grant in order


def test_an_operator_may_do_anything() -> None:
    decision = decide([], OPERATOR, "team/app")
    assert all(decision.allows(level) for level in Level)
    assert decision.because == "operator ann may admin: operators may do anything"


def test_a_device_reads_whatever_the_grants_say() -> None:
    for given in ([], grants("ann admin *")):
        decision = decide(given, DEVICE, "team/app")
        assert decision.level is Level.READ
        assert decision.grant is None


@pytest.mark.parametrize(
    ("level", "allowed"),
    [
        (None, []),
        (Level.READ, ["read"]),
        (Level.WRITE, ["read", "write"]),
        (Level.ADMIN, ["read", "write", "admin"]),
    ],
)
def test_a_level_includes_those_before_it(level: Level | None, allowed: list[str]) -> None:
    assert [each.value for each in Level if Decision(level, "").allows(each)] == allowed


@pytest.mark.parametrize(
    ("given", "does"),
    [
        ([], False),
        (["ann admin *"], True),
        (["@ops admin *"], True),
        (["- admin *"], False),  # else a slip would make everybody an administrator of everything
        (["ann write *", "- admin *"], False),
        (["ann admin team/*", "ann admin team/app"], False),
        (["ann read *", "@ops admin *"], False),
        (["ann admin *", "@ops read *"], True),
        (["@dev read *", "@ops admin *"], True),
        (["ann admin *", "ann read team/*"], True),
    ],
)
def test_who_administers_the_cluster(given: list[str], does: bool) -> None:
    for order in permutations(grants(*given)):
        assert administers(order) is does
