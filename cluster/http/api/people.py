"""Who there is, and how they prove it: users, groups, keys, tokens.

Users see and change their own keys and tokens. All else is for administrators of the cluster.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, Path, Query, Response

from cluster import documents, keys, tokens
from cluster.errors import Exists, NotFound
from cluster.explaining import user_row
from cluster.http.api import models
from cluster.http.api.asking import Administrator, Asker, User
from cluster.http.api.paging import After, Limit, page
from cluster.status import timestamp

router = APIRouter(tags=["people"])


def _until(expires: str | None) -> datetime | None:
    return None if expires is None else keys.expiry(expires, datetime.now(UTC))


def _whose(asker: Asker, user: str | None) -> str:
    """The user whom it is about: who asks, or another, to administrators."""
    if user is None or user == asker.actor.name:
        return asker.actor.name
    asker.require_administrator()
    return user


# Users


@router.get("/users", response_model=models.Users)
async def users(asker: Administrator, limit: Limit = 100, after: After = None) -> Any:
    def look() -> Any:
        found = asker.db.users(after=after or "", limit=limit + 1)
        shown = [documents.user(row) for row in found[:limit]]
        return {"users": shown, "next": shown[-1]["name"] if len(found) > limit else None}

    return await asker.ask(look)


@router.get("/users/{user}", response_model=models.User)
async def user(asker: User, user: models.UserName) -> Any:
    """One user: you, or to administrators anybody."""
    return await asker.ask(lambda: documents.user(user_row(asker.db, _whose(asker, user))))


@router.put("/users/{user}", response_model=models.User, responses={201: {"model": models.User}})
async def add_user(asker: Administrator, user: models.NewUserName, response: Response) -> Any:
    """Add a person. 201: they are new; 200: they were there already."""

    def add() -> Any:
        try:
            asker.db.add_user(user)
            response.status_code = 201
        except Exists:
            pass
        return documents.user(user_row(asker.db, user))

    return await asker.ask(add)


@router.patch("/users/{user}", response_model=models.User)
async def set_user(asker: Administrator, user: models.UserName, body: models.UserChange) -> Any:
    """Let nothing prove this person any more, at once; or end that."""

    def change() -> Any:
        (asker.db.disable_user if body.disabled else asker.db.enable_user)(user)
        return documents.user(user_row(asker.db, user))

    return await asker.ask(change)


@router.delete("/users/{user}", status_code=204)
async def remove_user(asker: Administrator, user: models.UserName) -> None:
    """Remove a person, with all keys, tokens and grants. What they pushed stays in the log."""
    await asker.ask(lambda: asker.db.remove_user(user))


# Groups


def _group(asker: Asker, name: str) -> dict[str, Any]:
    for row in asker.db.groups():
        if row["name"] == name:
            return documents.group(row)
    raise NotFound(f"there is no group @{name}", hint="`git-cluster group list` shows them")


@router.get("/groups", response_model=models.Groups)
async def groups(asker: Administrator, limit: Limit = 100, after: After = None) -> Any:
    return await asker.ask(
        lambda: page(
            asker.db.groups(),
            "groups",
            lambda row: str(row["name"]),
            documents.group,
            limit=limit,
            after=after,
        )
    )


@router.put("/groups/{group}", response_model=models.Group, responses={201: {"model": models.Group}})
async def add_group(asker: Administrator, group: models.NewGroupName, response: Response) -> Any:
    """Add a group. 201: it is new; 200: it was there already, with whoever is in it."""

    def add() -> Any:
        try:
            asker.db.add_group(group)
            response.status_code = 201
        except Exists:
            pass
        return _group(asker, group)

    return await asker.ask(add)


@router.delete("/groups/{group}", status_code=204)
async def remove_group(asker: Administrator, group: models.GroupName) -> None:
    """Remove a group, with its grants and its rules. The people stay."""
    await asker.ask(lambda: asker.db.remove_group(group))


@router.put("/groups/{group}/members/{user}", response_model=models.Group)
async def join(asker: Administrator, group: models.GroupName, user: models.UserName) -> Any:
    """Make a user a member; who is one stays one."""

    def add() -> Any:
        asker.db.join(group, [user])
        return _group(asker, group)

    return await asker.ask(add)


@router.delete("/groups/{group}/members/{user}", status_code=204)
async def leave(asker: Administrator, group: models.GroupName, user: models.UserName) -> None:
    """Take a user out of a group."""

    def remove() -> None:
        if user not in _group(asker, group)["members"]:
            raise NotFound(f"{user} is not in @{group}", hint="`git-cluster group list` shows who is")
        asker.db.leave(group, [user])

    await asker.ask(remove)


# Keys


@router.get("/keys", response_model=list[models.Key])
async def list_keys(asker: User, user: Annotated[models.UserName | None, Query()] = None) -> Any:
    """Your public keys; to administrators those of `user`."""
    return await asker.ask(lambda: [documents.key(key) for key in asker.db.keys(_whose(asker, user))])


@router.post("/keys", response_model=models.Key, status_code=201, responses={200: {"model": models.Key}})
async def add_key(asker: User, body: models.NewKey, response: Response) -> Any:
    """Register a public key. 201: it is new; 200: it was registered for the same user already.

    Your own counts no longer than the token that you add it with.
    """

    def add() -> Any:
        whose, key, until = _whose(asker, body.user), keys.parse(body.public_key), _until(body.expires)
        try:
            if body.user is None or whose == asker.actor.name:
                asker.db.add_own_key(asker.actor, key.fingerprint, key.line, key.comment, until)
            else:
                asker.db.add_key(whose, key.fingerprint, key.line, key.comment, until)
        except Exists:
            response.status_code = 200
            if not any(each.fingerprint == key.fingerprint for each in asker.db.keys(whose)):
                raise
        return next(documents.key(k) for k in asker.db.keys(whose) if k.fingerprint == key.fingerprint)

    return await asker.ask(add)


@router.delete("/keys/{fingerprint:path}", status_code=204)
async def remove_key(asker: User, fingerprint: models.Fingerprint) -> None:
    """Remove a key of yours; to administrators anybody's."""

    def remove() -> None:
        if asker.administers():
            asker.db.remove_key(fingerprint)
        else:
            asker.db.remove_own_key(asker.actor, fingerprint)

    await asker.ask(remove)


# Tokens


@router.get("/tokens", response_model=list[models.Token])
async def list_tokens(asker: User, user: Annotated[models.UserName | None, Query()] = None) -> Any:
    """Your tokens, without their secrets; to administrators those of `user`."""
    return await asker.ask(lambda: [documents.token(each) for each in asker.db.tokens(_whose(asker, user))])


@router.post("/tokens", response_model=models.MadeToken, status_code=201)
async def add_token(asker: User, body: models.NewToken) -> Any:
    """Make a token; its secret is in this answer alone. Your own counts no longer than the one that you ask with."""

    def make() -> Any:
        whose, until, secret = _whose(asker, body.user), _until(body.expires), tokens.new()
        digest = tokens.digest(secret)
        assert digest is not None
        if whose == asker.actor.name:
            number, until = asker.db.add_own_token(
                asker.actor, digest, read_only=body.read_only, expires_at=until, comment=body.comment
            )
        else:
            number = asker.db.add_token(
                whose, digest, read_only=body.read_only, expires_at=until, comment=body.comment
            )
        return {
            "id": number,
            "user": whose,
            "token": secret,
            "read_only": body.read_only,
            "expires_at": timestamp(until),
            "comment": body.comment,
        }

    return await asker.ask(make)


@router.delete("/tokens/{number}", status_code=204)
async def remove_token(asker: User, number: Annotated[int, Path(ge=1, le=models.MOST)]) -> None:
    """Have a token of yours (to administrators: anybody's) prove nobody any more, at once."""
    await asker.ask(
        lambda: asker.db.remove_token(number, of=None if asker.administers() else asker.actor.name)
    )
