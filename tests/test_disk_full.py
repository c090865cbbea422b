"""A full disk: on the device that receives, on one that syncs, on one that keeps a copy for another.

Two kinds of "full". A file system of a few megabytes is the real thing, and needs the right to mount one. A limit on
the size of the files that a device's Git may write is to be had everywhere; Git meets it at the same places.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster.model import WhenShort
from tests.cluster_fixture import Cluster
from tests.probes import no_git_left, presentable

FULL = "the disk of device {} is full; an administrator has to make room"
SIZE = 24 << 20


class Disk:
    """The disk of one device, to be filled and freed."""

    def __init__(self, cluster: Cluster, name: str, kind: str, folder: Path) -> None:
        self.cluster, self.device, self.kind, self.folder = cluster, cluster.devices[name], kind, folder
        self.flag = folder / f"{name} is full"
        self.mounted = False

    def start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Start the device on this disk."""
        if self.kind == "file system":
            self.device.data_dir.mkdir()
            mount = [
                "mount",
                "-t",
                "tmpfs",
                "-o",
                f"size={SIZE},mode=0700",
                "tmpfs",
                str(self.device.data_dir),
            ]
            if subprocess.run(mount, capture_output=True).returncode != 0:
                pytest.skip("mounting a file system is not allowed here")
            self.mounted = True
            self.cluster.start(self.device.name)
            return
        wrapper = self.folder / "bin" / "git"
        wrapper.parent.mkdir(exist_ok=True)
        limit = f"if [ -e '{self.flag}' ]; then trap '' XFSZ; ulimit -f 8; fi"
        wrapper.write_text(f'#!/bin/sh\n{limit}\nexec {shutil.which("git")} "$@"\n')
        wrapper.chmod(0o755)
        with monkeypatch.context() as patch:
            patch.setenv("PATH", f"{wrapper.parent}:{os.environ['PATH']}")
            self.cluster.start(self.device.name)

    def fill(self) -> None:
        if not self.mounted:
            self.flag.touch()
            return
        chunk = b"\0" * (1 << 20)
        with (self.device.data_dir / "filler").open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(chunk)
                except OSError:
                    if len(chunk) == 1:
                        return
                    chunk = chunk[: len(chunk) // 2]

    def free(self) -> None:
        (self.device.data_dir / "filler" if self.mounted else self.flag).unlink()

    def close(self) -> None:
        self.cluster.stop(self.device.name)
        if self.mounted:
            subprocess.run(["umount", "--lazy", str(self.device.data_dir)], check=True)


@pytest.fixture(params=["file system", "size of files"])
def make_disk(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Callable[[Cluster, str], Disk]]:
    made: list[Disk] = []

    def make(cluster: Cluster, name: str) -> Disk:
        disk = Disk(cluster, name, request.param, tmp_path)
        made.append(disk)
        disk.start(monkeypatch)
        return disk

    yield make
    for disk in made:
        disk.close()


def big_commit(cluster: Cluster, work: Path, megabytes: float, message: str) -> str:
    """A commit that cannot be compressed."""
    (work / message.replace(" ", "-")).write_bytes(os.urandom(int(megabytes * (1 << 20))))
    return cluster.commit(work, message, **{f"about-{message.replace(' ', '-')}": message})


def many_files(cluster: Cluster, work: Path) -> str:
    """A commit of more objects than Git unpacks: it comes as a pack and stays one."""
    for number in range(150):
        (work / f"file{number}").write_bytes(os.urandom(2000))
    return cluster.commit(work, "many files")


def used(disk: Disk) -> int:
    """Bytes in the device's repositories."""
    return sum(
        path.stat().st_size for path in (disk.device.data_dir / "repositories").rglob("*") if path.is_file()
    )


@pytest.mark.parametrize("content", ["a large file", "many files"])
def test_the_receiving_device(
    make_cluster: Callable[..., Cluster], make_disk: Callable[[Cluster, str], Disk], content: str
) -> None:
    cluster = make_cluster("ab", start="b")
    disk = make_disk(cluster, "a")
    cluster.create("team/app")
    work = cluster.work()
    cluster.ok("push", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    before = cluster.refs("a")
    disk.fill()
    occupied = used(disk)
    oid = big_commit(cluster, work, 2, "large") if content == "a large file" else many_files(cluster, work)
    for _ in range(2):
        done = cluster.git("push", cluster.url("a"), "main", cwd=work)
        assert done.code != 0
        assert f"remote: cluster: {FULL.format('a')}" in done.err, done.err
        presentable(done.err, cluster)
    assert "full" in disk.device.log.read_text()
    assert cluster.version() == 1 and cluster.snapshot().intent_owner is None
    assert cluster.refs("a") == before, "it still serves what it has"
    no_git_left(cluster)
    assert used(disk) <= occupied, "a failed push leaves nothing behind that takes room"

    cluster.ok("push", cluster.url("b"), "main", cwd=work)  # the others are not affected
    assert cluster.refs("b")["refs/heads/main"] == oid
    disk.free()
    after = cluster.commit(work, "there is room again")
    cluster.ok("push", cluster.url("a"), "main", cwd=work)
    assert cluster.refs("b")["refs/heads/main"] == after
    cluster.converge()
    assert cluster.admin("status", "--check").code == 0


@pytest.mark.parametrize("make_disk", ["file system"], indirect=True)
def test_a_disk_on_which_not_even_a_ref_fits(
    make_cluster: Callable[..., Cluster], make_disk: Callable[[Cluster, str], Disk]
) -> None:
    """What brings no objects fails where the ref is written, or earlier: no version, no intent."""
    cluster = make_cluster("ab", start="b")
    disk = make_disk(cluster, "a")
    cluster.create("team/app")
    work = cluster.work()
    cluster.ok("push", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    disk.fill()
    for name in ("x", "some/new/folder"):
        done = cluster.git("push", cluster.url("a"), f"main:refs/heads/{name}", cwd=work)
        assert done.code != 0, done.text
        presentable(done.err, cluster)
        assert FULL.format("a") in done.err, done.err
    assert cluster.version() == 1 and cluster.snapshot().intent_owner is None
    disk.free()
    cluster.ok("push", cluster.url("a"), "main:refs/heads/x", cwd=work)
    cluster.converge()


def test_a_device_that_syncs(
    make_cluster: Callable[..., Cluster], make_disk: Callable[[Cluster, str], Disk]
) -> None:
    cluster = make_cluster("ab", start="a")
    disk = make_disk(cluster, "b")
    cluster.create("team/app")
    work = cluster.work()
    cluster.ok("push", cluster.url("a"), "main", cwd=work)
    cluster.converge()
    disk.fill()
    occupied = used(disk)
    oid = big_commit(cluster, work, 3, "large")
    cluster.ok("push", cluster.url("a"), "main", cwd=work)

    def row() -> dict[str, Any]:
        (repository,) = cluster.admin_json("status", "team/app")["repositories"]
        (found,) = [each for each in repository["replicas"] if each["device"] == "b"]
        return found if found["attempts"] else {}

    replica = cluster.wait(row, "b has tried to sync")
    assert replica["state"] == "behind"
    assert re.search(
        "No space left on device|File too large|disk of device b is full", replica["last_error"]
    ), replica
    done = cluster.git("ls-remote", cluster.url("b"))
    assert done.code != 0 and "remote: cluster: error: " in done.err
    presentable(done.err, cluster)
    assert used(disk) <= occupied + (64 << 10), "a failed sync leaves nothing behind that takes room"
    assert cluster.refs("a")["refs/heads/main"] == oid

    disk.free()
    cluster.converge()  # by itself
    assert cluster.refs("b")["refs/heads/main"] == oid
    assert cluster.admin("status", "--check").code == 0


def test_a_peer_that_is_to_keep_a_copy(
    make_cluster: Callable[..., Cluster], make_disk: Callable[[Cluster, str], Disk]
) -> None:
    """Another peer keeps it; where there is none, the repository's policy decides (G9)."""
    cluster = make_cluster("abc", start="ac")
    disk = make_disk(cluster, "b")
    cluster.create("team/app", min_copies=2)
    cluster.create("team/two", devices="ab", min_copies=2)
    work = cluster.work()
    for repository in ("team/app", "team/two"):
        cluster.ok("push", cluster.url("a", repository), "main", cwd=work)
        cluster.converge(repository)
    disk.fill()
    oid = big_commit(cluster, work, 2, "large")
    done = cluster.git("push", cluster.url("a"), "main", cwd=work)
    assert done.code == 0, done.text
    assert "warning" not in done.err
    cluster.wait(lambda: "c" in [each.device.name for each in cluster.snapshot().leaders], "c has it")

    cluster.db.set_repository("team/two", when_short=WhenShort.REFUSE)
    done = cluster.git("push", cluster.url("a", "team/two"), "main", cwd=work)
    assert done.code != 0
    assert "only 1 of 2 copies can be made now" in done.err
    assert cluster.version("team/two") == 1 and cluster.snapshot("team/two").intent_owner is None

    cluster.db.set_repository("team/two", when_short=WhenShort.WARN)
    done = cluster.git("push", cluster.url("a", "team/two"), "main", cwd=work)
    assert done.code == 0, done.text
    assert "remote: cluster: warning: only 1 of 2 copies can be made now" in done.err
    assert cluster.version("team/two") == 2

    disk.free()
    for repository in ("team/app", "team/two"):
        cluster.converge(repository)
        assert cluster.refs("b", repository)["refs/heads/main"] == oid
