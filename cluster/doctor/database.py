"""The database, from afar: reached, asked, and what it says as findings."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from cluster.config import Config
from cluster.db import SCHEMA_VERSION, Database
from cluster.doctor import judge
from cluster.doctor.finding import Finding, ok, problem
from cluster.errors import ClusterError, ConfigError, SchemaMismatch
from cluster.model import Device, DeviceMode
from cluster.opening import processes

if TYPE_CHECKING:
    from cluster.db.condition import Tick

TICKS = 5
"""Round trips that are timed."""


@dataclass(slots=True)
class Known:
    """What the database told. db: open where git-cluster's tables can be read, so that it can be asked for more.

    skew: seconds by which its clock is ahead of this machine's.
    """

    findings: list[Finding] = field(default_factory=list)
    db: Database | None = None
    devices: list[Device] = field(default_factory=list)
    skew: float | None = None

    def device(self, name: str) -> Device | None:
        return next((device for device in self.devices if device.name == name), None)


def look(config: Config) -> Known:
    """Whatever is wrong is among the findings."""
    known = Known()
    url = _url(config)
    if url is None:
        known.findings.append(
            problem(
                "database",
                "the embedded PostgreSQL does not run",
                "`git-cluster serve` starts it, and stops it",
            )
        )
        return known
    db = Database(url, application_name="git-cluster doctor", connections=4)
    try:
        db.open(any_schema=True)
    except ConfigError as error:
        known.findings.append(
            problem("pooler" if "pooler" in error.what else "database", error.what, error.hint)
        )
        return known
    except ClusterError as error:
        known.findings.append(problem("database", error.what, error.hint))
        return known
    known.db = db
    try:
        _ask(db, known, processes(config))
    except ClusterError as error:
        known.findings.append(problem("database", error.what, error.hint))
        known.db = None
        db.close()
    return known


def _url(config: Config) -> str | None:
    """None: it is an embedded one that does not run."""
    if not config.cluster.embedded or config.device is None:
        return config.cluster.database
    from cluster import embedded

    return embedded.running(config.device.data_dir / "postgres")


def _ask(db: Database, known: Known, workers: int) -> None:
    ticks = [db.tick() for _ in range(TICKS)]
    server = db.server()
    findings = known.findings
    findings.append(judge.postgres(server, statistics.median(tick.taken for tick in ticks)))
    findings.append(ok("pooler", "none that shares sessions between transactions"))
    try:
        found = db.schema_version()
        findings.append(judge.schema(found))
    except SchemaMismatch as error:
        found = None
        findings.append(problem("schema", error.what, error.hint))
    if found == SCHEMA_VERSION:
        known.devices = db.devices()
    findings.append(judge.durability(server))
    serving = sum(device.mode is not DeviceMode.DISABLED for device in known.devices)
    findings.append(judge.connections(server.most, server.used, serving, workers))
    known.skew = skew(ticks)
    findings.append(judge.clock(known.skew))
    if found != SCHEMA_VERSION:
        known.db = None
        db.close()


def skew(ticks: list[Tick]) -> float:
    """Seconds by which the database's clock is ahead: by the fastest look at it, which is off by half of what it took
    at the most."""
    best = min(ticks, key=lambda tick: tick.taken)
    return judge.at_least(best.theirs - best.ours, best.taken / 2)
