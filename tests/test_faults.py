"""A push that is stopped at every step of its life, in every way (G2, G3, G4, G6), and what is left of it.

The steps are those of cluster.faults.Step; "heal" is manual here, so an interruption between intend and commit
freezes the repository until `git-cluster thaw`.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from cluster import embedded
from cluster.config import WritesSection
from cluster.db import Database, LockHolder, lock_label
from cluster.faults import Step
from cluster.gate import fresh
from cluster.model import Intent, RefUpdate
from cluster.node import Node
from cluster.peer import Peers
from cluster.store import Store
from cluster.versions import updated
from tests.breaking import (
    MakeCluster,
    acknowledged,
    alive,
    hold,
    kill_group,
    lock_holder,
    on_disk,
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


@pytest.mark.parametrize("step", ALL)
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


@pytest.mark.parametrize("step", ALL)
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
        assert f"{new}\trefs/heads/main" in reading.communicate(timeout=30)[0]
    assert pair.version() == 2
    assert shown(pair, "a") == shown(pair, "b") == {new}
    pair.stop("a")
    pair.start("a")
    works_everywhere(pair, "a")


# ------------------------------------------------------------------------------------- Git and the client die


def test_receive_pack_killed_before_any_ref_moved_costs_nothing(cluster: Cluster) -> None:
    """G4: the session lives, sees that nothing moved, and withdraws the intent."""
    work, old = first_push(cluster)
    held = hold(cluster, "a")
    cluster.commit(work, "killed")
    pushing = cluster.spawn("push", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: held.reached, "Git is about to move the ref")
    assert status(cluster)["replicas"][0]["state"] == "writing"
    os.kill(held.git, signal.SIGKILL)
    held.let_go()
    said, _ = pushing.communicate(timeout=30)
    polite(cluster, said)
    assert pushing.returncode != 0
    cluster.wait(lambda: cluster.snapshot().intent_owner is None, "the intent is withdrawn")
    assert cluster.version() == 1
    assert shown(cluster, "a") == shown(cluster, "b") == {old}
    works_everywhere(cluster, "a")


def test_receive_pack_killed_between_two_refs_commits_what_moved(cluster: Cluster) -> None:
    """G6, G7: no version may account for a ref that did not move, and none that moved goes without a version."""
    work, old = first_push(cluster)
    held = hold(cluster, "a", only="refs/heads/second")
    new = cluster.commit(work, "killed between two refs")
    pushing = cluster.spawn("push", cluster.url("a"), "main:first", "main:second", cwd=work)
    cluster.wait(lambda: held.reached, "Git has moved one ref and is about to move another")
    os.kill(held.git, signal.SIGKILL)
    held.let_go()
    said, _ = pushing.communicate(timeout=30)
    polite(cluster, said)
    assert pushing.returncode != 0, said
    cluster.wait(lambda: cluster.snapshot().intent_owner is None, "the write is settled")
    assert cluster.version() == 2
    expected = {"HEAD": old, "refs/heads/main": old, "refs/heads/first": new}
    assert cluster.refs("a") == cluster.refs("b") == expected
    works_everywhere(cluster, "b")


@pytest.mark.parametrize("hook", ["pre-receive", "update", "post-receive"])
def test_a_client_that_is_killed_during(hook: str, cluster: Cluster) -> None:
    """G4, G6: whatever was begun is finished or withdrawn without the client; nothing stays locked or frozen."""
    work, old = first_push(cluster)
    held = hold(cluster, "a", hook)
    new = cluster.commit(work, "nobody waits for this")
    pushing = cluster.spawn("push", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: held.reached, f"Git runs {hook}")
    kill_group(pushing)
    if hook == "post-receive":
        assert shown(cluster, "b") == {new}, "it was committed before post-receive ran"
    held.let_go()
    cluster.wait(lambda: not alive(held.git), "receive-pack ends")
    cluster.wait(lambda: lock_holder(cluster) is None, "the write lock is free")
    assert cluster.snapshot().intent_owner is None
    assert status(cluster)["state"] != "frozen"
    assert shown(cluster, "a") == shown(cluster, "b") == ({old} if cluster.version() == 1 else {new})
    works_everywhere(cluster, "a")


def test_a_client_that_is_killed_in_upload_costs_nothing(cluster: Cluster) -> None:
    """G4, G5: half a pack holds no lock, and leaves no version, no freeze, no file in the object store."""
    work, old = first_push(cluster)
    new = cluster.commit(work, "half of this")
    pack = subprocess.run(
        ["git", "pack-objects", "--revs", "--stdout", "--quiet"],
        cwd=work, input=f"{new}\n^{old}\n".encode(), capture_output=True, check=True,
    ).stdout  # fmt: skip
    command = f"{old} {new} refs/heads/main\0report-status side-band-64k".encode()
    client = subprocess.Popen(
        ["ssh", "-F", str(cluster.ssh_config), "-p", str(cluster.devices["a"].port), "git@127.0.0.1",
         "git-receive-pack 'team/app'"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    assert client.stdin is not None and client.stdout is not None
    assert old.encode() in client.stdout.read(100)
    client.stdin.write(f"{len(command) + 4:04x}".encode() + command + b"0000" + pack[: len(pack) // 2])
    client.stdin.flush()
    objects = cluster.disk("a") / "objects"
    cluster.wait(lambda: list(objects.glob("tmp_objdir-*")), "Git's quarantine is there")
    assert lock_holder(cluster) is None
    client.kill()
    client.wait()
    cluster.wait(lambda: not list(objects.glob("tmp_objdir-*")), "Git has removed the quarantine")
    assert cluster.version() == 1 and cluster.snapshot().intent_owner is None
    works_everywhere(cluster, "a")


def test_git_outlives_its_daemon(cluster: Cluster) -> None:
    """G6: a killed daemon's receive-pack may still move refs, so until it has ended nobody decides anything."""
    work, old = first_push(cluster)
    on_disk(
        cluster, "a", "config", "receive.keepAlive", "0"
    )  # else Git notices after 5 s that nobody listens
    held = hold(cluster, "a")
    new = cluster.commit(work, "moved by an orphan")
    pushing = cluster.spawn("push", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: held.reached, "Git is about to move the ref")
    cluster.stop("a", how=signal.SIGKILL)
    polite(cluster, pushing.communicate(timeout=30)[0])
    assert pushing.returncode != 0
    assert alive(held.git)
    cluster.wait(lambda: status(cluster)["state"] == "frozen", "the freeze is shown")
    cluster.start("a")
    cluster.wait(lambda: lock_holder(cluster), "a stands in for the orphan")
    for how in ([], ["--demote", "a"], ["--promote", "a"], ["--promote", "b"]):
        refused = cluster.admin("thaw", "team/app", *how)
        assert refused.code == 1, refused.text
        assert re.search("being written|process", polite(cluster, refused.text)), refused.text
    assert shown(cluster, "b") == {old}
    held.let_go()
    cluster.wait(lambda: not alive(held.git), "the orphan ends")
    cluster.wait(lambda: cluster.snapshot().intent_owner is None, "its write is healed")
    assert cluster.version() == 2
    assert shown(cluster, "a") == shown(cluster, "c") == {new}
    works_everywhere(cluster, "b")


# ---------------------------------------------------------------------------------------- the database goes away


@pytest.fixture
def own_postgres(tmp_path: Path) -> Iterator[tuple[Path, str]]:
    """A PostgreSQL that this test alone may stop: its directory and URL."""
    directory = tmp_path / "postgres"
    yield directory, embedded.start(directory)
    embedded.stop(directory)


@pytest.fixture
def alone(own_postgres: tuple[Path, str], tmp_path: Path) -> Iterator[MakeCluster]:
    """make_cluster, on that PostgreSQL; two devices."""
    made: list[Cluster] = []

    def make(**writes: str) -> Cluster:
        cluster = Cluster(tmp_path / "cluster", own_postgres[1], {"heal": "manual", **writes})
        made.append(cluster)
        cluster.set_up(["a", "b"])
        for name in "ab":
            cluster.start(name)
        cluster.create("team/app")
        return cluster

    yield make
    for cluster in made:
        cluster.close()


@pytest.mark.parametrize("end", [embedded.stop, embedded.crash], ids=["stop", "crash"])
def test_a_database_that_comes_back_in_time(
    end: Callable[[Path], None], own_postgres: tuple[Path, str], alone: MakeCluster
) -> None:
    """G2: away between intend and commit, it is waited for; the pusher is told, and then that it went well."""
    cluster = alone()
    work, _old = first_push(cluster)
    held = hold(cluster, "a")
    new = cluster.commit(work, "late")
    pushing = cluster.spawn("push", "--progress", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: held.reached, "Git is about to move the ref")
    end(own_postgres[0])
    held.let_go()
    assert pushing.stdout is not None
    said = ""
    for line in pushing.stdout:
        said += line
        if "the database is away; still trying to commit this push" in line:
            break
    away = cluster.git("ls-remote", cluster.url("b"))
    assert away.code != 0 and "database" in polite(cluster, away.err)
    embedded.start(own_postgres[0])
    said += pushing.communicate(timeout=60)[0]
    polite(cluster, said)
    assert pushing.returncode == 0, said
    assert "still trying" in said
    assert cluster.version() == 2
    assert shown(cluster, "a") == shown(cluster, "b") == {new}
    works_everywhere(cluster, "a")


def test_a_database_that_does_not_come_back_in_time(
    own_postgres: tuple[Path, str], alone: MakeCluster
) -> None:
    """G2, G6, G9: after commit_timeout the pusher is told "ng"; the intent is there when the database is, and as a
    version may still come of it, so is the second copy."""
    cluster = alone(commit_timeout="1s")
    cluster.db.set_repository("team/app", min_copies=2)
    work, old = first_push(cluster)
    held = hold(cluster, "a")
    new = cluster.commit(work, "never acknowledged")
    pushing = cluster.spawn("push", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: held.reached, "Git is about to move the ref")
    embedded.stop(own_postgres[0])
    held.let_go()
    said, _ = pushing.communicate(timeout=60)
    polite(cluster, said)
    assert pushing.returncode != 0
    assert "! [remote rejected] main -> main (the database stayed away for 1 s" in said
    embedded.start(own_postgres[0])
    cluster.wait(lambda: status(cluster)["state"] == "frozen", "the freeze is shown")
    assert replica(cluster, "a")["state"] == "frozen"
    assert cluster.version() == 1
    assert shown(cluster, "b") == {old}
    refused = cluster.git("ls-remote", cluster.url("a"))
    assert refused.code != 0 and "frozen" in refused.err, "what is not committed is not shown"
    assert "frozen" in push(cluster, "b", work).err
    staged = (f"--git-dir={cluster.disk('b')}", "for-each-ref", "refs/cluster/staged/")
    assert new in cluster.ok(*staged)
    assert cluster.admin("thaw", "team/app").code == 0
    assert cluster.version() == 2
    assert shown(cluster, "a") == shown(cluster, "b") == {new}
    works_everywhere(cluster, "b")


def test_a_write_whose_lock_is_lost_still_excludes_everybody(cluster: Cluster) -> None:
    """G3: the intent fences others out when the lock's connection is gone; a thaw never wins over a live write."""
    work, old = first_push(cluster)
    held = hold(cluster, "a")
    new = cluster.commit(work, "without a lock")
    pushing = cluster.spawn("push", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: held.reached, "Git is about to move the ref")
    with psycopg.connect(cluster.database, autocommit=True) as connection:
        ended = connection.execute(
            "select pid, pg_terminate_backend(pid) from pg_locks where locktype = 'advisory' and granted"
            " and database = (select oid from pg_database where datname = current_database())"
        ).fetchall()
        there = "select from pg_stat_activity where pid = any(%s)"
        pids = [pid for pid, _ in ended]
        cluster.wait(lambda: pids and not connection.execute(there, [pids]).rowcount, "the lock is lost")
    other = cluster.directory / "other"
    cluster.ok("clone", "--quiet", cluster.url("b"), str(other))
    between = cluster.commit(other, "in between")
    waiting = cluster.spawn("push", cluster.url("b"), "main:refs/heads/between", cwd=other)
    cluster.wait(lambda: lock_holder(cluster), "a stands in for its live write")
    assert replica(cluster, "a")["state"] == "writing", "nothing was interrupted, and nobody is told so"
    for how in ([], ["--demote", "a"], ["--promote", "b"]):
        thaw = cluster.admin("thaw", "team/app", *how, "--accept-loss" if how else "--dry-run")
        assert thaw.code == 1 and re.search("process|being written", polite(cluster, thaw.text)), thaw.text
    assert shown(cluster, "b") == {old}
    held.let_go()
    said, _ = pushing.communicate(timeout=30)
    assert pushing.returncode == 0, said
    said, _ = waiting.communicate(timeout=30)
    assert waiting.returncode == 0 and "interrupted" not in said, polite(cluster, said)
    assert cluster.version() == 3
    assert shown(cluster, "a") == shown(cluster, "b") == {new, between}
    works_everywhere(cluster, "b")


# ------------------------------------------------------------------------------------------------- waiting


@contextmanager
def locked(cluster: Cluster) -> Iterator[None]:
    """Somebody ("eve", on c) holds the write lock inside, and has written no intent yet."""
    with cluster.db.dedicated() as connection:
        number = cluster.snapshot().repository.id
        assert cluster.db.try_write_lock(connection, number, lock_label("c", "eve"))
        yield


def heard(process: subprocess.Popen[str], words: str) -> str:
    """The first line of a client's output that has `words` in it; pytest's timeout is the deadline."""
    assert process.stdout is not None
    return next(line for line in process.stdout if words in line)


def test_who_waits_for_the_lock_is_told_for_whom_and_leaves_nothing_behind(cluster: Cluster) -> None:
    """Who holds it, where, since when; a pusher who gives up is in no queue any more, of a device or of PostgreSQL."""
    work, _old = first_push(cluster)
    cluster.commit(work, "waits")
    with locked(cluster):
        first, second, third = (
            cluster.spawn("push", cluster.url(device), f"main:{name}", cwd=work)
            for device, name in (("a", "first"), ("a", "second"), ("b", "third"))
        )
        for pusher in (first, second, third):
            line = heard(pusher, "waiting for the write lock")
            assert re.search(
                r"waiting for the write lock: eve holds it on c since \d\d:\d\d:\d\d UTC", line
            ), line
        for pusher in (first, second, third):
            kill_group(pusher)
        cluster.wait(lambda: not queue(cluster), "nobody is queued any more")
    assert cluster.version() == 1
    works_everywhere(cluster, "b")
    assert not {"refs/heads/first", "refs/heads/second", "refs/heads/third"} & cluster.refs("a").keys()


def test_pushers_on_one_device_and_on_others_all_get_their_turn(cluster: Cluster) -> None:
    """G3: one after another, in whatever order, each with a version of its own."""
    work, _ = first_push(cluster)
    cluster.commit(work, "waits")
    with locked(cluster):
        pushers = [
            cluster.spawn("push", cluster.url(device), f"main:from-{device}-{number}", cwd=work)
            for device in "abc"
            for number in range(2)
        ]
        for pusher in pushers:
            heard(pusher, "eve holds it on c")
    for pusher in pushers:
        said, _ = pusher.communicate(timeout=60)
        assert pusher.returncode == 0, said
    assert cluster.version() == 7
    works_everywhere(cluster, "c")


def test_a_pusher_gives_up_after_lock_timeout(make_cluster: MakeCluster) -> None:
    """G4: it is told who was in the way, and nothing has changed."""
    cluster = make_cluster("ab", lock_timeout="2s")
    cluster.create("team/app")
    work, _ = first_push(cluster)
    cluster.commit(work, "late")
    with locked(cluster):
        late = push(cluster, "b", work)
        assert late.code != 0
        assert (
            "! [remote rejected] main -> main (gave up after waiting 2 s for the write lock: eve" in late.err
        )
        assert "push again later" in late.err
    assert cluster.version() == 1 and not queue(cluster)
    assert push(cluster, "b", work).code == 0
    works_everywhere(cluster, "b")


def test_who_comes_while_a_commit_is_in_flight_waits_for_it(make_cluster: MakeCluster) -> None:
    """G1, G3, G4: told for whom they wait, a pusher gives up after lock_timeout, a reader sees the commit or, where
    it is stuck on another device, what was acknowledged."""
    cluster = make_cluster("ab", lock_timeout="3s")
    cluster.create("team/app")
    work, old = first_push(cluster)
    held = hold(cluster, "a")
    new = cluster.commit(work, "in flight")
    slow = cluster.spawn("push", cluster.url("a"), "main", cwd=work)
    cluster.wait(lambda: held.reached, "the commit is in flight")
    for device, gives_up in (
        ("a", "a push by demo on a is being committed for too long"),
        ("b", "gave up after waiting 3 s for the write lock: demo holds it on a since"),
    ):
        impatient = push(cluster, device, work)
        assert impatient.code != 0
        assert "waiting for a push by demo on a that is being committed" in impatient.err
        assert gives_up in impatient.err
    stuck = cluster.git("ls-remote", cluster.url("b"), "refs/heads/main")
    assert stuck.code == 0 and old in stuck.out
    assert "waiting for a push by demo on a that is being committed" in stuck.err
    reader = cluster.spawn("ls-remote", cluster.url("b"), "refs/heads/main")
    heard(reader, "waiting for a push by demo on a")
    held.let_go()
    assert new in reader.communicate(timeout=30)[0]
    assert slow.wait(30) == 0
    works_everywhere(cluster, "b")


def test_a_reader_between_an_intent_and_its_commit_is_not_told_of_a_freeze(cluster: Cluster) -> None:
    """G6: intent seen, then the push commits and gives its lock back, then the lock is looked at: that is no freeze.

    Tried on device a's own database and disk, with the push put between the reader's two looks.
    """
    work, _ = first_push(cluster)
    cluster.converge()
    cluster.stop("a")
    new = cluster.commit(work, "in between")
    on_disk(cluster, "a", "fetch", "--quiet", str(work), "main")
    before = cluster.snapshot()
    number, base = before.repository.id, before.repository.position
    move = RefUpdate("refs/heads/main", cluster.refs("b")["refs/heads/main"], new)
    intent = Intent(uuid4(), uuid4(), "demo", "ssh", "", datetime.now(UTC), (move,))
    with (
        Passing(cluster.database).open() as db,
        cluster.db.dedicated() as connection,
    ):
        cluster.db.intend(connection, number, "a", base, intent)
        during = cluster.snapshot()

        def commit() -> None:
            on_disk(cluster, "a", "update-ref", move.ref, move.new, move.old)
            after = updated(base.checksum, [move])
            entry = cluster.db.commit(number, "a", base, after, intent, [move], connection=connection)
            store.mark(before.repository, entry.position)

        db.meanwhile = commit
        store = Store(cluster.devices["a"].data_dir, "a", cluster.db.cluster_id())
        peers = Peers.from_file(cluster.devices["a"].directory / "device_ed25519")
        node = Node("a", WritesSection(), db, store, peers)
        shown_now = fresh(node, during, lambda line: None, lambda: False)
        assert shown_now.repository.version == 2
    cluster.start("a")
    works_everywhere(cluster, "a")


class Passing(Database):
    """The real database, to which something happens right before the next look at the write lock."""

    meanwhile: Callable[[], None] | None = None

    def write_lock_holder(self, repository_id: int) -> LockHolder | None:
        if self.meanwhile is not None:
            self.meanwhile()
            self.meanwhile = None
        return super().write_lock_holder(repository_id)


def queue(cluster: Cluster) -> list[object]:
    """Who waits for a write lock in PostgreSQL."""
    with psycopg.connect(cluster.database) as connection:
        return list(
            connection.execute(
                "select pid from pg_locks where locktype = 'advisory' and not granted"
                " and database = (select oid from pg_database where datname = current_database())"
            ).fetchall()
        )
