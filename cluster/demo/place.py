"""A demo's directory, and the promise that nothing that runs out of it outlives the demo.

    <directory>/demo.json     the demo is complete; which devices and repository it has
    <directory>/demo.lock     locked as long as a demo (or its guard) is at work here
    <directory>/postgres/     the embedded PostgreSQL
    …                         what cluster/loopback.py keeps

The guard is a small process that waits on a pipe for the demo's end. A demo that ends by itself tidies up and says
so; one that is killed (SIGKILL, out of memory) cannot, and then the guard tidies up.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from cluster import embedded
from cluster.demo.signals import Signals
from cluster.errors import Refused

LOCK_WAIT = 5.0
"""Seconds for the guard of a demo that was killed to finish in the same directory."""

STOP_WAIT = 15.0
"""Seconds for a device to stop: it gives its clients 10 (cluster/daemon.py, GRACE)."""

DONE = b"done\n"
OTHER = "choose a directory that is empty or new"


@dataclass(frozen=True, slots=True)
class Place:
    """directory: where the demo lives. keep: it was asked for by name. created: it was not there before."""

    directory: Path
    keep: bool
    created: bool

    @property
    def _note(self) -> Path:
        return self.directory / "demo.json"

    @property
    def postgres(self) -> Path:
        return self.directory / "postgres"

    def devices_of_last_time(self) -> list[str] | None:
        """The devices of a demo that was set up here before; None: there was none."""
        try:
            return [str(name) for name in json.loads(self._note.read_text())["devices"]]
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Refused(f"{self._note} is not what a demo wrote", hint=OTHER) from error

    def note_complete(self, devices: list[str]) -> None:
        """From now on the directory is worth keeping."""
        self._note.write_text(json.dumps({"devices": devices}) + "\n")

    def tear_down(self) -> None:
        """End every process of this directory; then remove what is in it, unless it is a whole demo to be kept."""
        stop_devices(self.directory)
        embedded.stop(self.postgres)
        if self.keep and self._note.exists():
            return
        if self.created:
            shutil.rmtree(self.directory, ignore_errors=True)
            return
        for entry in self.directory.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)


@contextmanager
def place(directory: Path | None, signals: Signals) -> Iterator[Place]:
    """A directory for one demo alone. However this is left, no process of it is left. Refused."""
    guard: _Guard | None = None
    try:
        with signals.deferred():
            found, lock = _take(directory)
            guard = _Guard(found, lock)
        yield found
    finally:
        signals.ignore()
        if guard is not None:
            try:
                found.tear_down()
            finally:
                guard.dismiss()
                os.close(lock)


def _take(directory: Path | None) -> tuple[Place, int]:
    """The directory, made if need be, and its lock. Nothing is touched that is not a demo's."""
    if directory is None:
        found = Place(Path(tempfile.mkdtemp(prefix="git-cluster-demo-")).resolve(), keep=False, created=True)
        return found, _lock(found.directory)
    directory = directory.resolve()
    created = not directory.exists()
    try:
        directory.mkdir(parents=True, exist_ok=True)
        names = {entry.name for entry in directory.iterdir()}
    except OSError as error:
        raise Refused(
            f"{directory} cannot be used: {error.strerror}", hint="choose another directory"
        ) from error
    if names and "demo.lock" not in names:
        raise Refused(f"{directory} holds other files, and no demo", hint=OTHER)
    return Place(directory, keep=True, created=created), _lock(directory)


def _lock(directory: Path) -> int:
    deadline = time.monotonic() + LOCK_WAIT
    try:
        descriptor = os.open(directory / "demo.lock", os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise Refused(
            f"{directory} cannot be used: {error.strerror}", hint="choose another directory"
        ) from error
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise Refused(
                    f"a demo is running in {directory} already",
                    hint="stop that one, or choose another directory",
                ) from None
            time.sleep(0.1)


# ------------------------------------------------------------------------------------------------- the guard


class _Guard:
    """The guard's process. It inherits the lock, so that nobody uses the directory before it is done."""

    def __init__(self, found: Place, lock: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "cluster.demo.place", str(found.directory), *_flags(found)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(lock,),
            start_new_session=True,  # a Ctrl-C is not for it
        )

    def dismiss(self) -> None:
        assert self._process.stdin is not None
        with contextlib.suppress(OSError):
            self._process.stdin.write(DONE)
            self._process.stdin.close()
        self._process.wait()


def _flags(found: Place) -> list[str]:
    return [name for name in ("keep", "created") if getattr(found, name)]


def guard(directory: str, *flags: str) -> None:
    """Wait for the demo's end; if it did not say that it is done, do what it could not."""
    if sys.stdin.buffer.read() != DONE:
        Place(Path(directory), keep="keep" in flags, created="created" in flags).tear_down()


# ------------------------------------------------------------------------------------------------ processes


def stop_devices(directory: Path) -> None:
    """End each `git-cluster --config <directory>/<device>/config.toml serve`, whoever started it."""
    deadline = time.monotonic() + STOP_WAIT
    told: set[int] = set()
    while running := _devices(directory):
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                if time.monotonic() > deadline:
                    os.kill(pid, signal.SIGKILL)
                elif pid not in told:
                    os.kill(pid, signal.SIGTERM)
                    os.kill(pid, signal.SIGCONT)
        told |= set(running)
        time.sleep(0.05)


def _devices(directory: Path) -> list[int]:
    """The pids of the devices that serve out of `directory`, by their command lines."""
    configs = [str(path) for path in directory.glob("*/config.toml")]
    return [
        pid
        for pid, words in _command_lines()
        if words[-1] == "serve"
        and any(config in words or f"--config={config}" in words for config in configs)
    ]


def _command_lines() -> Iterator[tuple[int, list[str]]]:
    if Path("/proc/self/cmdline").exists():
        for folder in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if folder.name.isdigit() and (line := (folder / "cmdline").read_bytes()):
                    yield int(folder.name), os.fsdecode(line).rstrip("\0").split("\0")
        return
    listing = subprocess.run(["ps", "-axo", "pid=,command="], capture_output=True, text=True, check=False)
    for entry in listing.stdout.splitlines():
        pid, _, command = entry.strip().partition(" ")
        if command:
            yield int(pid), command.split()


if __name__ == "__main__":
    guard(*sys.argv[1:])
