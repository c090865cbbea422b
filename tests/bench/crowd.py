"""A large and a small repository on one device and on one plain server, and many clients of both."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread

from tests.bench.harness import Bench, Servers
from tests.bench.trees import memory
from tests.cluster_fixture import Cluster

LARGE = 4
"""Clones of the large repository at the same time."""

FETCHES = 60
"""Clients of each side that lack one commit of the small repository."""

MEBIBYTES = 128
MiB = 2**20


@dataclass(frozen=True)
class Side:
    """One server with both repositories, by their URLs; and a folder for the clones of its clients."""

    name: str
    large: str
    small: str
    servers: Servers
    folder: Path


def large_commit(cluster: Cluster, work: Path, mebibytes: int) -> None:
    """A commit with so much that cannot be compressed, which is not tried either.

    More than a hundred objects: fewer would be stored one by one by the servers, and packed anew for each clone.
    """
    for key, value in (("core.compression", "0"), ("pack.window", "0")):
        cluster.ok("config", key, value, cwd=work)
    for number in range(2 * mebibytes):
        (work / f"data-{number}").write_bytes(os.urandom(MiB // 2))
    cluster.commit(work, "large", note="large")


class Crowd:
    def __init__(self, bench: Bench, cluster: Cluster) -> None:
        self.cluster = cluster
        *large, work = bench.pair("large", min_copies=1, cluster=cluster)
        large_commit(cluster, work, MEBIBYTES)
        for url in large:
            cluster.ok("push", "-q", url, "HEAD:refs/heads/main", cwd=work, timeout=300)
        *small, work = bench.pair("small", min_copies=1, cluster=cluster)
        self.old = cluster.directory / "old.git"
        cluster.ok("clone", "-q", "--bare", "--template=", small[0], str(self.old))
        cluster.commit(work, "new", note="new")
        for url in small:
            cluster.ok("push", "-q", url, "HEAD:refs/heads/main", cwd=work)
        # What clients keep is not what is measured, and hundreds of small files take some disks long to remove.
        memory = Path("/dev/shm")
        parent = memory if os.access(memory, os.W_OK) else cluster.directory
        self._fetching = Path(tempfile.mkdtemp(prefix="git-cluster-bench-", dir=parent))
        servers = bench.servers_of(cluster), bench.theirs
        self.ours, self.theirs = (
            Side(name, large[n], small[n], servers[n], cluster.directory / name)
            for n, name in enumerate(("ours", "theirs"))
        )

    def prepare(self, fetches: int = FETCHES) -> None:
        """A new folder for each client that fetches, with what was there before the last push."""
        shutil.rmtree(self._fetching)
        for side in (self.ours, self.theirs):
            shutil.rmtree(side.folder, ignore_errors=True)
            for number in range(fetches):
                shutil.copytree(self.old, self._fetching / side.name / str(number))

    def close(self) -> None:
        shutil.rmtree(self._fetching, ignore_errors=True)

    def fetch(self, side: Side, number: int) -> None:
        """One commit, by a client that has not had it yet."""
        client = self._fetching / side.name / str(number)
        self.cluster.ok("fetch", "-q", side.small, "main:main", cwd=client, timeout=300)

    def list(self, side: Side) -> None:
        self.cluster.ok("ls-remote", side.small, timeout=300)

    def clone(self, side: Side, number: int) -> None:
        target = str(side.folder / f"clone-{number}")
        self.cluster.ok("clone", "-q", "--bare", "--template=", side.large, target, timeout=300)

    @contextmanager
    def cloning(self, side: Side) -> Iterator[None]:
        """LARGE clones are under way inside; each that ends is followed by another."""
        stop, started = Event(), [Event() for _ in range(LARGE)]
        now: dict[int, subprocess.Popen[str]] = {}

        def clones(number: int) -> None:
            target = side.folder / f"cloning-{number}"
            while not stop.is_set():
                shutil.rmtree(target, ignore_errors=True)
                now[number] = process = self.cluster.spawn(
                    "clone", "-q", "--bare", "--template=", side.large, str(target)
                )
                while process.poll() is None and not started[number].is_set():
                    if any(path.stat().st_size > MiB for path in target.glob("objects/pack/tmp_pack_*")):
                        started[number].set()
                    time.sleep(0.01)
                said, _ = process.communicate()
                assert stop.is_set() or process.returncode == 0, said

        with ThreadPoolExecutor(LARGE) as pool:
            running = [pool.submit(clones, number) for number in range(LARGE)]
            try:
                for each in started:
                    assert each.wait(60), "a clone has not begun"
                yield
            finally:
                stop.set()
                while not all(one.done() for one in running):  # one may just have started another
                    for process in list(now.values()):
                        if process.poll() is None:
                            os.killpg(process.pid, signal.SIGKILL)
                    time.sleep(0.01)
        for one in running:
            one.result()


@contextmanager
def held(cluster: Cluster, side: Side, count: int) -> Iterator[None]:
    """So many clients inside that have been shown the refs, and have not said yet what they want."""
    address, _, path = side.small.removeprefix("ssh://").partition("/")
    host, _, port = address.partition(":")
    path = path if side.name == "ours" else f"/{path}"
    command = ["ssh", "-F", str(cluster.ssh_config), "-p", port, host, f"git-upload-pack '{path}'"]
    clients: list[subprocess.Popen[bytes]] = []

    def client(_: int) -> None:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        clients.append(process)
        assert process.stdout is not None
        assert len(process.stdout.read(100)) == 100, "not shown the refs"

    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(client, range(count)))
        yield
    finally:
        for process in clients:
            process.kill()
            process.communicate()


@contextmanager
def watching(side: Side, peaks: list[int]) -> Iterator[None]:
    """Adds the most memory that the server's processes had inside, in bytes. Looking takes time of its own."""
    done, found = Event(), [0]

    def look() -> None:
        while not done.wait(0.3):
            found.append(memory(side.servers.server()))

    thread = Thread(target=look, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        peaks.append(max(found))
