"""`heal = "auto"`: an interrupted write is resolved without a person. The tables: docs/write-protocol.md."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable

import pytest

from cluster.faults import Step
from tests.cluster_fixture import Cluster

Make = Callable[..., Cluster]
IN_DOUBT = [Step.APPLY, Step.COMMIT, Step.MARK, Step.ACKNOWLEDGE]
"""The steps at which a killed device leaves something to be found out."""


@pytest.mark.parametrize("step", IN_DOUBT)
def test_a_killed_device_heals_its_write_when_it_is_back(make_cluster: Make, step: Step) -> None:
    """Nobody types `thaw`: the next push, to another device, waits for the healing and lands."""
    cluster = make_cluster("abc", heal="auto")
    cluster.create("team/app", min_copies=2)
    work = cluster.work()
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    cluster.stop("a")
    cluster.start("a", fault=f"{step}:kill")
    second = cluster.commit(work, "two")
    assert cluster.git("push", "-q", cluster.url("a"), "main", cwd=work).code != 0
    cluster.stop("a", how=signal.SIGKILL)
    cluster.start("a")
    cluster.ok("push", "-q", cluster.url("b"), "main", "main:refs/heads/next", cwd=work)
    assert cluster.refs("c")["refs/heads/main"] == second
    cluster.converge()


def test_a_reader_on_the_healing_device_waits_for_it(make_cluster: Make) -> None:
    cluster = make_cluster("ab", heal="auto")
    cluster.create("team/app")
    work = cluster.work()
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    cluster.stop("a")
    cluster.start("a", fault="commit:kill")
    second = cluster.commit(work, "two")
    assert cluster.git("push", "-q", cluster.url("a"), "main", cwd=work).code != 0
    cluster.stop("a", how=signal.SIGKILL)
    cluster.start("a")
    assert cluster.refs("a")["refs/heads/main"] == second, "every ref had moved: the push happened"


def test_others_fence_a_device_that_stays_away_and_it_follows_when_it_is_back(make_cluster: Make) -> None:
    """Its unacknowledged push is given up, kept under refs/cluster/lost/ (G8), and everybody ends equal."""
    cluster = make_cluster("abc", heal="auto", fence_after="3s")
    cluster.create("team/app", min_copies=2)
    work = cluster.work()
    first = cluster.commit(work, "first")
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    cluster.stop("a")
    cluster.start("a", fault="commit:kill")
    given_up = cluster.commit(work, "given up")
    assert cluster.git("push", "-q", cluster.url("a"), "main", cwd=work).code != 0
    cluster.stop("a", how=signal.SIGKILL)
    cluster.wait(lambda: cluster.snapshot().intent_owner is None, "the silent device is fenced")
    assert cluster.refs("b")["refs/heads/main"] == first
    cluster.ok("push", "-q", cluster.url("c"), f"{first}:refs/heads/next", cwd=work)
    cluster.start("a")
    cluster.converge()
    lost = cluster.ok(f"--git-dir={cluster.disk('a')}", "for-each-ref", "refs/cluster/lost/")
    assert given_up in lost
    assert not any("cluster" in ref for ref in cluster.refs("a"))


def test_the_only_holder_of_the_newest_version_is_not_fenced(make_cluster: Make) -> None:
    cluster = make_cluster("ab", heal="auto", fence_after="1s")
    cluster.create("team/app", min_copies=1)
    work = cluster.work()
    cluster.converge()
    cluster.stop("b")
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    cluster.stop("a")
    cluster.start("a", fault="commit:kill")
    cluster.commit(work, "two")
    assert cluster.git("push", "-q", cluster.url("a"), "main", cwd=work).code != 0
    cluster.stop("a", how=signal.SIGKILL)
    cluster.start("b")
    cluster.wait(lambda: not cluster.db.device("a").online, "a counts as offline")
    refused = cluster.git("push", "-q", cluster.url("b"), "main", cwd=work)
    assert refused.code != 0
    assert cluster.snapshot().intent_owner is not None, "its version would be lost: it is waited for"
    cluster.start("a")
    cluster.ok("push", "-q", cluster.url("b"), "main", "main:refs/heads/next", cwd=work)
    cluster.converge()


@pytest.mark.parametrize("name", ["refs/heads/main.lock", "packed-refs.lock", "HEAD.lock"])
def test_a_lock_file_of_a_killed_git_stops_neither_sync_nor_push(make_cluster: Make, name: str) -> None:
    """As left by `kill -9` in the middle of an update: old enough, it is removed by whoever holds the write lock."""
    cluster = make_cluster("ab")
    cluster.create("team/app")
    work = cluster.work()
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    for device in "ab":
        lock = cluster.disk(device) / name
        lock.touch()
        os.utime(lock, (time.time() - 60, time.time() - 60))
    cluster.commit(work, "two")
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    cluster.ok("push", "-q", cluster.url("b"), "main:refs/heads/next", "main:refs/heads/other", cwd=work)
    cluster.converge()
