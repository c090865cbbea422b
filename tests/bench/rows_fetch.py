"""A device that is behind: what a fetch costs there right after a push elsewhere, and what it costs to follow."""

from __future__ import annotations

import os
import signal
import time

from tests.bench.harness import Bench, Run
from tests.cluster_fixture import Cluster
from tests.many_refs import branch, give_refs

FEW, MANY = 10, 100_000


def fetch_when_behind(bench: Bench) -> None:
    """B stands still while A takes the push, and hears of it in the moment in which the fetch begins."""
    cluster, name = bench.cluster, "behind"
    _, theirs, work = bench.pair(name, min_copies=1)
    ours = cluster.url("b", name)
    clients = {url: cluster.directory / f"behind-{number}" for number, url in enumerate((ours, theirs))}
    for url, client in clients.items():
        cluster.ok("clone", "-q", "--bare", url, str(client))

    def push() -> None:
        cluster.commit(work, "next", note=str(time.monotonic_ns()))
        cluster.ok("push", "-q", theirs, "HEAD:refs/heads/main", cwd=work)
        stand_still(cluster, "b")
        cluster.ok("push", "-q", cluster.url("a", name), "HEAD:refs/heads/main", cwd=work)
        assert behind(cluster, "b", name), "B has the push already"

    def fetch(url: str) -> float:
        go_on(cluster, "b")
        begun = time.perf_counter()
        cluster.ok("fetch", "-q", url, "main:main", cwd=clients[url])
        return time.perf_counter() - begun

    bench.compare(
        "fetch on B right after a push to A", 1.50, lambda: fetch(ours), lambda: fetch(theirs), before=push
    )


def sync_of_one_ref(bench: Bench) -> None:
    """Both sides are ours: from the moment in which B hears of it until its copy is the newest."""
    cluster = bench.cluster
    few, many = (_with_refs(cluster, count) for count in (FEW, MANY))
    bench.compare(
        f"sync of one ref, {MANY:,} refs/{FEW} refs",
        1.50,
        many,
        few,
        servers=(bench.ours, bench.ours),
    )


def _with_refs(cluster: Cluster, count: int) -> Run:
    """A repository with so many branches; a run changes one of them on A, and takes what B needs to follow."""
    name = f"refs-{count}"
    cluster.create(name)
    work = cluster.work(f"work-{name}")
    cluster.ok("push", "-q", cluster.url("a", name), "HEAD:refs/heads/main", cwd=work)
    cluster.converge(name)
    give_refs(cluster, name, count)
    cluster.converge(name)

    def run() -> float:
        cluster.commit(work, "next", note=str(time.monotonic_ns()))
        stand_still(cluster, "b")
        try:
            cluster.ok("push", "-qf", cluster.url("a", name), f"HEAD:{branch(count // 2)}", cwd=work)
            assert behind(cluster, "b", name), "B has the push already"
            begun = time.perf_counter()
        finally:
            go_on(cluster, "b")
        while behind(cluster, "b", name):
            assert time.perf_counter() - begun < 60, "B does not follow"
            time.sleep(0.001)
        return time.perf_counter() - begun

    return run


def behind(cluster: Cluster, device: str, name: str) -> bool:
    """Whether the database knows a newer version than the device's copy has."""
    snapshot = cluster.snapshot(name)
    mine = snapshot.of(device)
    return mine is None or mine.position != snapshot.repository.position


def stand_still(cluster: Cluster, device: str) -> None:
    """Stop a device's processes until `go_on`."""
    _signal(cluster, device, signal.SIGSTOP)


def go_on(cluster: Cluster, device: str) -> None:
    """Fine where it goes on already."""
    _signal(cluster, device, signal.SIGCONT)


def _signal(cluster: Cluster, device: str, what: signal.Signals) -> None:
    pid = cluster.devices[device].pid
    assert pid is not None
    os.killpg(pid, what)  # it leads a group (Loopback.start)


ROWS = (fetch_when_behind, sync_of_one_ref)
