"""The history checker on histories made by hand and by a simulated register: what it passes, finds and prints."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.history import (
    ABSENT,
    Entry,
    Operation,
    Outcome,
    Part,
    against_log,
    against_register,
    check,
)

R = "refs/heads/r"
S = "refs/heads/s"
OK, REFUSED, UNKNOWN = Outcome.OK, Outcome.REFUSED, Outcome.UNKNOWN


def push(begun: float, ended: float, value: str, old: str | None = None, outcome: Outcome = OK) -> Operation:
    return both(begun, ended, Part(R, value, old, outcome))


def both(begun: float, ended: float, *parts: Part) -> Operation:
    return Operation(0, "c", "a", "push", True, begun, ended, parts)


def read(begun: float, ended: float, value: str, **others: str) -> Operation:
    parts = (Part(R, value), *(Part(f"refs/heads/{name}", other) for name, other in others.items()))
    return Operation(0, "d", "b", "list", False, begun, ended, parts)


def log(*changes: dict[str, tuple[str, str]]) -> list[Entry]:
    return [Entry(version, change) for version, change in enumerate(changes, 1)]


def numbered(*operations: Operation) -> list[Operation]:
    return [replace(operation, number=number) for number, operation in enumerate(operations)]


# ------------------------------------------------------------------------------------------ one ref: register

GOOD = {
    "nothing": [],
    "an empty repository": [read(0, 1, ABSENT)],
    "one after the other": [push(0, 1, "x", ABSENT), read(2, 3, "x"), push(4, 5, "y", "x"), read(6, 7, "y")],
    "a read meanwhile sees the old value": [push(0, 1, "x"), push(2, 5, "y", "x"), read(3, 4, "x")],
    "a read meanwhile sees the new value": [push(0, 1, "x"), push(2, 5, "y", "x"), read(3, 4, "y")],
    "two at once, in either order": [push(0, 9, "x"), push(0, 9, "y"), read(10, 11, "x"), read(12, 13, "x")],
    "a deletion": [push(0, 1, "x"), push(2, 3, ABSENT, "x"), read(4, 5, ABSENT), push(6, 7, "y", ABSENT)],
    "a refused one is never seen": [push(0, 1, "x"), push(2, 3, "y", "x", REFUSED), read(4, 5, "x")],
    "an unknown one is seen": [push(0, 1, "x"), push(2, 3, "y", "x", UNKNOWN), read(4, 5, "y")],
    "an unknown one is not seen": [push(0, 1, "x"), push(2, 3, "y", "x", UNKNOWN), read(4, 5, "x")],
    "an unknown one is seen late": [
        push(0, 1, "x"),
        push(2, 3, "y", "x", UNKNOWN),
        read(4, 5, "x"),
        read(6, 7, "y"),
        push(8, 9, "z", "y"),
    ],
    "an unknown deletion, late": [
        push(0, 1, "x"),
        push(2, 3, ABSENT, "x", UNKNOWN),
        read(4, 5, "x"),
        read(6, 7, ABSENT),
    ],
    "at the same moment counts as meanwhile": [push(0, 1, "x"), push(1, 2, "y"), read(2, 3, "x")],
}

BAD = {
    "stale": (
        [push(0, 1, "x"), push(2, 3, "y", "x"), read(4, 5, "x")],
        "a read does not show a push that was acknowledged before it began",
    ),
    "lost": (
        [push(0, 1, "x"), read(2, 3, ABSENT)],
        "a read does not show a push that was acknowledged before it began",
    ),
    "back and forth": (
        [push(0, 1, "x"), push(2, 9, "y", "x"), read(3, 4, "y"), read(5, 6, "x")],
        "a later read shows an older value than an earlier one",
    ),
    "unknown, back and forth": (
        [push(0, 1, "x"), push(2, 3, "y", "x", UNKNOWN), read(4, 5, "y"), read(6, 7, "x")],
        "a later read shows an older value than an earlier one",
    ),
    "refused and seen": (
        [push(0, 1, "x"), push(2, 3, "y", "x", REFUSED), read(4, 5, "y")],
        "a push that was refused is shown all the same",
    ),
    "from nowhere": ([read(0, 1, "x")], "a value is shown that nobody pushed"),
    "from the future": ([read(0, 1, "x"), push(2, 3, "x")], "a value is shown before it was pushed"),
    "two took the same place": (
        [push(0, 1, "x"), push(2, 9, "y", "x"), push(2, 9, "z", "x")],
        "two acknowledged pushes replaced the same value",
    ),
    "deleted twice": (
        [push(0, 1, "x"), push(2, 9, ABSENT, "x"), push(2, 9, ABSENT, "x")],
        "two acknowledged pushes replaced the same value",
    ),
    "not what it replaced": (
        [push(0, 1, "x"), push(2, 3, "y", "x"), push(4, 5, "z", ABSENT)],
        "no order of these operations explains what they returned",
    ),
}


@pytest.mark.parametrize("history", GOOD.values(), ids=GOOD)
def test_a_possible_history_passes(history: list[Operation]) -> None:
    assert against_register(numbered(*history), R) is None


@pytest.mark.parametrize(("history", "what"), BAD.values(), ids=BAD)
def test_an_impossible_one_is_named(history: list[Operation], what: str) -> None:
    found = against_register(numbered(*history), R)
    assert found is not None and found.what == what


def test_the_shortest_piece_is_printed_with_the_seed() -> None:
    around = [operation for n in range(0, 200, 4) for operation in _pair(n)]
    wrong = [push(300, 301, "lost", "v196"), read(302, 303, "v196")]
    after = [push(400, 401, "z"), read(402, 403, "z")]
    found = against_register(numbered(*around, *wrong, *after), R)
    assert found is not None
    assert found.describe(7).splitlines() == [
        f"VIOLATION (seed 7): {R}: a read does not show a push that was acknowledged before it began",
        f"   196.000 to  197.000 s  c on a: push  {R} v192 → v196 acknowledged",
        f"   300.000 to  301.000 s  c on a: push  {R} v196 → lost acknowledged",
        f"   302.000 to  303.000 s  d on b: list  {R} = v196",
    ]


def _pair(n: int) -> list[Operation]:
    return [push(n, n + 1, f"v{n}", f"v{n - 4}" if n else ABSENT), read(n + 2, n + 3, f"v{n}")]


def test_many_unknown_outcomes_are_searched_quickly() -> None:
    """A thousand operations, a third of them never answered and half of those carried out later."""
    history, value = [], ABSENT
    for n in range(0, 1000, 2):
        history.append(push(n, n + 1, f"v{n}", value, UNKNOWN if n % 3 else OK))
        if n % 4 == 0 or n % 3 == 0:
            value = f"v{n}"
        else:
            history.append(push(n, n + 1, ABSENT, f"v{n}", UNKNOWN))
        history.append(read(n + 1.5, n + 1.7, value))
    assert against_register(numbered(*history), R) is None


# ------------------------------------------------------------------------------------------- the push log

LOG = log({R: (ABSENT, "x")}, {R: ("x", "y"), S: (ABSENT, "u")}, {R: ("y", ABSENT)})
PUSHES = [
    push(0, 1, "x", ABSENT),
    both(2, 3, Part(R, "y", "x"), Part(S, "u", ABSENT)),
    push(4, 5, ABSENT, "y"),
]


def test_a_history_that_agrees_with_the_log_passes() -> None:
    listings = [
        read(1.5, 1.6, "x", s=ABSENT),
        read(2, 2.1, "x", s=ABSENT),
        read(2.2, 2.3, "y", s="u"),
        read(4, 4.5, ABSENT, s="u"),
        read(9, 9.5, ABSENT, s="u"),
    ]
    assert check(numbered(*PUSHES, *listings), LOG) == []


LOGS: dict[str, tuple[Sequence[Operation], Sequence[Entry], str]] = {
    "lost": ([*PUSHES, push(6, 7, "z")], LOG, "a push was acknowledged and is not in the push log"),
    "refused": (
        [replace(PUSHES[0], parts=(Part(R, "x", ABSENT, REFUSED),)), *PUSHES[1:]],
        LOG,
        "a push was refused and is in the push log",
    ),
    "nobody": (PUSHES[1:], LOG, "the push log has a change that nobody made"),
    "gap": (PUSHES, LOG[:1] + LOG[2:], "the push log has no version 2"),
    "broken chain": (
        PUSHES,
        [*LOG[:2], Entry(3, {R: ("x", ABSENT)})],
        f"version 3 replaces a value that {R} did not have",
    ),
    "torn push": (
        PUSHES[:2],
        log({R: (ABSENT, "x")}, {R: ("x", "y")}, {S: (ABSENT, "u")}),
        "one push is several versions",
    ),
    "other order": (
        [push(0, 1, "x"), both(2, 3, Part(S, "u"))],
        log({S: (ABSENT, "u")}, {R: (ABSENT, "x")}),
        "version 1 was pushed after version 2 was known",
    ),
    "torn listing": (
        [*PUSHES, read(2.2, 2.3, "y", s=ABSENT)],
        LOG,
        "a listing shows refs together as they were at no version",
    ),
    "stale listing": (
        [*PUSHES, read(6, 7, "x", s=ABSENT)],
        LOG,
        "a listing shows version 1, and version 3 was known before it began",
    ),
    "listings back and forth": (
        [*PUSHES[:1], replace(PUSHES[1], ended=9), read(4, 5, "y", s="u"), read(6, 7, "x", s=ABSENT)],
        LOG[:2],
        "a listing shows version 1, and version 2 was known before it began",
    ),
    "listing of the future": (
        [*PUSHES, read(1.2, 1.3, "y", s="u")],
        LOG,
        "a listing shows version 2 before it was pushed",
    ),
}


@pytest.mark.parametrize(("history", "entries", "what"), LOGS.values(), ids=LOGS)
def test_a_contradiction_with_the_log_is_named(
    history: Sequence[Operation], entries: Sequence[Entry], what: str
) -> None:
    assert what in [violation.what for violation in against_log(numbered(*history), entries)]


def test_a_deletion_that_two_asked_for_belongs_to_the_one_that_was_told_so() -> None:
    history = numbered(
        push(0, 1, "x", ABSENT), push(2, 3, ABSENT, "x"), push(5, 6, ABSENT, "x", REFUSED), read(7, 8, ABSENT)
    )
    assert check(history, log({R: (ABSENT, "x")}, {R: ("x", ABSENT)})) == []


# --------------------------------------------------------------------------------- against all permutations


def brute(history: Sequence[Operation]) -> bool:
    """Linearizability by trying every order of every choice of unknown writes."""
    must = [o for o in history if o.parts[0].outcome is OK]
    may = [o for o in history if o.writes and o.parts[0].outcome is UNKNOWN]
    return any(
        _true(order)
        for chosen in range(1 << len(may))
        for order in permutations([*must, *(o for i, o in enumerate(may) if chosen >> i & 1)])
    )


def _true(order: Sequence[Operation]) -> bool:
    value, latest = ABSENT, -math.inf
    for operation in order:
        part = operation.parts[0]
        ended = math.inf if part.outcome is UNKNOWN or operation.ended is None else operation.ended
        if ended < latest:
            return False
        latest = max(latest, operation.begun)
        if operation.writes:
            if part.old not in (None, value):
                return False
            value = part.value
        elif part.value != value:
            return False
    return True


@st.composite
def small_histories(draw: st.DrawFn) -> list[Operation]:
    operations = []
    values = [ABSENT, "0", "1", "2", "3", "4"]
    for n in range(draw(st.integers(0, 5))):
        begun = draw(st.integers(0, 8))
        ended = begun + draw(st.integers(1, 4))
        if draw(st.booleans()):
            value = draw(st.sampled_from([str(n), str(n), ABSENT]))
            old = draw(st.sampled_from([None, *values]))
            operations.append(push(begun, ended, value, old, draw(st.sampled_from(list(Outcome)))))
        else:
            operations.append(read(begun, ended, draw(st.sampled_from(values))))
    return numbered(*operations)


@settings(max_examples=400, deadline=None)
@given(small_histories())
def test_the_search_agrees_with_trying_every_order(history: list[Operation]) -> None:
    found = against_register(history, R)
    assert (found is None) == brute(history)
    if found is not None:
        assert set(found.operations) <= set(history)


# ------------------------------------------------------------------------------- from a simulated repository


def simulated(random_: random.Random, size: int) -> tuple[list[Operation], list[Entry]]:
    """A history that some repository could have had, with its log: operation n takes effect at the moment n."""
    refs = {R: ABSENT, S: ABSENT}
    history: list[Operation] = []
    entries: list[Entry] = []
    for n in range(size):
        begun, ended = n - random_.expovariate(0.5), n + random_.expovariate(0.5)
        device, client = random_.choice("abc"), random_.choice("xyz")
        if random_.random() < 0.5:
            parts = tuple(Part(ref, value) for ref, value in refs.items())
            history.append(Operation(n, client, device, "list", False, begun, ended, parts))
            continue
        changes, outcome = {}, random_.choice([OK, OK, OK, REFUSED, UNKNOWN])
        for ref in random_.choice([(R,), (S,), (R, S)]):
            value = ABSENT if refs[ref] and random_.random() < 0.2 else f"{ref[-1]}{n}"
            changes[ref] = (refs[ref], value)
        if outcome is OK or (outcome is UNKNOWN and random_.random() < 0.5):
            entries.append(Entry(len(entries) + 1, changes))
            refs |= {ref: new for ref, (_, new) in changes.items()}
        parts = tuple(Part(ref, new, old, outcome) for ref, (old, new) in changes.items())
        history.append(Operation(n, client, device, "push", True, begun, ended, parts))
    return history, entries


seeds = st.builds(random.Random, st.integers(0, 2**32))
sizes = st.integers(1, 60)


@settings(
    deadline=None, derandomize=True
)  # one in some thousand simulations makes two pushes that look alike
@given(seeds, sizes)
def test_what_a_simulated_repository_did_passes(random_: random.Random, size: int) -> None:
    history, entries = simulated(random_, size)
    assert check(history, entries) == []


def _stale_read(history: list[Operation], entries: list[Entry], random_: random.Random) -> None:
    """Afterwards somebody is shown a value that an acknowledged push had replaced."""
    parts = [part for operation in history if operation.writes for part in operation.parts]
    olds = [part.old for part in parts if part.ref == R and part.outcome is OK and part.old]
    history.append(read(1000, 1001, random_.choice(olds) if olds else "from nowhere"))


def _lost_push(history: list[Operation], entries: list[Entry], random_: random.Random) -> None:
    """One more push is acknowledged, and afterwards the refs are as they were before."""
    now = ABSENT
    for entry in entries:
        now = entry.changes.get(R, ("", now))[1]
    history.append(push(1000, 1001, "lost", now))
    history.append(read(1002, 1003, now))


def _double_push(history: list[Operation], entries: list[Entry], random_: random.Random) -> None:
    """Two pushes replaced one value, and both were acknowledged."""
    history.append(push(1000, 1001, "base"))
    history.append(push(1002, 1010, "one", "base"))
    history.append(push(1002, 1010, "two", "base"))


def _refused_and_shown(history: list[Operation], entries: list[Entry], random_: random.Random) -> None:
    history.append(push(1000, 1001, "refused", None, REFUSED))
    history.append(read(1002, 1003, "refused"))


Mutation = Callable[[list[Operation], list[Entry], random.Random], None]


@pytest.mark.parametrize("mutation", [_stale_read, _lost_push, _double_push, _refused_and_shown])
@settings(deadline=None)
@given(seeds, sizes)
def test_a_wrong_answer_is_found_in_the_register_alone(
    mutation: Mutation, random_: random.Random, size: int
) -> None:
    history, entries = simulated(random_, size)
    mutation(history, entries, random_)
    found = against_register(numbered(*history), R)
    assert found is not None
    assert len(found.operations) <= 16  # a chain of pushes that led there is as short as the history has it
    assert against_register(_by_itself(found.operations), R) is not None


def _by_itself(operations: Sequence[Operation]) -> list[Operation]:
    """Without the old values whose pushes were left out: they would be contradictions of their own."""
    values = {ABSENT, *(part.value for o in operations for part in o.parts)}
    return [
        replace(o, parts=tuple(replace(p, old=p.old if p.old in values else None) for p in o.parts))
        for o in operations
    ]


@settings(deadline=None)
@given(seeds, sizes)
def test_a_push_that_the_log_forgot_is_found(random_: random.Random, size: int) -> None:
    history, entries = simulated(random_, size)
    acknowledged = [
        o for o in history if o.writes and o.parts[0].outcome is OK and o.parts[0].value != ABSENT
    ]
    if not acknowledged:
        return
    gone = random_.choice(acknowledged).parts[0].value
    left = [e for e in entries if gone not in (new for _, new in e.changes.values())]
    renumbered = [replace(entry, version=version) for version, entry in enumerate(left, 1)]
    assert against_log(history, renumbered)
