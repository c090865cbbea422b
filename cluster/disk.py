"""Where a device's replicas are, and the locks that say who is at work in them.

Every lock is an flock(2) on a file of its own, `<root>/locks/<id>.<kind>`. Git processes of ours inherit the open
file, so a lock outlives a session, or a daemon, that is killed for exactly as long as they do:

    write      exclusive: who moves refs of this replica
    objects    shared: whoever adds objects to it; exclusive: who removes what such processes left behind when they
               were killed
    sync       exclusive: who brings it to the newest version
    upkeep     exclusive: who repacks it
    verify     exclusive: who holds it against the log and against itself, and rebuilds it
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock

from cluster.errors import ClusterError

SOON = 2.0
"""Seconds within which a lock is looked at a hundred times a second: writes hold it for some 20 ms each, one after
another in a busy repository, and who looks rarely meets none of the gaps."""

MOST_PATHS = 65536
"""Replicas whose paths are remembered."""


class FileLock:
    """An flock(2) on a file of its own. One object, one open file: whoever inherits `fd` shares the lock."""

    def __init__(self, path: Path) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
        try:
            self.fd = os.open(path, flags, 0o600)
        except FileNotFoundError:
            path.parent.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(path, flags, 0o600)

    def try_acquire(self) -> bool:
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def acquire(self, timeout: float) -> bool:
        """Wait for the lock for `timeout` seconds at most."""
        begun, pause = time.monotonic(), 0.002
        while not self.try_acquire():
            waited = time.monotonic() - begun
            if waited > timeout:
                return False
            time.sleep(pause)
            pause = min(pause * 1.5, 0.01 if waited < SOON else 0.1)
        return True

    def share(self) -> None:
        """Hold it together with others who share it."""
        fcntl.flock(self.fd, fcntl.LOCK_SH)

    def release(self) -> None:
        """Give it back for everybody who shares the open file."""
        fcntl.flock(self.fd, fcntl.LOCK_UN)

    def close(self) -> None:
        """Forget it here. A process that inherited the open file keeps the lock."""
        os.close(self.fd)


class ReplicaLock(FileLock):
    """A replica's write lock, and which folder (device and inode) the replica was when this was opened."""

    def __init__(self, path: Path, folder: tuple[int, int] | None) -> None:
        super().__init__(path)
        self.folder = folder


class Disk:
    """Paths and locks of the replicas of one device, by repository id. What is in them: refs.py, objects.py."""

    def __init__(self, root: Path, device: str) -> None:
        self.root = root
        self.device = device
        self._held: dict[tuple[int, str], int] = {}
        self._mutex = Lock()
        self.path = lru_cache(MOST_PATHS)(self._path)

    def _path(self, repository_id: int) -> Path:
        """Where a replica is. (`path` remembers: a request asks some twenty times, and a Path is dear to make.)"""
        return self.root / "repositories" / f"{repository_id // 1000:03d}" / f"{repository_id}.git"

    def exists(self, repository_id: int) -> bool:
        """Whether there is a repository to speak of; what it holds is another question."""
        path = self.path(repository_id)
        return all(os.path.exists(f"{path}/{part}") for part in ("HEAD", "objects", "refs", "config"))

    def folder(self, repository_id: int) -> tuple[int, int] | None:
        """Which folder the replica is now: another one once it was set aside and made anew. None: there is none."""
        try:
            stat = os.stat(self.path(repository_id))
        except OSError:
            return None
        return stat.st_dev, stat.st_ino

    def write_lock(self, repository_id: int) -> ReplicaLock:
        """The lock (not yet taken) that whoever moves refs of this replica holds."""
        return ReplicaLock(self._lock_file(repository_id, "write"), self.folder(repository_id))

    @contextmanager
    def holding(self, repository_id: int, kind: str, timeout: float) -> Iterator[bool]:
        """Hold a lock of this kind, exclusively, inside; yields whether it was got in time."""
        lock = FileLock(self._lock_file(repository_id, kind))
        try:
            got = lock.acquire(timeout)
            if got:
                self._held[repository_id, kind] = lock.fd
            yield got
            if got:
                lock.release()
        finally:
            if self._held.get((repository_id, kind)) == lock.fd:
                del self._held[repository_id, kind]
            lock.close()

    @contextmanager
    def locked(
        self, repository_id: int, kind: str, timeout: float, otherwise: ClusterError
    ) -> Iterator[None]:
        """The same, where it has to be got in time; else `otherwise` is raised."""
        with self.holding(repository_id, kind, timeout) as got:
            if not got:
                raise otherwise
            yield

    def inherits(self, repository_id: int, kind: str) -> tuple[int, ...]:
        """The descriptor of a lock that is held here, for a process that is to share it."""
        fd = self._held.get((repository_id, kind))
        return () if fd is None else (fd,)

    @contextmanager
    def adding_objects(self, repository_id: int) -> Iterator[int]:
        """Share the `objects` lock inside; yields the descriptor that a Git process which adds some has to inherit."""
        lock = FileLock(self._lock_file(repository_id, "objects"))
        try:
            lock.share()
            yield lock.fd
            lock.release()
        finally:
            lock.close()

    def _lock_file(self, repository_id: int, kind: str) -> Path:
        return self.root / "locks" / f"{repository_id}.{kind}"

    def run_directory(self) -> Path:
        path = self.root / "run"
        path.mkdir(parents=True, exist_ok=True)
        return path
