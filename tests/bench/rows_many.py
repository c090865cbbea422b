"""Two hundred clients at once on one device and on one plain server; and what large clones do to a small fetch."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, nullcontext

from tests.bench.crowd import FETCHES, LARGE, MEBIBYTES, Crowd, MiB, Side, held, watching
from tests.bench.harness import Bench
from tests.bench.table import Row, percentile
from tests.bench.trees import memory

CLIENTS = 200
"""All that come at once: LARGE of them clone, FETCHES fetch one commit, the others list refs."""

LIMITS = {"sessions_per_address": 1000, "sessions_per_user": 1000}


def many_at_once(bench: Bench) -> None:
    with bench.apart("many", "a", {"limits": LIMITS}) as cluster:
        with closing(Crowd(bench, cluster)) as crowd:
            _all_at_once(bench, crowd)
            _while_others_clone(bench, crowd)
            _held(bench, crowd)


def _all_at_once(bench: Bench, crowd: Crowd) -> None:
    sides = crowd.ours, crowd.theirs
    took: dict[str, list[list[float]]] = {side.name: [] for side in sides}
    failed = {side.name: 0 for side in sides}
    peaks: dict[str, list[int]] = {side.name: [] for side in sides}

    def all_of(side: Side) -> float:
        mine: list[float] = []

        def client(number: int) -> None:
            group, place = divmod(number, CLIENTS // LARGE)
            begun = time.perf_counter()
            if place == 0:
                crowd.clone(side, number)
                return
            if place <= FETCHES // LARGE:
                crowd.fetch(side, group * (FETCHES // LARGE) + place - 1)
            else:
                crowd.list(side)
            mine.append(time.perf_counter() - begun)

        # Only in the round that does not count: looking at the memory of hundreds of processes takes time.
        looking = nullcontext() if took[side.name] else watching(side, peaks[side.name])
        with looking, ThreadPoolExecutor(CLIENTS) as pool:
            begun = time.perf_counter()
            clients = [pool.submit(client, number) for number in range(CLIENTS)]
            errors = [error for each in clients if (error := each.exception())]
            seconds = time.perf_counter() - begun
        took[side.name].append(mine)
        failed[side.name] += len(errors)
        assert not errors, f"{len(errors)} of {CLIENTS} clients failed, one of them so: {errors[0]}"
        return seconds

    def notes(row: Row) -> Mapping[str, str]:
        small = [[s for mine in took[side.name][1:] for s in mine] for side in sides]
        return {
            "clients that failed": " against ".join(str(failed[side.name]) for side in sides),
            "a small request, median": _against([percentile(each, 0.50) for each in small]),
            "a small request, 99th percentile": _against([percentile(each, 0.99) for each in small]),
            "cores that the servers used": " against ".join(f"{cores:.2f}" for cores in row.cores),
            "memory of the servers at the peak": " against ".join(
                f"{max(peaks[side.name]) / MiB:.0f} MiB" for side in sides
            ),
        }

    bench.compare(
        f"{CLIENTS - LARGE} small reads, {LARGE} clones of {MEBIBYTES} MB at once",
        1.0,
        lambda: all_of(crowd.ours),
        lambda: all_of(crowd.theirs),
        before=crowd.prepare,
        servers=(crowd.ours.servers, crowd.theirs.servers),
        notes=notes,
    )


def _while_others_clone(bench: Bench, crowd: Crowd) -> None:
    """Each side against the other, alone and in company; in the notes each side against itself alone."""
    alone: list[float] = []

    def fetch(side: Side, around: Callable[[Side], AbstractContextManager[None]]) -> float:
        with around(side):
            begun = time.perf_counter()
            crowd.fetch(side, 0)
            return time.perf_counter() - begun

    def remember(row: Row) -> Mapping[str, str]:
        alone.extend(statistics.median(side) for side in (row.ours, row.theirs) if side)
        return {}

    def notes(row: Row) -> Mapping[str, str]:
        slower = [statistics.median(s) / a for s, a in zip((row.ours, row.theirs), alone, strict=True) if s]
        return {"slower than alone": " against ".join(f"{each:.2f} times" for each in slower)}

    for what, around, said in (
        ("a small fetch", lambda side: nullcontext(), remember),
        (f"a small fetch while {LARGE} large clones go on", crowd.cloning, notes),
    ):
        bench.compare(
            what,
            1.0,
            lambda around=around: fetch(crowd.ours, around),  # type: ignore[misc]
            lambda around=around: fetch(crowd.theirs, around),  # type: ignore[misc]
            before=lambda: crowd.prepare(1),
            servers=(crowd.ours.servers, crowd.theirs.servers),
            notes=said,
        )


def _held(bench: Bench, crowd: Crowd) -> None:
    """Memory, not time: of CLIENTS connections in the middle of a fetch, Git included, with all that is shared."""
    used: dict[str, float] = {}
    for side in (crowd.ours, crowd.theirs):
        before = memory(side.servers.server())
        with held(crowd.cluster, side, CLIENTS):
            used[side.name] = (memory(side.servers.server()) - before) / CLIENTS / MiB
    bench.add(
        Row(
            f"memory for each of {CLIENTS} clients in a fetch",
            1.0,
            (used["ours"],),
            (used["theirs"],),
            unit="MiB",
            notes={"of which": "Git's upload-pack on both sides"},
        )
    )


def _against(seconds: Sequence[float]) -> str:
    return " against ".join(f"{each * 1000:.0f} ms" for each in seconds)


ROWS = (many_at_once,)
