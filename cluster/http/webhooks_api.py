"""/-/api/v1/webhooks/… and /-/api/v1/webhook/…: what `git-cluster webhook` does, for whoever may admin the repository.

The application that includes this router keeps the Site in its state, and shows ClusterErrors.
"""

from __future__ import annotations

import hmac
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

import anyio
import anyio.to_thread
from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field

from cluster import access, names, webhooks
from cluster.db import Webhook, key_gone, no_repository, no_webhook
from cluster.delivery import check, ping
from cluster.errors import NotFound, Refused
from cluster.feed import listed
from cluster.http.site import Site
from cluster.http.who import COOKIE, GET_ONE, Unauthenticated, csrf_token
from cluster.model import ANONYMOUS, Actor, Level

T = TypeVar("T")

SLOW = 4
"""Questions at once that may wait for another's name server, or for a receiver."""

MOST_NUMBER = 2**62

router = APIRouter(tags=["webhooks"])
_slow = anyio.CapacityLimiter(SLOW)


class Asked(BaseModel):
    """A webhook to be made."""

    model_config = ConfigDict(extra="forbid", strict=True)
    url: str = Field(
        description="http or https, without a user, a password or a #part",
        examples=["https://ci.example/hook"],
    )
    secret: str | None = Field(None, description="whsec_ and base64 of 24 to 64 bytes; none: one is made")


class Change(BaseModel):
    """What is to become of a webhook."""

    model_config = ConfigDict(extra="forbid", strict=True)
    enabled: bool = Field(description="true also has one that waits for its next try tried at once")


class Shown(BaseModel):
    """A webhook. delivered: the newest version that was taken; version: the repository's."""

    id: int
    repository: str
    url: str
    enabled: bool
    delivered: int
    version: int
    created_at: str
    created_by: str
    delivered_at: str | None
    attempts: int
    last_error: str | None
    last_status: int | None
    next_try_at: str | None


class Made(Shown):
    """A webhook that was made; its secret is shown this once."""

    secret: str


class Pinged(BaseModel):
    """What a receiver made of a ping. error: "" where it was taken."""

    taken: bool
    status: int | None
    error: str


class Asker:
    """Who asks, and what answers them."""

    def __init__(self, site: Site, actor: Actor) -> None:
        self.site, self.actor, self.db = site, actor, site.node.db
        self.private = site.node.webhooks.private_addresses == "allow"

    def require(self, repository: str) -> None:
        """NotFound: it is not there, or they may not read it. Refused: they may not admin it."""
        snapshot = self.db.snapshot(repository, self.actor)
        if not snapshot.actor_known:
            raise key_gone()
        decision = access.decide(snapshot.grants, self.actor, repository)
        if not decision.allows(Level.READ):
            raise no_repository(repository)
        if not decision.allows(Level.ADMIN):
            raise Refused(
                f"you may {decision.level} {repository} but not admin it, which its webhooks take",
                hint=f"an administrator can let you: git-cluster grant admin {self.actor.name} {repository}",
            )

    def theirs(self, number: int) -> Webhook:
        """A webhook of a repository that they may admin. NotFound: there is none, or they may not know of it."""
        found = self.db.webhook(number) if number <= MOST_NUMBER else None
        if found is None:
            raise no_webhook(number)
        try:
            self.require(found.repository)
        except NotFound:
            raise no_webhook(number) from None
        return found

    async def ask(self, question: Callable[[], T]) -> T:
        return await self.site.ask(question)

    async def ask_slow(self, question: Callable[[], T]) -> T:
        return await anyio.to_thread.run_sync(question, limiter=_slow)


async def _asker(request: Request) -> Asker:
    """A user; one who can change something, where the request does."""
    site: Site = request.app.state.site
    actor = await site.who.asks(request)
    if actor == ANONYMOUS:
        raise Unauthenticated("this takes a token", hint=GET_ONE)
    if request.method not in ("GET", "HEAD"):
        if actor.read_only:
            raise Refused("this token may only read", hint="use a token that was not made with --read-only")
        cookie = request.cookies.get(COOKIE, "")
        given = request.headers.get("x-csrf-token", "")
        if "authorization" not in request.headers and not hmac.compare_digest(
            given.encode(), csrf_token(cookie).encode()
        ):
            raise Refused("a browser's session changes nothing here", hint="use a token, as the bearer")
    return Asker(site, actor)


Who = Annotated[Asker, Depends(_asker)]


@router.get("/webhooks/{name:path}", response_model=list[Shown])
async def list_webhooks(asker: Who, name: str) -> Any:
    """The webhooks of a repository."""
    repository = names.repository_name(name)

    def look() -> Any:
        asker.require(repository)
        return [listed(each) for each in asker.db.webhooks(repository)]

    return await asker.ask(look)


@router.post("/webhooks/{name:path}", response_model=Made, status_code=201)
async def add_webhook(asker: Who, name: str, body: Asked) -> Any:
    """Have a URL hear of each change of a repository from now on. The secret is shown this once."""
    repository = names.repository_name(name)
    secret = webhooks.new_secret() if body.secret is None else webhooks.checked_secret(body.secret)
    await asker.ask(lambda: asker.require(repository))
    await asker.ask_slow(lambda: check(body.url, private=asker.private))

    def make() -> Any:
        number = asker.db.add_webhook(repository, body.url, secret, created_by=asker.actor.name)
        return listed(asker.db.webhook(number)) | {"secret": secret}

    return await asker.ask(make)


@router.get("/webhook/{number}", response_model=Shown)
async def show_webhook(asker: Who, number: int) -> Any:
    """One webhook: how far it has got, and why not further."""
    return await asker.ask(lambda: listed(asker.theirs(number)))


@router.patch("/webhook/{number}", response_model=Shown)
async def change_webhook(asker: Who, number: int, body: Change) -> Any:
    """Disable a webhook; enable it, and it goes on with what it missed."""

    def turn() -> Any:
        asker.theirs(number)
        (asker.db.enable_webhook if body.enabled else asker.db.disable_webhook)(number)
        return listed(asker.db.webhook(number))

    return await asker.ask(turn)


@router.delete("/webhook/{number}", status_code=204)
async def remove_webhook(asker: Who, number: int) -> None:
    """Tell a URL nothing more, and forget how far it had got."""

    def remove() -> None:
        asker.theirs(number)
        asker.db.remove_webhook(number)

    await asker.ask(remove)


@router.post("/webhook/{number}/test", response_model=Pinged)
async def test_webhook(asker: Who, number: int) -> Any:
    """Send a signed ping from this device, and say what the receiver answers."""

    def look() -> tuple[Webhook, str]:
        found = asker.theirs(number)
        return found, asker.db.webhook_secret(number)

    found, secret = await asker.ask(look)
    outcome = await asker.ask_slow(lambda: ping(found, secret, private=asker.private))
    return {"taken": not outcome.error, "status": outcome.status, "error": outcome.error}
