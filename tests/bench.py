"""`make bench`: how fast it is, as ratios against stock Git over stock OpenSSH on the same machine, in one run.

    make bench                       every row
    make bench ARGS="--only clone"   rows whose name contains a word
    make bench ARGS="--rounds 5 --json out.json"

Both sides of a row do the same work with the same client on the same content, in turn, A B A B …, after one round
that does not count. Caches are warm. The ratio is taken pair by pair. A run that fails counts as a failure.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from cluster import embedded
from cluster.loopback import free_port
from tests.cluster_fixture import Cluster

Run = Callable[[], object]


@dataclass(frozen=True)
class Row:
    """One comparison: ratio ours/theirs, seconds of each side, medians over `rounds`."""

    name: str
    target: float
    least: float
    median: float
    most: float
    ours: float
    theirs: float
    rounds: int
    failures: int


class PlainGit:
    """A stock sshd with an authorized_keys file, and stock Git behind it."""

    def __init__(self, directory: Path, cluster: Cluster) -> None:
        self.directory, self.port = directory, free_port()
        directory.mkdir()
        key = directory / "host"
        subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
        keys = directory / "authorized_keys"
        keys.write_text(Path(f"{cluster.identity}.pub").read_text())
        keys.chmod(0o600)
        config = directory / "sshd_config"
        config.write_text(
            f"ListenAddress 127.0.0.1\nPort {self.port}\nHostKey {key}\nAuthorizedKeysFile {keys}\nUsePAM no\n"
            f"StrictModes no\nPasswordAuthentication no\nAcceptEnv GIT_PROTOCOL\nPidFile none\nPermitRootLogin yes\n"
            f"MaxStartups 100\n"
        )
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(exist_ok=True)
        program = shutil.which("sshd", path=f"{os.environ['PATH']}:/usr/sbin")
        assert program, "sshd is needed for the other side of each ratio"
        self.process = subprocess.Popen([program, "-D", "-e", "-f", str(config)], stderr=subprocess.DEVNULL)
        host = (directory / "host.pub").read_text().split()
        with (cluster.directory / "known_hosts").open("a") as known:
            known.write(f"[127.0.0.1]:{self.port} {host[0]} {host[1]}\n")

    def url(self, name: str) -> str:
        return f"ssh://{getpass.getuser()}@127.0.0.1:{self.port}{self.directory}/{name}.git"

    def create(self, name: str) -> str:
        path = self.directory / f"{name}.git"
        subprocess.run(["git", "init", "-q", "--bare", "-b", "main", str(path)], check=True)
        return self.url(name)

    def stop(self) -> None:
        self.process.terminate()
        self.process.wait()


class Bench:
    def __init__(self, cluster: Cluster, plain: PlainGit, rounds: int) -> None:
        self.cluster, self.plain, self.rounds = cluster, plain, rounds
        self.rows: list[Row] = []

    def compare(
        self,
        name: str,
        target: float,
        ours: Run,
        theirs: Run,
        *,
        rounds: int | None = None,
        before: Run = lambda: None,
    ) -> None:
        """Run both sides in turn and note the ratio. `before` prepares each pair and is not timed."""
        count = rounds or self.rounds
        mine, other, failures = [], [], 0
        for number in range(count + 1):
            before()
            a, bad_a = _timed(ours)
            b, bad_b = _timed(theirs)
            failures += bad_a + bad_b
            if number:
                mine.append(a)
                other.append(b)
        ratios = [a / b for a, b in zip(mine, other, strict=True)]
        row = Row(
            name,
            target,
            min(ratios),
            statistics.median(ratios),
            max(ratios),
            statistics.median(mine),
            statistics.median(other),
            count,
            failures,
        )
        self.rows.append(row)
        verdict = "met" if row.median <= target else "NOT met"
        print(
            f"{name:44} {row.least:6.2f} {row.median:6.2f} {row.most:6.2f}   ≤ {target:.2f} {verdict:8}"
            f" {row.ours * 1000:8.1f} ms against {row.theirs * 1000:8.1f} ms"
            + (f"   {failures} FAILED" if failures else ""),
            flush=True,
        )

    # ------------------------------------------------------------------------------------------- rows

    def ls_remote(self) -> None:
        ours, theirs, _ = self._pair("ls", min_copies=1)
        self.compare(
            "ls-remote, in sync",
            0.30,
            lambda: self.cluster.ok("ls-remote", ours),
            lambda: self.cluster.ok("ls-remote", theirs),
        )

    def many_ls_remotes(self) -> None:
        ours, theirs, _ = self._pair("many", min_copies=1)

        def all_of(url: str) -> Run:
            def run() -> None:
                with ThreadPoolExecutor(8) as pool:
                    list(pool.map(lambda _: self.cluster.ok("ls-remote", url), range(64)))

            return run

        self.compare(
            "64 ls-remote, 8 at once", 0.25, all_of(ours), all_of(theirs), rounds=min(5, self.rounds)
        )

    def push(self) -> None:
        for copies, target in ((1, 0.50), (2, 0.80)):
            ours, theirs, work = self._pair(f"push{copies}", min_copies=copies)

            def push(url: str, work: Path = work) -> Run:
                def run() -> None:
                    self.cluster.ok("push", "-q", url, "HEAD:refs/heads/main", cwd=work)

                return run

            self.compare(
                f"push of one commit, min_copies {copies}",
                target,
                push(ours),
                push(theirs),
                before=lambda work=work: self.cluster.commit(work, "bench", note=str(time.monotonic_ns())),  # type: ignore[misc]
            )

    def clone(self) -> None:
        ours, theirs, work = self._pair("clone", min_copies=1)
        with (work / "data").open("wb") as file:
            for _ in range(200):
                file.write(os.urandom(1 << 20))
        self.cluster.commit(work, "200 MB", note="big")
        for url in (ours, theirs):
            self.cluster.ok("push", "-q", url, "HEAD:refs/heads/main", cwd=work, timeout=300)
        target = self.cluster.directory / "cloned"

        def clone(url: str) -> Run:
            def run() -> None:
                shutil.rmtree(target, ignore_errors=True)
                self.cluster.ok("clone", "-q", "--bare", url, str(target), timeout=300)

            return run

        self.compare("clone of 200 MB", 1.05, clone(ours), clone(theirs), rounds=min(7, self.rounds))
        shutil.rmtree(target, ignore_errors=True)

    def clone_after_many_pushes(self) -> None:
        """Both sides are ours: what came in 1,000 pushes of 4 clients, and the same content that came in one."""
        many, _, work = self._pair("pieces", min_copies=2)
        for number in range(200):
            (work / f"file-{number}").write_bytes(os.urandom(2000))
        self.cluster.commit(work, "something to clone", note="base")
        self.cluster.ok("push", "-q", many, "HEAD:refs/heads/main", cwd=work)

        def push(client: int) -> None:
            mine = self.cluster.directory / f"pieces-{client}"
            self.cluster.ok("clone", "-q", many, str(mine))
            for number in range(250):
                self.cluster.commit(mine, f"{client} {number}", note=f"{client} {number}")
                self.cluster.ok("push", "-q", many, f"HEAD:refs/heads/client-{client}", cwd=mine)

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(push, range(4)))
        self.cluster.create("whole", min_copies=2)
        mirror, target = self.cluster.directory / "pieces.git", self.cluster.directory / "cloned"
        self.cluster.ok("clone", "-q", "--mirror", many, str(mirror))
        self.cluster.ok("push", "-q", "--mirror", self.cluster.url("a", "whole"), cwd=mirror)
        self.cluster.converge("whole")

        def clone(url: str) -> Run:
            def run() -> None:
                shutil.rmtree(target, ignore_errors=True)
                self.cluster.ok("clone", "-q", "--bare", url, str(target))

            return run

        for device, what in (("a", "where they came"), ("b", "on a peer")):
            self.compare(
                f"clone after 1,000 pushes/after 1, {what}",
                1.10,
                clone(self.cluster.url(device, "pieces")),
                clone(self.cluster.url(device, "whole")),
            )
        shutil.rmtree(target, ignore_errors=True)

    def paused_pusher(self) -> None:
        """8 pushers to 8 branches; the other side is the same without anybody paused half-way."""
        ours, _, work = self._pair("paused", min_copies=1)
        (work / "blob").write_bytes(os.urandom(8 << 20))
        self.cluster.commit(work, "something to upload", note="pause")

        def push_all() -> None:
            self.cluster.commit(work, "next", note=str(time.monotonic_ns()))
            with ThreadPoolExecutor(8) as pool:
                list(
                    pool.map(
                        lambda n: self.cluster.ok("push", "-qf", ours, f"HEAD:refs/heads/b{n}", cwd=work),
                        range(8),
                    )
                )

        def with_a_paused_one() -> float:
            with self._paused(ours, work):
                begun = time.perf_counter()
                push_all()
                return time.perf_counter() - begun

        self.compare(
            "8 pushers, one more paused half-way",
            1.10,
            with_a_paused_one,
            push_all,
            rounds=min(7, self.rounds),
        )

    @contextmanager
    def _paused(self, url: str, work: Path) -> Iterator[None]:
        client = self.cluster.spawn("push", "-q", url, "HEAD:refs/heads/never", cwd=work)
        time.sleep(0.15)  # somewhere in the middle; where does not matter
        os.killpg(client.pid, signal.SIGSTOP)
        try:
            yield
        finally:
            os.killpg(client.pid, signal.SIGKILL)
            client.wait()
            if client.stdout:
                client.stdout.close()

    # ------------------------------------------------------------------------------------------- helpers

    def _pair(self, name: str, *, min_copies: int) -> tuple[str, str, Path]:
        """The same content on both sides: our URL, the other URL, a work tree to push from."""
        self.cluster.create(name, min_copies=min_copies)
        ours, theirs = self.cluster.url("a", name), self.plain.create(name)
        work = self.cluster.work(f"work-{name}")
        for number in range(3):
            self.cluster.commit(work, f"commit {number}")
        for url in (ours, theirs):
            self.cluster.ok("push", "-q", url, "HEAD:refs/heads/main", cwd=work)
        self.cluster.converge(name)
        return ours, theirs, work


def _timed(run: Run) -> tuple[float, int]:
    """Seconds, and whether it failed. A run may return the seconds that count, where its own set-up does not."""
    begun = time.perf_counter()
    try:
        counted = run()
    except (AssertionError, subprocess.SubprocessError):
        return time.perf_counter() - begun, 1
    return counted if isinstance(counted, float) else time.perf_counter() - begun, 0


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument(
        "--only", default=os.environ.get("ONLY", ""), help="rows whose name contains this word"
    )
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the rows to this file, too")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="git-cluster-bench-"))
    database = embedded.start(directory / "postgres")
    cluster = Cluster(directory / "cluster", database, {})
    plain = None
    try:
        cluster.set_up(["a", "b"])
        for name in "ab":
            cluster.start(name)
        plain = PlainGit(directory / "plain", cluster)
        bench = Bench(cluster, plain, options.rounds)
        print(
            f"{platform.machine()}, {os.cpu_count()} cores; ratios ours/plain: minimum, median, maximum",
            flush=True,
        )
        for row in (
            bench.ls_remote,
            bench.many_ls_remotes,
            bench.push,
            bench.clone,
            bench.clone_after_many_pushes,
            bench.paused_pusher,
        ):
            if options.only in row.__name__:
                row()
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in bench.rows], indent=1) + "\n")
    finally:
        if plain is not None:
            plain.stop()
        cluster.close()
        embedded.stop(directory / "postgres")
        shutil.rmtree(directory, ignore_errors=True)


if __name__ == "__main__":
    main()
