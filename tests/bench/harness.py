"""Both sides of a row in turn, with what they take of the clock and of the servers' processors."""

from __future__ import annotations

import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import psycopg

from tests.bench.plain import PlainGit
from tests.bench.table import Cpu, Row
from tests.bench.trees import Load, Process, Roots, load, processes
from tests.cluster_fixture import Cluster

Run = Callable[[], object]

ENDING = 0.5
"""Seconds at most that the processes which a run left behind are waited for, before the other side's turn."""


@dataclass(frozen=True, slots=True)
class Servers:
    """Whose CPU time is counted for one side: the roots of its process trees."""

    server: Roots
    postgres: Roots = tuple

    def load(self, table: list[Process]) -> tuple[Load, Load]:
        return load(self.server(), table), load(self.postgres(), table)


@dataclass
class _Side:
    run: Run
    servers: Servers
    seconds: list[float] = field(default_factory=list)
    cpu: list[Cpu] = field(default_factory=list)

    def turn(self) -> tuple[float, Cpu, bool]:
        """Run once: seconds, CPU, whether it failed."""
        server, postgres = self.servers.load(processes())
        seconds, failed = _timed(self.run)
        until = time.monotonic() + ENDING
        while True:
            server_after, postgres_after = self.servers.load(processes())
            if server_after.count <= server.count or time.monotonic() > until:
                break
            time.sleep(0.005)
        used = Cpu(server_after.seconds - server.seconds, postgres_after.seconds - postgres.seconds)
        return seconds, used, failed


class Bench:
    """One run of the benchmark.

    cluster: devices a and b with a user who may do everything. plain: the other side, for the same user.
    rounds: how many of each row count. postgres: the process of its server.
    """

    def __init__(self, cluster: Cluster, plain: PlainGit, rounds: int, *, postgres: Roots = tuple) -> None:
        self.cluster, self.plain, self.rounds = cluster, plain, rounds
        self._postgres = postgres
        self.rows: list[Row] = []
        self.ours = self.servers_of(cluster)
        self.theirs = Servers(lambda: [plain.process.pid])

    def servers_of(self, cluster: Cluster) -> Servers:
        """The daemons of a cluster, and the sshds in front of them; PostgreSQL apart."""
        return Servers(cluster.roots, self._postgres)

    def compare(
        self,
        name: str,
        target: float | None,
        ours: Run,
        theirs: Run,
        *,
        before: Run = lambda: None,
        caches: str = "warm",
        servers: tuple[Servers, Servers] | None = None,
        notes: Callable[[Row], Mapping[str, str]] = lambda row: {},
    ) -> None:
        """Run both sides in turn and note the ratio, pair by pair; the first round does not count.

        `before` prepares each pair and is not timed. A run may return the seconds that count. A round in which a side
        fails counts as a failure, not as a time.
        servers: whose CPU time is counted, where that is not ours and plain sshd's. notes: what else is to
        be said of the row, asked at the end.
        """
        first, second = servers or (self.ours, self.theirs)
        sides, failures = (_Side(ours, first), _Side(theirs, second)), 0
        for number in range(self.rounds + 1):
            before()
            turns = [side.turn() for side in sides]
            failed = sum(bad for *_, bad in turns)
            failures += failed
            if number and not failed:
                for side, (seconds, cpu, _) in zip(sides, turns, strict=True):
                    side.seconds.append(seconds)
                    side.cpu.append(cpu)
        row = Row(
            name,
            target,
            tuple(sides[0].seconds),
            tuple(sides[1].seconds),
            failures,
            caches=caches,
            cpu_ours=_mean(sides[0].cpu),
            cpu_theirs=_mean(sides[1].cpu),
        )
        self.add(replace(row, notes=dict(notes(row))))

    def add(self, row: Row) -> None:
        """A row that was measured by its own means."""
        self.rows.append(row)
        print(row.line(), flush=True)

    # ------------------------------------------------------------------------------------------- for rows

    def pair(self, name: str, *, min_copies: int, cluster: Cluster | None = None) -> tuple[str, str, Path]:
        """The same content on both sides: our URL, the other URL, a work tree to push from."""
        cluster = cluster or self.cluster
        cluster.create(name, min_copies=min_copies)
        ours, theirs = cluster.url("a", name), self.plain.create(name)
        work = cluster.work(f"work-{name}")
        for number in range(3):
            cluster.commit(work, f"commit {number}")
        for url in (ours, theirs):
            cluster.ok("push", "-q", url, "HEAD:refs/heads/main", cwd=work)
        cluster.converge(name)
        return ours, theirs, work

    def database(self, name: str) -> str:
        """The URL of a new database on the same server."""
        with psycopg.connect(self.cluster.database, autocommit=True) as connection:
            connection.execute(f'create database "{name}"')
        return self.cluster.database.replace("/postgres?", f"/{name}?", 1)

    @contextmanager
    def apart(
        self, name: str, devices: str, sections: Mapping[str, Mapping[str, str | int]] | None = None
    ) -> Iterator[Cluster]:
        """A cluster of a row's own, running, whose user plain sshd knows, too; its folder is removed at the end."""
        directory = self.cluster.directory / f"apart-{name}"
        cluster = Cluster(directory, self.database(name), {}, sections)
        try:
            cluster.set_up(list(devices))
            self.plain.known_to(cluster)
            for device in devices:
                cluster.start(device)
            yield cluster
        finally:
            cluster.close()
            shutil.rmtree(directory, ignore_errors=True)


def _mean(used: list[Cpu]) -> Cpu | None:
    if not used:
        return None
    return Cpu(sum(cpu.server for cpu in used) / len(used), sum(cpu.postgres for cpu in used) / len(used))


def _timed(run: Run) -> tuple[float, bool]:
    """Seconds, and whether it failed. A run may return the seconds that count, where its own set-up does not."""
    begun = time.perf_counter()
    try:
        counted = run()
    except (AssertionError, subprocess.SubprocessError):
        return time.perf_counter() - begun, True
    return counted if isinstance(counted, float) else time.perf_counter() - begun, False
