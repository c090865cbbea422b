"""Who asks, and what they may: what a route of the API depends on.

    Anybody         also somebody without a token
    User            a user; 401 to somebody without a token
    Administrator   a user with admin on "*"; 403 to others

One rule for all routes: a token that may only read changes nothing; a browser's session changes something only with the
header X-CSRF-Token, which another site cannot know; a parameter that a route does not know is refused, as it may be a
misspelt one that matters.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, TypeVar

from fastapi import Depends, Request
from fastapi.routing import APIRoute

from cluster.access import administers
from cluster.acting import refuse_read_only
from cluster.db import Database
from cluster.errors import Refused, UsageError
from cluster.http.site import Site
from cluster.http.who import COOKIE, GET_ONE, Unauthenticated, csrf_token
from cluster.model import ANONYMOUS, Actor
from cluster.names import shown
from cluster.node import Node

T = TypeVar("T")

READS = ("GET", "HEAD")


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks, and what answers them."""

    site: Site
    actor: Actor

    @property
    def node(self) -> Node:
        return self.site.node

    @property
    def db(self) -> Database:
        return self.site.node.db

    @property
    def anonymous(self) -> bool:
        return self.actor == ANONYMOUS

    async def ask(self, question: Callable[[], T]) -> T:
        return await self.site.ask(question)

    async def act(self, deed: Callable[[], T]) -> T:
        return await self.site.act(deed)

    def administers(self) -> bool:
        """Waits for the database: call it inside `ask`."""
        return not self.anonymous and administers(self.db.grants_to(self.actor.name))

    def require_administrator(self) -> None:
        """The same. Refused."""
        if not self.administers():
            raise Refused(
                "this takes an administrator of the cluster",
                hint=f"an administrator can make you one: git-cluster grant admin {self.actor.name} '*'",
            )


async def _anybody(request: Request) -> Asker:
    _refuse_unknown(request)
    site: Site = request.app.state.site
    asker = Asker(site, await site.who.asks(request))
    if request.method not in READS:
        if asker.anonymous:
            raise Unauthenticated("this takes a token", hint=GET_ONE)
        refuse_read_only(asker.actor)
        _refuse_forged(request)
    return asker


async def _user(asker: Annotated[Asker, Depends(_anybody)]) -> Asker:
    if asker.anonymous:
        raise Unauthenticated("this takes a token", hint=GET_ONE)
    return asker


async def _administrator(asker: Annotated[Asker, Depends(_user)]) -> Asker:
    await asker.ask(asker.require_administrator)
    return asker


Anybody = Annotated[Asker, Depends(_anybody)]
User = Annotated[Asker, Depends(_user)]
Administrator = Annotated[Asker, Depends(_administrator)]


def _refuse_forged(request: Request) -> None:
    """What a browser sends along by itself, its cookie, is not enough to change anything."""
    cookie = request.cookies.get(COOKIE, "")
    if "authorization" in request.headers or not cookie:
        return
    if not hmac.compare_digest(request.headers.get("x-csrf-token", "").encode(), csrf_token(cookie).encode()):
        raise Refused(
            "a session of a browser changes nothing here", hint="use a token, as the password or bearer"
        )


def _refuse_unknown(request: Request) -> None:
    route = request.scope.get("route")
    if isinstance(route, APIRoute):
        known = [parameter.alias for parameter in route.dependant.query_params]
        for name in request.query_params:
            if name not in known:
                some = ", ".join(known) or "none"
                raise UsageError(
                    f"there is no parameter {shown(name)} here", hint=f"Those that there are: {some}."
                )


FOR_ANYBODY: dict[str, Any] = {"security": [{}, {"bearer": []}, {"basic": []}]}
"""What the OpenAPI document says of a route that somebody without a token may use, too."""
