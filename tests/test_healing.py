"""`heal = "auto"`, the default: an interrupted write is resolved without a person, and the log says how (G6, G8).

The tables: docs/write-protocol.md.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster.faults import Step
from cluster.model import EventKind
from tests.breaking import (
    hold,
    interrupt,
    lock_holder,
    lost,
    on_disk,
    polite,
    push,
    shown,
    status,
    stopped,
    works_everywhere,
)
from tests.cluster_fixture import Cluster

Make = Callable[..., Cluster]
IN_DOUBT = [Step.APPLY, Step.COMMIT, Step.MARK, Step.ACKNOWLEDGE]
"""The steps at which a killed device leaves something to be found out."""


@pytest.mark.parametrize("step", IN_DOUBT)
def test_a_killed_device_heals_its_write_when_it_is_back(make_cluster: Make, step: Step) -> None:
    """Nobody types `thaw`: the next push, to another device, waits for the healing and lands."""
    cluster = make_cluster("abc")
    cluster.create("team/app", min_copies=2)
    work = cluster.work()
    cluster.ok("push", "-q", cluster.url("a"), "main", cwd=work)
    cluster.stop("a")
    cluster.start("a", fault=f"{step}:kill")
    second = cluster.commit(work, "two")
    assert cluster.git("push", "-q", cluster.url("a"), "main", cwd=work).code != 0
    cluster.stop("a", how=signal.SIGKILL)
    cluster.start("a")
    cluster.ok("push", "-q", cluster.url("b"), "main:refs/heads/next", cwd=work)
    cluster.ok("push", "-q", cluster.url("b"), "main", cwd=work)
    assert cluster.refs("c")["refs/heads/main"] == second
    cluster.converge()


def test_a_reader_on_the_healing_device_waits_for_it(make_cluster: Make) -> None:
    cluster = make_cluster("ab")
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
    cluster = make_cluster("abc", fence_after="3s")
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
    cluster = make_cluster("ab", fence_after="1s")
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
    cluster.wait(lambda: cluster.snapshot().intent_owner is None, "a resolves it: its push has happened")
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


# --------------------------------------------------------------------------------------- each row of the table


@pytest.fixture
def pair(make_cluster: Make) -> Cluster:
    """Devices a and b, and team/app at version 1 on both."""
    cluster = make_cluster("ab")
    cluster.create("team/app", min_copies=2)
    work = cluster.work()
    cluster.ok("push", "-q", cluster.url("a"), "main", "main:side", cwd=work)
    cluster.converge()
    return cluster


def healed(cluster: Cluster, kind: EventKind = EventKind.HEAL) -> str:
    """Wait until the log has an event of this kind; what it says."""
    number = cluster.snapshot().repository.id

    def found() -> str | None:
        return next((e.what for e in cluster.db.events(number) if e.kind is kind), None)

    return str(cluster.wait(found, f"the log has a {kind}"))


def test_no_ref_moved(pair: Cluster) -> None:
    work, (old,) = pair.directory / "work", shown(pair, "b")
    pair.commit(work, "never applied")
    interrupt(pair, "a", "apply", work)
    pair.start("a")
    assert healed(pair) == "no ref of the push by demo moved: it is called off"
    assert pair.version() == 1 and shown(pair, "a") == shown(pair, "b") == {old}
    works_everywhere(pair, "a")


def test_every_ref_moved(pair: Cluster) -> None:
    """The version that comes of it came about by a heal, and the log says so, to people and to programs."""
    work = pair.directory / "work"
    new = pair.commit(work, "applied")
    interrupt(pair, "a", "commit", work)
    pair.start("a")
    assert healed(pair) == "every ref of the push by demo moved: it is committed as a version"
    assert pair.version() == 2 and pair.refs("b")["refs/heads/main"] == new
    newest, before = pair.admin_json("log", "team/app")
    assert (newest["version"], newest["actor"], newest["device"], newest["via"]) == (2, "demo", "a", "heal")
    (event,) = newest["events"]
    assert before["events"] == []
    assert (event["kind"], event["device"], event["refs"]) == ("heal", "a", newest["refs"])
    assert "it is committed as a version" in pair.admin("log", "team/app").out
    works_everywhere(pair, "b")


def test_some_refs_moved(pair: Cluster) -> None:
    """As where a device loses its power between two refs: that one is put back, and kept (G8)."""
    work, (old,) = pair.directory / "work", shown(pair, "b")
    new = pair.commit(work, "half applied")
    held = hold(pair, "a", only="refs/heads/second")
    pushing = pair.spawn("push", pair.url("a"), "main:first", "main:second", cwd=work)
    pair.wait(lambda: held.reached, "Git has moved one ref and is about to move another")
    pair.stop("a", how=signal.SIGKILL)
    os.kill(held.git, signal.SIGKILL)
    held.let_go()
    assert pushing.wait(30) != 0
    pair.start("a")
    assert (
        healed(pair) == "a part of the push by demo moved: it is put back, and kept under refs/cluster/lost/"
    )
    assert pair.version() == 1 and shown(pair, "a") == shown(pair, "b") == {old}
    assert lost(pair, "a") == {"refs/heads/first": new}
    works_everywhere(pair, "b")


def test_a_ref_at_neither_value_is_for_a_person_who_is_told_which(pair: Cluster) -> None:
    """Nothing is decided, whoever pushes is told, and `status` lists exactly that ref until somebody decides."""
    work = pair.directory / "work"
    new = pair.commit(work, "applied")
    interrupt(pair, "a", "commit", work, "main", "main:other")
    strange = on_disk(pair, "a", "commit-tree", f"{new}^{{tree}}", "-m", "by hand")
    on_disk(pair, "a", "update-ref", "refs/heads/main", strange)
    pair.start("a")
    reason = healed(pair, EventKind.DAMAGE)
    assert f"refs/heads/main is at {strange[:12]}" in reason and "refs/heads/other" not in reason
    entry = status(pair)
    assert entry["state"] == "frozen" and reason in entry["reason"] and "--demote a" in entry["reason"]
    refused = push(pair, "b", work)
    assert refused.code != 0 and "frozen" in refused.err
    assert pair.admin("thaw", "team/app", "--demote", "a").code == 0
    works_everywhere(pair, "b")
    assert status(pair)["state"] == "healthy"
    assert strange in lost(pair, "a").values()


def test_a_disk_that_was_lost_in_the_middle_of_a_write(pair: Cluster) -> None:
    """Nothing can be told from it, and another device holds the version before: the claim is given up."""
    work, (old,) = pair.directory / "work", shown(pair, "b")
    pair.commit(work, "lost with the disk")
    interrupt(pair, "a", "commit", work)
    pair.disk("a").rename(pair.directory / "the old disk")
    pair.start("a")
    assert "it is given up, the copy rebuilt" in healed(pair)
    works_everywhere(pair, "a")
    assert shown(pair, "a") >= {old}


# ------------------------------------------------------------------------------- paused past every timeout


def paused(cluster: Cluster, step: str) -> tuple[Path, int, subprocess.Popen[str]]:
    """A push to a, and the process of a stopped at `step` of it."""
    cluster.stop("a")
    cluster.start("a", fault=f"{step}:pause")
    work = cluster.directory / "work"
    cluster.commit(work, "paused")
    pushing = cluster.spawn("push", cluster.url("a"), "main", cwd=work)
    pid = cluster.devices["a"].pid
    assert pid is not None
    cluster.wait(lambda: stopped(pid), f"a stops at {step}")
    return work, pid, pushing


@pytest.mark.parametrize("step", ["clear", "intend", "apply", "commit"])
def test_a_device_that_is_stopped_with_the_lock_delays_nobody_for_long(make_cluster: Make, step: str) -> None:
    """Its connection, and so its lock, stays. Others take both after fence_after; when it goes on, its token is void:
    it tells its client, puts back what moved, and follows."""
    cluster = make_cluster("abc", fence_after="3s")
    cluster.create("team/app", min_copies=2)
    first = cluster.work()
    cluster.ok("push", "-q", cluster.url("b"), "main", cwd=first)
    cluster.converge()
    work, pid, pushing = paused(cluster, step)
    assert lock_holder(cluster) is not None
    other = push(cluster, "b", work, "main~1:refs/heads/other")
    assert other.code == 0, other.text
    assert "refs/heads/other" in cluster.refs("c")
    os.kill(pid, signal.SIGCONT)
    said, _ = pushing.communicate(timeout=60)
    assert pushing.returncode != 0 and "remote rejected" in polite(cluster, said), said
    if step in ("apply", "commit"):
        assert "given up" in healed(cluster, EventKind.FENCE)
        assert "claim was withdrawn" in said
    cluster.stop("a")
    cluster.start("a")
    works_everywhere(cluster, "a")
    assert "refs/heads/other" in cluster.refs("a")
