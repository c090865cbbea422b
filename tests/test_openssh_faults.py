"""Behind a real sshd: a daemon that ends in the middle of a push, at the steps where that matters."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.openssh_fixture import OpenSSHCluster


@pytest.fixture
def pair(database_url: str, tmp_path: Path) -> Iterator[OpenSSHCluster]:
    """Devices a and b behind sshds; team/app, min_copies 2, with one commit."""
    cluster = OpenSSHCluster(tmp_path / "cluster", database_url, {})
    try:
        cluster.set_up(["a", "b"])
        cluster.start("a")
        cluster.start("b")
        cluster.create("team/app", min_copies=2)
        cluster.ok("push", "--quiet", cluster.url("b"), "main", cwd=cluster.work())
        cluster.converge()
        yield cluster
    finally:
        cluster.close()


@pytest.mark.parametrize(
    ("step", "counts"),
    [
        ("receive", False),
        ("stage", False),
        ("intend", False),
        ("apply", False),
        ("commit", True),
        ("mark", True),
    ],
)
def test_g2_g6_a_daemon_that_dies_at_a_step_of_a_push(pair: OpenSSHCluster, step: str, counts: bool) -> None:
    """The pusher is told that it is not known whether it counts; then it does on all devices, or on none."""
    work = pair.directory / "work"
    before = pair.refs("b")
    oid = pair.commit(work, "next")
    pair.stop_daemon("a")
    pair.start("a", fault=f"{step}:kill")
    done = pair.git("push", pair.url("a"), "main", cwd=work)
    assert done.code != 0
    assert "this device's git-cluster ended in the middle of the request" in done.err
    assert "ok refs" not in done.out
    pair.stop_daemon("a", how=signal.SIGKILL)
    # Without a daemon whoever comes next heals what was interrupted, and gets through.
    after = pair.refs("a")
    assert after["refs/heads/main"] == (oid if counts else before["refs/heads/main"])
    pair.start("a")
    pair.converge()
    assert pair.refs("b") == after
    last = pair.commit(work, "the one after")
    assert pair.git("push", pair.url("a"), "main", cwd=work).code == 0
    assert pair.refs("b")["refs/heads/main"] == last
