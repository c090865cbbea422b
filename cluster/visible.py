"""The repositories that a user may see, by name, a page at a time: what a listing costs is time, never memory.

The database narrows by what the grants' patterns begin with; cluster/access.py decides about each. No connection is
held between two pages, so whoever reads the listing may take as long as they please (guarantee G5).
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from cluster import access, names
from cluster.db import Database, Listed
from cluster.model import Actor, Grant, Level

PAGE = 1000
"""Repositories in a page: some 200 kB, and a few milliseconds of the database's time."""

MOST_NAMES, MOST_BEGINNINGS = 5000, 50
"""What a listing is narrowed by. Where the grants have more, every repository is looked at."""


@dataclass(frozen=True, slots=True)
class Visible:
    """A repository that a user may see, and the highest level that they have."""

    repository: Listed
    level: Level


@dataclass(frozen=True, slots=True)
class Narrowed:
    """What the database is asked for: those called one of `exact` or beginning with one of `beginning`, which do not
    overlap. The beginning "" is that of every name."""

    exact: tuple[str, ...]
    beginning: tuple[str, ...]


def narrowed(grants: Iterable[Grant], pattern: str | None = None) -> Narrowed:
    """At least what both `pattern` and one of `grants` mean; of all others as little as beginnings can tell."""
    patterns = {grant.pattern for grant in grants}
    exact = {each for each in patterns if "*" not in each}
    beginning = _shortest(_literal(each) for each in patterns - exact)
    if pattern is not None and "*" not in pattern:
        covered = pattern in exact or pattern.startswith(tuple(beginning))
        return Narrowed((pattern,) if covered else (), ())
    wanted = _literal(pattern or "")
    exact = {name for name in exact if name.startswith(wanted) and not name.startswith(tuple(beginning))}
    beginning = _shortest(
        max(each, wanted, key=len) for each in beginning if each.startswith(wanted) or wanted.startswith(each)
    )
    if len(exact) > MOST_NAMES or len(beginning) > MOST_BEGINNINGS:
        return Narrowed((), (wanted,))
    return Narrowed(tuple(sorted(exact)), tuple(sorted(beginning)))


def _literal(pattern: str) -> str:
    """What every name begins with that `pattern` means."""
    return pattern.partition("*")[0]


def _shortest(beginnings: Iterable[str]) -> set[str]:
    """Those of `beginnings` that do not begin with another of them."""
    kept: set[str] = set()
    for each in sorted(set(beginnings)):
        if not any(each[:length] in kept for length in range(len(each))):
            kept.add(each)
    return kept


def visible(
    db: Database,
    actor: Actor,
    pattern: str | None = None,
    *,
    part: str = "",
    after: str = "",
    device: str | None = None,
    page: int = PAGE,
) -> Iterator[list[Visible]]:
    """Page after page of what `actor` may see of the repositories that `pattern` means (None: of all), by the grants
    of now. Empty pages come, too: between two pages the caller may find that nobody listens any more.

    part: only those whose names hold it, whatever its case. after: go on after this name, which was the last of an
    earlier listing. device: whose copies `here` is about.
    """
    grants = db.grants_to(actor.name)
    wildcards = [(_literal(grant.pattern), grant) for grant in grants if "*" in grant.pattern]
    by_name: dict[str, list[Grant]] = defaultdict(list)
    for grant in grants:
        by_name[grant.pattern].append(grant)
    for found in _pages(db, narrowed(grants, pattern), part, after, device, page):
        seen = []
        for repository in found:
            name = repository.name
            if pattern is None or names.matches(pattern, name):
                near = [grant for beginning, grant in wildcards if name.startswith(beginning)]
                decision = access.decide([*by_name.get(name, ()), *near], actor, name)
                if decision.level is not None:
                    seen.append(Visible(repository, decision.level))
        yield seen


def _pages(
    db: Database, ask: Narrowed, part: str, after: str, device: str | None, page: int
) -> Iterator[list[Listed]]:
    """In the order of names, as far as the database and Python agree on that: what begins alike comes in the database's
    order, and all that in Python's. So a listing goes on after any of its names without a gap, where they differ, too.
    """
    exact = [name for name in ask.exact if name > after]
    for beginning in ask.beginning:
        if beginning < after and not after.startswith(beginning):
            continue
        before = bisect_left(exact, beginning)
        yield from _called(db, exact[:before], part, device, page)
        del exact[:before]
        last = after if after.startswith(beginning) else ""
        while found := db.page(beginning, last, page, part=part, device=device):
            yield found
            if len(found) < page:
                break
            last = found[-1].name
    yield from _called(db, exact, part, device, page)


def _called(
    db: Database, names: Sequence[str], part: str, device: str | None, page: int
) -> Iterator[list[Listed]]:
    for start in range(0, len(names), page):
        yield db.called(names[start : start + page], part=part, device=device)
