"""Was every answer that clients were given possible? Pure: a history and the push log in, violations out.

A history is what clients did: each operation with the moments between which it happened, and what they were told.
It is held against two things, neither of which trusts the other.

Linearizability, ref by ref (`linearizable`). A ref is a register. There must be an order of its operations in which
each of them takes effect at one moment between its begin and its end, and every answer is true:

    a read                  returns the value of the last write before it
    an acknowledged write   takes effect; where its old value is known, that is what it replaces
    a refused write         never takes effect
    one of unknown outcome  takes effect at any moment after its begin, or never

Wing and Gong's search, with Lowe's memory of the states it has seen ("Testing for linearizability", 2017). Every
written value is unique (a commit of its own), which keeps the search short; only "no such ref" comes up again.

The push log (`against_log`). It names a total order of all changes, so more can be asked, for all refs together:
every acknowledged push is one version, no refused one is any, versions are in the order in which things happened,
and every listing is the state of exactly one version: not older than what was acknowledged or shown before.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum

ABSENT = ""
"""The value of a ref that is not there."""


class Outcome(StrEnum):
    """What a client knows of what it asked for."""

    OK = "acknowledged"
    REFUSED = "refused"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True)
class Part:
    """What one operation did to one ref. old: what it replaced, as the client was told; None: it was not."""

    ref: str
    value: str
    old: str | None = None
    outcome: Outcome = Outcome.OK


@dataclass(frozen=True, slots=True)
class Operation:
    """One thing that a client did. Times in seconds, of one clock; ended is None where no answer came."""

    number: int
    client: str
    device: str
    name: str
    writes: bool
    begun: float
    ended: float | None
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Entry:
    """One version of the push log: ref → (old, new)."""

    version: int
    changes: Mapping[str, tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Violation:
    """What cannot be, and the shortest piece of the history and of the log that shows it."""

    what: str
    operations: tuple[Operation, ...] = ()
    entries: tuple[Entry, ...] = ()
    ref: str | None = None

    def describe(self, seed: object) -> str:
        """For people: one line of what, then the operations in the order of their begin."""
        lines = [f"VIOLATION (seed {seed}): {self.ref + ': ' if self.ref else ''}{self.what}"]
        lines += [line(operation, self.ref) for operation in sorted(self.operations, key=lambda o: o.begun)]
        for entry in self.entries:
            changes = ", ".join(f"{ref} {_short(o)} → {_short(n)}" for ref, (o, n) in entry.changes.items())
            lines.append(f"  push log: version {entry.version}: {changes}")
        return "\n".join(lines)


def check(history: Iterable[Operation], log: Sequence[Entry]) -> list[Violation]:
    """Everything that is wrong with a history; `log` is oldest first and begins with version 1."""
    history = list(history)
    return against_registers(history) + against_log(history, log)


# ------------------------------------------------------------------------------------------------- register


@dataclass(frozen=True, slots=True)
class _Access:
    """One operation as one ref sees it; ended is infinite where it may take effect at any time, or never."""

    operation: Operation
    part: Part
    begun: float
    ended: float

    @property
    def reads(self) -> bool:
        return not self.operation.writes

    @property
    def required(self) -> bool:
        return self.part.outcome is Outcome.OK

    @property
    def value(self) -> str:
        return self.part.value


def against_registers(history: Sequence[Operation]) -> list[Violation]:
    """Where the answers about one ref contradict each other, for every ref."""
    refs = sorted({part.ref for operation in history for part in operation.parts})
    return [violation for ref in refs if (violation := against_register(history, ref))]


def against_register(history: Iterable[Operation], ref: str) -> Violation | None:
    """The shortest piece of `history` in which the answers about `ref` contradict each other."""
    accesses = _accesses(history, ref)
    if linearizable(accesses):
        return None
    shortest = _shrink(accesses)
    return Violation(_explain(shortest, accesses), tuple(a.operation for a in shortest), ref=ref)


def _accesses(history: Iterable[Operation], ref: str) -> list[_Access]:
    """What counts for `ref`: a read without an answer says nothing."""
    return sorted(
        (
            _Access(o, p, o.begun, math.inf if p.outcome is Outcome.UNKNOWN or o.ended is None else o.ended)
            for o in history
            for p in o.parts
            if p.ref == ref and (o.writes or p.outcome is Outcome.OK)
        ),
        key=lambda access: access.begun,
    )


def linearizable(accesses: Sequence[_Access]) -> bool:
    """Whether one order of `accesses` (sorted by begin) explains what all of them returned."""
    seen_values = {a.value for a in accesses if a.reads} | {a.part.old for a in accesses if not a.reads}
    ops = [
        a
        for a in accesses
        if a.required
        # Never acknowledged and never seen: leaving it out changes nothing for anybody.
        or (a.part.outcome is Outcome.UNKNOWN and (a.value == ABSENT or a.value in seen_values))
    ]
    required = sum(1 << i for i, a in enumerate(ops) if a.required)
    stack, seen = [(0, 0, ABSENT)], set()
    while stack:
        done, first, value = stack.pop()
        while True:
            while done >> first & 1:
                first += 1
            next_ = _next(ops, done, first)
            # A read that is true now may as well happen now: it changes nothing for the others.
            true_now = sum(1 << i for i in next_ if ops[i].reads and ops[i].value == value)
            if not true_now:
                break
            done |= true_now
        if done & required == required:
            return True
        if (done, value) in seen:
            continue
        seen.add((done, value))
        for i in next_:
            if not ops[i].reads and ops[i].part.old in (None, value):
                stack.append((done | 1 << i, first, ops[i].value))
    return False


def _next(ops: Sequence[_Access], done: int, first: int) -> list[int]:
    """Those that may come next: begun before any other that has to come has ended."""
    horizon, next_ = math.inf, []
    for i in range(first, len(ops)):
        if done >> i & 1:
            continue
        if ops[i].begun > horizon:
            break
        next_.append(i)
        if ops[i].required:
            horizon = min(horizon, ops[i].ended)
    return [i for i in next_ if ops[i].begun <= horizon]


def _shrink(accesses: Sequence[_Access]) -> list[_Access]:
    """A sub-history that is not linearizable either, and is once any one of its operations is taken away.

    Nothing is taken away that could make a good history bad: with a write go the reads of its value.
    """
    low, high = 0, len(accesses)
    ends = sorted(a.ended for a in accesses)
    while low < high:  # the shortest beginning first: the rest of the search then has little to look at
        middle = (low + high) // 2
        if linearizable(_until(accesses, ends[middle])):
            low = middle + 1
        else:
            high = middle
    beginning = _until(accesses, ends[low])
    kept = {access.operation.number for access in beginning}
    left = list(accesses)
    for access in accesses:
        if access.operation.number not in kept:
            left = _without(left, access)
    if linearizable(left):  # what was answered later matters less than what was not answered yet
        left = beginning
    size = max(1, len(left) // 2)
    while True:
        for start in reversed(range(0, len(left), size)):
            fewer = left
            for access in left[start : start + size]:
                fewer = _without(fewer, access)
            if not linearizable(fewer):
                left = fewer
                break
        else:
            if size == 1:
                return left
            size //= 2


def _until(accesses: Sequence[_Access], moment: float) -> list[_Access]:
    """The history as it was known at `moment`: what had not returned by then may or may not have happened."""
    known = []
    for access in accesses:
        if access.ended <= moment:
            known.append(access)
        elif access.begun <= moment and not access.reads:
            part = access.part
            if part.outcome is Outcome.OK:
                part = replace(part, outcome=Outcome.UNKNOWN)
            known.append(_Access(access.operation, part, access.begun, math.inf))
    return known


def _without(accesses: Sequence[_Access], gone: _Access) -> list[_Access]:
    """`accesses` less one; where that is a write, also less those who may have seen its value."""
    if all(access.operation.number != gone.operation.number for access in accesses):
        return list(accesses)
    left = []
    forgotten = math.inf
    if gone.value == ABSENT:  # nobody sees this deletion once another value has come after it
        later = (a for a in accesses if not a.reads and a.required and a.value != ABSENT)
        forgotten = min((a.ended for a in later if a.begun > gone.ended), default=math.inf)
    for access in accesses:
        if access.operation.number == gone.operation.number:
            continue
        if not gone.reads and access.ended >= gone.begun and access.begun <= forgotten:
            if access.reads and access.value == gone.value:
                continue
            if not access.reads and access.part.old == gone.value:
                part = replace(access.part, old=None)
                access = _Access(access.operation, part, access.begun, access.ended)
        left.append(access)
    return left


def _explain(shortest: Sequence[_Access], accesses: Sequence[_Access]) -> str:
    """The contradiction in words, where it is one of the usual ones."""
    writers = {a.value: a for a in accesses if not a.reads and a.value != ABSENT}
    reads = [a for a in shortest if a.reads]
    for read in reads:
        writer = writers.get(read.value)
        if read.value == ABSENT:
            continue
        if writer is None:
            return "a value is shown that nobody pushed"
        if writer.part.outcome is Outcome.REFUSED:
            return "a push that was refused is shown all the same"
        if writer.begun > read.ended:
            return "a value is shown before it was pushed"
    acknowledged = [a for a in shortest if not a.reads and a.required]
    olds = [a.part.old for a in acknowledged if a.part.old is not None]
    if len(set(olds)) < len(olds):
        return "two acknowledged pushes replaced the same value"
    if any(_replaced(read, write, writers.get(read.value)) for read in reads for write in acknowledged):
        return "a read does not show a push that was acknowledged before it began"
    if any(a.ended < b.begun and a.value != b.value for a in reads for b in reads):
        return "a later read shows an older value than an earlier one"
    return "no order of these operations explains what they returned"


def _replaced(read: _Access, write: _Access, writer: _Access | None) -> bool:
    """Whether `write` was acknowledged before `read`, and what was read (by `writer`) is what came before."""
    if read.begun <= write.ended or read.value == write.value:
        return False
    return read.value in (ABSENT, write.part.old) or (writer is not None and writer.ended < write.begun)


# ------------------------------------------------------------------------------------------------- push log


@dataclass(slots=True)
class _Log:
    """The push log, and which operation each version comes from."""

    entries: Sequence[Entry]
    states: list[dict[str, str]] = field(default_factory=lambda: [{}])
    made: dict[tuple[str, str, str], list[int]] = field(default_factory=dict)
    begun: dict[int, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for entry in self.entries:
            state = dict(self.states[-1])
            for ref, (old, new) in entry.changes.items():
                state[ref] = new
                self.made.setdefault(_key(ref, old, new), []).append(entry.version)
            self.states.append({ref: value for ref, value in state.items() if value != ABSENT})

    def versions_of(self, part: Part) -> list[int]:
        return self.made.get(_key(part.ref, part.old, part.value), [])

    def showing(self, parts: Sequence[Part]) -> list[int]:
        """The versions at which the refs were as `parts` say."""
        return [
            version
            for version, state in enumerate(self.states)
            if all(state.get(part.ref, ABSENT) == part.value for part in parts)
        ]


def _key(ref: str, old: str | None, new: str) -> tuple[str, str, str]:
    """What identifies a change: its new value, or for a deletion the value that it deleted."""
    return (ref, "", new) if new != ABSENT else (ref, old or "", new)


def against_log(history: Sequence[Operation], entries: Sequence[Entry]) -> list[Violation]:
    """What the push log and the history say of each other that cannot be."""
    found = _log_itself(entries)
    if found:
        return found
    log = _Log(entries)
    found += _membership(history, log)
    found += _order(history, log)
    return found


def _log_itself(entries: Sequence[Entry]) -> list[Violation]:
    """No gap, and every change begins where the one before it ended."""
    state: dict[str, str] = {}
    for expected, entry in enumerate(entries, 1):
        if entry.version != expected:
            return [Violation(f"the push log has no version {expected}", entries=(entry,))]
        for ref, (old, new) in entry.changes.items():
            if state.get(ref, ABSENT) != old:
                before = [e for e in entries[: expected - 1] if ref in e.changes][-1:]
                what = f"version {entry.version} replaces a value that {ref} did not have"
                return [Violation(what, entries=(*before, entry), ref=ref)]
            state[ref] = new
    return []


def _membership(history: Sequence[Operation], log: _Log) -> list[Violation]:
    """Acknowledged pushes are in the log, refused ones are not, and nothing else is."""
    found: list[Violation] = []
    accounted: set[tuple[int, str]] = set()
    for operation in history:
        if not operation.writes:
            continue
        versions: set[int] = set()
        for part in operation.parts:
            if part.value == ABSENT and part.old is None:
                continue  # nothing in the log could be told to be this one
            at = log.versions_of(part)
            accounted.update((version, part.ref) for version in at)
            if part.outcome is Outcome.OK and not at:
                what = "a push was acknowledged and is not in the push log"
                found.append(Violation(what, (operation,), ref=part.ref))
            if part.outcome is Outcome.REFUSED and at and not _asked_again(history, operation, part):
                what = "a push was refused and is in the push log"
                found.append(Violation(what, (operation,), (log.entries[at[0] - 1],), ref=part.ref))
            versions.update(at)
        if len(versions) > 1:
            entries = tuple(log.entries[v - 1] for v in sorted(versions))
            found.append(Violation("one push is several versions", (operation,), entries))
        for version in versions:
            log.begun[version] = min(operation.begun, log.begun.get(version, operation.begun))
    for entry in log.entries:
        if nobodys := [ref for ref in entry.changes if (entry.version, ref) not in accounted]:
            found.append(
                Violation("the push log has a change that nobody made", entries=(entry,), ref=nobodys[0])
            )
    return found


def _asked_again(history: Sequence[Operation], operation: Operation, part: Part) -> bool:
    """Whether somebody else also asked for this change: two may want to delete the same value."""
    wanted = _key(part.ref, part.old, part.value)
    return any(
        other is not operation and p.outcome is not Outcome.REFUSED
        for other in history
        if other.writes
        for p in other.parts
        if _key(p.ref, p.old, p.value) == wanted
    )


def _order(history: Sequence[Operation], log: _Log) -> list[Violation]:
    """Versions are in the order of time, and each read is one version: no older than what was known before it.

    A read gets the oldest version that it may be, so whatever comes after it has the most room.
    """
    found: list[Violation] = []
    floor, by = 0, None
    ended: list[tuple[float, int, int]] = []
    known: dict[int, Operation] = {}
    for operation in sorted(history, key=lambda o: o.begun):
        while ended and ended[0][0] < operation.begun:
            _, version, number = heapq.heappop(ended)
            if version > floor:
                floor, by = version, known[number]
        earlier = (by,) if by else ()
        if operation.writes:
            # What somebody else may have deleted as well is this one's version only where this one was told so.
            certain = [p for p in operation.parts if p.outcome is Outcome.OK or p.value != ABSENT]
            at = [v for part in certain for v in log.versions_of(part)]
            if not at:
                continue
            version = at[0]
            told = any(part.outcome is Outcome.OK for part in operation.parts)
            if version <= floor:
                what = f"version {version} was pushed after version {floor} was known"
                entries = tuple(log.entries[v - 1] for v in (version, floor))
                found.append(Violation(what, (*earlier, operation), entries))
        else:
            if operation.ended is None or any(part.outcome is not Outcome.OK for part in operation.parts):
                continue
            showing = log.showing(operation.parts)
            possible = [
                v for v in showing if v >= floor and log.begun.get(v, operation.begun) <= operation.ended
            ]
            if not possible:
                found.append(_impossible(operation, showing, floor, earlier, log))
                continue
            version, told = possible[0], True
        if told and operation.ended is not None:
            known[operation.number] = operation
            heapq.heappush(ended, (operation.ended, version, operation.number))
    return found


def _impossible(
    read: Operation, showing: list[int], floor: int, earlier: tuple[Operation, ...], log: _Log
) -> Violation:
    if not showing:
        what = "a listing shows refs together as they were at no version"
    elif max(showing) < floor:
        what = f"a listing shows version {max(showing)}, and version {floor} was known before it began"
    else:
        what = f"a listing shows version {max(showing)} before it was pushed"
    entries = tuple(log.entries[v - 1] for v in sorted({*showing[-1:], floor}) if v)
    return Violation(what, (*earlier, read), entries)


# -------------------------------------------------------------------------------------------------- in words


def _short(value: str) -> str:
    return value[:10] or "(none)"


def line(operation: Operation, ref: str | None = None) -> str:
    """One operation, for people; of one ref alone, where it is given."""
    ended = "   never" if operation.ended is None else f"{operation.ended:8.3f}"
    parts = []
    for part in operation.parts:
        if ref is not None and part.ref != ref:
            continue
        if operation.writes:
            old = "?" if part.old is None else _short(part.old)
            parts.append(f"{part.ref} {old} → {_short(part.value)} {part.outcome}")
        elif part.outcome is Outcome.OK:
            parts.append(f"{part.ref} = {_short(part.value)}")
    what = f"{operation.client} on {operation.device}: {operation.name}"
    return f"  {operation.begun:8.3f} to {ended} s  {what}  {', '.join(parts)}"
