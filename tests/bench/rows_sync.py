"""Sync and staging follow the change: the same work on much and on little, and reads right after a push elsewhere."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from uuid import uuid4

from cluster.config import load
from cluster.model import RefUpdate
from cluster.node import Node
from cluster.opening import open_node
from cluster.sync import catch_up
from cluster.versions import updated
from tests.bench.harness import Bench, Run
from tests.cluster_fixture import Cluster
from tests.many_refs import branch, give_refs

FEW, MANY = 10, 100_000
"""Refs of a repository."""

LARGE = int(os.environ.get("BENCH_LARGE_MB", "300"))
"""Megabytes of a large repository: 2000 takes a few minutes, and three times that of disk."""


def fetch_of_what_was_staged(bench: Bench) -> None:
    """On b, right after a push to a with two copies: b holds its objects already, and follows by itself meanwhile."""
    ours, theirs, work = bench.pair("staged", min_copies=2)
    there, reader = bench.cluster.url("b", "staged"), bench.cluster.directory / "reader"
    bench.cluster.ok("clone", "-q", "--bare", there, str(reader))

    def fetching(to: str, source: str) -> Run:
        def run() -> float:
            bench.cluster.commit(work, "next", note=str(time.monotonic_ns()))
            bench.cluster.ok("push", "-qf", to, "HEAD:refs/heads/main", cwd=work)
            begun = time.perf_counter()
            bench.cluster.ok("fetch", "-q", source, "refs/heads/main", cwd=reader)
            return time.perf_counter() - begun

        return run

    bench.compare(
        "fetch on B right after a push to A, staged", 1.50, fetching(ours, there), fetching(theirs, theirs)
    )


@contextmanager
def _stale(bench: Bench, name: str) -> Iterator[tuple[Cluster, Node]]:
    """A cluster of its own: a is up, b is this process, and syncs when it is told to."""
    with bench.apart(name, "ab") as cluster:
        cluster.stop("b")
        node = open_node(load(cluster.devices["b"].config, os.environ), {})
        try:
            yield cluster, node
        finally:
            node.peers.close()
            node.db.close()


def _with_main(cluster: Cluster, name: str, node: Node | None = None, *, min_copies: int = 1) -> Path:
    """A new repository with one commit, and a work tree of it."""
    cluster.create(name, min_copies=min_copies)
    work = cluster.work(f"work-{name}")
    cluster.ok("push", "-q", cluster.url("a", name), "HEAD:refs/heads/main", cwd=work)
    if node is not None:
        catch_up(node, cluster.snapshot(name).repository.id)
    return work


def _syncing(cluster: Cluster, node: Node, name: str) -> Run:
    number = cluster.snapshot(name).repository.id

    def run() -> None:
        catch_up(node, number)
        assert node.db.snapshot_of(number).of("b").position == cluster.snapshot(name).repository.position  # type: ignore[union-attr]

    return run


def _leads(cluster: Cluster, name: str) -> bool:
    snapshot = cluster.snapshot(name)
    mine = snapshot.of("a")
    return mine is not None and mine.position == snapshot.repository.position and not mine.quarantined


def sync_alone_of_one_ref(bench: Bench) -> None:
    """The call alone, in this process, without NOTIFY and the daemon's threads."""
    with _stale(bench, "one-ref") as (cluster, node):
        works = {}
        for count in (FEW, MANY):
            name = f"refs-{count}"
            works[name] = _with_main(cluster, name, node)
            give_refs(cluster, name, count)
            cluster.wait(lambda name=name: _leads(cluster, name), "a has them all")  # type: ignore[misc]
            _syncing(cluster, node, name)()

        def change() -> None:
            for name, work in works.items():
                cluster.commit(work, "next", note=str(time.monotonic_ns()))
                cluster.ok("push", "-qf", cluster.url("a", name), f"HEAD:{branch(5)}", cwd=work)

        servers = bench.servers_of(cluster)
        bench.compare(
            f"sync alone of one ref, {MANY:,} refs/{FEW} refs",
            1.50,
            *(_syncing(cluster, node, f"refs-{count}") for count in (MANY, FEW)),
            before=change,
            servers=(servers, servers),
        )


def push_to_many_refs(bench: Bench) -> None:
    """Git shows all refs to every push; both sides do."""
    ours, theirs, work = bench.pair("many-refs", min_copies=2)
    give_refs(bench.cluster, "many-refs", MANY)
    bench.cluster.converge("many-refs")
    source = bench.cluster.disk("a", "many-refs") / "packed-refs"
    (bench.plain.directory / "many-refs.git" / "packed-refs").write_bytes(source.read_bytes())

    def pushing(url: str) -> Run:
        return lambda: bench.cluster.ok("push", "-qf", url, f"HEAD:{branch(5)}", cwd=work)

    bench.compare(
        f"push of one ref of {MANY:,}, min_copies 2",
        1.20,
        pushing(ours),
        pushing(theirs),
        before=lambda: bench.cluster.commit(work, "next", note=str(time.monotonic_ns())),
    )


def small_push_into_a_large_repository(bench: Bench) -> None:
    """1 MB, until it is on both devices; against the same into an empty repository."""
    cluster, runs = bench.cluster, []
    for name, megabytes in (("large", LARGE), ("small", 0)):
        work = _with_main(cluster, name, min_copies=2)
        cluster.ok("config", "core.compression", "0", cwd=work)
        for number in range(0, megabytes, 50):
            (work / f"part-{number}").write_bytes(os.urandom(50 << 20))
            cluster.commit(work, "50 MB more", note=str(number))
            cluster.ok("push", "-q", cluster.url("a", name), "HEAD:refs/heads/main", cwd=work, timeout=300)
        cluster.converge(name)
        runs.append(_pushing_a_megabyte(cluster, name, work))
    bench.compare(
        f"1 MB until on both devices, {LARGE} MB/empty",
        1.50,
        *runs,
        servers=(bench.ours, bench.ours),
    )


def _pushing_a_megabyte(cluster: Cluster, name: str, work: Path) -> Run:
    def run() -> float:
        (work / "small").write_bytes(os.urandom(1 << 20))
        cluster.commit(work, "1 MB", note=str(time.monotonic_ns()))
        begun = time.perf_counter()
        cluster.ok("push", "-q", cluster.url("a", name), "HEAD:refs/heads/main", cwd=work)
        while True:
            snapshot = cluster.snapshot(name)
            if all(replica.position == snapshot.repository.position for replica in snapshot.replicas):
                return time.perf_counter() - begun
            assert time.perf_counter() - begun < 60
            time.sleep(0.002)

    return run


COMMITS = 1000


def many_versions_behind(bench: Bench) -> None:
    """The same commits, in 1,000 versions and in 10."""
    with _stale(bench, "versions") as (cluster, node):
        works = {f"in-{count}": _with_main(cluster, f"in-{count}", node) for count in (1000, 10)}

        def change() -> None:
            for name, work in works.items():
                tips = _chain(cluster, work)
                cluster.ok("push", "-qf", cluster.url("a", name), f"{tips[-1]}:refs/heads/all", cwd=work)
                versions = int(name.removeprefix("in-"))
                _decree(cluster, name, [tips[0], *tips[COMMITS // versions :: COMMITS // versions]])
                cluster.wait(lambda name=name: _leads(cluster, name), "a has followed")  # type: ignore[misc]

        servers = bench.servers_of(cluster)
        bench.compare(
            "sync of 1,000 versions/the same in 10",
            1.50,
            *(_syncing(cluster, node, name) for name in works),
            before=change,
            servers=(servers, servers),
        )


def _chain(cluster: Cluster, work: Path) -> Sequence[str]:
    """main as it is on a, and so many commits behind it, each with a small file; oldest first."""
    lines = ["reset refs/heads/all\nfrom refs/heads/main\n\n"]
    for number in range(COMMITS):
        text = f"{number} {time.monotonic_ns()}"
        lines.append(
            f"commit refs/heads/all\ncommitter x <x> {1_700_000_000 + number} +0000\ndata 0\n"
            f"M 644 inline note-{number % 50}\ndata {len(text)}\n{text}\n"
        )
    stream = "".join(lines).encode()
    subprocess.run(["git", "fast-import", "--quiet", "--force"], input=stream, cwd=work, check=True)
    listed = cluster.ok("rev-list", "--reverse", "main..all", cwd=work).split()
    base = cluster.ok("rev-parse", "main", cwd=work).strip()
    cluster.ok("update-ref", "refs/heads/main", listed[-1], cwd=work)
    return [base, *listed]


def _decree(cluster: Cluster, name: str, tips: Sequence[str]) -> None:
    """Move main from one to the next, a version each."""
    repository = cluster.snapshot(name).repository
    position = repository.position
    with cluster.db.dedicated() as connection:
        for old, new in pairwise(tips):
            update = RefUpdate("refs/heads/main", old, new)
            position = cluster.db.commit_decree(
                repository.id,
                position,
                updated(position.checksum, [update]),
                uuid4(),
                [update],
                actor="bench",
                device="a",
                via="import",
                connection=connection,
            )


ROWS = (
    fetch_of_what_was_staged,
    sync_alone_of_one_ref,
    push_to_many_refs,
    small_push_into_a_large_repository,
    many_versions_behind,
)
