"""The bare repositories on this device's disk, and git-cluster's own files beside them.

    <root>/repositories/<thousands>/<id>.git     ordinary bare repositories; ours in each: cluster/position
    <root>/locks/<id>.write, <id>.sync           flock(2): who may move refs here, who is syncing here
    <root>/trash/                                copies of deleted repositories and damaged ones, set aside

Who may move refs of a replica holds its `.write` lock. A push opens the file before it starts receive-pack and
locks it only when its intent is written; receive-pack has inherited the same open file, so the lock outlives a
session that is killed for exactly as long as a Git process lives that could still move refs.

The checksum of the refs on disk is known without reading them as long as no file under refs/ was touched: stat
data (inode, change time, size) of the ref files, of their folders and of packed-refs stand for their content.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from uuid import UUID, uuid4

from cluster import git
from cluster.errors import GitFailed, ReplicaUnfit
from cluster.model import HEAD, Checksum, Position, RefUpdate, Repository
from cluster.versions import checksum_of, head_of

_log = logging.getLogger(__name__)

STAGED = "refs/cluster/staged/"
LOST = "refs/cluster/lost/"
OURS = "refs/cluster/"

STALE_LOCK = 5.0
"""Seconds after which a *.lock file among the refs is stale, if nobody holds the write lock."""

MOST_LOOSE = 1000
"""Ref files of a replica before they are packed: a look at that many costs some 5 ms."""

MOST_PACKS = 50
MOST_LOOSE_OBJECTS = 6700
"""As gc.autoPackLimit and gc.auto: each push leaves a pack on its keeper, and loose objects where it was pushed to."""

Fingerprint = tuple[tuple[str, int, int, int], ...]


@dataclass(frozen=True, slots=True)
class Marker:
    """What the file cluster/position in a replica says: whose copy this is, and how new."""

    cluster: str
    repository: int
    device: str
    version: int
    checksum: str


class FileLock:
    """An flock(2) on a file of its own. One object, one open file: whoever inherits `fd` shares the lock."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)

    def try_acquire(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self, timeout: float) -> bool:
        """Wait for the lock for `timeout` seconds at most."""
        deadline = time.monotonic() + timeout
        pause = 0.002
        while not self.try_acquire():
            if time.monotonic() > deadline:
                return False
            time.sleep(pause)
            pause = min(pause * 1.5, 0.1)
        return True

    def release(self) -> None:
        """Give it back for everybody who shares the open file."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Forget it here. A process that inherited the open file keeps the lock."""
        os.close(self.fd)


class Store:
    """All replicas of one device. Methods take a repository's id; paths never leave this module but for Git."""

    def __init__(self, root: Path, device: str, cluster_id: UUID) -> None:
        self.root = root
        self.device = device
        self.cluster_id = str(cluster_id)
        self._known: dict[int, tuple[Fingerprint, Checksum]] = {}
        self._inherited: dict[int, int] = {}
        self._suspects: set[int] = set()
        self._mutex = Lock()

    # ------------------------------------------------------------------------------------------ where

    def path(self, repository_id: int) -> Path:
        return self.root / "repositories" / f"{repository_id // 1000:03d}" / f"{repository_id}.git"

    def exists(self, repository_id: int) -> bool:
        """Whether there is a repository to speak of; what it holds is another question."""
        path = self.path(repository_id)
        return all((path / part).exists() for part in ("HEAD", "objects", "refs", "config"))

    def write_lock(self, repository_id: int) -> FileLock:
        """The lock (not yet taken) that whoever moves refs of this replica holds."""
        return FileLock(self.root / "locks" / f"{repository_id}.write")

    @contextmanager
    def holding(self, repository_id: int, kind: str, timeout: float) -> Iterator[bool]:
        """Hold the `kind` lock ("write" or "sync") inside; yields whether it was got in time."""
        lock = FileLock(self.root / "locks" / f"{repository_id}.{kind}")
        try:
            got = lock.acquire(timeout)
            if got and kind == "write":
                self._inherited[repository_id] = lock.fd
            yield got
            if got:
                lock.release()
        finally:
            if self._inherited.get(repository_id) == lock.fd:
                del self._inherited[repository_id]
            lock.close()

    def run_directory(self) -> Path:
        path = self.root / "run"
        path.mkdir(parents=True, exist_ok=True)
        return path

    # ------------------------------------------------------------------------------------- whole replicas

    def create(self, repository: Repository, head: str) -> None:
        """An empty replica whose HEAD is the branch `head`. It appears whole or not at all."""
        path = self.path(repository.id)
        path.parent.mkdir(parents=True, exist_ok=True)
        new = path.parent / f".new-{uuid4().hex}"
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
            new.rename(path)
        finally:
            shutil.rmtree(new, ignore_errors=True)
        _flush_directory(path.parent)

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

    def salvage(self, repository: Repository, head: str) -> None:
        """Set a replica aside whose refs cannot be read, and make a new one that has its objects and no refs."""
        aside = self.set_aside(repository.id, "unreadable")
        self.create(repository, head)
        if aside is not None:
            shutil.copytree(
                aside / "objects",
                self.path(repository.id) / "objects",
                copy_function=os.link,
                dirs_exist_ok=True,
            )

    # ------------------------------------------------------------------------------------------ refs

    def refs(self, repository_id: int) -> dict[str, str]:
        """Every ref outside refs/cluster/ with its object id, and HEAD with its target.

        ReplicaUnfit where they cannot be read; GitFailed where Git did not even run, which says nothing of them.
        """
        path = self.path(repository_id)
        with self._readable():
            head = (path / "HEAD").read_text().strip()
            listing = git.run(["for-each-ref", "--format=%(objectname) %(refname)"], git_dir=path)
        refs = {HEAD: head}
        for line in listing.decode("utf-8", "surrogateescape").splitlines():
            oid, _, ref = line.partition(" ")
            if not ref.startswith(OURS):
                refs[ref] = oid
        return refs

    def values(self, repository_id: int, names: Sequence[str]) -> dict[str, str]:
        """The object ids of those of `names` that exist; HEAD's target for HEAD. ReplicaUnfit, GitFailed as `refs`."""
        wanted = set(names)
        if len(wanted) > 50:
            return {ref: value for ref, value in self.refs(repository_id).items() if ref in wanted}
        path = self.path(repository_id)
        found: dict[str, str] = {}
        with self._readable():
            if HEAD in wanted:
                found[HEAD] = (path / "HEAD").read_text().strip()
                wanted.discard(HEAD)
            if wanted:
                listing = git.run(
                    ["for-each-ref", "--format=%(objectname) %(refname)", *sorted(wanted)], git_dir=path
                ).decode("utf-8", "surrogateescape")
                for line in listing.splitlines():
                    oid, _, ref = line.partition(" ")
                    if ref in wanted:
                        found[ref] = oid
        return found

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except (OSError, UnicodeDecodeError, GitFailed) as error:
            if isinstance(error, GitFailed) and error.__cause__ is not None:
                raise
            raise ReplicaUnfit(f"device {self.device} has no readable copy of this repository") from error

    def head(self, repository_id: int) -> str:
        """HEAD's target branch."""
        return head_of({HEAD: (self.path(repository_id) / "HEAD").read_text().strip()})

    def checksum(self, repository_id: int) -> Checksum | None:
        """The checksum of what is on disk now, or None where nothing readable is, or nothing of ours."""
        if not self.exists(repository_id) or self.foreign(repository_id):
            return None
        before = self._fingerprint(repository_id)
        with self._mutex:
            known = self._known.get(repository_id)
        if known and known[0] == before:
            return known[1]
        try:
            checksum = checksum_of(self.refs(repository_id))
        except ReplicaUnfit:
            return None
        if self._fingerprint(repository_id) == before:
            with self._mutex:
                self._known[repository_id] = (before, checksum)
        return checksum

    def remember(self, repository_id: int, checksum: Checksum) -> None:
        """What the refs amount to now, from whoever holds the write lock and just moved them.

        Many loose refs are packed first: every read looks at each of their files.
        """
        fingerprint = self._fingerprint(repository_id)
        if len(fingerprint) > MOST_LOOSE:
            with suppress(GitFailed):
                git.run(["pack-refs", "--all"], git_dir=self.path(repository_id), config=git.DURABLE)
            fingerprint = self._fingerprint(repository_id)
        with self._mutex:
            self._known[repository_id] = (fingerprint, checksum)

    def forget(self, repository_id: int) -> None:
        with self._mutex:
            self._known.pop(repository_id, None)

    def _fingerprint(self, repository_id: int) -> Fingerprint:
        path = self.path(repository_id)
        seen: list[tuple[str, int, int, int]] = []

        def note(name: str, stat: os.stat_result) -> None:
            seen.append((name, stat.st_ino, stat.st_ctime_ns, stat.st_size))

        locked = any((path / name).exists() for name in ("HEAD.lock", "packed-refs.lock"))
        for name in (HEAD, "packed-refs"):
            with suppress(FileNotFoundError):
                note(name, (path / name).stat())
        pending = [str(path / "refs")]
        while pending:
            folder = pending.pop()
            with suppress(FileNotFoundError):
                note(folder, os.stat(folder))
                with os.scandir(folder) as entries:
                    for entry in sorted(entries, key=lambda e: e.name):
                        if entry.is_dir(follow_symlinks=False):
                            if not (entry.name == "cluster" and folder.endswith("/refs")):
                                pending.append(entry.path)
                        elif entry.name.endswith(".lock"):
                            locked = True
                        else:
                            note(entry.path, entry.stat(follow_symlinks=False))
        (self._suspects.add if locked else self._suspects.discard)(repository_id)
        return tuple(seen)

    def remove_stale_locks(self, repository_id: int, *, suspected: bool = False) -> None:
        """Remove the *.lock files that a killed Git left among the refs; they would stop every later update.

        By whoever holds the replica's write lock: the Git processes that move refs here hold it too, by inheritance,
        so none of them lives. A young file is left to whoever else made it, an administrator for example.
        suspected: only where the last look at the refs saw such a file.
        """
        if suspected and repository_id not in self._suspects:
            return
        path = self.path(repository_id)
        for lock in [path / "HEAD.lock", path / "packed-refs.lock", *(path / "refs").rglob("*.lock")]:
            with suppress(OSError):
                if time.time() - lock.stat().st_mtime > STALE_LOCK:
                    lock.unlink()
                    _log.warning(
                        "removed %s of repository %s, left by a killed Git", lock.name, repository_id
                    )

    def apply(self, repository_id: int, updates: Sequence[RefUpdate]) -> None:
        """Move refs from their old to their new values, all or none, checking every old one. GitFailed.

        Deletions go first, in a transaction of their own where there are other updates too: Git cannot replace
        refs/heads/a by refs/heads/a/b in one.
        """
        path = self.path(repository_id)
        heads = [update for update in updates if update.ref == HEAD]
        refs = [update for update in updates if update.ref != HEAD]
        for batch in ([u for u in refs if u.deletes], [u for u in refs if not u.deletes]):
            if batch:
                self._update_refs(repository_id, batch)
        for update in heads:
            git.run(["symbolic-ref", HEAD, head_of({HEAD: update.new})], git_dir=path)

    def _update_refs(self, repository_id: int, updates: Sequence[RefUpdate]) -> None:
        """One transaction by `git update-ref`, which inherits the write lock: it may outlive this process."""
        lines = []
        for update in updates:
            if update.deletes:
                lines.append(f"delete {update.ref} {update.old}\n")
            else:
                lines.append(f"update {update.ref} {update.new} {update.old}\n")
        held = self._inherited.get(repository_id)
        git.run(
            ["update-ref", "--no-deref", "--stdin"],
            git_dir=self.path(repository_id),
            data="".join(lines).encode("utf-8", "surrogateescape"),
            # No hooks: a hook judges a push where it is pushed to, nowhere else.
            config={**git.DURABLE, "core.hooksPath": os.devnull},
            pass_fds=() if held is None else (held,),
        )

    def keep_lost(self, repository_id: int, given_up: Iterable[tuple[str, str]]) -> list[str]:
        """Keep (ref, object id) pairs that are about to be given up under refs/cluster/lost/ (guarantee G8).

        Returns the names they have there. Values whose objects are not here cannot be kept, nor lost.
        """
        path = self.path(repository_id)
        label = f"{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}-{uuid4().hex[:6]}"
        kept = []
        for ref, oid in given_up:
            if ref == HEAD or not git.succeeds(["cat-file", "-e", oid], git_dir=path):
                continue
            name = f"{LOST}{label}/{ref.removeprefix('refs/')}"
            self._update_refs(repository_id, [RefUpdate(name, "0" * len(oid), oid)])
            kept.append(name)
        return kept

    # ----------------------------------------------------------------------------------------- staged

    def stage_refs(self, repository_id: int, push_id: UUID, oids: Sequence[str]) -> None:
        """Hold staged objects by refs, so that nothing removes them before the push is settled."""
        self._update_refs(
            repository_id,
            [
                RefUpdate(f"{STAGED}{push_id}/{number}", "0" * len(oid), oid)
                for number, oid in enumerate(oids)
            ],
        )

    def staged(self, repository_id: int) -> dict[UUID, list[RefUpdate]]:
        """The staged refs here, by push, as updates that delete them."""
        if not self.exists(repository_id):
            return {}
        listing = git.run(
            ["for-each-ref", "--format=%(objectname) %(refname)", STAGED], git_dir=self.path(repository_id)
        ).decode()
        found: dict[UUID, list[RefUpdate]] = {}
        for line in listing.splitlines():
            oid, _, ref = line.partition(" ")
            with suppress(ValueError):
                push_id = UUID(ref.removeprefix(STAGED).split("/")[0])
                found.setdefault(push_id, []).append(RefUpdate(ref, oid, "0" * len(oid)))
        return found

    def unstage(self, repository_id: int, pushes: Iterable[UUID]) -> None:
        """Drop the staged refs of settled pushes. The objects stay until Git prunes what nothing reaches."""
        staging = self.path(repository_id) / STAGED
        wanted = set(pushes)
        if not wanted or not (staging.exists() or self._has_packed_staged(repository_id)):
            return
        for push_id, updates in self.staged(repository_id).items():
            if push_id in wanted:
                with suppress(GitFailed):
                    self._update_refs(repository_id, updates)

    def staged_age(self, repository_id: int, push_id: UUID) -> float:
        """Seconds since a push was staged here; infinite where that cannot be told."""
        try:
            return time.time() - (self.path(repository_id) / STAGED / str(push_id)).stat().st_mtime
        except OSError:
            return float("inf")

    def _has_packed_staged(self, repository_id: int) -> bool:
        try:
            return STAGED.encode() in (self.path(repository_id) / "packed-refs").read_bytes()
        except OSError:
            return False

    # ----------------------------------------------------------------------------------------- objects

    def connected(self, repository_id: int, wanted: Iterable[str], known: Iterable[str]) -> bool:
        """Whether everything that `wanted` reaches is here, given that what `known` reaches is.

        Walks only what lies between them, so it costs what the change costs.
        """
        lines = [*wanted, *(f"^{oid}" for oid in known)]
        return git.succeeds(
            ["rev-list", "--objects", "--quiet", "--stdin"],
            git_dir=self.path(repository_id),
            data="".join(f"{line}\n" for line in lines).encode(),
        )

    def existing(self, repository_id: int, oids: Sequence[str]) -> set[str]:
        """Those of `oids` that are in the object store."""
        if not oids:
            return set()
        listing = git.run(
            ["cat-file", "--batch-check=%(objectname) %(objecttype)"],
            git_dir=self.path(repository_id),
            data="".join(f"{oid}\n" for oid in oids).encode(),
        ).decode()
        return {line.split(" ")[0] for line in listing.splitlines() if not line.endswith(" missing")}

    def repack(self, repository_id: int) -> bool:
        """Have Git put many packs, or many loose objects, into one pack; whether there were that many.

        Git's own rules and grace period (two weeks) for what no ref reaches. It packs no refs, so it takes no lock that
        a push needs, and it may take its time beside pushes and reads as it does in any repository.
        """
        objects = self.path(repository_id) / "objects"
        packs = sum(1 for path in (objects / "pack").glob("*.pack"))
        sample = objects / "17"  # Git's own estimate: one folder of the 256
        loose = 256 * sum(1 for _ in sample.iterdir()) if sample.is_dir() else 0
        if packs <= MOST_PACKS and loose <= MOST_LOOSE_OBJECTS:
            return False
        git.run(
            ["gc", "--auto", "--quiet"],
            git_dir=self.path(repository_id),
            config={
                **git.DURABLE,
                "gc.packRefs": "false",
                "gc.autoDetach": "false",
                "core.hooksPath": os.devnull,
            },
        )
        return True

    @contextmanager
    def scratch(self, repository: Repository, known: Iterable[str]) -> Iterator[dict[str, str]]:
        """The environment of a throw-away Git directory that shares this replica's objects and has only `known` as
        refs. A fetch that runs in it neither walks nor changes the replica's own refs."""
        with tempfile.TemporaryDirectory(dir=self.run_directory(), prefix="scratch-") as folder:
            path = Path(folder)
            for part in ("objects", "refs"):
                (path / part).mkdir()
            (path / HEAD).write_text("ref: refs/heads/scratch\n")
            version = "1" if repository.object_format == "sha256" else "0"
            extension = "[extensions]\n\tobjectformat = sha256\n" if version == "1" else ""
            (path / "config").write_text(
                f"[core]\n\trepositoryformatversion = {version}\n\tbare = true\n[gc]\n\tauto = 0\n"
                f"[maintenance]\n\tauto = false\n{extension}"
            )
            refs = sorted({f"refs/known/{oid}": oid for oid in known}.items())
            (path / "packed-refs").write_text(
                "# pack-refs with: sorted \n" + "".join(f"{oid} {ref}\n" for ref, oid in refs)
            )
            yield {
                "GIT_DIR": folder,
                "GIT_OBJECT_DIRECTORY": str(self.path(repository.id) / "objects"),
            }

    # ----------------------------------------------------------------------------------------- the marker

    def marker(self, repository_id: int) -> Marker | None:
        """What the replica says of itself, or None where it says nothing legible."""
        try:
            values = json.loads((self.path(repository_id) / "cluster" / "position").read_text())
            return Marker(
                cluster=str(values["cluster"]),
                repository=int(values["repository"]),
                device=str(values["device"]),
                version=int(values["version"]),
                checksum=str(values["checksum"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def mark(self, repository_id: int, position: Position) -> None:
        """Write the marker: whole or not at all, and on the platter before this returns."""
        folder = self.path(repository_id) / "cluster"
        folder.mkdir(exist_ok=True)
        text = json.dumps(
            {
                "cluster": self.cluster_id,
                "repository": repository_id,
                "device": self.device,
                "version": position.version,
                "checksum": str(position.checksum),
            }
        )
        new = folder / f".position-{uuid4().hex}"
        with new.open("w") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(folder / "position")
        _flush_directory(folder)

    def foreign(self, repository_id: int) -> bool:
        """Whether the replica's marker names another cluster, repository or device: a wrongly mounted disk."""
        marker = self.marker(repository_id)
        return marker is not None and (
            (marker.cluster, marker.repository, marker.device)
            != (self.cluster_id, repository_id, self.device)
        )


def _flush_directory(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
