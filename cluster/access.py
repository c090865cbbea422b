"""Who may do what to a repository: grants in, a decision and its reason out. No input or output of its own.

The reason is for people: it is what `git-cluster access` prints, and the log of a request that was refused.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from cluster import names
from cluster.model import Actor, ActorKind, Grant, Level


@dataclass(frozen=True, slots=True)
class Decision:
    """The highest level that is allowed (None: nothing), why in one line, and the grant that decided."""

    level: Level | None
    because: str
    grant: Grant | None = None

    def allows(self, level: Level) -> bool:
        return self.level is not None and level.rank <= self.level.rank


def decide(grants: Iterable[Grant], actor: Actor, repository: str) -> Decision:
    """What `actor` may do to `repository`, by its name in checked form. The first row that fits decides:

        actor      grants that match                       may
        ────────   ─────────────────────────────────────   ───────────────────────────────────────────────
        operator   any                                     everything
        device     any                                     read: for sync; it never pushes for itself
        anonymous  the most specific to everyone           read at the most: not that grant's write or admin
        user       none                                    nothing
        user       one more specific than the others       that grant's level, even if it is the lower one
        user       equally specific, one names the user    that one's level
        user       equally specific, one names a group     that one's level (not everyone's)
        user       equally specific, the same in naming    the highest of their levels

    A grant matches if it is to this user, to a group of theirs or to everyone, and its pattern means the repository. Of
    grants to groups, `grants` holds only those of groups that the user is in. The more
    specific one wins, so that an exception can be made both ways: where everyone may write to team/*,
    a grant of read on team/archive closes that one. `names.specificity` says which pattern is more specific.
    """
    if actor.kind is ActorKind.OPERATOR:
        return Decision(Level.ADMIN, f"operator {actor.name} may admin: operators may do anything")
    if actor.kind is ActorKind.DEVICE:
        return Decision(
            Level.READ, f"device {actor.name} may read: devices read everything and write nothing"
        )
    if actor.kind is ActorKind.ANONYMOUS:
        return _anonymous(grants, repository)
    matching = [
        grant
        for grant in grants
        if naming(grant.actor, actor.name) and names.matches(grant.pattern, repository)
    ]
    if not matching:
        because = f"{actor.name} may nothing: no grant to {actor.name} or to everyone covers {repository}"
        return Decision(None, because)
    # The pattern itself comes last, so that the reason does not depend on the order of the rows.
    grant = max(
        matching,
        key=lambda grant: (
            names.specificity(grant.pattern),
            naming(grant.actor, actor.name),
            grant.level.rank,
            grant.pattern,
        ),
    )
    to = "everyone" if grant.actor is None else grant.actor
    because = f"{actor.name} may {grant.level}: grant {grant.level} to {to} on {grant.pattern}"
    return Decision(grant.level, because, grant)


def _anonymous(grants: Iterable[Grant], repository: str) -> Decision:
    """What everyone may do, for somebody who does not say who they are: no more than read."""
    nobody = Actor(ActorKind.USER, "", "")  # no user has that name, so what fits is to everyone
    found = decide(grants, nobody, repository).grant
    if found is None:
        because = f"anonymous may nothing: no grant to everyone covers {repository}"
        return Decision(None, because)
    because = f"anonymous may read: grant {found.level} to everyone on {found.pattern}"
    return Decision(Level.READ, because, found)


def administers(grants: Iterable[Grant]) -> bool:
    """Whether a user may change what is no one repository's: devices, users, grants, placement.

    grants: those that concern the user (Database.grants_to). It takes a grant of admin on "*" itself, to them or to a
    group of theirs; where they have several on it, one to them before those to groups. One to everyone never does it.
    """
    on_all = [grant for grant in grants if grant.pattern == "*" and grant.actor is not None]
    most = max(on_all, key=lambda g: (not (g.actor or "").startswith("@"), g.level.rank), default=None)
    return most is not None and most.level is Level.ADMIN


def naming(whom: str | None, user: str) -> int:
    """How exactly a grant or rule to `whom` names `user`: 3 by name, 2 by a group, 1 as anybody, 0 not at all."""
    if whom is None:
        return 1
    return 2 if whom.startswith("@") else 3 * (whom == user)
