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
    for _ in range(3):
        time.sleep(0.5)
        with statements(site.distances.url, site.distances.postgres) as found:
            branch.push("a", repository)
            time.sleep(0.3)
        others = {site.cluster.devices[name].host for name in "bc"}
        runs.append(
            sum(one.address in others and not one.text.startswith("update device set") for one in found)
        )
    return min(runs) / 2


def waiting_for_the_lock(site: Site) -> tuple[int, int]:
    """Trips of a push that finds the write lock taken: before it queues, and how many more once it got it."""
    repository, branch = site.repository(), site.branch(20)
    number = site.cluster.snapshot(repository).repository.id
    free = _own(site, _logged_push(site, repository, branch, None))
    taken = _own(site, _logged_push(site, repository, branch, number))
    tried = _first(taken, "pg_try_advisory_lock")
    asked = _first(taken, "pg_advisory_lock(")
    usual = _first(free, "pg_try_advisory_lock")
    if tried is None or asked is None or usual is None:  # it queues at once
        return 0, 0
    before = sum(one.session == taken[asked].session for one in taken[tried:asked])
    after = sum(one.session == taken[asked].session for one in taken[asked + 1 :])
    return before, max(0, after - sum(one.session == free[usual].session for one in free[usual + 1 :]))


def _first(found: list[Statement], word: str) -> int | None:
    return next((number for number, one in enumerate(found) if word in one.text), None)


def _logged_push(site: Site, repository: str, branch: Branch, locked: int | None) -> list[Statement]:
    branch.push("a", repository)
    site.settle(repository)
    time.sleep(0.5)
    with statements(site.distances.url, site.distances.postgres) as found:
        if locked is None:
            branch.push("a", repository)
        else:
            _push_against_a_lock(site, repository, branch, locked)
        site.settle(repository)
    return found


def _push_against_a_lock(site: Site, repository: str, branch: Branch, number: int) -> None:
    waiting = "select count(*) as n from pg_locks where locktype = 'advisory' and not granted"
    key = (WRITE_LOCK_CLASS, number % 2**31)
    with psycopg.connect(site.cluster.database, autocommit=True) as other, ThreadPoolExecutor(1) as pool:
        other.execute("select pg_advisory_lock(%s, %s)", key)
        push = pool.submit(branch.push, "a", repository)
        while not push.done() and not other.execute(waiting).fetchone()[0]:  # type: ignore[index]
            time.sleep(0.005)
        other.execute("select pg_advisory_unlock(%s, %s)", key)
        push.result()


def _own(site: Site, found: list[Statement]) -> list[Statement]:
    address = site.cluster.devices["a"].host
    return [one for one in found if one.address == address]


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
