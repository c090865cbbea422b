"""The rows of the design: figures that were promised, each against plain Git over plain OpenSSH."""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tests.bench.cold import LITTLE, evict
from tests.bench.crowd import large_commit
from tests.bench.harness import Bench, Run
from tests.bench.table import Row
from tests.openssh_fixture import OpenSSHCluster


def ls_remote(bench: Bench) -> None:
    ours, theirs, _ = bench.pair("ls", min_copies=1)
    bench.compare(
        "ls-remote, in sync",
        0.30,
        lambda: bench.cluster.ok("ls-remote", ours),
        lambda: bench.cluster.ok("ls-remote", theirs),
    )


def many_ls_remotes(bench: Bench) -> None:
    ours, theirs, _ = bench.pair("many", min_copies=1)

    def all_of(url: str) -> Run:
        def run() -> None:
            with ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda _: bench.cluster.ok("ls-remote", url), range(64)))

        return run

    bench.compare("64 ls-remote, 8 at once", 0.25, all_of(ours), all_of(theirs))


def ls_remote_openssh(bench: Bench) -> None:
    """The same sshd on both sides; ours with the hooks, the daemon up."""
    _, theirs, work = bench.pair("hooked", min_copies=1)
    behind = OpenSSHCluster(bench.cluster.directory / "openssh", bench.database("openssh"), {})
    try:
        behind.set_up(["a"])
        behind.start("a")
        behind.create("hooked")
        ours = behind.url("a", "hooked")
        behind.ok("push", "-q", ours, "HEAD:refs/heads/main", cwd=work)
        bench.compare(
            "ls-remote, OpenSSH with the hooks",
            1.10,
            lambda: behind.ok("ls-remote", ours),
            lambda: bench.cluster.ok("ls-remote", theirs),
            servers=(bench.servers_of(behind), bench.theirs),
        )
    finally:
        behind.close()


def push(bench: Bench) -> None:
    for copies, target in ((1, 0.50), (2, 0.80)):
        ours, theirs, work = bench.pair(f"push{copies}", min_copies=copies)

        def push(url: str, work: Path = work) -> Run:
            def run() -> None:
                bench.cluster.ok("push", "-q", url, "HEAD:refs/heads/main", cwd=work)

            return run

        bench.compare(
            f"push of one commit, min_copies {copies}",
            target,
            push(ours),
            push(theirs),
            before=lambda work=work: bench.cluster.commit(work, "bench", note=str(time.monotonic_ns())),  # type: ignore[misc]
        )


def clone(bench: Bench) -> None:
    ours, theirs, work = bench.pair("clone", min_copies=1)
    large_commit(bench.cluster, work, 200)
    for url in (ours, theirs):
        bench.cluster.ok("push", "-q", url, "HEAD:refs/heads/main", cwd=work, timeout=300)
    bench.compare("clone of 200 MB", 1.05, cloning(bench, ours), cloning(bench, theirs))
    kept: dict[str, float] = {"ours": 0.0, "theirs": 0.0}

    def cold(side: str, folder: Path, clone: Run) -> Run:
        def run() -> object:
            kept[side] = max(kept[side], evict(folder))
            return clone()

        return run

    def notes(row: Row) -> dict[str, str]:
        said = " against ".join(f"{share * 100:.0f} %" for share in kept.values())
        if max(kept.values()) > LITTLE:
            said += "; this machine does not let go of it, so that the row is NOT cold"
        return {"still in the page cache": said}

    bench.compare(
        "clone of 200 MB",
        1.05,
        cold("ours", bench.cluster.disk("a", "clone"), cloning(bench, ours)),
        cold("theirs", bench.plain.path("clone"), cloning(bench, theirs)),
        caches="cold",
        notes=notes,
    )


def cloning(bench: Bench, url: str) -> Run:
    """A run that makes a new bare clone; it takes the time of the clone alone, and leaves nothing."""
    target = bench.cluster.directory / "cloned"

    def run() -> float:
        try:
            begun = time.perf_counter()
            bench.cluster.ok("clone", "-q", "--bare", url, str(target), timeout=300)
            return time.perf_counter() - begun
        finally:
            shutil.rmtree(target, ignore_errors=True)

    return run


def clone_after_many_pushes(bench: Bench) -> None:
    """Both sides are ours: what came in 1,000 pushes of 4 clients, and the same content that came in one."""
    many, _, work = bench.pair("pieces", min_copies=2)
    for number in range(200):
        (work / f"file-{number}").write_bytes(os.urandom(2000))
    bench.cluster.commit(work, "something to clone", note="base")
    bench.cluster.ok("push", "-q", many, "HEAD:refs/heads/main", cwd=work)

    def push(client: int) -> None:
        mine = bench.cluster.directory / f"pieces-{client}"
        bench.cluster.ok("clone", "-q", many, str(mine))
        for number in range(250):
            bench.cluster.commit(mine, f"{client} {number}", note=f"{client} {number}")
            bench.cluster.ok("push", "-q", many, f"HEAD:refs/heads/client-{client}", cwd=mine)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(push, range(4)))
    bench.cluster.create("whole", min_copies=2)
    mirror = bench.cluster.directory / "pieces.git"
    bench.cluster.ok("clone", "-q", "--mirror", many, str(mirror))
    bench.cluster.ok("push", "-q", "--mirror", bench.cluster.url("a", "whole"), cwd=mirror)
    bench.cluster.converge("whole")

    for device, what in (("a", "where they came"), ("b", "on a peer")):
        bench.compare(
            f"clone after 1,000 pushes/after 1, {what}",
            1.10,
            cloning(bench, bench.cluster.url(device, "pieces")),
            cloning(bench, bench.cluster.url(device, "whole")),
            servers=(bench.ours, bench.ours),
        )


def paused_pusher(bench: Bench) -> None:
    """8 pushers to 8 branches; the other side is the same without anybody paused half-way."""
    ours, _, work = bench.pair("paused", min_copies=1)
    (work / "blob").write_bytes(os.urandom(8 << 20))
    bench.cluster.commit(work, "something to upload", note="pause")

    def push_all() -> float:
        bench.cluster.commit(work, "next", note=str(time.monotonic_ns()))
        begun = time.perf_counter()
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(
                    lambda n: bench.cluster.ok("push", "-qf", ours, f"HEAD:refs/heads/b{n}", cwd=work),
                    range(8),
                )
            )
        return time.perf_counter() - begun

    def with_a_paused_one() -> float:
        with _paused(bench, ours, work):
            return push_all()

    bench.compare(
        "8 pushers, one more paused half-way",
        1.10,
        with_a_paused_one,
        push_all,
        servers=(bench.ours, bench.ours),
    )


@contextmanager
def _paused(bench: Bench, url: str, work: Path) -> Iterator[None]:
    client = bench.cluster.spawn("push", "-q", url, "HEAD:refs/heads/never", cwd=work)
    time.sleep(0.15)  # somewhere in the middle; where does not matter
    os.killpg(client.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.killpg(client.pid, signal.SIGKILL)
        client.wait()
        if client.stdout:
            client.stdout.close()


ROWS = (
    ls_remote,
    ls_remote_openssh,
    many_ls_remotes,
    push,
    clone,
    clone_after_many_pushes,
    paused_pusher,
)
