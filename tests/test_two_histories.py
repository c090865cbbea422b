"""A database that came back older than some of the disks (G7): one device ahead of the others, one that was away, and a
database that has gone on, so that there are two histories and a person decides.

What every device has is tests/test_database_older.py.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from cluster.model import EventKind
from tests.backups import Backup
from tests.breaking import (
    MakeCluster,
    hold,
    lost,
    on_disk,
    polite,
    push,
    replica,
    shown,
    status,
    works_everywhere,
)
from tests.cluster_fixture import Cluster, Done

LACKS = "the database is older than the disks: it knows versions up to 1; it lacks versions 2 and 3: "


class Lagging:
    """Devices a, b and c at version 1; a alone has versions 2 and 3, of which the backup knows nothing."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        cluster.create("team/app")
        self.work = cluster.work()
        self.first = cluster.commit(self.work, "first")
        assert push(cluster, "a", self.work).code == 0
        cluster.converge()
        cluster.stop("b")
        cluster.stop("c")
        self.backup = Backup(cluster)
        self.second = self.pushes("second", "main")
        self.third = self.pushes("third", "main", "main:side")
        cluster.stop("a")
        self.log = cluster.db.log(self.number)
        self.backup.restore()

    @property
    def number(self) -> int:
        return self.cluster.snapshot().repository.id

    def pushes(self, message: str, *refs: str) -> str:
        oid = self.cluster.commit(self.work, message)
        done = push(self.cluster, "a", self.work, *refs)
        assert done.code == 0, done.text
        return oid

    def start(self, *devices: str) -> None:
        for device in devices:
            self.cluster.start(device)

    def noticed(self) -> None:
        self.cluster.wait(
            lambda: replica(self.cluster, "a")["disk_version"] == 3, "a has reported its marker"
        )

    def is_as_it_was(self) -> None:
        self.cluster.converge()
        assert self.cluster.db.log(self.number) == self.log
        for device in "abc":
            assert shown(self.cluster, device) == {self.third}
            assert lost(self.cluster, device) == {}
        kinds = {event.kind for event in self.cluster.db.events(self.number)}
        assert kinds == {EventKind.FREEZE, EventKind.RESTORE}
        works_everywhere(self.cluster, "b")


@pytest.fixture
def lagging(make_cluster: MakeCluster) -> Iterator[Lagging]:
    lagging = Lagging(make_cluster("abc", fence_after="2s"))
    yield lagging
    lagging.cluster.stop_all()
    lagging.backup.drop()


def thaw(cluster: Cluster, *options: str) -> Done:
    done = cluster.admin("thaw", "team/app", *options, timeout=90)
    polite(cluster, done.text)
    return done


def test_one_device_is_ahead(lagging: Lagging) -> None:
    """b and c show what the database knows, and take nothing; a shows nothing. Put back from a; b and c follow."""
    cluster = lagging.cluster
    lagging.start("a", "b", "c")
    lagging.noticed()
    entry = status(cluster)
    assert entry["state"] == "frozen" and LACKS + "a holds version 3;" in entry["reason"]
    assert [r["state"] for r in entry["replicas"]] == ["frozen", "current", "current"]
    for device in "bc":
        assert lagging.first in shown(cluster, device) and lagging.third not in shown(cluster, device)
        refused = push(cluster, device, lagging.work)
        assert refused.code != 0
        assert (
            "team/app is frozen: the database is older than the disks: it knows versions up to 1"
            in refused.err
        )
    assert cluster.git("ls-remote", cluster.url("a")).code != 0
    done = thaw(cluster)
    assert done.code == 0 and done.out.endswith("a holds version 3 already; b and c will sync\n"), done.text
    lagging.is_as_it_was()


def test_the_device_that_is_ahead_goes_away_and_is_killed_in_the_middle(lagging: Lagging) -> None:
    """Nothing is put back without asking it. Once that is done it is killed before it could claim anything."""
    cluster = lagging.cluster
    lagging.start("a", "b", "c")
    lagging.noticed()
    cluster.stop("a", how=signal.SIGKILL)
    for options in ([], ["--dry-run"]):
        refused = thaw(cluster, *options)
        assert refused.code == 1
        assert (
            "device a's disk is at version 3, which the database does not know, and cannot be asked"
            in refused.err
        )
        assert "`git-cluster thaw team/app --demote a`" in refused.err
    assert status(cluster)["state"] == "frozen" and cluster.version() == 1
    lagging.start("a")
    process = cluster.devices["a"].process
    assert process is not None
    assert thaw(cluster).code == 0
    process.kill()
    cluster.stop("a")
    lagging.start("a")
    lagging.is_as_it_was()


def test_a_device_that_is_away_is_named_and_claims_its_copy_when_it_is_back(lagging: Lagging) -> None:
    """b is away while the versions come from a; c, which holds them by then, goes away in turn."""
    cluster = lagging.cluster
    lagging.start("a", "c")
    lagging.noticed()
    done = thaw(cluster)
    assert done.code == 0, done.text
    assert "b could not be asked (offline): if its disk knows more, that shows when it is back" in done.out
    lagging.start("b")
    lagging.is_as_it_was()


# --------------------------------------------------------------------------------------------- two histories


def gone_on(lagging: Lagging) -> str:
    """The database is at version 2, pushed to b while a was away, when a comes back."""
    cluster = lagging.cluster
    lagging.start("b", "c")
    other = cluster.directory / "other"
    cluster.ok("clone", "--quiet", cluster.url("b"), str(other))
    oid = cluster.commit(other, "another second")
    assert push(cluster, "b", other).code == 0
    lagging.start("a")
    lagging.noticed()
    return oid


def test_a_database_that_has_gone_on_is_two_histories(lagging: Lagging) -> None:
    """Nobody could know while a was away. From its return on nothing is written, and plain thaw only explains."""
    cluster = lagging.cluster
    theirs = gone_on(lagging)
    why = "the database and device a's disk disagree on what version 2 is"
    entry = status(cluster)
    assert (
        entry["state"] == "frozen" and f": {why}; it lacks version 3: a holds version 3;" in entry["reason"]
    )
    for device in "abc":
        refused = push(cluster, device, lagging.work, "main:new")
        assert refused.code != 0 and f"team/app is frozen: {why}" in refused.err, refused.text
    assert theirs in shown(cluster, "b")
    explained = thaw(cluster)
    assert explained.code == 1
    assert "from version 2 on there are two histories" in explained.err
    assert "device a's disk is at another version 2 than the database's, and has:" in explained.err
    for oid in (lagging.second, lagging.third):
        assert oid[:12] in explained.err
    assert "--demote a" in explained.err and "--promote a" in explained.err
    assert cluster.version() == 2 and status(cluster)["state"] == "frozen"

    dry = thaw(cluster, "--demote", "a", "--dry-run")
    assert (
        "GIVEN UP: what only the disk of a knows, up to its version 3; it stays there as lost refs" in dry.out
    )
    assert lagging.third[:12] in dry.out
    assert thaw(cluster, "--demote", "a").code == 0
    cluster.converge()
    assert cluster.version() == 2
    for device in "abc":
        assert cluster.refs(device)["refs/heads/main"] == theirs
    assert lost(cluster, "a") == {"refs/heads/main": lagging.third, "refs/heads/side": lagging.third}
    works_everywhere(cluster, "a")


def test_the_disk_s_history_can_be_kept_instead(lagging: Lagging) -> None:
    cluster = lagging.cluster
    theirs = gone_on(lagging)
    done = thaw(cluster, "--promote", "a", "--accept-loss")
    assert done.code == 0, done.text
    cluster.converge()
    assert cluster.version() == 3
    for device in "abc":
        assert cluster.refs(device)["refs/heads/main"] == lagging.third
    for device in "bc":
        assert lost(cluster, device)["refs/heads/main"] == theirs
    works_everywhere(cluster, "b")


def test_a_fork_at_one_version_number_is_seen_by_the_push_that_meets_it(lagging: Lagging) -> None:
    """The database is at version 3 as a's disk is, of another history: the numbers alone would say that all is well."""
    cluster = lagging.cluster
    lagging.start("b", "c")
    other = cluster.directory / "other"
    cluster.ok("clone", "--quiet", cluster.url("b"), str(other))
    for message in ("another second", "another third"):
        cluster.commit(other, message)
        assert push(cluster, "b", other).code == 0
    cluster.converged()
    lagging.start("a")
    refused = push(cluster, "a", other, "HEAD:refs/heads/new")
    assert refused.code != 0
    assert "the database and device a's disk disagree on what version 2 is" in refused.err
    assert "a holds a version 3 of its own" in status(cluster)["reason"]
    assert cluster.version() == 3


def test_who_demotes_a_device_that_is_away_gives_up_only_what_he_was_shown(lagging: Lagging) -> None:
    """Nobody knew that a's disk is ahead. When it is back, that is said; demoted once more, it is given up."""
    cluster = lagging.cluster
    lagging.start("b", "c")
    assert thaw(cluster, "--demote", "a").code == 0
    lagging.start("a")
    lagging.noticed()
    assert status(cluster)["state"] == "frozen"
    assert on_disk(cluster, "a", "rev-parse", "refs/heads/main") == lagging.third
    assert thaw(cluster, "--demote", "a").code == 0
    cluster.converge()
    assert lost(cluster, "a") == {"refs/heads/main": lagging.third, "refs/heads/side": lagging.third}
    works_everywhere(cluster, "a")


# ------------------------------------------------------------------------- a write that was under way at the backup


def test_a_fence_by_an_older_database_gives_nothing_up(make_cluster: MakeCluster) -> None:
    """The backup has a's intent. While a is away b withdraws it, as it has to; a's disk has that push as version 2, and
    version 3 after it. They are not put aside when a is back: they are put back into the log."""
    cluster = make_cluster("ab", fence_after="2s")
    cluster.create("team/app")
    work = cluster.work()
    assert push(cluster, "a", work).code == 0
    cluster.converge()
    cluster.stop("b")
    held = hold(cluster, "a")
    cluster.commit(work, "second")
    pushing = cluster.spawn("push", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: held.reached, "a push is between intend and commit")
    backup = Backup(cluster)
    try:
        held.let_go()
        said, _ = pushing.communicate(timeout=60)
        assert pushing.returncode == 0, said
        assert push(cluster, "a", work, "main:side").code == 0
        log = cluster.db.log(cluster.snapshot().repository.id)
        cluster.stop("a", how=signal.SIGKILL)
        backup.restore()
        cluster.start("b")
        cluster.wait(lambda: cluster.snapshot().intent_owner is None, "b fences a", timeout=90)
        cluster.start("a")
        cluster.wait(lambda: replica(cluster, "a")["disk_version"] == 3, "a has reported its marker")
        assert status(cluster)["state"] == "frozen"
        assert thaw(cluster).code == 0
        cluster.converge()
        assert cluster.db.log(cluster.snapshot().repository.id) == log
        assert lost(cluster, "a") == {}
        works_everywhere(cluster, "a")
    finally:
        cluster.stop_all()
        backup.drop()
