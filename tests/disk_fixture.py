"""Devices on disks that can be filled, made read-only, and given back.

Two kinds. "file system": a small one of each device's own, which takes the right to mount. "limits": to be had
everywhere; the device's Git processes may write no large file (full), and nothing of what it has may be changed (not
writable). Git meets them at the same places, and says other words.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from cluster.loopback import LoopbackDevice
from tests.cluster_fixture import Cluster

SIZE = 32 << 20
INODES = 8000
MOUNTED, LIMITED = "file system", "limits"


def kind_here() -> str:
    """The better kind that can be had."""
    with tempfile.TemporaryDirectory() as folder:
        if _mount("-t", "tmpfs", "tmpfs", folder):
            subprocess.run(["umount", folder], check=True)
            return MOUNTED
    return LIMITED


def _mount(*arguments: str) -> bool:
    with suppress(FileNotFoundError):
        return subprocess.run(["mount", *arguments], capture_output=True).returncode == 0
    return False


class Disk:
    """The disk of one device.

    Its locks are on another: an open one of the daemon's would keep the file system from becoming read-only, as no
    failing disk asks. They become read-only as well.
    """

    def __init__(self, kind: str, device: LoopbackDevice) -> None:
        self.kind, self.path, self._locks = kind, device.data_dir, device.directory / "locks"
        self._bin = device.directory / "bin"
        self._full = device.directory / "full"
        self.path.mkdir()
        self._locks.mkdir()
        if kind == MOUNTED:
            options = f"size={SIZE},nr_inodes={INODES},mode=0700"
            assert _mount("-t", "tmpfs", "-o", options, "tmpfs", str(self.path))
        else:
            self._bin.mkdir()
            git = self._bin / "git"
            # To root, no permission means anything, unless it gives that right up.
            may = "-dac_override,-dac_read_search"
            obey = f"setpriv --bounding-set={may} --inh-caps={may} " if os.geteuid() == 0 else ""
            limit = f"if [ -e '{self._full}' ]; then trap '' XFSZ; ulimit -f 8; fi"
            git.write_text(f'#!/bin/sh\n{limit}\nexec {obey}{shutil.which("git")} "$@"\n')
            git.chmod(0o755)
        (self.path / "locks").symlink_to(self._locks)
        (self._locks / "serve").touch()
        (self.path / "serve.lock").symlink_to(self._locks / "serve")

    def command(self, words: list[str]) -> list[str]:
        """How a device is started on this disk."""
        if self.kind == MOUNTED:
            return words
        return ["env", f"PATH={self._bin}:{os.environ['PATH']}", *words]

    @contextmanager
    def full(self) -> Iterator[None]:
        """Not a byte of room inside."""
        if self.kind == LIMITED:
            self._full.touch()
            try:
                yield
            finally:
                self._full.unlink()
            return
        filler = self.path / "filler"
        with filler.open("wb", buffering=0) as file:
            chunk = b"\0" * (1 << 20)
            while chunk:
                try:
                    file.write(chunk)
                except OSError:
                    chunk = chunk[: len(chunk) // 2]
        try:
            yield
        finally:
            filler.unlink()

    @contextmanager
    def without_inodes(self) -> Iterator[None]:
        """No room for another file inside."""
        folder = self.path / "filler"
        folder.mkdir()
        for number in range(INODES):
            try:
                (folder / str(number)).touch()
            except OSError:
                break
        try:
            yield
        finally:
            shutil.rmtree(folder)

    @contextmanager
    def read_only(self) -> Iterator[None]:
        """Nothing can be written inside, also by who has begun."""
        if self.kind == MOUNTED:
            assert _mount("-o", "remount,ro", str(self.path))
            assert _mount("--bind", str(self._locks), str(self._locks))
            assert _mount("-o", "remount,bind,ro", str(self._locks))
            try:
                yield
            finally:
                subprocess.run(["umount", "--lazy", str(self._locks)], check=True)
                assert _mount("-o", "remount,rw", str(self.path))
            return
        paths = [self.path, *self.path.rglob("*"), self._locks, *self._locks.rglob("*")]
        modes = {path: path.stat().st_mode for path in paths if not path.is_symlink()}
        for path, mode in modes.items():
            path.chmod(stat.S_IMODE(mode) & ~0o222)
        try:
            yield
        finally:
            for path, mode in modes.items():
                path.chmod(stat.S_IMODE(mode))

    def used(self) -> int:
        """Bytes in the device's repositories."""
        files = (self.path / "repositories").rglob("*")
        return sum(path.stat().st_size for path in files if path.is_file())

    def close(self) -> None:
        if self.kind == MOUNTED:
            subprocess.run(["umount", "--lazy", str(self.path)], check=True)


class OnDisks(Cluster):
    """A cluster whose devices a and b are on such disks; c is on an ordinary one."""

    def __init__(self, directory: Path, database: str, kind: str) -> None:
        super().__init__(directory, database, {})
        self.kind = kind
        self.disks: dict[str, Disk] = {}
        self.set_up(["a", "b", "c"])
        for name in "ab":
            self.disks[name] = Disk(kind, self.devices[name])
        for name in "abc":
            self.start(name)

    def command(self, device: LoopbackDevice) -> list[str]:
        words = super().command(device)
        return self.disks[device.name].command(words) if device.name in self.disks else words

    def close(self) -> None:
        super().close()
        for disk in self.disks.values():
            disk.close()
