"""Who may what: grants, rules on refs, access explained; and where new repositories go."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query

from cluster import acting, documents, names
from cluster.documents import EVERYONE
from cluster.errors import NotFound, Refused, UsageError
from cluster.explaining import explain
from cluster.http.api import models
from cluster.http.api.asking import Administrator, Asker, User
from cluster.http.api.paging import After, Limit, page
from cluster.model import Grant, Level, PlacementRule, RefAction, RefRule

router = APIRouter(tags=["rights"])


def _to(actor: str) -> str | None:
    return None if actor == EVERYONE else actor


# Grants


@router.get("/grants", response_model=models.Grants)
async def grants(
    asker: User,
    actor: Annotated[models.ActorName | None, Query()] = None,
    limit: Limit = 100,
    after: After = None,
) -> Any:
    """All grants, to an administrator; to others those that concern them.

    actor: those that concern one user; those to one @group; those to everyone.
    """

    def look() -> Any:
        if not asker.administers():
            if actor is not None and actor != asker.actor.name:
                asker.require_administrator()
            found = asker.db.grants(asker.actor.name)
        elif actor is None or actor.startswith("@") or actor == EVERYONE:
            found = [grant for grant in asker.db.grants() if actor in (None, grant.actor or EVERYONE)]
        else:
            found = asker.db.grants(actor)
        return page(found, "grants", _key_of_grant, documents.grant, limit=limit, after=after)

    return await asker.ask(look)


@router.put("/grants/{actor}/{pattern:path}", response_model=models.Grant)
async def grant(
    asker: Administrator, actor: models.ActorName, pattern: models.Pattern, body: models.GrantLevel
) -> Any:
    """Let a user, a @group or everyone read, write or admin what the pattern means. It replaces what was granted."""
    level = Level(body.level)
    await asker.ask(lambda: asker.db.grant(level, _to(actor), pattern))
    return documents.grant(Grant(_to(actor), pattern, level))


@router.delete("/grants/{actor}/{pattern:path}", status_code=204)
async def revoke(asker: Administrator, actor: models.ActorName, pattern: models.Pattern) -> None:
    """Take back the grant on exactly this pattern."""
    await asker.ask(lambda: asker.db.revoke(_to(actor), pattern))


def _key_of_grant(grant: Grant) -> str:
    return f"{grant.actor or EVERYONE} {grant.pattern}"


# Rules


def _key_of_rule(rule: RefRule) -> str:
    return f"{rule.pattern} {rule.ref_pattern} {rule.actor or EVERYONE}"


@router.get("/rules", response_model=models.Rules)
async def rules(asker: User, limit: Limit = 100, after: After = None) -> Any:
    """All rules on refs, to an administrator; to others those that concern them."""

    def look() -> Any:
        found = asker.db.rules(None if asker.administers() else asker.actor.name)
        return page(found, "rules", _key_of_rule, documents.rule, limit=limit, after=after)

    return await asker.ask(look)


@router.put("/rules/{actor}/{pattern:path}", response_model=models.Rule)
async def set_rule(
    asker: Administrator,
    actor: models.ActorName,
    pattern: models.Pattern,
    ref: Annotated[models.RefPattern, Query()],
    body: models.RefRule,
) -> Any:
    """Say what somebody may do to a ref: that, and nothing else."""
    may = frozenset(map(RefAction, body.may))
    await asker.ask(lambda: asker.db.set_rule(_to(actor), pattern, ref, may))
    return documents.rule(RefRule(_to(actor), pattern, ref, may))


@router.delete("/rules/{actor}/{pattern:path}", status_code=204)
async def remove_rule(
    asker: Administrator,
    actor: models.ActorName,
    pattern: models.Pattern,
    ref: Annotated[models.RefPattern, Query()],
) -> None:
    await asker.ask(lambda: asker.db.remove_rule(_to(actor), pattern, ref))


# Placement


@router.get("/placement", response_model=list[models.PlacementRule])
async def placement(asker: User) -> Any:
    """On how many devices new repositories go, the most specific pattern first. Where none matches: on all."""

    def look() -> Any:
        found = sorted(
            asker.db.placement_rules(), key=lambda rule: names.specificity(rule.pattern), reverse=True
        )
        return [documents.placement_rule(rule) for rule in found]

    return await asker.ask(look)


@router.put("/placement/{pattern:path}", response_model=models.PlacementRule)
async def set_placement(asker: Administrator, pattern: models.Pattern, body: models.PlacementCopies) -> Any:
    if body.min_copies is not None and body.min_copies > body.copies:
        raise UsageError(
            f"min_copies {body.min_copies} is more than copies {body.copies}",
            hint="Ask for as many copies as a push has to be held by, or more.",
        )
    rule = PlacementRule(pattern, body.copies, body.min_copies)
    await asker.ask(lambda: asker.db.set_placement_rule(rule))
    return documents.placement_rule(rule)


@router.delete("/placement/{pattern:path}", status_code=204)
async def remove_placement(asker: Administrator, pattern: models.Pattern) -> None:
    """Forget a rule. Repositories that are there already stay where they are."""
    await asker.ask(lambda: asker.db.remove_placement_rule(pattern))


# Access explained


@router.get("/access/{name:path}", response_model=models.Access)
async def access(
    asker: User,
    name: models.Name,
    user: Annotated[models.ActorName | None, Query()] = None,
    ref: Annotated[models.Ref | None, Query()] = None,
) -> Any:
    """What somebody (you; or `user`, to those who may admin the repository) may do to it, and which grant says so; with
    `ref`, what a push of theirs may do to that, and which rule says so."""
    return await asker.ask(lambda: _access(asker, name, user or asker.actor.name, ref))


def _access(asker: Asker, name: str, user: str, ref: str | None) -> dict[str, Any]:
    if user.startswith("@"):
        raise UsageError("access is a user's, or everyone's", hint="Give a user's name, or everyone.")
    if not asker.administers():
        if user == asker.actor.name:
            acting.may(asker.db, asker.actor, name, Level.READ)
        else:
            _require_admin(asker, name)
    told = explain(asker.db, user, name, ref)
    return told.document | {"lines": list(told.lines)}


def _require_admin(asker: Asker, name: str) -> None:
    try:
        acting.may(asker.db, asker.actor, name, Level.ADMIN)
    except NotFound:
        raise
    except Refused as error:
        raise Refused(
            f"you may not ask about others' access to {name}",
            hint="those who may admin it can, and administrators",
        ) from error
