"""Sync, verify and thaw, by whoever may administer the repository. Forms, so that they work without a script.

A thaw is two forms. The first asks for a dry run, whose lines are those of `git-cluster thaw --dry-run`. The second, on
that page, carries the version and the plan that were looked at; where either has changed meanwhile nothing is done, and
the new plan is shown instead. Where acknowledged changes would be lost, the repository's name is to be typed, too.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.responses import Response
from starlette.routing import BaseRoute

from cluster import acting, names
from cluster.acting import Outcome
from cluster.errors import ClusterError, UsageError, WriteConflict
from cluster.http.answers import status_of
from cluster.http.pages import guard
from cluster.http.pages.render import Pages, Visit
from cluster.model import Level

SYNC, VERIFY, THAW = "sync", "verify", "thaw"
LOSSES = ("LOST", "GIVEN UP", "interrupted push")
"""How the lines of a dry run begin after which something is gone (cluster/thaw.py)."""


@dataclass(frozen=True, slots=True)
class Choice:
    """How to thaw: as the disk says, or giving up or promoting what one device holds."""

    demote: str | None = None
    promote: str | None = None

    @property
    def value(self) -> str:
        """As a form carries it."""
        if self.demote:
            return f"demote {self.demote}"
        return f"promote {self.promote}" if self.promote else "resolve"


@dataclass(frozen=True, slots=True)
class Plan:
    """What a thaw would do, at `version`. loss: whether acknowledged versions would be lost."""

    version: int
    lines: tuple[str, ...]
    loss: bool
    nothing: bool = False

    @property
    def digest(self) -> str:
        """Of what was looked at: another plan is another digest."""
        return hashlib.sha256("\n".join((str(self.version), *self.lines)).encode()).hexdigest()


def routes(pages: Pages) -> list[BaseRoute]:
    return [
        pages.route("/-/act/{deed}/{name:path}", lambda visit: _act(pages, visit), methods=("POST",)),
    ]


async def _act(pages: Pages, visit: Visit) -> Response:
    node = pages.site.node
    fields = await guard.form(visit.request, visit.cookie, pages.site.section.advertise)
    deed, name = visit.request.path_params["deed"], names.repository_name(visit.request.path_params["name"])
    if deed == THAW:
        return await _thaw(pages, visit, name, fields)
    if deed not in (SYNC, VERIFY):
        raise UsageError("there is no such thing to do", hint="open the repository's page again")
    do = acting.sync if deed == SYNC else acting.verify
    outcome: Outcome = await pages.site.act(lambda: do(node, visit.actor, name))
    pages.lookout.forget()
    return pages.page(visit, "done.html", name=name, deed=deed, lines=outcome.lines, ok=outcome.ok)


async def _thaw(pages: Pages, visit: Visit, name: str, fields: dict[str, str]) -> Response:
    node, choice = pages.site.node, chosen(fields.get("choice", ""))
    plan = await pages.site.act(lambda: _plan(pages, visit, name, choice))
    error: ClusterError | None = None
    if "seen" in fields:
        error = objection(plan, name, fields)
        if error is None:
            outcome = await pages.site.act(
                lambda: acting.thaw(
                    node,
                    visit.actor,
                    name,
                    demote=choice.demote,
                    promote=choice.promote,
                    accept_loss=plan.loss,
                    expected=plan.version,
                )
            )
            pages.lookout.forget()
            return pages.page(visit, "done.html", name=name, deed=THAW, lines=outcome.lines, ok=outcome.ok)
    return pages.page(
        visit,
        "thaw.html",
        status_of(error) if error else 200,
        name=name,
        choice=choice,
        plan=plan,
        error=error,
    )


def _plan(pages: Pages, visit: Visit, name: str, choice: Choice) -> Plan:
    """A dry run, and the version that it was made at: the one before it, so that a push in between is noticed."""
    node = pages.site.node
    snapshot = acting.may(node.db, visit.actor, name, Level.ADMIN)
    version = snapshot.repository.version
    outcome = acting.thaw(
        node,
        visit.actor,
        name,
        demote=choice.demote,
        promote=choice.promote,
        dry_run=True,
        expected=version,
    )
    result: dict[str, Any] = outcome.result
    loss = bool(result["lost_versions"]) or any(line.startswith(LOSSES) for line in outcome.lines)
    nothing = not choice.demote and not choice.promote and nothing_to_do(outcome.lines)
    return Plan(version, outcome.lines, loss, nothing)


def nothing_to_do(lines: Sequence[str]) -> bool:
    return bool(lines) and lines[0].endswith("is not frozen: nothing to do")


def objection(plan: Plan, name: str, fields: dict[str, str]) -> ClusterError | None:
    """Why a confirmation does not count; None: it does. Pure."""
    if not hmac.compare_digest(fields.get("seen", "").encode(errors="replace"), plan.digest.encode()):
        return WriteConflict(
            f"{name} has moved on since you looked: nothing was done", hint="this is how it stands now"
        )
    if plan.loss and fields.get("confirm", "").strip() != name:
        return UsageError(
            "nothing was done: acknowledged changes would be lost", hint=f"to go on, type {name} below"
        )
    return None


def chosen(text: str) -> Choice:
    """UsageError: that is no choice."""
    how, _, device = text.partition(" ")
    if how in ("", "resolve") and not device:
        return Choice()
    if how == "demote":
        return Choice(demote=names.device_name(device))
    if how == "promote":
        return Choice(promote=names.device_name(device))
    raise UsageError("that is no way to thaw", hint="open the repository's page again")
