"""One device's disk, without a cluster around it."""

from __future__ import annotations

import subprocess
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

from cluster import git
from cluster.model import Position, RefUpdate, Repository, WhenShort
from cluster.store import MOST_PACKS, Store
from cluster.versions import checksum_of

HEAD = "ref: refs/heads/main"


def test_many_packs_become_one_and_refs_stay_as_they_are(tmp_path: Path) -> None:
    """A pack for each push would make every read slower than the one before."""
    store = Store(tmp_path, "a", uuid4())
    position = Position(0, checksum_of({"HEAD": HEAD}))
    now = datetime.now(UTC)
    repository = Repository(7, "team/app", "sha1", position, 1, WhenShort.WARN, None, None, now)
    store.create(repository, "refs/heads/main")
    path = store.path(7)
    assert not store.repack(7)
    for number in range(MOST_PACKS + 5):
        oid = (
            git.run(["hash-object", "-w", "--stdin"], git_dir=path, data=str(number).encode())
            .decode()
            .strip()
        )
        pack = path / "objects" / "pack" / "pack"
        git.run(["pack-objects", "--quiet", str(pack)], git_dir=path, data=f"{oid}\n".encode())
        store.apply(7, [RefUpdate(f"refs/tags/t{number}", "0" * 40, oid)])
    before = store.refs(7)
    assert store.repack(7)
    assert len(list((path / "objects" / "pack").glob("*.pack"))) == 1
    assert store.refs(7) == before
    assert not (path / "packed-refs").exists(), "refs are packed by whoever holds the write lock"
    subprocess.run(["git", f"--git-dir={path}", "fsck", "--full", "--strict"], check=True)
