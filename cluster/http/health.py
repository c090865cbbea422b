"""/-/health: for load balancers. Nobody has to say who they are, and no more than words of ours and numbers are told.

    /-/health/live     200 for as long as this process answers
    /-/health/ready    200 where a read here is fresh; else 503, and why
    /-/health          the same as ready

However many ask, the database and the disk are looked at once a second at the most, and once at a time.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import anyio
import anyio.to_thread
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Route

from cluster import failing
from cluster.db import Presence, Stuck
from cluster.errors import ClusterError, DiskFailed, SchemaMismatch
from cluster.http.site import Site
from cluster.looked import Looked, NoAnswer
from cluster.model import Device, DeviceMode
from cluster.opening import SERVE_LOCK

T = TypeVar("T")

PATIENCE = 2.0
"""Seconds to wait for the database, or the disk, before that is the answer."""

LOOK = 0.9
"""Seconds for which a look counts; with what it takes itself, a second."""

STUCK_LEAST, STUCK_REST = 5.0, 20.0
"""The same for the copies that cannot be synced, which costs more; and how many times as long as it took."""

STUCK_SHARE = 0.1
"""The part of a device's copies that no device has in a newer version: with more, it is of no use; with fewer, to send
people away from here would help nobody with those, and keep them from all others."""


NONE_STUCK = Stuck(0, 0, 0)


@dataclass(frozen=True, slots=True)
class Condition:
    """What was seen of this device. away: why nothing is known of the database. disk: what is wrong with it."""

    stopping: bool = False
    away: str | None = None
    presence: Presence | None = None
    disk: str | None = None
    stuck: Stuck = NONE_STUCK


def reasons(seen: Condition) -> list[str]:
    """Why a read here may fail, or not be fresh; none: it is."""
    found = []
    if seen.stopping:
        found.append("this device stops")
    if seen.disk is not None:
        found.append(seen.disk)
    if seen.away is not None:
        return [*found, seen.away]
    presence = seen.presence
    if presence is None:
        return [*found, "this device is not registered any more"]
    if presence.mode is not DeviceMode.ENABLED:
        found.append(f"this device is {presence.mode.value}")
    silent = presence.silent_for
    if presence.stopped or silent is None or silent >= Device.OFFLINE_AFTER:
        found.append("this device has no heartbeat")
    stuck = seen.stuck
    if stuck.elsewhere:
        found.append(
            f"{_copies(stuck.elsewhere)} cannot be synced, and another device has the newest version"
        )
    elif stuck.stuck > STUCK_SHARE * stuck.held:
        found.append(f"{_copies(stuck.stuck)} of {stuck.held} cannot be synced")
    return found


def _copies(count: int) -> str:
    return f"{count} cop{'y' if count == 1 else 'ies'}"


def routes(site: Site) -> list[BaseRoute]:
    health = Health(site)
    return [
        Route("/-/health", health.ready),
        Route("/-/health/ready", health.ready),
        Route("/-/health/live", health.live),
    ]


class Health:
    def __init__(self, site: Site) -> None:
        self._site, node = site, site.node
        self._database = Looked(lambda: _presence(node.db.presence, node.name), least=LOOK)
        self._disk = Looked(lambda: Condition(disk=wrong_with(node.store.root)), least=LOOK)
        self._stuck = Looked(
            lambda: node.db.stuck(node.name), least=STUCK_LEAST, rest=STUCK_REST, bygone=60.0
        )
        self._limiter = anyio.CapacityLimiter(32)  # not that of pages: these may all wait for the database

    async def live(self, request: Request) -> Response:
        return JSONResponse({"live": True}, headers=_NO_STORE)

    async def ready(self, request: Request) -> Response:
        seen = await anyio.to_thread.run_sync(self.look, limiter=self._limiter)
        why = reasons(replace(seen, stopping=self._site.stopping.is_set()))
        return JSONResponse(
            {"live": True, "ready": not why, "reasons": why}, 503 if why else 200, headers=_NO_STORE
        )

    def look(self) -> Condition:
        try:
            disk = self._disk.get(PATIENCE).disk
        except NoAnswer:
            disk = "the disk of this device does not answer"
        try:
            seen = replace(self._database.get(PATIENCE), disk=disk)
        except NoAnswer:
            return Condition(away=AWAY, disk=disk)
        if seen.away is not None:
            return seen
        try:
            return replace(seen, stuck=self._stuck.get(PATIENCE))
        except NoAnswer:  # of very many copies, the first look takes longer
            return seen
        except ClusterError:
            return Condition(away=AWAY, disk=disk)


_NO_STORE = {"cache-control": "no-store"}

AWAY = "the cluster's database does not answer"


def _presence(ask: Callable[[str], Presence | None], device: str) -> Condition:
    try:
        return Condition(presence=ask(device))
    except SchemaMismatch as error:
        return Condition(away=error.what)
    except ClusterError:
        return Condition(away=AWAY)


def wrong_with(root: Path) -> str | None:
    """What keeps a device from working on its data_dir; None: nothing. It writes a file there."""
    try:
        if not (root / SERVE_LOCK).exists():
            return "the disk of this device is not the one that it began with"
        with os.scandir(root / "repositories") as entries:
            next(entries, None)
    except FileNotFoundError:
        pass  # it holds none yet
    except OSError as error:
        return _in_words(failing.of_error(error))
    if (disk := failing.of_folder(root)) is not None:
        return _in_words(disk)
    try:
        with tempfile.TemporaryFile(dir=root / "run") as file:
            file.write(b"health")
    except OSError as error:
        return _in_words(failing.of_error(error))
    return None


def _in_words(disk: DiskFailed | None) -> str:
    return disk.what if disk else "the disk of this device cannot be used; an administrator has to look at it"
