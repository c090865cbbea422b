"""What somebody may see of the cluster: the repositories that they may read, and, signed in, the devices."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from cluster import access
from cluster.db import Database
from cluster.model import Actor, ActorKind, Grant, Level
from cluster.visible import narrowed

PAGE = 50
"""Repositories in a page of a listing."""

BATCH, MOST_BATCHES = 500, 20
"""Names that are fetched at once, and how often, where grants let somebody see few of them. Then the page ends, with a
way to go on."""


@dataclass(frozen=True, slots=True)
class Sight:
    """What `actor` may see by `grants`, which are those that concern them."""

    actor: Actor
    grants: tuple[Grant, ...]

    @property
    def known(self) -> bool:
        """Whether somebody is signed in."""
        return self.actor.kind is not ActorKind.ANONYMOUS

    @property
    def everything(self) -> bool:
        """Whether they may read every repository. A grant on more than that never takes reading away."""
        return any(grant.pattern == "*" for grant in self.grants)

    def level(self, name: str) -> Level | None:
        return access.decide(self.grants, self.actor, name).level

    def acts(self, name: str) -> bool:
        """Whether they may sync, verify and thaw it."""
        return self.level(name) is Level.ADMIN and not self.actor.read_only


def sight(db: Database, actor: Actor) -> Sight:
    if actor.kind is ActorKind.ANONYMOUS:
        # No user has the name "", so what comes is to everyone.
        return Sight(actor, tuple(db.grants_to("")))
    return Sight(actor, tuple(db.grants_to(actor.name)))


@dataclass(frozen=True, slots=True)
class Names:
    """A page of names. further: after which name to go on, or None at the end."""

    names: tuple[str, ...]
    further: str | None


def search(db: Database, sight: Sight, text: str, after: str) -> Names:
    """The repositories that they may see and whose names hold `text`."""
    ask = narrowed(sight.grants)

    def batch(after: str, limit: int) -> list[str]:
        return db.search_names(text, exact=ask.exact, beginning=ask.beginning, after=after, limit=limit)

    return _page(sight, batch, after)


def unfit(db: Database, sight: Sight, down: list[int], text: str, after: str) -> Names:
    """Of these the ones that may not be healthy."""
    return _page(sight, lambda a, limit: db.unfit_names(down, search=text, after=a, limit=limit), after)


def _page(sight: Sight, batch: Callable[[str, int], list[str]], after: str) -> Names:
    """The database narrows, access.decide decides."""
    if not sight.grants:
        return Names((), None)
    seen: list[str] = []
    size = PAGE + 1 if sight.everything else BATCH
    for _ in range(MOST_BATCHES):
        found = batch(after, size)
        for name in found:
            if sight.everything or sight.level(name) is not None:
                seen.append(name)
                if len(seen) > PAGE:
                    return Names(tuple(seen[:PAGE]), seen[PAGE - 1])
        if len(found) < size:
            return Names(tuple(seen), None)
        after = found[-1]
    return Names(tuple(seen), after)


def some(db: Database, sight: Sight, most: int) -> list[str]:
    """At most so many of the repositories that they may see, the first by name."""
    ask = narrowed(sight.grants)
    found = db.search_names("", exact=ask.exact, beginning=ask.beginning, after="", limit=most)
    return [name for name in found if sight.level(name) is not None]
