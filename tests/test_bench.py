"""`make bench`, a short run of it: it measures, and says so in JSON and as a picture."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import pytest

from tests.bench import Bench, PlainGit
from tests.bench.crowd import Side, held
from tests.bench.report import rows_of
from tests.bench.rows_fetch import behind, go_on, stand_still
from tests.bench.trees import load, memory, processes
from tests.cluster_fixture import Cluster


@pytest.mark.timeout(300)
def test_a_short_run(tmp_path: Path) -> None:
    document, plot = tmp_path / "bench.json", tmp_path / "bench.svg"
    command = [sys.executable, "-m", "tests.bench", "--only", "ls_remote", "--rounds", "2"]
    done = subprocess.run(
        [*command, "--json", str(document), "--plot", str(plot)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(document.read_text())
    names = [row["name"] for row in found["rows"]]
    assert names == ["ls-remote, in sync", "ls-remote, OpenSSH with the hooks", "64 ls-remote, 8 at once"]
    for row in rows_of(found):
        assert (len(row.ours), len(row.theirs), row.failures) == (2, 2, 0)
        assert row.median > 0 and row.line() in done.stdout
    many = rows_of(found)[2]
    assert many.cpu_ours and many.cpu_theirs and many.cpu_ours.server > 0 and many.cpu_theirs.server > 0
    assert many.cpu_ours.postgres > 0 and many.cpu_theirs.postgres == 0
    assert set(found["machine"]) == {
        "cpu", "cores", "memory_gib", "kernel", "git", "ssh", "postgres", "python",
    }  # fmt: skip
    assert str(tmp_path) not in document.read_text()
    assert "64 ls-remote, 8 at once" in plot.read_text()


@pytest.fixture
def bench(make_cluster: Callable[..., Cluster], tmp_path: Path) -> Iterator[Bench]:
    """Three rounds a row, against a plain sshd."""
    cluster = make_cluster("ab")
    plain = PlainGit(tmp_path / "plain", cluster)
    yield Bench(cluster, plain, 3)
    plain.stop()


def test_a_failed_round_is_no_time(bench: Bench) -> None:
    """The first round does not count. The third fails on one side, and the other has its turn all the same."""
    done: list[str] = []

    def ours() -> float:
        done.append("ours")
        assert done.count("ours") != 3, "the third fails"
        return 0.25

    def before() -> None:
        done.append("before")

    bench.compare(
        "a row", 1.0, ours, lambda: done.append("theirs"), before=before, notes=lambda row: {"n": row.name}
    )
    assert done == ["before", "ours", "theirs"] * 4
    (row,) = bench.rows
    assert row.failures == 1 and row.ours == (0.25, 0.25) and len(row.theirs) == 2
    assert row.notes == {"n": "a row"} and row.cpu_ours is not None


def test_children_that_have_ended_are_counted(bench: Bench) -> None:
    """Git and sshd's own processes have ended when plain sshd's CPU time is read."""
    _, theirs, _ = bench.pair("counted", min_copies=1)
    before = load([bench.plain.process.pid], processes())
    for _ in range(5):
        bench.cluster.ok("ls-remote", theirs)
    after = load([bench.plain.process.pid], processes())
    assert after.seconds >= before.seconds + 0.05
    assert memory([bench.plain.process.pid]) > 0


def test_b_is_behind_until_it_goes_on(bench: Bench) -> None:
    cluster = bench.cluster
    _, _, work = bench.pair("still", min_copies=1)
    cluster.commit(work, "next")
    stand_still(cluster, "b")
    try:
        cluster.ok("push", "-q", cluster.url("a", "still"), "HEAD:refs/heads/main", cwd=work)
        assert behind(cluster, "b", "still")
    finally:
        go_on(cluster, "b")
    cluster.wait(lambda: not behind(cluster, "b", "still"), "b follows")


def test_clients_that_are_held_are_served_meanwhile(bench: Bench) -> None:
    """On both sides: `count` upload-packs run, and end with their clients."""
    ours, theirs, _ = bench.pair("held", min_copies=1)
    sides = (("ours", ours, bench.ours), ("theirs", theirs, bench.theirs))
    for name, url, servers in sides:
        side = Side(name, url, url, servers, bench.cluster.directory)
        roots = servers.server()
        before = load(roots, processes()).count
        with held(bench.cluster, side, 3):
            assert load(roots, processes()).count >= before + 3
        bench.cluster.wait(partial(_no_more, roots, before), "they have ended")


def _no_more(roots: Sequence[int], count: int) -> bool:
    return load(roots, processes()).count <= count
