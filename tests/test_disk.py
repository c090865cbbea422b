"""The disk of a device is full, cannot be written to, or came back from a power cut with files cut short or of zeros.

Whoever pushes or fetches gets an error in one line, nothing acknowledged is lost, nothing freezes, and when the disk
is well again all heals without anybody.

The devices are shared by the tests of this file: each has a repository of its own, and leaves all well.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster import maintenance, verify
from cluster.errors import DiskFailed
from cluster.model import Replica, WhenShort
from tests.breaking import HeldHook, hold, lock_holder, polite
from tests.cluster_fixture import Done, Project
from tests.conftest import new_database
from tests.disk_fixture import LIMITED, MOUNTED, OnDisks, kind_here
from tests.probes import no_git_left
from tests.upkeep_fixture import node

FULL = "remote: cluster: {}the disk of device {} is full; an administrator has to make room"
STUCK = "remote: cluster: {}the disk of device {} cannot be written to; an administrator has to look at it"


@pytest.fixture(scope="module")
def clusters(postgres: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], OnDisks]]:
    """A cluster on disks of each kind that is asked for."""
    made: dict[str, OnDisks] = {}
    with ExitStack() as stack:

        def of_kind(kind: str) -> OnDisks:
            if kind not in made:
                url = stack.enter_context(new_database(postgres))
                made[kind] = OnDisks(tmp_path_factory.mktemp("disks") / "cluster", url, kind)
                stack.callback(made[kind].close)
            return made[kind]

        yield of_kind


@pytest.fixture
def cluster(clusters: Callable[[str], OnDisks], request: pytest.FixtureRequest) -> OnDisks:
    """On file systems of their own; where nothing may be mounted, on disks with limits."""
    here = kind_here()
    kind = getattr(request, "param", here)
    if kind == MOUNTED != here:
        pytest.skip("nothing may be mounted here, and no other kind of disk shows this")
    return clusters(kind)


mounted = pytest.mark.parametrize("cluster", [MOUNTED], indirect=True)


@pytest.fixture
def app(cluster: OnDisks, request: pytest.FixtureRequest) -> Iterator[Project]:
    """A repository on a and b with a version on both. Afterwards pushes to either land, and both are equal."""
    words = "".join(c if c.isalnum() else "-" for c in request.node.name.removeprefix("test_"))
    name = f"team/{words.strip('-')}"
    cluster.create(name, devices="ab")
    app = Project(cluster, name)
    app.pushed("a", "main")
    app.converge()
    yield app
    app.git("checkout", "--quiet", "-B", "afterwards")
    for device, other in ("ab", "ba"):
        oid = app.commit(f"afterwards on {device}")
        app.pushed(device, f"afterwards:{device}")
        assert app.refs(other)[f"refs/heads/{device}"] == oid
    app.converge()
    assert as_before(app, app.version)


def failed(app: Project, device: str, *refs: str) -> str:
    """A push that fails: what the pusher is told."""
    return told(app, app.push(device, *(refs or ("main",))))


def told(app: Project, done: Done) -> str:
    """What somebody is told whose command failed."""
    assert done.code != 0, done.text
    return polite(app.cluster, done.text)


def held_push(app: Project, hook: str, only: str = "") -> tuple[HeldHook, subprocess.Popen[str]]:
    """A push to a that stands still in a hook."""
    held = hold(app.cluster, "a", hook, only=only, repository=app.name)
    pushing = app.cluster.spawn("push", app.url("a"), "main", cwd=app.work)
    app.cluster.wait(lambda: held.reached, f"Git runs {hook}")
    return held, pushing


def go_on(app: Project, held: HeldHook, pushing: subprocess.Popen[str]) -> str:
    """What its pusher is told in the end."""
    held.let_go()
    return polite(app.cluster, pushing.communicate(timeout=60)[0])


def as_before(app: Project, version: int = 1) -> bool:
    """Nothing came of what failed, and nothing is frozen."""
    snapshot = app.cluster.snapshot(app.name)
    return (
        snapshot.repository.version == version
        and snapshot.repository.frozen is None
        and snapshot.intent_owner is None
    )


def row(app: Project, device: str) -> Replica:
    replica = app.cluster.snapshot(app.name).of(device)
    assert replica is not None
    return replica


def failed_sync(app: Project, device: str) -> str:
    """What a device notes of a sync that failed; its copy goes on being trusted."""
    error = app.cluster.wait(lambda: row(app, device).last_error, f"{device} has tried to sync")
    assert not row(app, device).quarantined
    return str(error)


def big_commit(app: Project, megabytes: float) -> str:
    """A commit that cannot be compressed."""
    (app.work / "large").write_bytes(os.urandom(int(megabytes * (1 << 20))))
    return app.commit("large", about="a large file")


def many_files(app: Project) -> str:
    """A commit of more objects than Git unpacks: it comes as a pack and stays one."""
    for number in range(150):
        (app.work / f"file{number}").write_bytes(os.urandom(2000))
    return app.commit("many files", about="them")


# -------------------------------------------------------------------------------------------------------- full


@pytest.mark.parametrize(
    "cluster, content",
    [(MOUNTED, "a large file"), (MOUNTED, "many files"), (LIMITED, "many files")],
    indirect=["cluster"],
)
def test_full_while_receiving(cluster: OnDisks, app: Project, content: str) -> None:
    disk, before = cluster.disks["a"], app.refs("a")
    occupied = disk.used()
    with disk.full():
        oid = big_commit(app, 2) if content == "a large file" else many_files(app)
        for _ in range(2):
            assert FULL.format("", "a") in failed(app, "a")
        assert as_before(app) and app.refs("a") == before, "it still serves what it has"
        no_git_left(cluster)
        assert disk.used() <= occupied, "a failed push leaves nothing behind that takes room"
        app.pushed("b", "main:other")
        assert app.refs("b")["refs/heads/other"] == oid, "the others are not affected"


@mounted
def test_full_so_that_not_even_a_ref_fits(cluster: OnDisks, app: Project) -> None:
    """What brings no objects fails where the ref is written, or earlier: no version, no intent."""
    with cluster.disks["a"].full():
        for name in ("x", "some/new/folder"):
            assert FULL.format("", "a") in failed(app, "a", f"main:refs/heads/{name}")
        assert as_before(app)


@mounted
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_between_intend_and_commit_a_disk_is(cluster: OnDisks, app: Project, how: str) -> None:
    app.commit("too late")
    held, pushing = held_push(app, "update")
    disk = cluster.disks["a"]
    with disk.full() if how == "full" else disk.read_only():
        said = go_on(app, held, pushing)
        assert pushing.returncode != 0 and (FULL if how == "full" else STUCK).format("", "a") in said, said
        assert as_before(app)


@mounted
@pytest.mark.parametrize("how", ["full", "read-only"])
def test_after_the_refs_moved_a_disk_is(cluster: OnDisks, app: Project, how: str) -> None:
    """The marker cannot be written: the push stands all the same."""
    oid = app.commit("just in time")
    held, pushing = held_push(app, "reference-transaction", only="committed")
    disk = cluster.disks["a"]
    with disk.full() if how == "full" else disk.read_only():
        said = go_on(app, held, pushing)
        assert pushing.returncode == 0 and "error" not in said, said
        assert app.refs("a")["refs/heads/main"] == app.refs("b")["refs/heads/main"] == oid
    assert not list(app.disk("a").glob("cluster/.position-*")), "no half-written marker is left"


def test_full_while_syncing(cluster: OnDisks, app: Project) -> None:
    occupied = cluster.disks["b"].used()
    with cluster.disks["b"].full():
        oid = big_commit(app, 3)
        app.pushed("a", "main")
        assert FULL.format("error: ", "b") in told(app, cluster.git("ls-remote", app.url("b")))
        assert failed_sync(app, "b") == FULL.format("", "b").removeprefix("remote: cluster: ")
        assert cluster.disks["b"].used() <= occupied + (64 << 10), (
            "nor does that leave anything that takes room"
        )
        assert app.refs("a")["refs/heads/main"] == oid
    app.converge()  # by itself


@mounted
def test_full_when_a_sync_moves_refs(cluster: OnDisks, app: Project) -> None:
    """b has the objects already, as the second copy of the push. What it had stays trusted."""
    cluster.db.set_repository(app.name, min_copies=2)
    oid = app.commit("no room for the ref")
    held, pushing = held_push(app, "update")
    with cluster.disks["b"].full():
        go_on(app, held, pushing)
        assert pushing.returncode == 0
        assert FULL.format("error: ", "b") in told(app, cluster.git("ls-remote", app.url("b")))
        assert failed_sync(app, "b") == FULL.format("", "b").removeprefix("remote: cluster: ")
    assert app.refs("b")["refs/heads/main"] == oid


@mounted
def test_full_while_a_copy_is_made_anew(cluster: OnDisks, app: Project) -> None:
    (app.disk("b") / "refs" / "heads" / "main").write_bytes(b"")
    with cluster.disks["b"].full():
        assert FULL.format("error: ", "b") in told(app, cluster.git("ls-remote", app.url("b")))
        assert "refs/heads/main" in app.refs("a")
    assert app.refs("b") == app.refs("a")


def test_full_while_keeping_a_copy(cluster: OnDisks, app: Project) -> None:
    """Another peer keeps it; where there is none, the repository's policy decides (G9)."""
    cluster.create("team/three", min_copies=2)
    cluster.db.set_repository(app.name, min_copies=2, when_short=WhenShort.REFUSE)
    with cluster.disks["b"].full():
        oid = big_commit(app, 2)
        done = cluster.git("push", cluster.url("a", "team/three"), "main", cwd=app.work)
        assert done.code == 0 and "warning" not in done.err, done.text
        assert cluster.refs("c", "team/three")["refs/heads/main"] == oid
        assert "only 1 of 2 copies can be made now" in failed(app, "a") and as_before(app)
        cluster.db.set_repository(app.name, when_short=WhenShort.WARN)
        assert "remote: cluster: warning: only 1 of 2 copies can be made now" in app.pushed("a", "main").err
    for name in ("team/three", app.name):
        assert cluster.refs("b", name)["refs/heads/main"] == oid
        cluster.converge(name)


@mounted
def test_no_inode_left(cluster: OnDisks, app: Project) -> None:
    with cluster.disks["a"].without_inodes(), cluster.disks["b"].without_inodes():
        app.commit("no room for a file")
        for refs in ("main", "main~1:refs/heads/x"):
            assert FULL.format("", "a") in failed(app, "a", refs)
        assert as_before(app)
        assert app.refs("a") == app.refs("b")


@mounted
def test_full_while_repacking(cluster: OnDisks, app: Project) -> None:
    """Nothing is lost or left behind, and the next time it works."""
    for number in range(2):
        (app.work / "noise").write_bytes(os.urandom(300_000))
        app.commit(f"pack {number}")
        app.pushed("a", "main")
        cluster.ok(f"--git-dir={app.disk('a')}", "repack", "-dq")
    a, number = node(cluster, "a"), cluster.snapshot(app.name).repository.id
    occupied = cluster.disks["a"].used()
    with cluster.disks["a"].full():
        with pytest.raises(DiskFailed):
            maintenance.maintain(a, number, maintenance.Need.REPACK)
        assert cluster.disks["a"].used() <= occupied
        app.clone("a")
    assert a.store.scatter(number).packs == 2
    assert maintenance.maintain(a, number, maintenance.Need.REPACK)
    assert a.store.scatter(number).packs == 1


# ------------------------------------------------------------------------------------------------- not writable


@pytest.mark.parametrize("cluster", [MOUNTED, LIMITED], indirect=True)
def test_not_writable_before_the_push(cluster: OnDisks, app: Project) -> None:
    """Reading goes on as long as there is nothing to sync."""
    with cluster.disks["a"].read_only():
        app.commit("refused")
        for refs in ("main", "main~1:refs/heads/x"):
            said = failed(app, "a", refs)
            # The daemon of "limits", when it is root's, could write, and only its Git can not.
            assert cluster.kind == LIMITED or STUCK.format("error: ", "a") in said, said
        assert as_before(app)
        app.clone("a")
        app.pushed("b", "main")
        assert STUCK.format("error: ", "a") in told(app, cluster.git("ls-remote", app.url("a")))
        app.clone("b")
    assert app.refs("a") == app.refs("b")


def test_not_writable_while_syncing(cluster: OnDisks, app: Project) -> None:
    with cluster.disks["b"].read_only():
        oid = app.commit("not for b")
        app.pushed("a", "main")
        assert STUCK.format("error: ", "b") in told(app, cluster.git("ls-remote", app.url("b")))
        assert failed_sync(app, "b") == STUCK.format("", "b").removeprefix("remote: cluster: ")
        assert app.refs("a")["refs/heads/main"] == oid
    assert app.refs("b")["refs/heads/main"] == oid


def test_not_writable_while_keeping_a_copy(cluster: OnDisks, app: Project) -> None:
    cluster.db.set_repository(app.name, min_copies=2, when_short=WhenShort.REFUSE)
    with cluster.disks["b"].read_only():
        app.commit("not kept")
        assert "only 1 of 2 copies can be made now" in failed(app, "a") and as_before(app)


# ---------------------------------------------------------------------------------------------- a pack cut short


def cut_pack(app: Project) -> tuple[Path, Path]:
    """Cut the pack short in which a has everything; a copy of what it was, and where it is."""
    app.cluster.ok(f"--git-dir={app.disk('a')}", "repack", "-adq")
    (pack,) = (app.disk("a") / "objects" / "pack").glob("*.pack")
    whole = shutil.copy(pack, app.work.parent / pack.name)
    pack.chmod(0o600)
    os.truncate(pack, pack.stat().st_size // 2)
    return Path(whole), pack


DAMAGED = "remote: cluster: error: device {}'s copy of {} is damaged"


def test_a_pack_cut_short(cluster: OnDisks, app: Project) -> None:
    """Nobody is given garbage; whoever meets it is sent to b; and a's copy is made anew from b's."""
    many_files(app)
    app.pushed("a", "main")
    app.converge()
    cut_pack(app)
    a, number = node(cluster, "a"), cluster.snapshot(app.name).repository.id
    said = told(app, cluster.git("clone", app.url("a"), "nothing"))
    assert DAMAGED.format("a", app.name) in said and f"meanwhile use {app.url('b')}" in said, said
    assert number in [first for first, _ in cluster.db.due_for_verification("a", 3600)], (
        "that is looked at soon"
    )
    app.commit("on top of it")
    app.pushed("b", "main")
    verify.verify(a, number, print)  # or the device itself, which looks soon, was faster
    assert any("damaged pack" in event.what for event in cluster.db.events(number))
    app.clone("a")


def test_the_only_pack_cut_short(cluster: OnDisks, app: Project) -> None:
    """b was down for the newest version. Whoever asks either device is told, and so is who asks for the status."""
    cluster.stop("b")
    oid = many_files(app)
    app.pushed("a", "main")
    whole, pack = cut_pack(app)
    before = (app.disk("b") / "refs/heads/main").read_text()
    cluster.start("b")
    assert DAMAGED.format("a", app.name) in told(app, cluster.git("clone", app.url("a"), "nothing"))
    assert "version 2 of" in told(app, cluster.git("clone", app.url("b"), "nothing"))
    assert (app.disk("b") / "refs/heads/main").read_text() == before
    done = cluster.admin("verify", app.name)
    assert done.code == 1 and "damaged pack" in polite(cluster, done.text), done.text
    assert "nothing was touched" in done.text
    assert "damaged pack" in cluster.admin("status", app.name).text
    shutil.copy(whole, pack)
    assert cluster.admin("verify", app.name).code == 0
    assert app.refs("b")["refs/heads/main"] == oid


# ---------------------------------------------------------------------------------- zeros, as after a power cut

FILES = ("refs/heads/main", "packed-refs", "HEAD", "config", "cluster/position")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def zeros(path: Path) -> None:
    path.write_bytes(b"\0" * path.stat().st_size)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_files_empty_of_zeros_or_cut_after_a_power_cut(cluster: OnDisks, app: Project) -> None:
    """The first read and the first push find a copy that was made anew: from b's objects, or its own where a is alone;
    the refs are the log's."""
    hurt = {}
    for file in FILES:
        for how in (empty, zeros, cut):
            for devices in ("ab", "a") if how is zeros else ("ab",):
                name = f"team/{how.__name__}-{file.replace('/', '-')}-{devices}"
                cluster.create(name, devices=devices)
                cluster.ok("push", "--quiet", cluster.url("a", name), "main", "main:side", cwd=app.work)
                hurt[name] = file, how
    cluster.wait(lambda: all(map(cluster.converged, hurt)), "all are everywhere")
    cluster.stop("a", how=signal.SIGKILL)
    for name, (file, how) in hurt.items():
        if file == "packed-refs":
            cluster.ok(f"--git-dir={cluster.disk('a', name)}", "pack-refs", "--all")
        how(cluster.disk("a", name) / file)
    cluster.start("a")
    oid = app.git("rev-parse", "main")
    for name in hurt:
        expected = dict.fromkeys(("HEAD", "refs/heads/main", "refs/heads/side"), oid)
        assert cluster.refs("a", name) == expected, name
        done = cluster.git("push", cluster.url("a", name), "main:new", cwd=app.work)
        assert done.code == 0 and "remote" not in done.err, f"{name}: {done.text}"
    cluster.wait(lambda: all(map(cluster.converged, hurt)), "all are equal everywhere")


@pytest.mark.parametrize("devices", ["ab", "a"])
def test_a_power_cut_in_the_middle_of_a_write(cluster: OnDisks, app: Project, devices: str) -> None:
    """The ref that was just moved is of zeros: the write is given up, and the ref is what it was."""
    name = f"team/in-the-middle-{devices}"
    cluster.create(name, devices=devices)
    cluster.ok("push", "--quiet", cluster.url("a", name), "main", "main:side", cwd=app.work)
    cluster.converge(name)
    before = cluster.refs("a", name)
    cluster.stop("a")
    cluster.start("a", fault="commit:kill")
    app.commit("in the middle")
    assert cluster.git("push", cluster.url("a", name), "main", cwd=app.work).code != 0
    cluster.stop("a")
    cluster.wait(lambda: lock_holder(cluster, name) is None, "PostgreSQL notices that the writer died")
    zeros(cluster.disk("a", name) / "refs" / "heads" / "main")
    cluster.start("a")
    assert cluster.refs("a", name) == before
    assert cluster.git("push", cluster.url("a", name), "main", cwd=app.work).code == 0
    cluster.converge(name)
