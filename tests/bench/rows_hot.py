"""One repository that many push to, over three devices of ours and on one plain server: how many a second, how late
the latest, and where the time goes while the write lock is held.

Each client pushes to a branch of its own, one push after another. What is pushed is made before, outside the time.
"""

from __future__ import annotations

import statistics
import subprocess
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tests.bench.figures import Figures, difference, mean, quantile, scrape
from tests.bench.harness import Bench
from tests.bench.table import Row, percentile
from tests.cluster_fixture import Cluster

DEVICES = "abc"
TURNS = 2
"""Pushes of each client in one round of one side."""

WAIT, HOLD = "git_cluster_write_lock_wait_seconds", "git_cluster_write_lock_hold_seconds"

HELD = ("clear", "settle", "intend", "apply", "commit")
"""The steps in which the write lock is held."""


def hot_repository(bench: Bench) -> None:
    with bench.apart("hot", DEVICES) as cluster:
        for copies in (1, 2):
            for clients in (8, 16):
                _hot(bench, cluster, clients, copies)


def _hot(bench: Bench, cluster: Cluster, clients: int, copies: int) -> None:
    name = f"hot-{clients}-{copies}"
    cluster.create(name, min_copies=copies)
    plain = bench.plain.create(name)
    work = cluster.work(f"work-{name}")
    for url in (cluster.url("a", name), plain):
        cluster.ok("push", "-q", url, "HEAD:refs/heads/main", cwd=work)
    cluster.converge(name)
    for client in range(clients):
        cluster.ok("branch", f"p{client}-{TURNS - 1}", cwd=work)
    rounds: tuple[list[list[float]], list[list[float]]] = ([], [])
    before = _figures(cluster)

    def push_all(urls: Sequence[str], took: list[list[float]]) -> float:
        latencies: list[float] = []

        def client(number: int) -> None:
            for turn in range(TURNS):
                begun = time.perf_counter()
                refs = f"refs/heads/p{number}-{turn}:refs/heads/client-{number}"
                cluster.ok("push", "-q", urls[number % len(urls)], refs, cwd=work, timeout=120)
                latencies.append(time.perf_counter() - begun)

        begun = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            list(pool.map(client, range(clients)))
        seconds = time.perf_counter() - begun
        took.append(latencies)
        return seconds

    def notes(row: Row) -> Mapping[str, str]:
        ours, theirs = (
            TURNS * clients / statistics.median(side) if side else 0.0 for side in (row.ours, row.theirs)
        )
        return {"pushes a second": f"{ours:.1f} against {theirs:.1f}"}

    bench.compare(
        f"{TURNS * clients} pushes by {clients} clients, min_copies {copies}",
        1.0,
        lambda: push_all([cluster.url(device, name) for device in DEVICES], rounds[0]),
        lambda: push_all([plain], rounds[1]),
        before=lambda: _commits(work, clients),
        servers=(bench.servers_of(cluster), bench.theirs),
        notes=notes,
    )
    bench.add(
        _latest(f"the latest of those, {clients} clients, min_copies {copies}", rounds, before, cluster)
    )


def _latest(
    name: str, rounds: tuple[list[list[float]], list[list[float]]], before: Figures, cluster: Cluster
) -> Row:
    """The last percentile of each round, of as many as both sides have; in the notes that of all, and the lock."""
    count = min(len(side) for side in rounds)
    ours, theirs = (side[1:count] for side in rounds)  # the first does not count
    every = [percentile([s for took in side for s in took], 0.99) for side in (ours, theirs)]
    moved = difference(_figures(cluster), before)
    steps = {step: mean(moved, "git_cluster_push_step_seconds", step=step) for step in HELD}
    return Row(
        name,
        1.0,
        tuple(percentile(took, 0.99) for took in ours),
        tuple(percentile(took, 0.99) for took in theirs),
        notes={
            "99th percentile of all": f"{every[0] * 1000:.0f} ms against {every[1] * 1000:.0f} ms"
            f" ({every[0] / every[1]:.2f})",
            "write lock waited for": f"mean {mean(moved, WAIT, result='got') * 1000:.0f} ms",
            "write lock held": f"mean {mean(moved, HOLD) * 1000:.1f} ms, median {quantile(moved, HOLD, 0.5) * 1000:.0f}"
            f" ms, 99th percentile {quantile(moved, HOLD, 0.99) * 1000:.0f} ms",
            "of which, in the mean": ", ".join(f"{step} {s * 1000:.1f} ms" for step, s in steps.items()),
        },
    )


def _figures(cluster: Cluster) -> Figures:
    return scrape([url for device in cluster.devices.values() if (url := device.http_url)])


def _commits(work: Path, clients: int) -> None:
    """New commits for one round by one process: p<client>-0 follows the last one of the round before."""
    now = time.time_ns()
    lines = []
    for client in range(clients):
        for turn in range(TURNS):
            mark, text = client * TURNS + turn + 1, f"{client} {turn} {now}\n"
            parent = f":{mark - 1}" if turn else f"refs/heads/p{client}-{TURNS - 1}^0"
            lines.append(
                f"commit refs/heads/p{client}-{turn}\nmark :{mark}\n"
                f"committer Bench <bench@example.com> {now // 10**9} +0000\ndata {len(text)}\n{text}"
                f"from {parent}\nM 644 inline file-{client}\ndata {len(text)}\n{text}"
            )
    stream = "\n".join(lines)
    subprocess.run(["git", "fast-import", "--quiet"], input=stream, text=True, check=True, cwd=work)


ROWS = (hot_repository,)
