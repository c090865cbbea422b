"""The bare repositories on this device's disk, and git-cluster's own files beside them.

    <root>/repositories/<thousands>/<id>.git     ordinary bare repositories; ours in each: cluster/position and journal
    <root>/locks/<id>.write, <id>.sync, …        flock(2): who may move refs here, who is syncing here, …
    <root>/trash/                                copies of deleted repositories and damaged ones, set aside

Who may move refs of a replica holds its `.write` lock. A push opens the file before it starts receive-pack and
locks it only when its intent is written; receive-pack has inherited the same open file, so the lock outlives a
session that is killed for exactly as long as a Git process lives that could still move refs.

Where things are and the other locks: disk.py; what a replica holds: refs.py, objects.py.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC
from pathlib import Path
from uuid import UUID, uuid4

from cluster import git, journal, marker
from cluster.marker import Marker
from cluster.model import Checksum, LogEntry, Position, Repository
from cluster.objects import Objects
from cluster.refs import Fingerprint, Refs

NEW = ".new-"
"""How the folder of a replica begins that is not whole yet."""

JOURNAL = "journal"
"""The file in cluster/ that journal.py explains."""

COLLECTED = "collected"
"""The file in cluster/ that says when, and at which version, maintenance last went through all objects."""


class Store(Refs, Objects):
    """All replicas of one device. Methods take a repository's id; paths never leave this module but for Git."""

    def __init__(self, root: Path, device: str, cluster_id: UUID) -> None:
        super().__init__(root, device)
        self.cluster_id = str(cluster_id)
        self._markers: dict[int, tuple[tuple[int, int, int, int], Marker]] = {}

    # ------------------------------------------------------------------------------------- whole replicas

    def create(self, repository: Repository, head: str) -> None:
        """An empty replica whose HEAD is the branch `head`. It appears whole or not at all."""
        with self.making(repository, head) as new:
            new.rename(self.path(repository.id))

    @contextmanager
    def making(self, repository: Repository, head: str) -> Iterator[Path]:
        """The folder of an empty replica that is not in its place yet; what was not moved there is removed."""
        parent = self.path(repository.id).parent
        parent.mkdir(parents=True, exist_ok=True)
        new = parent / f"{NEW}{uuid4().hex}"
        try:
            git.run(
                [
                    "init",
                    "--quiet",
                    "--bare",
                    f"--object-format={repository.object_format}",
                    "--template=",
                    str(new),
                ]
            )
            (new / "hooks").mkdir(exist_ok=True)
            (new / "HEAD").write_text(f"ref: {head}\n")
            (new / "cluster").mkdir()
            (new / "cluster" / COLLECTED).write_text('{"version": -1}\n')
            yield new
        finally:
            shutil.rmtree(new, ignore_errors=True)
        marker.flush_directory(parent)

    def set_aside(self, repository_id: int, why: str) -> Path | None:
        """Move a replica's folder to the trash, where nothing looks at it. None: there was none."""
        path = self.path(repository_id)
        if not path.exists():
            return None
        trash = self.root / "trash"
        trash.mkdir(parents=True, exist_ok=True)
        target = trash / f"{repository_id}-{why}-{time.strftime('%Y%m%dT%H%M%S')}-{uuid4().hex[:8]}.git"
        path.rename(target)
        self.forget(repository_id)
        return target

    def copies(self) -> list[int]:
        """The ids of all replicas on this disk, whether the database knows them or not."""
        found = (self.root / "repositories").glob("*/*.git")
        return sorted(int(path.stem) for path in found if path.stem.isdigit())

    def checksum(self, repository_id: int) -> Checksum | None:
        """The checksum of what is on disk now, or None where nothing readable is, or nothing of ours."""
        if not self.exists(repository_id) or self.foreign(repository_id):
            return None
        return self.refs_checksum(repository_id)

    def witness(self, repository_id: int, checksum: Checksum) -> Fingerprint | None:
        """Stands for the refs on disk while they are those of `checksum`: equal witnesses, and nothing moved between
        them. None: they are not."""
        if self.checksum(repository_id) != checksum:
            return None
        with self._mutex:
            known = self._known.get(repository_id)
        return known[0] if known and known[1] == checksum else None

    # ----------------------------------------------------------------------------------------- the marker

    def marker(self, repository_id: int) -> Marker | None:
        """What the replica says of itself, or None where it says nothing legible.

        Read anew only where the file is another one, by the same stat data that stand for the refs (refs.py).
        """
        folder = self.path(repository_id) / "cluster"
        try:
            stat = (folder / marker.FILE).stat()
        except OSError:
            return None
        seen = (stat.st_dev, stat.st_ino, stat.st_ctime_ns, stat.st_size)
        known = self._markers.get(repository_id)
        if known is not None and known[0] == seen:
            return known[1]
        said = marker.read(folder)
        if said is not None:
            self._markers[repository_id] = (seen, said)
        return said

    def mark(self, repository: Repository, position: Position, entries: Iterable[LogEntry] = ()) -> None:
        """Write the marker: whole or not at all, and on the platter before this returns.

        entries: what leads there from the position that was marked before, for the journal; it is written first.
        """
        folder = self.path(repository.id) / "cluster"
        folder.mkdir(exist_ok=True)
        journal.append(folder / JOURNAL, entries)
        self._markers.pop(repository.id, None)
        marker.write(
            folder,
            Marker(
                cluster=self.cluster_id,
                repository=repository.id,
                device=self.device,
                version=position.version,
                checksum=str(position.checksum),
                created=created(repository),
                name=repository.name,
            ),
        )

    def journal(self, repository_id: int) -> list[LogEntry]:
        """The entries of the push log that the replica keeps itself, in the order in which they were written."""
        return journal.read(self.path(repository_id) / "cluster" / JOURNAL)

    def journals(self, repository_id: int) -> bool:
        """Whether there is a journal at all."""
        return (self.path(repository_id) / "cluster" / JOURNAL).exists()

    def foreign(self, repository_id: int) -> bool:
        """Whether the replica's marker names another cluster, repository or device: a wrongly mounted disk."""
        said = self.marker(repository_id)
        return said is not None and (
            (said.cluster, said.repository, said.device) != (self.cluster_id, repository_id, self.device)
        )

    def former(self, repository: Repository) -> Marker | None:
        """The marker of a copy of another repository that had this one's number: its database came back older and gave
        the number anew. None: there is no such copy here."""
        said = self.marker(repository.id)
        other = said is not None and said.created is not None and said.created != created(repository)
        return said if other else None


def created(repository: Repository) -> str:
    """What tells a repository from another that had its number, in a marker."""
    return repository.created_at.astimezone(UTC).isoformat()
