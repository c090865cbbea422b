"""The refs of a device's replicas: read, summed up, moved, staged, given up.

The checksum of the refs on disk is known without reading them as long as no file under refs/ was touched: stat
data (inode, change time, size) of the ref files, of their folders and of packed-refs stand for their content.
"""

from __future__ import annotations

import logging
import os
import re
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import UUID, uuid4

from cluster import failing, git, ref_files
from cluster.disk import Disk
from cluster.errors import GitFailed, ReplicaUnfit
from cluster.model import HEAD, Checksum, RefUpdate
from cluster.versions import checksum_of, head_of

_log = logging.getLogger(__name__)

STAGED = "refs/cluster/staged/"
LOST = "refs/cluster/lost/"
OURS = "refs/cluster/"

STALE_LOCK = 5.0
"""Seconds after which a *.lock file among the refs is stale, if nobody holds the write lock."""

MOST_LOOSE = 1000
"""Ref files of a replica before they are packed: a look at that many costs some 5 ms."""

LOCKS = ("HEAD.lock", "packed-refs.lock", "packed-refs.new", "shallow.lock")
"""What a killed Git may leave beside refs/; packed-refs.new is no lock by name, and stops the next `git pack-refs`."""

_BROKEN = re.compile(rb"^warning: ignoring broken ref ", re.MULTILINE)
"""A ref whose file holds no object id, as after a power cut. Git would neither list nor replace it."""

Fingerprint = tuple[tuple[str, int, int, int], ...]


class Refs(Disk):
    """The refs of the replicas on this disk. Methods take a repository's id."""

    def __init__(self, root: Path, device: str) -> None:
        super().__init__(root, device)
        self._known: dict[int, tuple[Fingerprint, Checksum]] = {}
        self._suspects: set[int] = set()
        self._staged_in: dict[int, tuple[tuple[int, int, int], bool]] = {}

    def refs(self, repository_id: int) -> dict[str, str]:
        """Every ref outside refs/cluster/ with its object id, and HEAD with its target.

        ReplicaUnfit where they cannot be read; GitFailed where Git did not even run, which says nothing of them.
        """
        return {ref: oid for ref, oid in self.every_ref(repository_id).items() if not ref.startswith(OURS)}

    def every_ref(self, repository_id: int) -> dict[str, str]:
        """The same with those below refs/cluster/. ReplicaUnfit, GitFailed as `refs`."""
        path = self.path(repository_id)
        with self._readable():
            head = (path / "HEAD").read_text().strip()
            listing = git.run(
                ["for-each-ref", "--format=%(objectname) %(refname)"], git_dir=path, refuse=_BROKEN
            )
        refs = {HEAD: head}
        for line in listing.decode("utf-8", "surrogateescape").splitlines():
            oid, _, ref = line.partition(" ")
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
            plain = ref_files.values(path, wanted)
            if plain is not None:
                found |= plain
            elif wanted:
                listing = git.run(
                    ["for-each-ref", "--format=%(objectname) %(refname)", *sorted(wanted)],
                    git_dir=path,
                    refuse=_BROKEN,
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

    def refs_checksum(self, repository_id: int) -> Checksum | None:
        """The checksum of the refs on disk now, or None where they cannot be read."""
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
                self._pack_refs(repository_id)
            fingerprint = self._fingerprint(repository_id)
        with self._mutex:
            self._known[repository_id] = (fingerprint, checksum)

    def pack_refs(self, repository_id: int) -> None:
        """Put the refs into one file, by whoever holds the write lock: a push between "intend" and "mark" holds it.
        GitFailed."""
        known = self._checksum_if_known(repository_id)
        self._pack_refs(repository_id)
        if known is not None:
            with self._mutex:
                self._known[repository_id] = (self._fingerprint(repository_id), known)

    def _pack_refs(self, repository_id: int) -> None:
        git.run(
            ["pack-refs", "--all"],
            git_dir=self.path(repository_id),
            config=git.DURABLE,
            pass_fds=self.inherits(repository_id, "write"),
        )

    def loose_refs(self, repository_id: int) -> int:
        """How many refs have a file of their own."""
        return sum(len(files) for _, _, files in os.walk(self.path(repository_id) / "refs"))

    def packed_refs(self, repository_id: int) -> int:
        """About how many refs are in the one file for all."""
        try:
            return (self.path(repository_id) / "packed-refs").stat().st_size // 64
        except OSError:
            return 0

    def _checksum_if_known(self, repository_id: int) -> Checksum | None:
        """The checksum of the refs as they are, where that takes no reading."""
        with self._mutex:
            known = self._known.get(repository_id)
        return known[1] if known and known[0] == self._fingerprint(repository_id) else None

    def forget(self, repository_id: int) -> None:
        with self._mutex:
            self._known.pop(repository_id, None)

    def _fingerprint(self, repository_id: int) -> Fingerprint:
        path = str(self.path(repository_id))
        seen: list[tuple[str, int, int, int]] = []

        def note(name: str, stat: os.stat_result) -> None:
            seen.append((name, stat.st_ino, stat.st_ctime_ns, stat.st_size))

        locked = any(os.path.exists(f"{path}/{name}") for name in LOCKS)
        for name in (HEAD, "packed-refs"):
            with suppress(FileNotFoundError):
                note(name, os.stat(f"{path}/{name}"))
        pending = [f"{path}/refs"]
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
        for lock in [*(path / name for name in LOCKS), *(path / "refs").rglob("*.lock")]:
            with suppress(OSError):
                if time.time() - lock.stat().st_mtime > STALE_LOCK:
                    lock.unlink()
                    _log.warning(
                        "removed %s of repository %s, left by a killed Git", lock.name, repository_id
                    )

    def apply(
        self, repository_id: int, updates: Sequence[RefUpdate], *, settled: Iterable[UUID] = ()
    ) -> None:
        """Move refs from their old to their new values, all or none, checking every old one. GitFailed.
        settled: pushes whose staged refs go with it.

        Deletions go first, in a transaction of their own where there are other updates too: Git cannot replace
        refs/heads/a by refs/heads/a/b in one.
        """
        path = self.path(repository_id)
        heads = [update for update in updates if update.ref == HEAD]
        refs = [update for update in updates if update.ref != HEAD]
        staged = self._staged_loose(repository_id, settled)
        batches = [[u for u in refs if u.deletes], [u for u in refs if not u.deletes]]
        batches[1 if batches[1] else 0] += staged
        for batch in batches:
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
        path = self.path(repository_id)
        try:
            git.run(
                ["update-ref", "--no-deref", "--stdin"],
                git_dir=path,
                data="".join(lines).encode("utf-8", "surrogateescape"),
                # No hooks: a hook judges a push where it is pushed to, nowhere else.
                config={**git.DURABLE, "core.hooksPath": os.devnull},
                pass_fds=self.inherits(repository_id, "write"),
            )
        except GitFailed as error:
            if disk := failing.of_folder(path):
                raise disk from error
            raise

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
    #
    # refs/cluster/staged/<push>/<seconds since 1970>-<number>: the name tells when, as no file would of a packed ref.

    def stage_refs(self, repository_id: int, push_id: UUID, oids: Sequence[str]) -> None:
        """Hold staged objects by refs, so that nothing removes them before the push is settled. GitFailed where
        something is staged for that push already: what is kept for one is not changed by another."""
        if (self.path(repository_id) / STAGED / str(push_id)).exists() or (
            self._may_have_staged(repository_id) and push_id in self.staged(repository_id)
        ):
            raise GitFailed("something is staged for this push already")
        now = int(time.time())
        self._update_refs(
            repository_id,
            [
                RefUpdate(f"{STAGED}{push_id}/{now}-{number}", "0" * len(oid), oid)
                for number, oid in enumerate(oids)
            ],
        )

    def staged(self, repository_id: int) -> dict[UUID, list[RefUpdate]]:
        """The staged refs here, by push, as updates that delete them."""
        if not self.exists(repository_id) or not self._may_have_staged(repository_id):
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

    def has_staged(self, repository_id: int, pushes: Iterable[UUID]) -> bool:
        """Whether something may be staged for one of these pushes, as far as that can be told without asking Git."""
        folder = self.path(repository_id) / STAGED
        return any((folder / str(push_id)).exists() for push_id in pushes) or self._packed_staged(
            repository_id
        )

    def unstage(self, repository_id: int, pushes: Iterable[UUID]) -> None:
        """Drop the staged refs of settled pushes. The objects stay until Git prunes what nothing reaches."""
        wanted = set(pushes)
        if loose := self._staged_loose(repository_id, wanted):
            with suppress(GitFailed):
                self._update_refs(repository_id, loose)
        if wanted and self._packed_staged(repository_id):
            for push_id, updates in self.staged(repository_id).items():
                if push_id in wanted:
                    with suppress(GitFailed):
                        self._update_refs(repository_id, updates)

    def _staged_loose(self, repository_id: int, pushes: Iterable[UUID]) -> list[RefUpdate]:
        """What deletes the staged refs of these pushes that have a file of their own, as nearly all have. One that a
        killed Git locked is left for later: it may not hold up the others."""
        folder, found = self.path(repository_id) / STAGED, list[RefUpdate]()
        with suppress(OSError):
            there = set(os.listdir(folder))
            for name in sorted(there.intersection(map(str, pushes))):
                files = set((folder / name).iterdir())
                for file in sorted(files):
                    locked = file.suffix == ".lock" or file.with_name(f"{file.name}.lock") in files
                    if not locked and len(oid := file.read_text().strip()) in (40, 64):
                        found.append(RefUpdate(f"{STAGED}{name}/{file.name}", oid, "0" * len(oid)))
        return found

    def suspected(self, repository_id: int) -> bool:
        """Whether the last look at the refs saw a *.lock file."""
        return repository_id in self._suspects

    def _may_have_staged(self, repository_id: int) -> bool:
        """Whether there is anything staged here, as far as that can be told without asking Git."""
        path = self.path(repository_id)
        with suppress(OSError), os.scandir(path / STAGED) as entries:
            if next(entries, None) is not None:
                return True
        return self._packed_staged(repository_id)

    def _packed_staged(self, repository_id: int) -> bool:
        """Whether the file for all refs has a staged one: where they were packed meanwhile."""
        packed = self.path(repository_id) / "packed-refs"
        try:
            stat = packed.stat()
            seen = (stat.st_ino, stat.st_ctime_ns, stat.st_size)
            known = self._staged_in.get(repository_id)
            if known is None or known[0] != seen:
                known = self._staged_in[repository_id] = (seen, STAGED.encode() in packed.read_bytes())
        except OSError:
            return False
        return known[1]


def staged_for(updates: Iterable[RefUpdate]) -> float:
    """Seconds since a push was staged, by the names of its refs; infinite where they do not tell."""
    times = [update.ref.rpartition("/")[2].partition("-")[0] for update in updates]
    return min((time.time() - int(text) for text in times if text.isdigit()), default=float("inf"))
