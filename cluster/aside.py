"""Copies that are set aside because they are damaged, and what goes over from them to the replica made in their place.

A damaged copy is moved to `<root>/trash/<id>-rebuilding-…` and an empty replica takes its place, with everything
that a person put into the copy: hooks, configuration, description and the like. A sync then fills it. When that is
found to be whole (cluster/verify.py), `finish` also takes over what is kept below refs/cluster/ (guarantee G8, and
copies staged for peers), and removes the copy. Where not all of that is whole, the copy stays, as `<id>-damaged-…`,
until a person removes it. Every step may be cut off and be done again.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from cluster import git
from cluster.errors import GitFailed, LockTimeout
from cluster.model import HEAD, RefUpdate, Repository
from cluster.refs import LOST, OURS
from cluster.store import Store

_log = logging.getLogger(__name__)

REBUILDING = "rebuilding"

GITS = re.compile(
    r"HEAD|config|objects|refs|packed-refs.*|logs|index|shallow|worktrees|[A-Z]+_HEAD|gc\.(pid|log)|cluster|.*\.lock"
)
"""The names in a bare repository that are Git's or ours. Others are a person's."""

AT_ONCE = ("hooks", "info", "description")
"""What steers Git, and so is there before the first push. The rest may be large, and comes when all is whole."""

_PACKED = re.compile(r"([0-9a-f]{40}|[0-9a-f]{64}) (refs/cluster/\S+)")

WAIT = 30.0
"""Seconds to wait for a write of this replica to end."""


def replace(store: Store, repository: Repository, head: str) -> None:
    """Set a replica aside, by whoever holds its write lock, and put an empty one in its place."""
    with store.making(repository, head) as new:
        _copy_files(store.path(repository.id), new)
        store.set_aside(repository.id, REBUILDING)
        new.rename(store.path(repository.id))


def salvage(store: Store, repository: Repository, head: str) -> None:
    """The same for one whose refs cannot be read: the new one has its objects and no refs."""
    old = store.path(repository.id)
    with store.making(repository, head) as new:
        _copy_files(old, new)
        shutil.copytree(old / "objects", new / "objects", copy_function=os.link, dirs_exist_ok=True)
        store.set_aside(repository.id, REBUILDING)
        new.rename(old)


def unfinished(store: Store) -> dict[int, list[Path]]:
    """The copies that are aside until what was made in their place is found to be whole, by repository."""
    found: dict[int, list[Path]] = {}
    for path in sorted((store.root / "trash").glob(f"*-{REBUILDING}-*.git")):
        number = path.name.split("-")[0]
        if number.isdigit():
            found.setdefault(int(number), []).append(path)
    return found


def finish(store: Store, repository: Repository) -> list[str]:
    """The replica is whole: take over what its damaged copies still hold, then remove them. What could not be taken
    over, in words for people; the copy is kept then."""
    told = []
    for copy in unfinished(store).get(repository.id, []):
        problems = _move_files(copy, store.path(repository.id)) + _take_refs(store, repository, copy)
        if not problems:
            shutil.rmtree(copy)
            continue
        kept = copy.with_name(copy.name.replace(f"-{REBUILDING}-", "-damaged-"))
        copy.rename(kept)
        shown = "; ".join(problems[:3]) + (f"; and {len(problems) - 3} more" if len(problems) > 3 else "")
        told.append(f"the damaged copy is kept as {kept.name} in the trash of {store.device}: {shown}")
    return told


# ------------------------------------------------------------------------------------------------------- files


def _copy_files(old: Path, new: Path) -> None:
    """What has to be there at once. What cannot be read now is said by `finish`, which comes across it again."""
    for name in AT_ONCE:
        _take(old / name, new / name, lambda one, other: shutil.copy2(one, other, follow_symlinks=False))
    with suppress(GitFailed):
        _take_config(old / "config", new / "config")


def _move_files(old: Path, new: Path) -> list[str]:
    """All that a person put into a replica and `new` lacks; what could not be read."""
    problems = []
    for name in os.listdir(old):
        if not GITS.fullmatch(name):
            problems += _take(old / name, new / name, os.rename)
    try:
        _take_config(old / "config", new / "config")
    except GitFailed:
        problems.append("its configuration cannot be read")
    if any(path.is_file() and path.stat().st_size for path in (old / "logs").rglob("*")):
        problems.append("it has reflogs")
    return problems


def _take(old: Path, new: Path, how: Callable[[Path, Path], object]) -> list[str]:
    """Take a file, link or folder over, with its mode; what is there already stays as it is."""
    try:
        if old.is_dir() and not old.is_symlink():
            new.mkdir(exist_ok=True)
            return [problem for name in os.listdir(old) for problem in _take(old / name, new / name, how)]
        if os.path.lexists(old) and not os.path.lexists(new) and new.parts[-2:] != ("info", "refs"):
            how(old, new)
    except OSError:
        return [f"{old.name} cannot be read"]
    return []


def _take_config(old: Path, new: Path) -> None:
    """Add the entries that `new` lacks. GitFailed."""
    if not old.exists():
        raise GitFailed("there is no configuration")
    have = set(_entries(new))
    for entry in _entries(old):
        key, has_value, value = entry.partition("\n")
        if entry not in have and not re.match(r"extensions\.|core\.(repositoryformatversion|bare)$", key):
            git.run(["config", "--file", str(new), "--add", key, value if has_value else "true"])


def _entries(file: Path) -> list[str]:
    listing = git.run(["config", "--file", str(file), "--list", "--null"])
    return [entry for entry in listing.decode("utf-8", "surrogateescape").split("\0") if entry]


# -------------------------------------------------------------------------------------------------------- refs


def _take_refs(store: Store, repository: Repository, copy: Path) -> list[str]:
    """Bring what is below refs/cluster/ in a damaged copy, with the objects, into the replica; what is not whole."""
    have = store.every_ref(repository.id)
    wanted = {ref: oid for ref, oid in _kept_refs(copy).items() if ref not in have}
    known = {oid for ref, oid in have.items() if ref != HEAD}
    if not wanted:
        return []
    with store.adding_objects(repository.id) as objects:
        if not store.connected(repository.id, wanted.values(), known):
            try:
                _fetch(store, repository, copy, set(wanted.values()), known, objects)
            except GitFailed:
                for oid in set(wanted.values()):
                    with suppress(GitFailed):
                        _fetch(store, repository, copy, {oid}, known, objects)
        whole = {ref: oid for ref, oid in wanted.items() if store.connected(repository.id, [oid], known)}
        with store.holding(repository.id, "write", WAIT) as got:
            if not got:
                raise LockTimeout("a write to this replica is still going on", hint="try again in a moment")
            store.apply(repository.id, [RefUpdate(ref, "0" * len(oid), oid) for ref, oid in whole.items()])
    return [
        f"what {ref} names, {oid}, is not whole"
        for ref, oid in sorted(wanted.items())
        if ref not in whole and ref.startswith(LOST)
    ]


def _kept_refs(copy: Path) -> dict[str, str]:
    """The refs below refs/cluster/, without Git, which may not be able to read a damaged copy."""
    found: dict[str, str] = {}
    with suppress(OSError):
        for line in (copy / "packed-refs").read_text(errors="replace").splitlines():
            if match := _PACKED.fullmatch(line):
                found[match[2]] = match[1]
    for path in (copy / OURS).rglob("*"):
        with suppress(OSError, UnicodeDecodeError):
            oid = path.read_text().strip() if path.is_file() else ""
            ref = path.relative_to(copy).as_posix()
            if _PACKED.fullmatch(f"{oid} {ref}"):
                found[ref] = oid
    return found


def _fetch(
    store: Store, repository: Repository, copy: Path, oids: set[str], known: set[str], objects: int
) -> None:
    """Fetch object ids from a damaged copy; Git checks each object, and that nothing which they reach is missing."""
    with store.scratch(repository, known) as env:
        git.run(
            ["fetch", "--quiet", "--no-tags", "--no-write-fetch-head", "--stdin", str(copy)],
            data="".join(f"{oid}\n" for oid in sorted(oids)).encode(),
            env=env,
            config=git.DURABLE,
            pass_fds=(objects,),
        )
