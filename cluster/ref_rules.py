"""What a push may do to a ref: rules in, a decision and its reason out. No input or output of its own.

A rule's ref pattern is a full ref name in which '*' stands for text, as it does in the names of repositories:
as the last part for everything below, at any depth, elsewhere for text within one part.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from cluster import names
from cluster.access import naming
from cluster.errors import UsageError
from cluster.model import Actor, ActorKind, RefAction, RefRule, RefUpdate

ALL = frozenset(RefAction)
PROTECTED = frozenset({RefAction.CREATE, RefAction.PUSH})
"""What `git-cluster protect` leaves."""

MAX_REF = 1024
"""Bytes of a ref pattern: as many as a pushed ref's name may have."""

_HINT = (
    "A branch goes by its short name (main, release/*), any other ref by its full one (refs/tags/v*). "
    "'*' as a last part reaches any depth."
)
_DOES = {
    RefAction.CREATE: "create it",
    RefAction.PUSH: "push to it",
    RefAction.FORCE: "force-push it",
    RefAction.DELETE: "delete it",
}


@dataclass(frozen=True, slots=True)
class RefDecision:
    """What may be done to a ref, and the rules that say so; none of them: whatever the grant of write allows."""

    may: frozenset[RefAction]
    rules: tuple[RefRule, ...] = ()

    @property
    def because(self) -> str:
        """The rules in words; "" where there is none."""
        return "; ".join(map(described, self.rules))

    def explained(self, actor: str, ref: str, *, writes: bool) -> str:
        """For a person: what `actor`, whom a grant lets write or not, may do to `ref`, and why."""
        if not writes:
            return f"on {ref}, {actor} may do nothing: that takes a grant of write"
        may = ", ".join(listed(self.may)) or "do nothing"
        return f"on {ref}, {actor} may {may}: {self.because or 'no rule is about it'}"

    def refusal(self, action: RefAction | None) -> str:
        """Why `action` is not allowed; None: a move, of which neither kind is."""
        return f"{self.because}; you may not {_DOES[action] if action else 'move it'}"


def decide(rules: Iterable[RefRule], actor: Actor, repository: str, ref: str) -> RefDecision:
    """What a push of `actor` may do to `ref`, its full name, of `repository`. The first row that fits decides:

        actor      rules that match                            may
        ────────   ─────────────────────────────────────────   ──────────────────────────────────────────────
        operator   any                                         everything
        user       none                                        everything, as far as a grant lets them write
        user       one more specific than the others           what that rule says, and nothing else
        user       equally specific, the same in naming        what any of them says, and nothing else

    A rule matches if it is to this user, to a group of theirs or to everyone, its repository pattern means the
    repository, and its ref pattern the ref. Of rules to groups, `rules` holds only those of groups that the user is in.
    The more specific one is the one whose repository pattern is more specific; where those are equal, whose ref
    pattern is; where those are equal, too, one to the user before one to a group before one to everyone.
    `names.specificity` says which pattern is more specific.

    A rule gives nobody the right to write: that is the grant's. It binds whoever has it, also one to admin.
    """
    matching = [rule for rule in concerning(rules, actor, repository) if names.matches(rule.ref_pattern, ref)]
    if not matching:
        return RefDecision(ALL)

    def rank(rule: RefRule) -> tuple[tuple[bool, int, int], tuple[bool, int, int], int]:
        by_repository, by_ref = names.specificity(rule.pattern), names.specificity(rule.ref_pattern)
        return by_repository, by_ref, naming(rule.actor, actor.name)

    most = max(map(rank, matching))
    deciding = [rule for rule in matching if rank(rule) == most]
    # In one order, so that the reason does not depend on that of the rows.
    deciding.sort(key=lambda rule: (rule.pattern, rule.ref_pattern, rule.actor or ""))
    return RefDecision(frozenset().union(*(rule.may for rule in deciding)), tuple(deciding))


def concerning(rules: Iterable[RefRule], actor: Actor, repository: str) -> list[RefRule]:
    """Those of `rules` that match for some ref of the repository."""
    if actor.kind is ActorKind.OPERATOR:
        return []
    return [
        rule for rule in rules if naming(rule.actor, actor.name) and names.matches(rule.pattern, repository)
    ]


def action_of(update: RefUpdate) -> RefAction | None:
    """What a push would do to the ref; None: it moves a ref that is no tag, so whether it is a push or a force is for
    Git to tell. A tag that is moved is forced, wherever to: it names one thing."""
    if update.deletes:  # also where `old` is zeros, which Git takes for a ref that is broken
        return RefAction.DELETE
    if update.creates:
        return RefAction.CREATE
    return RefAction.FORCE if update.ref.startswith("refs/tags/") else None


def described(rule: RefRule) -> str:
    may = ", ".join(listed(rule.may)) or "nothing"
    return f"rule on {rule.ref_pattern} of {rule.pattern}: {rule.actor or 'everyone'} may {may}"


def listed(may: Iterable[RefAction]) -> list[str]:
    """Actions in the order of schema.sql."""
    found = set(may)
    return [action.value for action in RefAction if action in found]


# What people write


def ref_pattern(text: str) -> str:
    """The full ref pattern that `text` means: "release/*" is refs/heads/release/*. UsageError."""
    return _full(text, "a pattern of refs", stars=True)


def full_ref(text: str) -> str:
    """The full name of the one ref that `text` means: "main" is refs/heads/main. UsageError."""
    return _full(text, "the name of a ref", stars=False)


def actions(text: str) -> frozenset[RefAction]:
    """Actions as people write them: "create,push", "all" or "none". UsageError."""
    words = [word.strip() for word in text.lower().split(",")]
    if words == ["all"]:
        return ALL
    if words == ["none"]:
        return frozenset()
    try:
        return frozenset(map(RefAction, words))
    except ValueError:
        known = ",".join(RefAction)
        raise UsageError(
            f"{names.shown(text)} is not a list of actions",
            hint=f"Give some of {known} with commas between them, or all, or none.",
        ) from None


def _full(text: str, what: str, *, stars: bool) -> str:
    ref = text if text.startswith("refs/") else f"refs/heads/{text}"
    if why := _fault(text, ref, stars=stars):
        raise UsageError(f"{names.shown(text)} is not {what}: {why}", hint=_HINT)
    return ref


def _fault(text: str, ref: str, *, stars: bool) -> str:
    """What is wrong with a ref or pattern, by the rules of git-check-ref-format(1); "" where nothing is."""
    first = text.partition("/")[0]
    if first in ("heads", "tags", "remotes") and first != text:
        return f"write refs/{first}/ in front, or refs/heads/{first}/ for branches of that name"
    if text in ("", "refs", "HEAD", "@") or text.startswith(("/", "-")):
        return "it is empty, or names no branch"
    if ref.startswith("refs/cluster/"):
        return "refs/cluster/ is git-cluster's own, and nobody can push there"
    if "*" in ref and not stars:
        return "'*' stands for many"
    if "**" in ref:
        return "'**' is not needed, as a last part '*' reaches any depth"
    try:
        size = len(ref.encode())
    except UnicodeEncodeError:
        return "it is not UTF-8"
    if size > MAX_REF:
        return f"it has more than {MAX_REF} bytes"
    if re.search(r"[\x00-\x20\x7f~^:?\[\\]", ref) or ".." in ref or "@{" in ref or ref.endswith("."):
        return "it holds something that no ref may hold"
    if any(not part or part.startswith(".") or part.endswith(".lock") for part in ref.split("/")):
        return "a part is empty, begins with '.' or ends in '.lock'"
    return ""
