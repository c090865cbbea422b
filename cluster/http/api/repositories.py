"""Repositories: the list, one of them, making and changing them, their logs. What is done to one: deeds.py.

A name holds slashes, so it always stands at the end of a path.
"""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Query, Response

from cluster import access, acting, creating, documents, moving, placement
from cluster.errors import Exists, NotFound, Refused, UsageError
from cluster.http.api import models
from cluster.http.api.asking import FOR_ANYBODY, Administrator, Anybody, Asker, User
from cluster.http.api.paging import Limit
from cluster.model import HEAD, Level, Snapshot, WhenShort
from cluster.status import entries, observe
from cluster.visible import PAGE, visible

router = APIRouter(tags=["repositories"])

MOST_SCANNED = 5 * PAGE
"""Repositories that are looked at for one page; where few of them fit, the page is short and says where to go on."""


@router.get("/repositories", response_model=models.Repositories, openapi_extra=FOR_ANYBODY)
async def repositories(
    asker: Anybody,
    limit: Limit = 100,
    after: Annotated[models.Name | None, Query(description="`next` of the page before")] = None,
    search: Annotated[models.Part | None, Query(description="a part of the name")] = None,
    state: Annotated[models.RepositoryState | None, Query()] = None,
) -> Any:
    """The repositories that you may read, by name, a page at a time."""
    return await asker.ask(lambda: _page(asker, limit, after or "", search or "", state))


def _page(asker: Asker, limit: int, after: str, search: str, state: str | None) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    scanned, last = 0, after
    size = PAGE if state else min(limit + 1, PAGE)
    for page in visible(asker.db, asker.actor, part=search, after=after, page=size):
        for entry in entries(asker.db, [each.repository.name for each in page]):
            if state in (None, entry["state"]):
                if len(found) == limit:
                    return {"repositories": found, "next": last}
                found.append(_shown(asker, entry))
            last = entry["name"]
        scanned += size
        if scanned >= MOST_SCANNED and last != after:
            return {"repositories": found, "next": last}
    return {"repositories": found, "next": None}


def _shown(asker: Asker, entry: dict[str, Any]) -> dict[str, Any]:
    """Which devices there are, and how they do, is for users."""
    return entry | {"replicas": [], "reason": None} if asker.anonymous else entry


@router.get("/repositories/{name:path}", response_model=models.Repository, openapi_extra=FOR_ANYBODY)
async def repository(asker: Anybody, name: models.Name) -> Any:
    """One repository: its settings, its state, where to clone it."""
    return await asker.ask(lambda: _one(asker, acting.may(asker.db, asker.actor, name, Level.READ)))


def _one(asker: Asker, snapshot: Snapshot) -> dict[str, Any]:
    name = snapshot.repository.name
    head = asker.db.last_change(snapshot.repository.id, HEAD)
    entry = observe(asker.db, asker.node.cluster, name)["repositories"][0]
    settings = documents.settings(
        snapshot.repository,
        head.refs[0].new.removeprefix("ref: refs/heads/") if head else None,
        [] if asker.anonymous else [f"{replica.device.ssh_url}/{name}" for replica in snapshot.replicas],
    )
    return _shown(asker, entry | settings)


@router.put(
    "/repositories/{name:path}",
    response_model=models.Repository,
    responses={201: {"model": models.Repository}},
)
async def create(asker: User, name: models.Name, body: models.NewRepository, response: Response) -> Any:
    """Make an empty repository. 201: it is new; 200: there is one like this already, which is left as it is.

    It takes a grant of admin that covers the name; to say on which devices, an administrator of the cluster.
    """

    def make() -> Any:
        _require_creator(asker, name, body)
        try:
            creating.create(
                asker.db,
                name,
                devices=body.devices,
                copies=body.copies,
                min_copies=body.min_copies,
                head=body.default_branch or "refs/heads/main",
                object_format=body.object_format or "sha1",
                actor=asker.actor.name,
            )
        except Exists:
            there = _one(asker, acting.may(asker.db, asker.actor, name, Level.READ))
            if not _as_asked(there, body):
                raise
            return there
        response.status_code = 201
        return _one(asker, asker.db.snapshot(name))

    return await asker.ask(make)


def _require_creator(asker: Asker, name: str, body: models.NewRepository) -> None:
    grants = asker.db.grants_to(asker.actor.name)
    if body.devices or body.copies is not None:
        asker.require_administrator()
    elif not access.decide(grants, asker.actor, name).allows(Level.ADMIN):
        raise Refused(
            f"you may not create {name}",
            hint=f"an administrator can let you: git-cluster grant admin {asker.actor.name} {name}",
        )


def _as_asked(there: dict[str, Any], body: models.NewRepository) -> bool:
    """Whether a repository is as one would be that was made now, as far as that was said."""
    branch = body.default_branch and body.default_branch.removeprefix("refs/heads/")
    return (
        body.min_copies in (None, there["min_copies"])
        and branch in (None, there["default_branch"])
        and body.object_format in (None, there["object_format"])
        and body.copies in (None, len(there["replicas"]))
        and {*body.devices} <= {replica["device"] for replica in there["replicas"]}
    )


@router.patch("/repositories/{name:path}", response_model=models.Repository)
async def set_repository(asker: User, name: models.Name, body: models.RepositoryChange) -> Any:
    """Change how a repository is held, and its default branch. It takes admin on it. 409: not at expected_version."""

    def change() -> Any:
        acting.set_repository(
            asker.node,
            asker.actor,
            name,
            min_copies=body.min_copies,
            when_short=WhenShort(body.when_short) if body.when_short else None,
            branch=body.default_branch,
            expected=body.expected_version,
        )
        return _one(asker, asker.db.snapshot(name))

    return await asker.act(change)


@router.delete("/repositories/{name:path}", status_code=204)
async def delete(
    asker: User,
    name: models.Name,
    expected_version: Annotated[int | None, Query(ge=0, le=models.MOST)] = None,
) -> None:
    """Delete a repository, on every device. It takes admin on it. 409: not at expected_version."""

    def remove() -> None:
        acting.may(asker.db, asker.actor, name)
        asker.db.delete_repository(name, expected=expected_version)

    await asker.ask(remove)


@router.post("/rename/{name:path}", response_model=models.Repository)
async def rename(asker: User, name: models.Name, body: models.Rename) -> Any:
    """Give a repository another name. It takes admin on both names. Grants on the old name are not on the new one."""

    def change() -> Any:
        acting.may(asker.db, asker.actor, name)
        grants = asker.db.grants_to(asker.actor.name)
        if not access.decide(grants, asker.actor, body.to).allows(Level.ADMIN):
            raise Refused(
                f"you may not name a repository {body.to}",
                hint=f"an administrator can let you: git-cluster grant admin {asker.actor.name} {body.to}",
            )
        asker.db.rename_repository(name, body.to)
        return _one(asker, asker.db.snapshot(body.to))

    return await asker.ask(change)


@router.post("/place/{name:path}", response_model=models.Placed)
async def place(asker: Administrator, name: models.Name, body: models.Placement) -> Any:
    """Say on which devices a repository is. What has to wait is in `waiting`; ask again, or with `wait`."""
    return await asker.act(lambda: _place(asker, name, body))


def _place(asker: Asker, name: str, body: models.Placement) -> dict[str, Any]:
    if not (body.add or body.remove or body.copies):
        raise UsageError("there is nothing to change", hint="Give add, remove or copies.")
    db = asker.db
    snapshot = db.snapshot(name)
    change = placement.change(
        snapshot, db.devices(), db.loads(), add=body.add, remove=body.remove, copies=body.copies
    )
    if body.dry_run:
        return documents.placed(name, change, change.add, change.remove, change.after) | {"dry_run": True}
    done: dict[str, list[str]] = {"add": [], "remove": []}
    say = (lambda line: None) if body.wait else None
    try:
        for step, device in moving.carry_out(db, snapshot.repository.id, change, await_=body.add, say=say):
            done[step].append(device)
    except NotFound:
        raise
    except Refused:
        if not done["add"] and not done["remove"]:
            raise
    after = sorted(({r.device.name for r in snapshot.replicas} | {*done["add"]}) - {*done["remove"]})
    return documents.placed(name, change, done["add"], done["remove"], after) | {"dry_run": False}


# ------------------------------------------------------------------------------------------------ logs


@router.get("/log/{name:path}", response_model=models.Log, openapi_extra=FOR_ANYBODY)
async def log(
    asker: Anybody,
    name: models.Name,
    limit: Limit = 50,
    before: Annotated[
        int | None, Query(ge=1, le=models.MOST, description="`next` of the page before")
    ] = None,
) -> Any:
    """The push log: who changed which refs, when, and by way of which device; newest first."""

    def look() -> Any:
        subject = acting.may(asker.db, asker.actor, name, Level.READ).repository
        found = asker.db.log(subject.id, limit=limit + 1, before=before)
        shown = found[:limit]
        more = len(found) > limit
        until = None if before is None else before - 1
        since = shown[-1].version if more else 0
        events = asker.db.events(subject.id, since=since, until=until) if shown else []
        if asker.anonymous:
            events = []
        return {
            "entries": [documents.log_entry(entry, events) for entry in shown],
            "next": shown[-1].version if more else None,
        }

    return await asker.ask(look)


@router.get("/history/{name:path}", response_model=list[models.Event])
async def history(
    asker: User,
    name: models.Name,
    limit: Limit = 50,
    since: Annotated[int, Query(ge=0, le=models.MOST, description="a version")] = 0,
    until: Annotated[int | None, Query(ge=0, le=models.MOST, description="a version")] = None,
) -> Any:
    """What happened to it between its pushes, newest first: healed, frozen, thawed, rebuilt, and by which device."""

    def look() -> Any:
        subject = acting.may(asker.db, asker.actor, name, Level.READ).repository
        found = asker.db.events(subject.id, limit=limit, since=since, until=until)
        return [documents.event(event) for event in found]

    return await asker.ask(look)
