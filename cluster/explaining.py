"""What somebody may do to a repository and to a ref of it, and which grant and rule say so: `git-cluster access`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cluster import access, ref_rules
from cluster.db import Database
from cluster.documents import EVERYONE
from cluster.errors import NotFound
from cluster.model import Actor, ActorKind, Level


@dataclass(frozen=True, slots=True)
class Explained:
    """lines: for a person. document: for programs."""

    lines: tuple[str, ...]
    document: dict[str, Any]


def explain(db: Database, actor: str, repository: str, ref: str | None = None) -> Explained:
    """Of a user or `everyone`, by names in their checked forms; ref: its full name. The repository need not exist yet.

    For somebody who may know all of it: an administrator. NotFound: no such user.
    """
    row = None if actor == EVERYONE else user_row(db, actor)
    name = None if actor == EVERYONE else actor
    grants = [grant for grant in db.grants(name) if name or grant.actor is None]
    rules = [rule for rule in db.rules(name) if name or rule.actor is None]
    exists = bool(db.called([repository], device=None))
    who = Actor(ActorKind.USER, actor, "")
    decision = access.decide(grants, who, repository)
    writes = decision.allows(Level.WRITE)
    on_ref = ref_rules.decide(rules, who, repository, ref) if ref else None
    lines = [decision.because]
    if on_ref:
        lines.append(on_ref.explained(actor, str(ref), writes=writes))
    if not exists:
        lines.append(f"there is no repository {repository} yet")
    if row and row["disabled_at"]:
        lines.append(f"{actor} is disabled, and so may nothing now: `git-cluster user enable {actor}`")
    if row and not row["keys"]:
        lines.append(f"{actor} has no key yet: `git-cluster key add {actor} FILE`")
    return Explained(
        tuple(lines),
        {
            "actor": actor,
            "repository": repository,
            "exists": exists,
            "level": decision.level.value if decision.level else None,
            "because": decision.because,
            "pattern": decision.grant.pattern if decision.grant else None,
            "disabled": bool(row and row["disabled_at"]),
            "ref": ref,
            "may": ref_rules.listed(on_ref.may if on_ref and writes else ()) if ref else None,
            "rule": (on_ref.because or None) if on_ref else None,
        },
    )


def user_row(db: Database, name: str) -> dict[str, Any]:
    """A row of `users`. NotFound."""
    rows = db.users(only=name)
    if not rows:
        raise NotFound(f"there is no user {name}", hint="`git-cluster user list` shows them")
    return rows[0]
