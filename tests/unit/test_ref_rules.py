"""The decision table of ref_rules.decide, row by row; what people may write; which action a change is."""

from __future__ import annotations

from itertools import permutations

import pytest

from cluster import ref_rules
from cluster.errors import UsageError
from cluster.model import Actor, ActorKind, RefAction, RefRule, RefUpdate
from cluster.ref_rules import ALL, decide

ANN = Actor(ActorKind.USER, "ann", "SHA256:a")
OPERATOR = Actor(ActorKind.OPERATOR, "operator", "SHA256:o")
ZERO, ONE, TWO = "0" * 40, "1" * 40, "2" * 40


def rules(*lines: str) -> list[RefRule]:
    """Rules from "ann team/* refs/heads/main create,push"; "-" is everyone."""
    words = [line.split() for line in lines]
    return [
        RefRule(None if actor == "-" else actor, pattern, ref, ref_rules.actions(may))
        for actor, pattern, ref, may in words
    ]


@pytest.mark.parametrize(
    ("given", "may", "because"),
    [
        ([], "all", ""),
        (["bob team/app refs/* none", "- other refs/* none", "- team/app refs/tags/* none"], "all", ""),
        (
            ["- team/app refs/heads/main push"],
            "push",
            "rule on refs/heads/main of team/app: everyone may push",
        ),
        # the repository's pattern counts before the ref's, and that before whom it names
        (["- team/app refs/* none", "ann team/* refs/heads/main all"], "none", "refs/* of team/app"),
        (["- team/* refs/heads/* none", "ann team/* refs/* all"], "none", "refs/heads/* of team/*"),
        (["- team/* refs/* push", "@devs team/* refs/* none"], "none", "@devs may nothing"),
        (["@devs team/* refs/* push", "ann team/* refs/* none"], "none", "ann may nothing"),
        (
            ["- * refs/heads/main none", "ann * refs/heads/main all"],
            "all",
            "ann may create, push, force, delete",
        ),
        (["- * refs/heads/ma* none", "- * refs/heads/m* all"], "none", "refs/heads/ma*"),
        # equal in all that: what any of them allows
        (
            ["@devs * refs/* push", "@ops * refs/* delete", "- * refs/* force"],
            "push,delete",
            "rule on refs/* of *: @devs may push; rule on refs/* of *: @ops may delete",
        ),
        (["@devs * refs/* none", "@ops * refs/* none"], "none", "@ops may nothing"),
    ],
)
def test_a_user(given: list[str], may: str, because: str) -> None:
    for order in permutations(rules(*given)):
        decision = decide(order, ANN, "team/app", "refs/heads/main")
        assert decision.may == ref_rules.actions(may)
        assert because in decision.because


def test_an_operator_may_do_anything() -> None:
    assert decide(rules("- * refs/* none"), OPERATOR, "team/app", "refs/heads/main").may == ALL


def test_the_refusal_names_the_rule() -> None:
    decision = decide(rules("- team/* refs/heads/main create,push"), ANN, "team/app", "refs/heads/main")
    rule = "rule on refs/heads/main of team/*: everyone may create, push; "
    assert decision.refusal(RefAction.FORCE) == f"{rule}you may not force-push it"
    assert decision.refusal(RefAction.DELETE) == f"{rule}you may not delete it"
    assert decision.refusal(None) == f"{rule}you may not move it"


@pytest.mark.parametrize(
    ("ref", "old", "new", "action"),
    [
        ("refs/heads/main", ZERO, ONE, RefAction.CREATE),
        ("refs/heads/main", ONE, ZERO, RefAction.DELETE),
        ("refs/heads/main", ZERO, ZERO, RefAction.DELETE),
        ("refs/heads/main", ONE, TWO, None),
        ("refs/tags/v1", ONE, TWO, RefAction.FORCE),
        ("refs/tags/v1", ZERO, TWO, RefAction.CREATE),
        ("refs/tags/v1", TWO, ZERO, RefAction.DELETE),
        ("refs/notes/x", ONE, TWO, None),
    ],
)
def test_what_a_change_is(ref: str, old: str, new: str, action: RefAction | None) -> None:
    assert ref_rules.action_of(RefUpdate(ref, old, new)) == action


@pytest.mark.parametrize(
    ("text", "full"),
    [
        ("main", "refs/heads/main"),
        ("release/*", "refs/heads/release/*"),
        ("*", "refs/heads/*"),
        ("refs/*", "refs/*"),
        ("refs/tags/v*", "refs/tags/v*"),
        ("tags", "refs/heads/tags"),
        ("größe", "refs/heads/größe"),
    ],
)
def test_a_pattern(text: str, full: str) -> None:
    assert ref_rules.ref_pattern(text) == full


@pytest.mark.parametrize(
    "text",
    [
        "", "/", "-x", "a//b", "a/", "/a", "a..b", "a b", "a\nb", "a~1", "a^", "a:b", "a?", "[a]", "a\\b", "a@{1}",
        ".a", "a/.b", "a.lock", "a.", "HEAD", "@", "refs", "refs/", "refs/heads/", "**", "refs/**", "x" * 1100,
        "tags/v*", "heads/main", "remotes/x", "refs/cluster/*", "refs/cluster/staged/x", "\udcff", "a\x1b[2J",
    ],
)  # fmt: skip
def test_no_pattern(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        ref_rules.ref_pattern(text)
    assert caught.value.hint
    assert caught.value.what.isascii() and caught.value.what.isprintable() and len(caught.value.what) < 200


def test_a_name_of_one_ref() -> None:
    assert ref_rules.full_ref("main") == "refs/heads/main"
    assert ref_rules.full_ref("refs/tags/v1") == "refs/tags/v1"
    with pytest.raises(UsageError, match="stands for many"):
        ref_rules.full_ref("release/*")


@pytest.mark.parametrize(
    ("text", "may"),
    [
        ("all", ["create", "push", "force", "delete"]),
        ("none", []),
        ("push,create", ["create", "push"]),
        ("Push, delete", ["push", "delete"]),
    ],
)
def test_actions(text: str, may: list[str]) -> None:
    assert ref_rules.listed(ref_rules.actions(text)) == may


@pytest.mark.parametrize("text", ["", ",", "push,", "all,push", "none,push", "write", "push create"])
def test_no_actions(text: str) -> None:
    with pytest.raises(UsageError, match="not a list of actions"):
        ref_rules.actions(text)
