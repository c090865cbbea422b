"""What killed Git processes left in a replica, removed once it is certain that nobody uses it.

    what                                                          certain by
    ───────────────────────────────────────────────────────────   ──────────────────────────────────────────────────
    *.lock files and packed-refs.new beside and among the refs    the write lock (refs.py, `remove_stale_locks`)
    half-written markers, cluster/.position-*                     the write lock
    quarantines (objects/tmp_objdir-*), half-written packs and    the objects lock, taken exclusively: every Git process
    objects (tmp_pack_*, tmp_idx_*, tmp_obj_*, …), and *.keep     of ours that adds objects shares it by inheritance, as
    files by which a push or fetch held its pack                  does the session that started it
    half-written results of a repack (.tmp-…), its *.lock files   the upkeep lock, which a repack inherits
    replicas that were not whole yet (repositories/*/.new-*)      the daemon's own lock, at its start

A repository may never be without a push, and a client may pause in one for as long as it likes. What nothing was
written to for a day goes without the objects lock. Administrators' own Git holds no lock of ours: what is
younger than a minute stays in any case.

Objects that are complete are no leftovers, whether a ref reaches them or not: cluster/maintenance.py drops those.
"""

from __future__ import annotations

import logging
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from cluster.store import NEW, Store

_log = logging.getLogger(__name__)

YOUNG = 60.0
"""Seconds for which a file may be a person's, who runs Git here by hand."""

OLD = 24 * 3600.0
"""Seconds without a change after which a file is nobody's, though the repository is never quiet."""

IN_OBJECTS = (
    "tmp_objdir-*",
    "pack/tmp_*",
    "pack/.tmp-*",
    "pack/*.lock",
    "info/*.lock",
    "info/commit-graphs/*.lock",
    "info/commit-graphs/tmp_*",
)
AMONG_LOOSE = "[0-9a-f][0-9a-f]/tmp_obj_*"
HOLDERS = (b"receive-pack ", b"fetch-pack ")
"""How a *.keep file begins that is no person's."""


def clean(store: Store, repository_id: int, *, thorough: bool = False) -> list[str]:
    """Remove the leftovers in one replica; their names. thorough: look among the loose objects, too (256 folders)."""
    gone = _clean_marker(store, repository_id)
    if store.suspected(repository_id):
        with store.holding(repository_id, "write", 0.0) as mine:
            if mine:
                store.remove_stale_locks(repository_id)
    objects = store.objects(repository_id)
    if not any(_old_enough(path, YOUNG) for path in _candidates(objects, thorough=thorough)):
        return gone
    with (
        store.holding(repository_id, "upkeep", 0.0) as mine,
        store.holding(repository_id, "objects", 0.0) as quiet,
    ):
        for path in _candidates(objects, thorough=thorough) if mine else ():
            if _old_enough(path, YOUNG if quiet else OLD):
                _remove(path)
                gone.append(path.name)
    if gone:
        _log.warning("removed from repository %s, left by a killed Git: %s", repository_id, ", ".join(gone))
    return gone


def _clean_marker(store: Store, repository_id: int) -> list[str]:
    halves = [p for p in (store.path(repository_id) / "cluster").glob(".position-*") if _old_enough(p, YOUNG)]
    if not halves:
        return []
    with store.holding(repository_id, "write", 0.0) as mine:
        for path in halves if mine else ():
            path.unlink(missing_ok=True)
    return [path.name for path in halves]


def _candidates(objects: Path, *, thorough: bool) -> Iterator[Path]:
    for pattern in IN_OBJECTS:
        yield from objects.glob(pattern)
    for path in objects.glob("pack/*.keep"):
        with suppress(OSError):
            if path.read_bytes().startswith(HOLDERS):
                yield path
    if thorough:
        yield from objects.glob(AMONG_LOOSE)


def _old_enough(path: Path, age: float) -> bool:
    """Whether nothing was written to a file, or in a folder, for `age` seconds."""
    newest = 0.0
    with suppress(FileNotFoundError):
        newest = path.lstat().st_mtime
        for folder, _, files in os.walk(path):
            for name in (".", *files):
                with suppress(FileNotFoundError):
                    newest = max(newest, os.lstat(os.path.join(folder, name)).st_mtime)
    return time.time() - newest > age


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clean_at_start(store: Store) -> None:
    """Remove what a killed daemon left outside of replicas, before anything begins: its lock on the folder is ours."""
    for path in [*store.run_directory().glob("scratch-*"), *(store.root / "repositories").glob(f"*/{NEW}*")]:
        _remove(path)
