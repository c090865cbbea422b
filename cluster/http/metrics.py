"""/-/metrics: what a device counts and what it sees, for Prometheus. docs/monitoring.md explains every figure.

What is counted comes from memory (cluster/meters.py). What has to be asked of the database is asked by one thread at a
time, however many scrapers there are, and left out where there is no answer in time: while the database hangs, a scrape
takes PATIENCE, and says that it does.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
import anyio.to_thread
from prometheus_client import Metric, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.openmetrics import exposition as openmetrics
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from cluster import __version__, access
from cluster.db import Backlog, Behind
from cluster.db.pool import Usage
from cluster.errors import ClusterError, Refused
from cluster.http.figures import Figures, of_processes
from cluster.http.site import Site
from cluster.http.who import GET_ONE, Unauthenticated
from cluster.looked import Looked, NoAnswer
from cluster.meters import Meters
from cluster.model import ActorKind, Device
from cluster.processes import git_running

PATIENCE = 3.0
"""Seconds that a scrape waits for the database. Prometheus gives up after 10."""

LEAST, REST = 5.0, 20.0
"""Seconds for which an answer of the database's is kept, and how many times as long as it took: looking takes no more
than a twentieth of the time, however many repositories there are."""

BYGONE = 120.0
"""Seconds for which an older answer is given while the next one takes long."""

TEXT = "text/plain; version=0.0.4; charset=utf-8"
OPENMETRICS = "application/openmetrics-text"


def routes(site: Site) -> list[BaseRoute]:
    meters = site.node.measures
    if not isinstance(meters, Meters):
        return []
    figures = site.figures or (lambda: own(site, meters))
    seen = Seen(site)
    limiter = anyio.CapacityLimiter(4)  # not that of pages: these may all wait for the database

    async def metrics(request: Request) -> Response:
        await allowed(site, request)
        # Not the library's own choice, which fails over a version that is no number.
        encode: Callable[[Any], bytes] = generate_latest
        kind = TEXT
        if OPENMETRICS in request.headers.get("accept", ""):
            encode, kind = openmetrics.generate_latest, openmetrics.CONTENT_TYPE_LATEST
        body = await anyio.to_thread.run_sync(lambda: encode(_Scrape(figures(), seen)), limiter=limiter)
        return Response(body, media_type=None, headers={"content-type": kind, "cache-control": "no-store"})

    return [Route("/-/metrics", metrics)]


async def allowed(site: Site, request: Request) -> None:
    """Raise Unauthenticated or Refused where [http] metrics keeps them from whoever asks."""
    if site.section.metrics == "everyone":
        return
    actor = await site.who.asks(request)
    if actor.kind is ActorKind.ANONYMOUS:
        raise Unauthenticated("metrics are for administrators here", hint=GET_ONE)
    if not access.administers(await site.ask(lambda: site.node.db.grants_to(actor.name))):
        raise Refused("metrics are for administrators here", hint='that takes a grant of admin on "*"')


def own(site: Site, meters: Meters) -> Figures:
    """Those of a device whose only process this is."""
    return Figures(
        list(meters.registry.collect()),
        {endpoint: count_of() for endpoint, count_of in meters.connections.items()},
        site.node.db.usage(),
        [os.getpid()],
    )


class _Scrape:
    """What is counted, and what is seen, at one look."""

    def __init__(self, figures: Figures, seen: Seen) -> None:
        self._figures, self._seen = figures, seen

    def collect(self) -> Iterator[Metric]:
        yield from self._figures.counted
        yield from self._seen.collect(self._figures)
        yield from of_processes(self._figures.processes)


@dataclass(frozen=True, slots=True)
class Overview:
    """What the database says of the cluster."""

    repositories: dict[str, int]
    behind: list[Behind]
    backlog: Backlog
    devices: list[Device]


class Seen:
    """What is looked up when somebody asks."""

    def __init__(self, site: Site) -> None:
        self._site, db = site, site.node.db
        self._tick = Looked(lambda: db.tick().taken, least=1.0)
        self._overview = Looked(
            lambda: Overview(db.repository_states(), db.behind(), db.backlog(), db.devices()),
            least=LEAST,
            rest=REST,
            bygone=BYGONE,
        )

    def collect(self, figures: Figures) -> Iterator[Metric]:
        yield from self._here(figures)
        up = gauge(
            "git_cluster_database_up", "1 where the database answers this device, 0 where it does not."
        )
        try:
            taken = self._tick.get(PATIENCE)
        except (ClusterError, NoAnswer):
            up.add_metric([], 0)
            yield up
            return
        up.add_metric([], 1)
        yield up
        yield gauge(
            "git_cluster_database_round_trip_seconds", "Seconds that a question to the database takes.", taken
        )
        with suppress(ClusterError, NoAnswer):
            yield from of_cluster(self._overview.get(PATIENCE))

    def _here(self, figures: Figures) -> Iterator[Metric]:
        info = gauge("git_cluster_info", "1, and which program this is.", labels=["version", "device"])
        info.add_metric([__version__, self._site.node.name], 1)
        yield info
        yield gauge(
            "git_cluster_stopping",
            "1 where this device was told to stop.",
            float(self._site.stopping.is_set()),
        )
        running = gauge(
            "git_cluster_git_processes", "Git processes of this device that run.", labels=["command"]
        )
        for command, count in git_running(figures.processes).items():
            running.add_metric([command], count)
        yield running
        open_ = gauge("git_cluster_connections", "Connections that are open.", labels=["endpoint"])
        for endpoint, count in figures.connections.items():
            open_.add_metric([endpoint], count)
        yield open_
        yield from _pools(figures.pools)


def _pools(pools: Mapping[str, Usage]) -> Iterator[Metric]:
    size = gauge("git_cluster_database_pool_size", "Connections that a pool may have.", labels=["pool"])
    taken = gauge("git_cluster_database_pool_in_use", "Connections of it that are in use.", labels=["pool"])
    idle = gauge("git_cluster_database_pool_idle", "Connections of it that lie ready.", labels=["pool"])
    waits = CounterMetricFamily(
        "git_cluster_database_pool_waits", "Times that all of them were in use.", labels=["pool"]
    )
    for name, usage in pools.items():
        size.add_metric([name], usage.most)
        taken.add_metric([name], usage.taken)
        idle.add_metric([name], usage.idle)
        waits.add_metric([name], usage.waits)
    yield from (size, taken, idle, waits)


def of_cluster(overview: Overview) -> Iterator[Metric]:
    """The same from every device that answers: look at the maximum, not at the sum."""
    states = gauge("git_cluster_repositories", "Repositories of the cluster in each state.", labels=["state"])
    for state, count in overview.repositories.items():
        states.add_metric([state], count)
    yield states
    up = gauge("git_cluster_device_up", "1 where a device is online, and not disabled.", labels=["device"])
    mode = gauge("git_cluster_device_mode", "1 for the mode that a device is in.", labels=["device", "mode"])
    silent = gauge(
        "git_cluster_device_silent_seconds",
        "Seconds since a device said that it is alive.",
        labels=["device"],
    )
    for device in overview.devices:
        up.add_metric([device.name], device.state in ("online", "draining"))
        mode.add_metric([device.name, device.mode.value], 1)
        if device.silent_for is not None:
            silent.add_metric([device.name], max(0.0, device.silent_for))
    yield from (up, mode, silent)
    behind = gauge(
        "git_cluster_replicas_behind",
        "Copies of a device that are not at the newest version.",
        labels=["device"],
    )
    absent = gauge("git_cluster_replicas_absent", "Those of them that hold nothing yet.", labels=["device"])
    lag = gauge(
        "git_cluster_sync_lag_seconds",
        "Seconds for which the copy of a device that is behind for longest has been; 0: none is.",
        labels=["device"],
    )
    for each in overview.behind:
        behind.add_metric([each.device], each.count)
        absent.add_metric([each.device], each.absent)
        lag.add_metric([each.device], max(0.0, each.lag or 0.0))
    yield from (behind, absent, lag)
    backlog = overview.backlog
    yield gauge(
        "git_cluster_webhooks_behind", "Webhooks that have not heard of every version.", backlog.webhooks
    )
    yield gauge(
        "git_cluster_webhook_backlog", "Versions that webhooks have still to hear of.", backlog.versions
    )
    yield gauge(
        "git_cluster_webhook_delay_seconds",
        "Seconds for which the version that waits for longest has waited for its webhook; 0: none does.",
        backlog.delay,
    )


def gauge(
    name: str, help: str, value: float | None = None, *, labels: list[str] | None = None
) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, help, value, labels=labels)
