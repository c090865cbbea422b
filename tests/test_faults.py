"""A push that is stopped at every step of its life, in every way (G2, G3, G4, G6), and what is left of it.

The steps are those of cluster.faults.Step; "heal" is manual here, so an interruption between intend and commit
freezes the repository until `git-cluster thaw`.
"""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from cluster.faults import Step
from tests.breaking import (
    MakeCluster,
    acknowledged,
    alive,
    hold,
    kill_group,
    lock_holder,
    polite,
    push,
    replica,
    shown,
    status,
    stopped,
    works_everywhere,
)
from tests.cluster_fixture import Cluster

ALL = list(Step)


def since(step: Step) -> list[Step]:
    return ALL[ALL.index(step) :]


INTENT_LEFT = [Step.APPLY, Step.COMMIT]
"""A writer that dies at the beginning of these leaves an intent."""

COMMITTED = since(Step.MARK)
"""At the beginning of these the version is committed."""


@pytest.fixture
def pair(make_cluster: MakeCluster) -> Cluster:
    """Devices a (not started) and b, and team/app with one commit on both, two copies asked for."""
    cluster = make_cluster("ab", start="b", heal="manual")
    cluster.create("team/app", min_copies=2)
    return cluster


def first_push(cluster: Cluster, device: str = "b") -> tuple[Path, str]:
    work = cluster.work()
    oid = cluster.commit(work, "acknowledged")
    cluster.ok("push", "--quiet", cluster.url(device), "main", cwd=work)
    return work, oid


@pytest.mark.parametrize("step", ALL, ids=str)
def test_a_device_that_is_killed_at(step: Step, pair: Cluster) -> None:
    """G2, G4, G6: before intend nothing happened; after it the freeze says so; after commit the push stands."""
    work, old = first_push(pair)
    pair.start("a", fault=f"{step}:kill")
    new = pair.commit(work, "killed")
    done = push(pair, "a", work)
    device = pair.devices["a"].process
    assert device is not None and device.wait(10) == -signal.SIGKILL
    pair.stop("a")
    if step is not Step.DONE:
        assert not acknowledged(done), done.text
        assert done.code != 0
    pair.wait(lambda: lock_holder(pair) is None, "PostgreSQL notices that the writer died")

    assert pair.version() == (2 if step in COMMITTED else 1)
    owner = pair.snapshot().intent_owner
    assert (owner is not None) == (step in INTENT_LEFT)
    assert (status(pair)["state"] == "frozen") == (step in INTENT_LEFT)

    if step in COMMITTED:
        # b was sent the objects before the lock, so it can show the version without a.
        assert shown(pair, "b") == {new}
    else:
        assert shown(pair, "b") == {old}

    pair.start("a")
    if step in INTENT_LEFT:
        other = pair.directory / "other"
        pair.ok("clone", "--quiet", pair.url("b"), str(other))
        pair.commit(other, "meanwhile")
        refused = push(pair, "b", other)
        assert refused.code != 0 and "frozen" in refused.err and "git-cluster thaw team/app" in refused.err
        thawed = pair.admin("thaw", "team/app")
        assert thawed.code == 0, thawed.text
        expected = 2 if step is Step.COMMIT else 1
        assert pair.version() == expected
        assert shown(pair, "b") == {new if step is Step.COMMIT else old}
    assert status(pair)["state"] != "frozen"
    works_everywhere(pair, "a")


@pytest.mark.parametrize("step", ALL, ids=str)
def test_a_device_whose_database_connections_are_cut_at(step: Step, pair: Cluster) -> None:
    """G2: before intend the push is refused, or goes on; after it the commit is made on a new connection."""
    work, old = first_push(pair)
    pair.start("a", fault=f"{step}:drop-db")
    new = pair.commit(work, "cut")
    done = push(pair, "a", work)
    if step in (Step.CLEAR, Step.SETTLE, Step.INTEND):
        assert not acknowledged(done)
        assert "! [remote rejected] main -> main" in done.err and "database" in done.err
        assert pair.version() == 1
        assert shown(pair, "a") == shown(pair, "b") == {old}
    else:
        assert acknowledged(done), done.text
        assert pair.version() == 2
        assert shown(pair, "b") == shown(pair, "a") == {new}
    assert pair.snapshot().intent_owner is None
    assert status(pair)["state"] != "frozen"
    pair.stop("a")
    pair.start("a")
    works_everywhere(pair, "a")


@pytest.mark.parametrize("step", ALL, ids=str)
def test_a_device_that_is_paused_at(step: Step, pair: Cluster) -> None:
    """G1, G3: nobody sees what is not committed, and whoever asks meanwhile is shown it once it is."""
    work, old = first_push(pair)
    pair.start("a", fault=f"{step}:pause")
    new = pair.commit(work, "paused")
    pushing = pair.spawn("push", pair.url("a"), "main", cwd=work)
    pid = pair.devices["a"].pid
    assert pid is not None
    pair.wait(lambda: stopped(pid), f"the device stops at {step}", 20)
    if step in INTENT_LEFT:
        reading = pair.spawn("ls-remote", pair.url("b"), "refs/heads/main")
        holder = pair.wait(lambda: lock_holder(pair), "the write lock stays held")
        assert "demo" in str(holder)
    else:
        assert shown(pair, "b") == {new if step in COMMITTED else old}
    assert status(pair)["state"] != "frozen"
    os.kill(pid, signal.SIGCONT)
    said, _ = pushing.communicate(timeout=30)
    polite(pair, said)
    assert pushing.returncode == 0, said
    if step in INTENT_LEFT:
        assert reading.communicate(timeout=30)[0].split("\t")[0] == new
    assert pair.version() == 2
    assert shown(pair, "a") == shown(pair, "b") == {new}
    pair.stop("a")
    pair.start("a")
    works_everywhere(pair, "a")
