"""Maintenance (cluster/maintenance.py, upkeep.py): many pushes later a repository is as good as after one.

Never between intent and commit, never the objects of a staged push, never what no ref reaches before its time.
"""

from __future__ import annotations

import os
import signal
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from uuid import uuid4

import pytest

from cluster import maintenance
from cluster.background import Background
from cluster.errors import GitFailed
from cluster.maintenance import Need
from cluster.refs import LOST, STAGED
from tests.breaking import MakeCluster, hold, interrupt, on_disk, shown, works_everywhere
from tests.cluster_fixture import Cluster
from tests.upkeep_fixture import devices, loose, node, number

MANY = 12


def pushes(cluster: Cluster, device: str, count: int) -> None:
    """So many pushes of one commit each, each to main and to a branch of its own."""
    work = cluster.directory / "work"
    if not work.exists():
        cluster.work()
    for number_ in range(count):
        cluster.commit(work, f"push {number_} {uuid4().hex[:6]}")
        cluster.ok("push", "--quiet", cluster.url(device), "main", f"main:branch-{number_}", cwd=work)


def packs(cluster: Cluster, device: str) -> list[Path]:
    return list((cluster.disk(device) / "objects" / "pack").glob("*.pack"))


def loose_objects(cluster: Cluster, device: str) -> int:
    return int(on_disk(cluster, device, "count-objects").split()[0])


def tidy(cluster: Cluster, device: str) -> bool:
    """Whether a copy has few packs, all of them indexed and with bitmaps, a commit-graph, and packed refs."""
    objects = cluster.disk(device) / "objects"
    return (
        len(packs(cluster, device)) <= 4
        and bool(list(objects.glob("pack/multi-pack-index-*.bitmap")))
        and bool(list(objects.glob("info/commit-graphs/*.graph")))
        and on_disk(cluster, device, "rev-parse", "branch-0")
        in (cluster.disk(device) / "packed-refs").read_text()
    )


@pytest.mark.parametrize("object_format", ["sha1", "sha256"])
def test_after_many_pushes_there_are_few_packs_with_indexes(
    object_format: str, make_cluster: MakeCluster
) -> None:
    cluster = devices(make_cluster, most_packs=2)
    cluster.db.delete_repository("team/app")
    cluster.create("team/app", min_copies=2, object_format=object_format)
    cluster.ok(
        "init", "--quiet", "-b", "main", f"--object-format={object_format}", str(cluster.directory / "work")
    )
    pushes(cluster, "a", MANY)
    for device in "ab":
        cluster.wait(lambda device=device: tidy(cluster, device), f"{device} is maintained", 30)  # type: ignore[misc]
    cluster.converge()
    assert set(cluster.refs("a")) == set(cluster.refs("b"))
    clone = cluster.directory / "clone"
    cluster.ok("clone", "--quiet", cluster.url("b"), str(clone))
    assert cluster.ok("rev-list", "--count", "main", cwd=clone).strip() == str(MANY)
    before = cluster.version()
    pushes(cluster, "b", 1)
    cluster.wait(cluster.converged, "the next push goes everywhere")
    assert cluster.version() == before + 1


def test_pushes_and_clones_go_on_meanwhile(make_cluster: MakeCluster) -> None:
    cluster = devices(make_cluster, copies=2, most_packs=2)
    pushes(cluster, "a", 2)
    until = time.monotonic() + 5

    def pusher(name: int) -> int:
        mine, count = cluster.directory / f"pusher-{name}", 0
        cluster.ok("clone", "--quiet", cluster.url("ab"[name]), str(mine))
        while time.monotonic() < until:
            cluster.commit(mine, f"{name} {count}")
            cluster.ok("push", "--quiet", cluster.url("ab"[name]), f"HEAD:refs/heads/of-{name}", cwd=mine)
            count += 1
        return count

    def reader() -> int:
        count = 0
        while time.monotonic() < until:
            clone = cluster.directory / f"read-{count}"
            cluster.ok("clone", "--quiet", "--mirror", cluster.url("ab"[count % 2]), str(clone))
            cluster.ok("fsck", "--connectivity-only", "--no-dangling", cwd=clone)
            count += 1
        return count

    with ThreadPoolExecutor(3) as pool:
        done = [pool.submit(pusher, 0), pool.submit(pusher, 1), pool.submit(reader)]
        pushed = done[0].result() + done[1].result()
        assert pushed > 10 and done[2].result() > 2
    assert cluster.version() == pushed + 2
    assert "maintenance (repack)" in cluster.devices["a"].log.read_text()
    for device in "ab":
        cluster.wait(lambda device=device: tidy(cluster, device), f"{device} is maintained", 30)  # type: ignore[misc]
    cluster.converge()


# ------------------------------------------------------------------------------------- never between intent and commit


def test_nothing_begins_while_a_push_is_between_intend_and_commit(
    make_cluster: MakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(maintenance, "WRITE_WAIT", 0.2)
    cluster = devices(make_cluster)
    pushes(cluster, "a", 3)
    cluster.converge()
    subject = node(cluster, "a", most_packs=2)
    held = hold(cluster, "a")
    cluster.commit(cluster.directory / "work", "held")
    pushing = cluster.spawn("push", cluster.url("a"), "main", cwd=cluster.directory / "work")
    cluster.wait(lambda: held.reached, "Git is about to move the ref")
    before = loose_objects(cluster, "a")
    assert not maintenance.maintain(subject, number(cluster), Need.REPACK)
    assert not maintenance.maintain(subject, number(cluster), Need.COLLECT)
    assert loose_objects(cluster, "a") == before and not packs(cluster, "a")
    held.let_go()
    out, _ = pushing.communicate(timeout=30)
    assert pushing.returncode == 0, out
    assert maintenance.maintain(subject, number(cluster), Need.REPACK)
    assert tidy(cluster, "a") and loose_objects(cluster, "a") == 0
    cluster.converge()


def test_a_push_that_intends_during_a_repack_is_not_disturbed(make_cluster: MakeCluster) -> None:
    """It is held at its most delicate while everything is repacked and collected, and its refs are not packed."""
    cluster = devices(make_cluster)
    pushes(cluster, "a", 3)
    cluster.converge()
    subject = node(cluster, "a", prune_after=3600.0)
    held = hold(cluster, "a")
    new = cluster.commit(cluster.directory / "work", "held")
    pushing = cluster.spawn("push", cluster.url("a"), "main", cwd=cluster.directory / "work")
    cluster.wait(lambda: held.reached, "Git is about to move the ref")
    with subject.store.holding(number(cluster), "upkeep", 0.0):
        for _ in range(2):
            maintenance._repack(subject, number(cluster))
            maintenance._collect(subject, number(cluster))
            maintenance._write_commit_graph(subject, number(cluster), anew=True)
    held.let_go()
    out, _ = pushing.communicate(timeout=30)
    assert pushing.returncode == 0, out
    assert new in shown(cluster, "a")
    cluster.converge()
    works_everywhere(cluster, "b")


def test_an_interrupted_write_keeps_maintenance_away(make_cluster: MakeCluster) -> None:
    """Its old values, which no ref reaches any more, may be put back weeks later (G8)."""
    cluster = make_cluster("ab", heal="manual")
    cluster.create("team/app")
    pushes(cluster, "a", 2)
    interrupt(cluster, "a", "commit", cluster.directory / "work", "+main~1:main")
    subject = node(cluster, "a", prune_after=0.001)
    for need in Need:
        assert not maintenance.maintain(subject, number(cluster), need)
    cluster.start("a")
    assert cluster.admin("thaw", "team/app").code == 0
    works_everywhere(cluster, "a")


# ------------------------------------------------------------------------------------------------------- collecting


def collect(cluster: Cluster, device: str, prune_after: float) -> None:
    assert maintenance.maintain(node(cluster, device, prune_after=prune_after), number(cluster), Need.COLLECT)


def write(cluster: Cluster, device: str, text: str, *, age: float = 0.0) -> str:
    """An object that no ref reaches; its id."""
    file = cluster.directory / "text"
    file.write_text(text)
    oid = on_disk(cluster, device, "hash-object", "-w", str(file))
    path = cluster.disk(device) / "objects" / oid[:2] / oid[2:]
    os.utime(path, (time.time() - age, time.time() - age))
    return oid


def there(cluster: Cluster, device: str, oid: str) -> bool:
    return cluster.git(f"--git-dir={cluster.disk(device)}", "cat-file", "-e", oid).code == 0


def test_what_no_ref_reaches_goes_after_its_grace_and_what_a_ref_holds_stays(
    make_cluster: MakeCluster,
) -> None:
    """However old an object is, its grace begins when it is first found to be reached by nothing."""
    cluster = devices(make_cluster)
    pushes(cluster, "a", 3)
    cluster.converge()
    old = write(cluster, "b", "old", age=10**7)
    kept = {name: write(cluster, "b", name, age=10**7) for name in ("staged", "lost")}
    at = int(time.time())
    on_disk(cluster, "b", "update-ref", f"{STAGED}{uuid4()}/{at}-0", kept["staged"])
    on_disk(cluster, "b", "update-ref", f"{LOST}20260101T000000Z-abcdef/tags/x", kept["lost"])
    collect(cluster, "b", 3600.0)
    assert there(cluster, "b", old), "it is young in this sense"
    assert list((cluster.disk("b") / "objects" / "pack").glob("*.mtimes"))
    time.sleep(1.1)  # the grace of the next line, to the second as Git counts
    collect(cluster, "b", 1.0)
    assert not there(cluster, "b", old)
    assert all(there(cluster, "b", oid) for oid in kept.values())
    on_disk(cluster, "b", "update-ref", "-d", f"{LOST}20260101T000000Z-abcdef/tags/x")
    collect(cluster, "b", 14 * 86400.0)
    assert there(cluster, "b", kept["lost"]), "two weeks from now"
    cluster.converge()
    works_everywhere(cluster, "b")


def test_a_branch_that_comes_back_while_its_objects_wait_to_be_dropped(make_cluster: MakeCluster) -> None:
    """Git writes an object anew that is pushed while it is among those; a sync finds them there."""
    cluster = devices(make_cluster)
    work = cluster.work()
    cluster.ok("push", "--quiet", cluster.url("a"), "main", cwd=work)
    cluster.ok("checkout", "--quiet", "-b", "gone", cwd=work)
    gone = cluster.commit(work, "gone")
    cluster.ok("push", "--quiet", cluster.url("a"), "gone", cwd=work)
    cluster.converge()
    cluster.ok("push", "--quiet", cluster.url("a"), ":gone", cwd=work)
    cluster.converge()
    for device in "ab":
        collect(cluster, device, 86400.0)
    cluster.ok("push", "--quiet", cluster.url("a"), "gone", cwd=work)
    cluster.converge()
    time.sleep(1.1)
    for device in "ab":
        collect(cluster, device, 1.0)
        assert there(cluster, device, gone)
    cluster.converge()
    works_everywhere(cluster, "a")


def test_a_replica_is_collected_once_a_week_if_it_changed(make_cluster: MakeCluster) -> None:
    cluster = devices(make_cluster)
    pushes(cluster, "a", 1)
    cluster.converge()
    subject = node(cluster, "a")

    def needed() -> Need | None:
        return maintenance.needed(subject.store, number(cluster), subject.upkeep)

    def a_week_ago() -> None:
        then = time.time() - 1.2 * maintenance.COLLECT_EVERY
        os.utime(cluster.disk("a") / "cluster" / "collected", (then, then))

    assert needed() is None
    a_week_ago()
    assert needed() is Need.COLLECT
    collect(cluster, "a", subject.upkeep.prune_after)
    assert needed() is None
    a_week_ago()
    assert needed() is None, "nothing happened since"
    cluster.ok("push", "--quiet", cluster.url("a"), "main:again", cwd=cluster.directory / "work")
    assert needed() is Need.COLLECT


def test_a_ref_to_what_was_dropped_at_the_same_moment_is_noticed(make_cluster: MakeCluster) -> None:
    """A sync may refer to such an object meanwhile; said, so that the replica is verified and made anew.

    Also where a commit-graph knows a commit that is not there any more.
    """
    cluster = devices(make_cluster)
    pushes(cluster, "a", 2)
    cluster.converge()
    store, mine = node(cluster, "b").store, number(cluster)
    before = set(store.every_ref(mine).values()) - {"ref: refs/heads/main"}
    work = cluster.directory / "work"
    parent, child = cluster.commit(work, "parent"), cluster.commit(work, "child")
    on_disk(cluster, "b", "fetch", "--quiet", str(work), "main:refs/cluster/lost/x/heads/main")
    maintenance.look_again(store, mine, before)
    on_disk(cluster, "b", "commit-graph", "write", "--reachable")
    loose(cluster, "b", parent).unlink()
    assert there(cluster, "b", child)
    with pytest.raises(GitFailed, match="dropped at the same moment"):
        maintenance.look_again(store, mine, before)


# ------------------------------------------------------------------------------------------------ what it leaves behind


def large(cluster: Cluster) -> None:
    """A push of 40,000 files."""
    work = cluster.work()
    blobs = b"".join(b"blob\nmark :%d\ndata 8\n%08d\n" % (n, n) for n in range(1, 40001))
    files = b"".join(b"M 100644 :%d d%d/%d\n" % (n, n % 300, n) for n in range(1, 40001))
    commit = b"commit refs/heads/large\ncommitter a <a@b> 1 +0000\ndata 1\nx\n"
    subprocess.run(["git", "fast-import", "--quiet"], cwd=work, input=blobs + commit + files, check=True)
    cluster.ok("push", "--quiet", cluster.url("a"), "main", "large", cwd=work)
    cluster.converge()


def repacking(cluster: Cluster, device: str) -> set[int]:
    """The process groups that repack a device's copy: one, of several processes at times."""
    found, disk = set(), os.fsencode(cluster.disk(device))
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if b"repack" in words and b"GIT_DIR=" + disk in (process / "environ").read_bytes().split(b"\0"):
                found.add(os.getpgid(int(process.name)))
    return found


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=str)
def test_a_device_that_ends_in_the_middle_of_a_repack(how: signal.Signals, make_cluster: MakeCluster) -> None:
    """Stopped, it takes its Git with it. Killed, that lives on and keeps the lock; killed, too, it leaves its files."""
    cluster = devices(make_cluster)
    large(cluster)
    then = time.time() - 1.2 * maintenance.COLLECT_EVERY
    os.utime(cluster.disk("a") / "cluster" / "collected", (then, then))
    cluster.ok("push", "--quiet", cluster.url("a"), "main:x", cwd=cluster.directory / "work")
    (group,) = cluster.wait(lambda: repacking(cluster, "a"), "it is collected", 20)
    store, mine = node(cluster, "a").store, number(cluster)
    cluster.stop("a", how=how)
    if how is signal.SIGKILL:
        with store.holding(mine, "upkeep", 0.0) as free:
            assert not free or not repacking(cluster, "a")
        with suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    cluster.wait(lambda: not repacking(cluster, "a"), "nothing of it is left", 10)
    with store.holding(mine, "upkeep", 1.0) as free:
        assert free
    objects = cluster.disk("a") / "objects"

    def left() -> list[Path]:
        return [*objects.glob("pack/.tmp-*"), *objects.glob("pack/tmp_*"), *objects.glob("tmp_objdir-*")]

    for path in left():
        os.utime(path, (then, then))
    cluster.start("a")
    cluster.wait(lambda: not left(), "what it had written is gone", 30)
    cluster.converge()
    works_everywhere(cluster, "a")


def test_what_is_ended_in_the_background_begins_no_more(make_cluster: MakeCluster) -> None:
    background = Background()
    assert background.run(["--version"]).out.startswith(b"git version")
    background.stop()
    with pytest.raises(GitFailed):
        background.run(["--version"])


# ----------------------------------------------------------------------------------------------------------- tidying


def test_refs_are_packed_only_where_that_is_worth_it(make_cluster: MakeCluster) -> None:
    """One loose ref beside many packed ones stays: packing writes all of them again, while pushes wait."""
    cluster = devices(make_cluster)
    pushes(cluster, "a", 1)
    cluster.converge()
    main = on_disk(cluster, "a", "rev-parse", "main")
    lines = "".join(f"create refs/tags/t{count} {main}\n" for count in range(1000))
    for device in "ab":
        subprocess.run(
            ["git", f"--git-dir={cluster.disk(device)}", "update-ref", "--stdin"],
            input=lines.encode(),
            check=True,
        )
        on_disk(cluster, device, "pack-refs", "--all")
        on_disk(cluster, device, "update-ref", "refs/tags/new", main)
    subject = node(cluster, "a")
    assert subject.store.loose_refs(number(cluster)) == 1
    maintenance._pack_refs(subject, number(cluster))
    assert subject.store.loose_refs(number(cluster)) == 1
    for count in range(20):
        on_disk(cluster, "a", "update-ref", f"refs/tags/more{count}", main)
    checksum = subject.store.checksum(number(cluster))
    maintenance._pack_refs(subject, number(cluster))
    assert subject.store.loose_refs(number(cluster)) == 0
    assert subject.store.checksum(number(cluster)) == checksum


def test_a_stale_file_does_not_stop_the_packing_of_refs(make_cluster: MakeCluster) -> None:
    """packed-refs.new of a killed Git: found with it, `git pack-refs` would fail for ever."""
    cluster = devices(make_cluster)
    pushes(cluster, "a", 2)
    cluster.converge()
    left = cluster.disk("a") / "packed-refs.new"
    left.touch()
    os.utime(left, (time.time() - 60, time.time() - 60))
    maintenance._pack_refs(node(cluster, "a"), number(cluster))
    assert node(cluster, "a").store.loose_refs(number(cluster)) == 0 and not left.exists()
