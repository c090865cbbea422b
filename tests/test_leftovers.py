"""What killed Git processes leave behind (cluster/leftovers.py, stage.sweep): removed once it is certainly nobody's.

Certain is what a lock says that every Git process of ours holds, whoever started it and whatever became of that one.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import pytest

from cluster import git, leftovers, stage
from cluster.model import Position, RefUpdate, Repository, WhenShort
from cluster.node import Node
from cluster.refs import STAGED
from cluster.store import Store
from cluster.versions import checksum_of
from tests.breaking import MakeCluster, hold, interrupt, on_disk, works_everywhere
from tests.cluster_fixture import Cluster
from tests.upkeep_fixture import node, number

HEAD = "ref: refs/heads/main"
ID = 7


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """One device's disk with one empty replica."""
    store = Store(tmp_path, "a", uuid4())
    position = Position(0, checksum_of({"HEAD": HEAD}))
    now = datetime.now(UTC)
    repository = Repository(ID, "team/app", "sha1", position, 1, WhenShort.WARN, None, None, now)
    store.create(repository, "refs/heads/main")
    return store


def aged(path: Path, seconds: float) -> Path:
    """As if nothing had been written there for so long."""
    then = time.time() - seconds
    for each in [*path.rglob("*"), path] if path.is_dir() else [path]:
        os.utime(each, (then, then))
    return path


def leave(store: Store, age: float = leftovers.YOUNG + 60) -> dict[str, Path]:
    """One of everything that a killed Git leaves among the objects."""
    objects = store.objects(ID)
    (objects / "17").mkdir(exist_ok=True)
    (objects / "info" / "commit-graphs").mkdir(parents=True, exist_ok=True)
    quarantine = objects / "tmp_objdir-incoming-x1y2z3"
    (quarantine / "pack").mkdir(parents=True)
    (quarantine / "pack" / "tmp_pack_abc").write_bytes(b"PACK half of it")
    left = {"quarantine": quarantine}
    for name in (
        "pack/tmp_pack_abcdef",
        "pack/tmp_idx_abcdef",
        "pack/.tmp-4711-pack-0123.pack",
        "pack/multi-pack-index.lock",
        "info/commit-graphs/commit-graph-chain.lock",
        "17/tmp_obj_abcdef",
    ):
        left[name] = objects / name
        left[name].write_bytes(b"half")
    left["keep"] = objects / "pack" / "pack-0123.keep"
    left["keep"].write_text("receive-pack 4711 on example\n")
    for path in left.values():
        aged(path, age)
    return left


@contextmanager
def somebody(fd: int) -> Iterator[subprocess.Popen[bytes]]:
    """A process that inherited a lock."""
    with subprocess.Popen(["sleep", "600"], pass_fds=(fd,)) as process:
        try:
            yield process
        finally:
            process.kill()


def test_what_nobody_uses_goes(store: Store) -> None:
    left = leave(store)
    (mine := store.objects(ID) / "pack" / "pack-4567.keep").touch()
    aged(mine, 10 * leftovers.OLD)
    (half := store.path(ID) / "cluster" / ".position-0123").write_text("{")
    aged(half, leftovers.YOUNG + 60)
    leftovers.clean(store, ID)
    assert left.pop("17/tmp_obj_abcdef").exists(), "256 folders are not looked into every minute"
    assert not [name for name, path in left.items() if path.exists()]
    assert mine.exists(), "an administrator's"
    assert not half.exists()
    leftovers.clean(store, ID, thorough=True)
    assert not (store.objects(ID) / "17" / "tmp_obj_abcdef").exists()


def test_what_may_be_a_persons_stays(store: Store) -> None:
    """Who runs Git here by hand holds no lock of ours."""
    left = leave(store, age=leftovers.YOUNG / 2)
    assert not leftovers.clean(store, ID, thorough=True)
    assert all(path.exists() for path in left.values())


def test_a_process_that_adds_objects_keeps_everything_though_its_daemon_is_dead(store: Store) -> None:
    """It inherited the lock, and holds it until it ends. A paused one may hold it for hours."""
    left = leave(store)
    lock = store.adding_objects(ID)
    with somebody(lock.__enter__()) as process:
        lock.__exit__(GeneratorExit, GeneratorExit(), None)  # as when the session ends without its process
        assert not leftovers.clean(store, ID, thorough=True)
        assert all(path.exists() for path in left.values())
        process.kill()
        process.wait()
        leftovers.clean(store, ID, thorough=True)
        assert not [name for name, path in left.items() if path.exists()]


def test_in_a_repository_that_is_never_quiet_a_day_is_enough(store: Store) -> None:
    left = leave(store, age=leftovers.OLD + 60)
    (store.objects(ID) / "tmp_objdir-incoming-x1y2z3" / "pack" / "tmp_pack_abc").touch()
    with store.adding_objects(ID):
        leftovers.clean(store, ID, thorough=True)
    assert left.pop("quarantine").exists(), "something was written in it a moment ago"
    assert not [name for name, path in left.items() if path.exists()]


def test_a_repack_that_outlived_its_daemon_keeps_its_files(store: Store) -> None:
    left = leave(store)
    with store.holding(ID, "upkeep", 0.0) as got:
        assert got
        assert not leftovers.clean(store, ID, thorough=True)
    assert all(path.exists() for path in left.values())


def test_a_half_written_marker_stays_while_somebody_writes(store: Store) -> None:
    half = store.path(ID) / "cluster" / ".position-0123"
    half.write_text("{")
    aged(half, leftovers.YOUNG + 60)
    with store.holding(ID, "write", 0.0):
        leftovers.clean(store, ID)
        assert half.exists()
    leftovers.clean(store, ID)
    assert not half.exists()


@pytest.mark.parametrize("name", ["packed-refs.lock", "packed-refs.new", "refs/heads/main.lock", "HEAD.lock"])
def test_lock_files_go_without_a_push(store: Store, name: str) -> None:
    """packed-refs.new, too: Git does not begin to pack refs where one is left."""
    oid = git.run(["hash-object", "-w", "--stdin"], git_dir=store.path(ID), data=b"x").decode().strip()
    store.apply(ID, [RefUpdate("refs/tags/x", "0" * 40, oid)])
    left = store.path(ID) / name
    left.parent.mkdir(exist_ok=True)
    left.write_text("half")
    aged(left, 60)
    assert store.checksum(ID) is not None
    leftovers.clean(store, ID)
    assert not left.exists()
    with store.holding(ID, "write", 0.0):
        store.pack_refs(ID)
    assert "refs/tags/x" in (store.path(ID) / "packed-refs").read_text()


def test_what_lies_outside_of_replicas_goes_at_the_start(store: Store) -> None:
    left = [store.run_directory() / "scratch-x", store.path(ID).parent / ".new-0123"]
    for path in left:
        path.mkdir()
        (path / "file").touch()
    leftovers.clean_at_start(store)
    assert not [path for path in left if path.exists()]
    assert store.exists(ID)


# ------------------------------------------------------------------------------------------------ the real thing


@pytest.fixture
def pair(make_cluster: MakeCluster) -> Cluster:
    """Devices a and b, and a version of team/app on both."""
    cluster = make_cluster("ab")
    cluster.create("team/app", min_copies=2)
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=cluster.work())
    cluster.converge()
    return cluster


def quarantines(cluster: Cluster, device: str) -> list[Path]:
    return list((cluster.disk(device) / "objects").glob("tmp_objdir-*"))


def test_the_quarantine_of_a_killed_push(pair: Cluster) -> None:
    """It stays as long as the push may go on, even a day later, and goes after everything of it is dead."""
    work = pair.directory / "work"
    held = hold(pair, "a", "pre-receive")
    pair.commit(work, "two")
    pushing = pair.spawn("push", pair.url("a"), "main", cwd=work)
    pair.wait(lambda: held.reached, "the push is under way")
    (quarantine,) = quarantines(pair, "a")
    aged(quarantine, leftovers.YOUNG + 60)
    leftovers.clean(node(pair, "a").store, number(pair))
    assert quarantine.exists()
    pair.stop("a", how=signal.SIGKILL)
    aged(quarantine, leftovers.YOUNG + 60)
    leftovers.clean(node(pair, "a").store, number(pair))
    assert quarantine.exists(), "its Git lives on, in its hook"
    os.killpg(os.getpgid(held.git), signal.SIGKILL)
    pushing.communicate(timeout=30)
    held.let_go()
    pair.start("a")
    pair.wait(lambda: not quarantine.exists(), "the device removes it", 30)
    works_everywhere(pair, "a")


def test_the_keep_file_of_a_killed_push(pair: Cluster) -> None:
    """Git holds the pack of a push by one until its refs have moved. Left behind, it would keep that pack for ever."""
    work = pair.directory / "work"
    for count in range(120):
        (work / f"file {count}").write_text(str(count))
    pair.commit(work, "many objects make a pack")
    held = hold(pair, "a")
    pushing = pair.spawn("push", pair.url("a"), "main", cwd=work)
    pair.wait(lambda: held.reached, "Git is about to move the ref")
    os.killpg(os.getpgid(held.git), signal.SIGKILL)
    pushing.communicate(timeout=30)
    held.let_go()
    (keep,) = (pair.disk("a") / "objects" / "pack").glob("*.keep")
    leftovers.clean(node(pair, "a").store, number(pair))
    assert keep.exists(), "it is young"
    aged(keep, leftovers.YOUNG + 60)
    leftovers.clean(node(pair, "a").store, number(pair))
    assert not keep.exists() and keep.with_suffix(".pack").exists()
    works_everywhere(pair, "a")


# ------------------------------------------------------------------------------------------------------- staged


def staged(subject: Node, cluster: Cluster) -> set[str]:
    return {str(push) for push in subject.store.staged(number(cluster))}


def stage_one(cluster: Cluster, subject: Node, *, seconds_ago: float) -> str:
    """As a peer's push left it here so long ago."""
    push, oid = uuid4(), on_disk(cluster, subject.name, "rev-parse", "main")
    at = int(time.time() - seconds_ago)
    on_disk(cluster, subject.name, "update-ref", f"{STAGED}{push}/{at}-0", oid)
    return str(push)


@pytest.mark.parametrize("packed", [False, True], ids=["loose", "packed"])
def test_staged_refs_of_a_dead_push_go_and_those_of_a_young_one_stay(packed: bool, pair: Cluster) -> None:
    """Packed refs have no time of their own: what was staged a moment ago must not look as if it were old."""
    subject = node(pair, "b")
    limit = stage.STAGING + subject.writes.lock_timeout
    young, dead = (stage_one(pair, subject, seconds_ago=ago) for ago in (limit - 60, limit + 60))
    if packed:
        on_disk(pair, "b", "pack-refs", "--all")
    assert staged(subject, pair) == {young, dead}
    stage.sweep(subject, number(pair))
    assert staged(subject, pair) == {young}


def test_what_the_log_says_is_settled_goes_at_once(pair: Cluster) -> None:
    subject = node(pair, "b")
    (entry, *_) = pair.db.log(number(pair))
    oid = on_disk(pair, "b", "rev-parse", "main")
    on_disk(pair, "b", "update-ref", f"{STAGED}{entry.push_id}/{int(time.time())}-0", oid)
    assert staged(subject, pair) == {str(entry.push_id)}
    stage.sweep(subject, number(pair))
    assert not staged(subject, pair)


def test_a_staged_push_whose_intent_stands_is_never_dropped(make_cluster: MakeCluster) -> None:
    """Its version may still come, weeks later: these objects are its second copy (G9)."""
    cluster = make_cluster("ab", heal="manual")
    cluster.create("team/app", min_copies=2)
    work = cluster.work()
    cluster.wait(cluster.converged, "it is everywhere")
    interrupt(cluster, "a", "commit", work)
    subject = node(cluster, "b")
    (push,) = staged(subject, cluster)
    (ref,) = on_disk(cluster, "b", "for-each-ref", "--format=%(refname)", STAGED).splitlines()
    on_disk(cluster, "b", "update-ref", ref.replace(ref.split("/")[-1], "1000000000-0"), ref)
    on_disk(cluster, "b", "update-ref", "-d", ref)
    stage.sweep(subject, number(cluster))
    assert staged(subject, cluster) == {push}
    cluster.start("a")
    assert cluster.admin("thaw", "team/app").code == 0
    cluster.converge()
    stage.sweep(subject, number(cluster))
    assert not staged(subject, cluster)
