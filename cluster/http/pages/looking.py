"""The pages that are read: the cluster, its repositories, one repository, one version of it, what happened lately."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import BaseRoute, Match, Route
from starlette.types import Scope

from cluster import acting, names, overview, status
from cluster.db import Database
from cluster.errors import ClusterError
from cluster.http.pages import charts
from cluster.http.pages.render import Pages, Visit, repository_url
from cluster.http.pages.sight import Names, Sight, search, some, unfit
from cluster.model import Level, Snapshot
from cluster.overview import Glance, Trouble

MOST_TROUBLES = 20
MOST_OWN = 1000
"""Repositories of somebody who may not see all of them that are looked at for the first page."""

EVENTS, MORE_EVENTS = 12, 50
LOG, REFS, MORE_REFS = 20, 12, 500
COPIES = 300


def routes(pages: Pages) -> list[BaseRoute]:
    async def away(request: Request) -> Response:
        return RedirectResponse("/-/", 302)

    return [
        Route("/-", away),
        pages.route("/-/", lambda visit: _home(pages, visit)),
        pages.route("/-/events", lambda visit: _events(pages, visit)),
        pages.route("/-/repositories", lambda visit: _repositories(pages, visit)),
        pages.route("/-/repositories/{name:path}", lambda visit: _repository(pages, visit)),
        pages.route("/-/versions/{version:int}/{name:path}", lambda visit: _version(pages, visit)),
    ]


class _Repositories(Route):
    """Every path but ours: a wrong method below /-/ is an answer of the route there."""

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        return (Match.NONE, {}) if scope["path"].startswith("/-/") else super().matches(scope)


def to_page() -> BaseRoute:
    """The address of a repository, opened with a browser, leads to its page. Comes after all other routes."""

    async def answer(request: Request) -> Response:
        try:
            name = names.repository_name(request.path_params["name"])
        except ClusterError:
            name = ""
        if not name or "text/html" not in request.headers.get("accept", ""):
            return PlainTextResponse(
                "cluster: error: there is nothing at this address\n"
                "cluster: use git to clone a repository; the status page is at /-/\n",
                404,
            )
        return RedirectResponse(repository_url(name), 302)

    return _Repositories("/{name:path}", answer)


# ------------------------------------------------------------------------------------------------ the cluster


async def _home(pages: Pages, visit: Visit) -> Response:
    db, sight = pages.site.node.db, visit.sight
    glance = await pages.lookout.look()
    span = visit.query("span")
    span = span if span in charts.RANGES else "hour"

    def more() -> dict[str, Any]:
        found, further = _troubles(db, sight, glance)
        if not sight.known:
            return {"troubles": found, "further": further, "events": [], "charts": []}
        hours, minutes = charts.RANGES[span]
        return {
            "troubles": found,
            "further": further,
            "events": [h for h in db.lately(limit=4 * EVENTS) if sight.level(h.repository)][:EVENTS],
            "charts": charts.charts(db.pieces(hours=hours, minutes=minutes), glance.at, span),
        }

    return pages.page(
        visit,
        "home.html",
        glance=glance,
        headline=_headline(sight, glance),
        devices=glance.devices if sight.known else (),
        span=span,
        spans=list(charts.RANGES),
        nearly_full=overview.nearly_full,
        now=glance.at,
        rendered=glance.at,
        **await pages.site.ask(more),
    )


def _headline(sight: Sight, glance: Glance) -> overview.Headline:
    """Repositories are named to those who may see all; else the first of those that they see stands further down."""
    made = overview.headline(glance, named=sight.known)
    if made.repository and sight.level(made.repository) is None:
        return overview.Headline(made.level, made.words, "an administrator is needed")
    return made


def _troubles(db: Database, sight: Sight, glance: Glance) -> tuple[list[Trouble], int]:
    """What they may see of what is wrong, the most urgent first, and how many kinds more there are."""
    if sight.everything:
        found = list(glance.troubles)
    else:
        own = some(db, sight, MOST_OWN)
        found = overview.troubles(db, glance.devices, among=own)[0] if own else []
    return found[:MOST_TROUBLES], len(found[MOST_TROUBLES:])


async def _events(pages: Pages, visit: Visit) -> Response:
    sight, db = visit.sight, pages.site.node.db
    if not sight.known:
        return pages.to_login(visit.request)
    before = _time(visit.query("before"))
    found = await pages.site.ask(lambda: (db.now(), db.lately(before=before, limit=MORE_EVENTS)))
    now, events = found
    return pages.page(
        visit,
        "events.html",
        events=[happened for happened in events if sight.level(happened.repository)],
        now=now,
        before=before,
        further=events[-1].event.at.isoformat() if len(events) == MORE_EVENTS else None,
    )


def _time(text: str) -> datetime | None:
    try:
        at = datetime.fromisoformat(text)
    except ValueError:
        return None
    return at if at.tzinfo else None


# ------------------------------------------------------------------------------------------------ repositories


async def _repositories(pages: Pages, visit: Visit) -> Response:
    db, sight = pages.site.node.db, visit.sight
    text, after = visit.query("q", names.MAX_NAME), visit.query("after", names.MAX_NAME)
    troubled = visit.query("state") == "attention"

    def look() -> tuple[Names, list[dict[str, Any]]]:
        if troubled:
            down = [device.id for device in db.devices() if not overview.serves(device)]
            found = unfit(db, sight, down, text, after)
        else:
            found = search(db, sight, text, after)
        return found, _entries(db, list(found.names))

    found, entries = await pages.site.ask(look)
    return pages.page(
        visit,
        "repositories.html",
        entries=[entry for entry in entries if not troubled or entry["state"] != "healthy"],
        further=found.further,
        text=text,
        after=after,
        troubled=troubled,
    )


def _entries(db: Database, wanted: list[str]) -> list[dict[str, Any]]:
    """The status document's entries of these repositories."""
    if not wanted:
        return []
    snapshots = db.snapshots_of(wanted)
    locked = status.write_locks(db, snapshots, lambda: db.snapshots_of(wanted))
    return [
        status.repository(snapshot, locked=snapshot.repository.id % status.LOCK_IDS in locked)
        for snapshot in snapshots
    ]


def entry_of(db: Database, snapshot: Snapshot) -> dict[str, Any]:
    """The same of one."""
    id = snapshot.repository.id
    locked = status.write_locks(db, [snapshot], lambda: [db.snapshot_of(id)])
    return status.repository(snapshot, locked=id % status.LOCK_IDS in locked)


async def _repository(pages: Pages, visit: Visit) -> Response:
    name = names.repository_name(visit.request.path_params["name"])
    db, before = pages.site.node.db, visit.number("before")

    def look() -> dict[str, Any]:
        snapshot = acting.may(db, visit.actor, name, Level.READ)
        id, now = snapshot.repository.id, db.now()
        log = db.log_page(id, before=before, limit=LOG + 1, most_refs=REFS)
        return {
            "snapshot": snapshot,
            "entry": entry_of(db, snapshot),
            "log": log[:LOG],
            "further": log[LOG - 1][0].version if len(log) > LOG else None,
            "events": db.events(id, limit=EVENTS),
            "copies": charts.copies(db.copies_over_time(id, limit=COPIES), now),
            "now": now,
        }

    found = await pages.site.ask(look)
    snapshot: Snapshot = found["snapshot"]
    return pages.page(
        visit,
        "repository.html",
        name=snapshot.repository.name,
        before=before,
        acts=visit.sight.acts(name) and bool(visit.cookie),
        clone=clone_urls(snapshot, pages.site.node.name, pages.site.section.advertise),
        **found,
    )


def clone_urls(snapshot: Snapshot, here: str, advertise: str | None) -> list[tuple[str, list[str]]]:
    """How to clone it, by device: from this one first, if it holds it. Only from those that serve."""
    name = snapshot.repository.name
    devices = [replica.device for replica in snapshot.replicas if overview.serves(replica.device)]
    found = []
    for device in sorted(devices, key=lambda device: (device.name != here, device.name)):
        http = advertise if device.name == here and advertise else device.http_url
        bases = [device.ssh_url.rstrip("/"), *([http.rstrip("/")] if http else [])]
        found.append((device.name, [f"{base}/{name}" for base in bases]))
    return found


async def _version(pages: Pages, visit: Visit) -> Response:
    name = names.repository_name(visit.request.path_params["name"])
    version = min(visit.request.path_params["version"], names.MAX_VERSION)
    db, after = pages.site.node.db, visit.request.query_params.get("after", "")[:4096]

    def look() -> tuple[Snapshot, Any, Any]:
        snapshot = acting.may(db, visit.actor, name, Level.READ)
        text = after.replace("\0", "")
        return snapshot, *db.refs_of_version(snapshot.repository.id, version, after=text, limit=MORE_REFS + 1)

    snapshot, entry, refs = await pages.site.ask(look)
    return pages.page(
        visit,
        "version.html",
        name=snapshot.repository.name,
        entry=entry,
        refs=refs[:MORE_REFS],
        after=after,
        further=refs[MORE_REFS - 1].ref if len(refs) > MORE_REFS else None,
    )
