"""Many pushers at once, over several devices: one order, nobody lost, nothing skipped; and one that is very big."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.cluster_fixture import Cluster, Project

ENDPOINTS = True
pytestmark = pytest.mark.timeout(300)  # without a daemon each command starts a program, 8 of them at once

Make = Callable[..., Cluster]
DEVICES = "abc"

PUSHERS = {"openssh, no daemon on a": 4}
TURNS = {"built-in": 3}
"""How many push at once (else 8), and how often each (else once): more where a push starts fewer programs."""


def workers(app: Project, count: int) -> list[Path]:
    """Working copies that share the first one's objects, with an "origin" each: the devices in turn."""
    copies = []
    for number in range(count):
        path = app.cluster.directory / f"worker{number}"
        app.git("clone", "--quiet", "--shared", str(app.work), str(path))
        app.git("remote", "set-url", "origin", app.url(DEVICES[number % 3]), cwd=path)
        copies.append(path)
    return copies


def all_done(pool: ThreadPoolExecutor, work: Callable[[int], None], numbers: Iterable[int]) -> None:
    for done in [pool.submit(work, number) for number in numbers]:
        done.result()


def in_order(app: Project, versions: int) -> None:
    """The log is 1, 2, 3 …, and every entry starts where the one before it ended."""
    log = app.log()
    assert [entry.version for entry in log] == list(range(1, versions + 1))
    now: dict[str, str] = {}
    for entry in log:
        for update in entry.refs:
            assert update.old == now.get(update.ref, "0" * 40)
            now[update.ref] = update.new
    refs = app.refs("a")
    del refs["HEAD"]
    assert refs == now


def test_g3_many_pushers_to_as_many_branches(make_cluster: Make, endpoint: str) -> None:
    count = 20 if endpoint == "built-in" else PUSHERS.get(endpoint, 8)
    app = Project.named(make_cluster(DEVICES), "team/app", min_copies=2)
    app.pushed("a", "main")
    copies = workers(app, count)

    def push(number: int) -> None:
        work = copies[number]
        app.cluster.commit(work, f"change {number}")
        app.git("push", "--quiet", "origin", f"HEAD:refs/heads/b{number}", cwd=work)

    with ThreadPoolExecutor(count) as pool:
        all_done(pool, push, range(count))
    in_order(app, count + 1)
    expected = {f"refs/heads/b{n}": app.git("rev-parse", "HEAD", cwd=copies[n]) for n in range(count)}
    for device in DEVICES:
        assert app.refs(device).items() >= expected.items()
    app.converge()


def test_g3_pushers_to_one_branch(make_cluster: Make, endpoint: str) -> None:
    """In each round all of them hold the same tip: one wins, and the others are told to fetch first."""
    count = PUSHERS.get(endpoint, 8)
    app = Project.named(make_cluster(DEVICES), "team/app", min_copies=2)
    app.pushed("a", "main")
    copies = workers(app, count)
    waiting = set(range(count))
    rounds = 0
    for number, work in enumerate(copies):
        app.cluster.commit(work, f"change {number}")
    with ThreadPoolExecutor(count) as pool:
        while waiting:
            done = dict(
                pool.map(
                    lambda n: (n, app.cluster.git("push", "origin", "HEAD:main", cwd=copies[n])),
                    sorted(waiting),
                )
            )
            winners = {number for number, push in done.items() if push.code == 0}
            assert len(winners) == 1, [push.err for push in done.values()]
            for number in waiting - winners:
                assert "fetch first" in done[number].err
            waiting -= winners
            rounds += 1
            all_done(
                pool,
                lambda n: void(app.git("pull", "--quiet", "--rebase", "origin", "main", cwd=copies[n])),
                waiting,
            )
    assert rounds == count
    in_order(app, count + 1)
    clone = app.clone("b")
    assert {path.name for path in clone.glob("change-*")} == {
        f"change-{number}.txt" for number in range(count)
    }
    app.converge()


def void(value: object) -> None:
    pass


def test_g3_pushers_that_each_try_until_it_is_in(make_cluster: Make, endpoint: str) -> None:
    """Nobody waits for anybody: push, and where that fails fetch, rebase and push again."""
    count, turns = PUSHERS.get(endpoint, 8), TURNS.get(endpoint, 1)
    app = Project.named(make_cluster(DEVICES), "team/app", min_copies=2)
    app.pushed("a", "main")
    copies = workers(app, count)

    def work(number: int) -> None:
        for turn in range(turns):
            app.cluster.commit(copies[number], f"change {number} {turn}")
            for _ in range(60):
                push = app.cluster.git("push", "origin", "HEAD:main", cwd=copies[number])
                if push.code == 0:
                    break
                assert "fetch first" in push.err, push.err
                app.git("pull", "--quiet", "--rebase", "origin", "main", cwd=copies[number])
            else:
                raise AssertionError("starved")

    with ThreadPoolExecutor(count) as pool:
        all_done(pool, work, range(count))
    in_order(app, count * turns + 1)
    assert app.git("rev-list", "--count", "HEAD", cwd=app.clone("c")) == str(count * turns + 1)
    app.converge()


# ------------------------------------------------------------------------------------------------- very big

BIG = {"built-in": 200_000_000}
"""Bytes of one push; else 50 MB. Over HTTP tests/test_http_git.py has one of 200 MB."""
MOST_MEMORY = 300_000_000
"""Bytes that a device may need, whatever goes through it: a push is never held in memory."""


def memory(app: Project, device: str) -> int:
    """The most that a device's process ever held, in bytes."""
    status = Path(f"/proc/{app.cluster.devices[device].pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmHWM:"))) * 1024


def test_very_big(make_cluster: Make, endpoint: str) -> None:
    size = BIG.get(endpoint, 50_000_000)
    app = Project.named(make_cluster("ab"), "team/app", min_copies=2)
    app.pushed("a", "main")
    with (app.work / "big").open("wb") as file:
        for _ in range(size // 1_000_000):
            file.write(os.urandom(1_000_000))
    app.git("config", "core.compression", "0")
    app.git("add", "big")
    app.git("commit", "--quiet", "-m", "big")
    begun = time.monotonic()
    app.pushed("a", "--quiet", "main")
    pushed = time.monotonic()
    clone = app.clone("b")
    print(f"push: {pushed - begun:.1f} s, clone: {time.monotonic() - pushed:.1f} s")
    assert (clone / "big").stat().st_size == size
    assert app.git("rev-parse", "HEAD:big", cwd=clone) == app.git("rev-parse", "HEAD:big")
    peak = {device: memory(app, device) for device in "ab" if app.cluster.devices[device].pid}
    print("most memory, in MB:", {device: value // 1_000_000 for device, value in peak.items()})
    assert max(peak.values()) < MOST_MEMORY
    app.cluster.wait(lambda: app.cluster.converged(app.name), "both have it")
