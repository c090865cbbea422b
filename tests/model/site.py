"""A cluster at a distance, and people who push to it and read from it."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.model.distance import Distances
from tests.network import NetworkCluster, cluster_on

DEVICES = "abc"


class Branch:
    """A work tree with many commits ready, pushed one at a time to a branch of its own."""

    def __init__(self, site: Site, work: Path, name: str, commits: Sequence[str]) -> None:
        self._site, self._work, self._name = site, work, name
        self._left = list(commits)

    def push(self, device: str, repository: str) -> float:
        """Push the next commit; seconds until `git push` ended, which must be well."""
        target = f"{self._left.pop(0)}:refs/heads/{self._name}"
        begun = time.perf_counter()
        self._site.cluster.ok(
            "push", "-q", self._site.cluster.url(device, repository), target, cwd=self._work, timeout=120
        )
        return time.perf_counter() - begun


class Site:
    """Three devices, and their network in our hands."""

    def __init__(self, cluster: NetworkCluster, distances: Distances, directory: Path) -> None:
        self.cluster, self.distances, self.directory = cluster, distances, directory
        self._made = 0

    def repository(self, *, min_copies: int = 1, devices: str = DEVICES) -> str:
        """A new repository, the same on all of its devices."""
        self._made += 1
        name = f"team/r{self._made}"
        self.cluster.create(name, min_copies=min_copies, devices=devices)
        self.cluster.wait(lambda: self.cluster.converged(name), "the new repository is everywhere")
        return name

    def branch(self, commits: int = 400) -> Branch:
        """A branch nobody else pushes to. Its commits are made by fast-import: making them is not what is measured."""
        self._made += 1
        work = self.directory / f"work-{self._made}"
        self.cluster.ok("init", "--quiet", "-b", "main", str(work))
        stream = ""
        for number in range(commits):
            text = f"{self._made} {number}\n" * 20
            stream += (
                f"commit refs/heads/main\nmark :{number + 1}\ncommitter A <a@example.com> {1700000000 + number} +0000\n"
                f"data 2\nx\nM 100644 inline file-{number % 40}\ndata {len(text)}\n{text}\n"
            )
        marks = work / "marks"
        subprocess.run(
            ["git", "fast-import", "--quiet", f"--export-marks={marks}"],
            input=stream.encode(), cwd=work, check=True, env=self.cluster.git_environment(),
        )  # fmt: skip
        found = dict(line.split() for line in marks.read_text().splitlines())
        return Branch(self, work, f"b{self._made}", [found[f":{n + 1}"] for n in range(commits)])

    def read(self, device: str, repository: str) -> float:
        """Seconds of `git ls-remote`."""
        begun = time.perf_counter()
        self.cluster.ok("ls-remote", self.cluster.url(device, repository), timeout=120)
        return time.perf_counter() - begun

    def settle(self, repository: str) -> None:
        """Wait until every replica claims the newest version."""

        def equal() -> bool:
            snapshot = self.cluster.snapshot(repository)
            return all(r.version == snapshot.repository.version and not r.intent for r in snapshot.replicas)

        self.cluster.wait(equal, "the replicas are equal")

    def synced_after(self, repository: str) -> Mapping[str, float]:
        """By device: seconds from the newest commit, as the database's clock has it, until its replica held it."""
        self.settle(repository)
        number = self.cluster.snapshot(repository).repository.id
        rows = self.cluster.db._read(
            """select d.name, extract(epoch from r.synced_at - p.at)::float8 as seconds
                 from replica r join device d on d.id = r.device_id join repository o on o.id = r.repository_id
                 join push p on p.repository_id = o.id and p.version = o.version
                where o.id = %(id)s and d.name <> p.device""",
            {"id": number},
        )
        return {row["name"]: row["seconds"] for row in rows}


@contextmanager
def site() -> Iterator[Site]:
    """Gone afterwards, with everything it made."""
    directory = Path(tempfile.mkdtemp(prefix="git-cluster-model-"))
    distances = None
    try:
        distances = Distances(directory, DEVICES)
        with cluster_on(distances, directory / "cluster", {}) as cluster:
            yield Site(cluster, distances, directory)
    finally:
        if distances is not None:
            distances.close()
        shutil.rmtree(directory, ignore_errors=True)
