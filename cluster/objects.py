"""The object stores of a device's replicas: is it there, is it whole, and throw-away views of one."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import subprocess
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster import git
from cluster.disk import Disk
from cluster.errors import GitFailed
from cluster.model import HEAD, Repository

_FANOUT = re.compile("[0-9a-f]{2}")
_LOOSE = re.compile("[0-9a-f]{38}|[0-9a-f]{62}")
_PACK = re.compile(r"pack-[0-9a-f]+\.(pack|idx)")
_DERIVED = (
    "pack/*.bitmap",
    "pack/*.rev",
    "pack/multi-pack-index",
    "info/commit-graph",
    "info/commit-graphs/*.graph",
)

_SAMPLE = [f"{number:x}7" for number in range(16)]
"""16 of the 256 folders of loose objects. Git's own estimate looks at one, and so sees 256 or none."""

_NO_LINKS = (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP)

ROUNDS = 20
"""How often a view of an object store is begun again because files went away while it was made."""


@dataclass(frozen=True, slots=True)
class Scatter:
    """How scattered a replica's objects are. loose is an estimate; packs are those that hold what refs reach (no
    cruft packs), and size is theirs, in bytes."""

    packs: int
    loose: int
    size: int
    indexed: bool
    """Whether there is a multi-pack-index."""
    cruft: bool
    """Whether there is a pack of objects that no ref reached when it was made."""


class Objects(Disk):
    """The objects of the replicas on this disk. Methods take a repository's id."""

    def objects(self, repository_id: int) -> Path:
        return self.path(repository_id) / "objects"

    def connected(self, repository_id: int, wanted: Iterable[str], known: Iterable[str]) -> bool:
        """Whether everything that `wanted` reaches is here, given that what `known` reaches is.

        Walks only what lies between them, so it costs what the change costs. Without the commit-graph, which knows
        commits that are not there any more.
        """
        try:
            self._walk(repository_id, wanted, known, None)
        except GitFailed:
            return False
        return True

    def connected_soon(
        self, repository_id: int, wanted: Iterable[str], known: Iterable[str], *, within: float
    ) -> bool | None:
        """The same, where that takes no longer than `within` seconds; None where it does."""
        try:
            self._walk(repository_id, wanted, known, within)
        except GitFailed as error:
            return None if isinstance(error.__cause__, subprocess.TimeoutExpired) else False
        return True

    def _walk(
        self, repository_id: int, wanted: Iterable[str], known: Iterable[str], within: float | None
    ) -> None:
        lines = [*wanted, *(f"^{oid}" for oid in known)]
        git.run(
            ["-c", "core.commitGraph=false", "rev-list", "--objects", "--quiet", "--stdin"],
            git_dir=self.path(repository_id),
            data="".join(f"{line}\n" for line in lines).encode(),
            timeout=within,
        )

    def holds(self, repository: Repository, oids: Iterable[str]) -> bool:
        """Whether everything that `oids` reach is here, whatever the replica's own refs and HEAD look like."""
        with self.scratch(repository, []) as env:
            return git.succeeds(
                ["-c", "core.commitGraph=false", "rev-list", "--objects", "--quiet", "--stdin"],
                git_dir=Path(env["GIT_DIR"]),
                data="".join(f"{oid}\n" for oid in oids).encode(),
                env=env,
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

    def all_loose(self, repository_id: int, oids: Iterable[str]) -> bool:
        """Whether each of these objects is here in a file of its own."""
        objects = self.objects(repository_id)
        return all((objects / oid[:2] / oid[2:]).exists() for oid in oids)

    def scatter(self, repository_id: int) -> Scatter:
        """A cheap look: a few folders."""
        objects = self.objects(repository_id)
        names: dict[str, int] = {}
        with suppress(OSError), os.scandir(objects / "pack") as entries:
            for entry in entries:
                with suppress(OSError):
                    names[entry.name] = entry.stat().st_size
        sampled = 0
        for folder in _SAMPLE:
            with suppress(OSError):
                sampled += len(os.listdir(objects / folder))
        packs = [name for name in names if name.endswith(".pack")]
        used = [name for name in packs if name.removesuffix(".pack") + ".mtimes" not in names]
        return Scatter(
            packs=len(used),
            loose=sampled * 256 // len(_SAMPLE),
            size=sum(names[name] for name in used),
            indexed="multi-pack-index" in names,
            cruft=len(used) < len(packs),
        )

    # ------------------------------------------------------------------------------------------ throw-away views

    @contextmanager
    def scratch(self, repository: Repository, known: Iterable[str]) -> Iterator[dict[str, str]]:
        """The environment of a throw-away Git directory that shares this replica's objects and has only `known` as
        refs. A fetch that runs in it neither walks nor changes the replica's own refs."""
        refs = {f"refs/known/{oid}": oid for oid in known}
        with self._git_directory(repository, "refs/heads/scratch", refs) as folder:
            yield {"GIT_DIR": str(folder), "GIT_OBJECT_DIRECTORY": str(self.objects(repository.id))}

    @contextmanager
    def frozen(self, repository: Repository, refs: Mapping[str, str]) -> Iterator[dict[str, str]]:
        """The environment of a throw-away Git directory that has `refs`, and every object file of the replica as it
        is now, by hard links.

        What refs reached before this began is all there, and stays: pushes, repacks and prunes do not disturb who
        works with it. Files derived from objects (multi-pack-index, commit-graph) are left out. Until it is left,
        the disk keeps the space of packs that are removed meanwhile. Where files cannot be linked (repositories/ is a
        disk of its own), the objects are the replica's own, and a repack may disturb.
        """
        head = refs[HEAD].removeprefix("ref: ")
        with self._git_directory(repository, head, {k: v for k, v in refs.items() if k != HEAD}) as folder:
            source, target = self.objects(repository.id), folder / "objects"
            env = {"GIT_DIR": str(folder)}
            with suppress(OSError):
                (folder / "shallow").write_bytes((self.path(repository.id) / "shallow").read_bytes())
            try:
                for _ in range(ROUNDS):
                    if _link_objects(source, target):
                        break
                _copy_alternates(source, target)
            except OSError as error:
                if error.errno not in _NO_LINKS:
                    raise
                env["GIT_OBJECT_DIRECTORY"] = str(source)
            yield env

    @contextmanager
    def _git_directory(self, repository: Repository, head: str, refs: Mapping[str, str]) -> Iterator[Path]:
        with tempfile.TemporaryDirectory(dir=self.run_directory(), prefix="scratch-") as name:
            folder = Path(name)
            for part in ("objects", "refs"):
                (folder / part).mkdir()
            (folder / HEAD).write_text(f"ref: {head}\n")
            version = "1" if repository.object_format == "sha256" else "0"
            extension = "[extensions]\n\tobjectformat = sha256\n" if version == "1" else ""
            (folder / "config").write_text(
                f"[core]\n\trepositoryformatversion = {version}\n\tbare = true\n[gc]\n\tauto = 0\n"
                f"[maintenance]\n\tauto = false\n{extension}"
            )
            (folder / "packed-refs").write_text(
                "# pack-refs with: sorted \n"
                + "".join(f"{oid} {ref}\n" for ref, oid in sorted(refs.items())),
                encoding="utf-8",
                errors="surrogateescape",
            )
            yield folder

    # ---------------------------------------------------------------------------------------------- derived files

    def drop_damaged_indexes(self, repository: Repository) -> list[str]:
        """Remove what Git derives from objects (bitmaps, reverse indexes, multi-pack-index, commit-graph) where it is
        damaged, as its last bytes, a digest of the rest, tell; the names. Git does without until maintenance makes
        new ones. Git replaces such files by renaming, so one that is open here is whole or damaged, never half."""
        objects = self.objects(repository.id)
        damaged = [
            path
            for pattern in _DERIVED
            for path in objects.glob(pattern)
            if not _digest_is_right(path, repository.object_format)
        ]
        for path in damaged:
            path.unlink(missing_ok=True)
        if any(path.name == "multi-pack-index" for path in damaged):
            for path in (objects / "pack").glob("multi-pack-index-*"):
                path.unlink(missing_ok=True)
        if any(path.parent.name != "pack" for path in damaged):
            self.drop_commit_graph(repository.id)
        return [path.name for path in damaged]

    def drop_commit_graph(self, repository_id: int) -> None:
        """Remove it in all its forms. Git does without."""
        info = self.objects(repository_id) / "info"
        chain = info / "commit-graphs" / "commit-graph-chain"
        for path in [info / "commit-graph", chain, *info.glob("commit-graphs/*.graph")]:
            path.unlink(missing_ok=True)


def _link_objects(source: Path, target: Path) -> bool:
    """Link what is not linked yet; whether all that was listed was still there.

    Loose objects first: what is packed meanwhile is removed only after its pack is there. And once more where a file
    went away, or a pack came: a listing that a repack crosses may show neither the old pack nor the new one.
    """
    whole = True
    for folder in os.listdir(source):
        if _FANOUT.fullmatch(folder):
            whole &= _link_folder(source / folder, target / folder, _LOOSE)
    before = set(os.listdir(target / "pack")) if (target / "pack").is_dir() else None
    whole &= _link_folder(source / "pack", target / "pack", _PACK)
    return whole and before == set(os.listdir(target / "pack"))


def _link_folder(source: Path, target: Path, names: re.Pattern[str]) -> bool:
    whole = True
    target.mkdir(exist_ok=True)
    with suppress(FileNotFoundError):
        for name in os.listdir(source):
            if names.fullmatch(name):
                try:
                    os.link(source / name, target / name)
                except FileExistsError:
                    pass
                except FileNotFoundError:
                    whole = False
    return whole


def _copy_alternates(source: Path, target: Path) -> None:
    """A person may have made a replica borrow objects from elsewhere; relative paths start at the object store."""
    with suppress(FileNotFoundError):
        lines = (source / "info" / "alternates").read_text().splitlines()
        (target / "info").mkdir()
        (target / "info" / "alternates").write_text("".join(f"{source / line}\n" for line in lines if line))


def _digest_is_right(path: Path, object_format: str) -> bool:
    """Whether a file ends in the digest of what comes before."""
    digest = hashlib.new(object_format, usedforsecurity=False)
    try:
        with path.open("rb") as file:
            left = os.fstat(file.fileno()).st_size - digest.digest_size
            while left > 0 and (data := file.read(min(left, 1 << 20))):
                digest.update(data)
                left -= len(data)
            return left == 0 and file.read() == digest.digest()
    except FileNotFoundError:
        return True
    except OSError:
        return False
