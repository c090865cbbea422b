"""Round trips to the database, counted in PostgreSQL's log of statements."""

from __future__ import annotations

import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import psycopg

from cluster.db.connections import WRITE_LOCK_CLASS
from tests.model.instruments import Statement, statements
from tests.model.site import Branch, Site


def of_a_push(site: Site, copies: int) -> list[Statement]:
    """What one push runs on all devices, at a distance that keeps one after another apart: of three runs the shortest,
    for a heartbeat may fall into one."""
    repository, branch = site.repository(min_copies=copies), site.branch(20)
    runs = []
    for _ in range(2):
        branch.push("a", repository)
        site.settle(repository)
    for _ in range(3):
        time.sleep(0.5)
        with statements(site.distances.url, site.distances.postgres) as found:
            branch.push("a", repository)
            site.settle(repository)
            time.sleep(0.3)
        runs.append([one for one in found if not one.text.startswith("update device set")])
    return min(runs, key=len)


def notified(site: Site) -> float:
    """Trips of a device for a push that does not concern it."""
    repository, branch = site.repository(devices="a"), site.branch(10)
    branch.push("a", repository)
    runs = []
    for _ in range(5):
        time.sleep(0.5)
        with statements(site.distances.url, site.distances.postgres) as found:
            branch.push("a", repository)
            time.sleep(0.3)
        others = {site.cluster.devices[name].host for name in "bc"}
        runs.append(
            sum(one.address in others and not one.text.startswith("update device set") for one in found)
        )
    return min(runs) / 2


def waiting_for_the_lock(site: Site, far: float) -> tuple[int, int]:
    """Trips of a push that finds the write lock taken: before it queues, and how many more once it got it.

    By the times at which PostgreSQL began its statements, `far` seconds away: several may go out together. A push has
    at least one, the try in vain. (0, 0): it queues at once.
    """
    repository, branch = site.repository(), site.branch(20)
    number = site.cluster.snapshot(repository).repository.id
    for _ in range(2):
        branch.push("a", repository)
        site.settle(repository)
    site.distances.set(database=far)
    try:
        branch.push("a", repository)
        site.settle(repository)
        with statements(site.distances.url, site.distances.postgres) as free:
            branch.push("a", repository)
            site.settle(repository)
        with statements(site.distances.url, site.distances.postgres) as taken:
            granted = _push_against_a_lock(site, repository, branch, number)
            site.settle(repository)
    finally:
        site.distances.set()
    usual, tried = _when(free, _TRY), _when(taken, _TRY)
    asked = _when(taken, "pg_advisory_lock(")
    if usual is None or tried is None or asked is None:
        return 0, 0
    longer = (_committed(taken) - granted) - (_committed(free) - usual)
    return round((asked - tried) / far), max(0, round(longer / far))


_TRY = "pg_try_advisory_lock"


def _when(found: list[Statement], word: str) -> float | None:
    return next((one.at for one in found if word in one.text), None)


def _committed(found: list[Statement]) -> float:
    return next(one.at for one in found if "insert into push " in one.text)


def _push_against_a_lock(site: Site, repository: str, branch: Branch, number: int) -> float:
    """A push that waits for us; when it was let go, as PostgreSQL's log counts time."""
    waiting = "select count(*) as n from pg_locks where locktype = 'advisory' and not granted"
    key = (WRITE_LOCK_CLASS, number % 2**31)
    with psycopg.connect(site.cluster.database, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
        other.execute("select pg_advisory_lock(%s, %s)", key)
        push = pool.submit(branch.push, "a", repository)
        while not push.done() and not other.execute(waiting).fetchone()[0]:  # type: ignore[index]
            time.sleep(0.005)
        other.execute("select pg_advisory_unlock(%s, %s)", key)
        granted = time.time()
        push.result()
    return granted


def listed(site: Site, found: list[Statement]) -> list[dict[str, str]]:
    """For people who want to know which trips those are."""
    names = {device.host: name for name, device in site.cluster.devices.items()}
    return [
        {
            "device": names.get(one.address, "?"),
            "ms": f"{(one.at - found[0].at) * 1000:.0f}",
            "text": one.text[:90],
        }
        for one in found
    ]


def flush(site: Site) -> float:
    """Seconds that PostgreSQL waits for its disk at a commit: with synchronous_commit on, less without."""
    took = {}
    with psycopg.connect(site.cluster.database, autocommit=True) as connection:
        connection.execute("create table if not exists flushed (n int)")
        connection.execute("insert into flushed values (0)")
        for how in ("on", "off"):
            connection.execute(f"set synchronous_commit = {how}")
            seconds = []
            for _ in range(60):
                begun = time.perf_counter()
                connection.execute("update flushed set n = n + 1")
                seconds.append(time.perf_counter() - begun)
            took[how] = statistics.median(seconds)
        connection.execute("drop table flushed")
    return max(0.0, took["on"] - took["off"])
