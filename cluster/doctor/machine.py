"""A look at this machine: the configuration file, programs, the disk. Changes nothing that stays."""

from __future__ import annotations

import errno
import fcntl
import os
import pwd
import re
import resource
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

from cluster import git, hooks
from cluster.config import Config, redact
from cluster.disk import FileLock
from cluster.doctor import judge
from cluster.doctor.finding import Finding, ok, problem, warning
from cluster.errors import ClusterError
from cluster.marker import flush_directory

ANSWER = 5.0
"""Seconds for a program to say its version."""

WRITES = 3
"""Durable writes that are timed; the fastest counts, as another may have had to wait for somebody else's."""

EXECUTED = 73
"""The exit code by which a script shows that it ran."""


_THEIRS = "it must belong to the user that git-cluster runs as, and doctor must run as that user"
_WHAT_TO_DO = {
    errno.ENOSPC: "make room: pushes and syncs fail",
    errno.EDQUOT: "raise the quota: pushes and syncs fail",
    errno.EROFS: "mount it read-write; if it was, the system's log says why it no longer is",
    errno.EACCES: _THEIRS,
    errno.EPERM: _THEIRS,
}


def configuration(config: Config) -> list[Finding]:
    path, database = config.path, config.cluster.database.replace(":@", "@")  # an empty password is none
    secret = redact(database) != database
    exposed = all(parent.stat().st_mode & 0o001 for parent in path.resolve().parents)
    return [judge.configuration(path.stat().st_mode, secret=secret, exposed=exposed, path=str(path))]


def git_program() -> list[Finding]:
    if shutil.which("git") is None:
        least = ".".join(map(str, judge.OLDEST_GIT))
        return [problem("git", "there is no git on the PATH", f"install Git {least} or newer, or set PATH")]
    try:
        said = git.run(["version"], timeout=ANSWER)
    except ClusterError as error:
        return [problem("git", error.what, "put a Git that works on the PATH")]
    return [judge.git_version(said.decode(errors="replace"))]


def openssh() -> list[Finding]:
    """Devices talk to each other without it; `repo import` pushes through it."""
    if shutil.which("ssh") is None:
        return [
            warning(
                "openssh",
                "there is no ssh on the PATH: `repo import` and `demo` need it",
                "install OpenSSH's client",
            )
        ]
    done = subprocess.run(["ssh", "-V"], capture_output=True, timeout=ANSWER, check=False)
    said = (done.stderr or done.stdout).decode(errors="replace").partition(",")[0].strip()
    return [ok("openssh", "".join(c for c in said if c.isprintable())[:60] or "ssh is there")]


def open_files(data_dir: Path) -> list[Finding]:
    """Of this device's daemon where that runs, else of whatever is started from here."""
    daemon = None
    with suppress(OSError):
        _, daemon = holder(daemon_lock(data_dir))
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most, whose = (None if hard == resource.RLIM_INFINITY else hard), "a process started from here"
    if daemon is not None:
        with suppress(OSError, ValueError):
            limits = Path(f"/proc/{daemon}/limits").read_text()
            if found := re.search(r"^Max open files +\S+ +(\d+|unlimited)", limits, re.MULTILINE):
                most, whose = (None if found[1] == "unlimited" else int(found[1])), "the daemon"
    return [judge.open_files(most, whose)]


def disk(data_dir: Path) -> list[Finding]:
    """The folder itself, then the room on its disk, then what can be done there."""
    try:
        status = data_dir.stat()
    except FileNotFoundError:
        return [
            problem(
                "data folder",
                f"{data_dir} is not there",
                "is its disk mounted? `git-cluster serve` makes it on a new device",
            )
        ]
    if not data_dir.is_dir():
        return [problem("data folder", f"{data_dir} is no folder", "name one in [device] data_dir")]
    folder = judge.data_dir(
        str(data_dir),
        owner=_name(status.st_uid),
        mine=status.st_uid == os.geteuid(),
        mode=status.st_mode,
        root=os.geteuid() == 0,
    )
    room = os.statvfs(data_dir)
    findings = [folder, judge.disk_space(room.f_bavail * room.f_frsize, room.f_blocks * room.f_frsize)]
    if few := judge.inodes(room.f_favail, room.f_files):
        findings.append(few)
    try:
        with _scratch(data_dir) as scratch:
            findings += [_writes(scratch), _locks(scratch), _hooks(scratch)]
    except OSError as error:
        findings.append(
            problem(
                "disk writes",
                f"nothing can be written to {data_dir}: {error.strerror}",
                _WHAT_TO_DO.get(error.errno or 0, "look at the disk, and at the system's log"),
            )
        )
    return findings


def _name(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


@contextmanager
def _scratch(data_dir: Path) -> Iterator[Path]:
    """A folder where the device itself makes its own, and by a name that it removes at its start."""
    run = data_dir / "run"
    path = (run if run.is_dir() else data_dir) / f"scratch-doctor-{uuid4().hex}"
    path.mkdir(mode=0o700)
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


def _writes(scratch: Path) -> Finding:
    """As the marker is written with each push: a file flushed, renamed, its folder flushed."""
    fastest = float("inf")
    for number in range(WRITES):
        new, place = scratch / "new", scratch / f"file{number}"
        since = time.monotonic()
        with new.open("wb") as file:
            file.write(b"x" * 512)
            file.flush()
            os.fsync(file.fileno())
        new.rename(place)
        flush_directory(scratch)
        fastest = min(fastest, time.monotonic() - since)
        if place.read_bytes() != b"x" * 512 or new.exists():
            return problem(
                "disk writes",
                "a file that was written and renamed is not what it was",
                "use a local file system, such as ext4 or xfs, for data_dir",
            )
    return judge.disk_writes(fastest)


def _locks(scratch: Path) -> Finding:
    """flock(2) keeps two processes from one replica (cluster/disk.py)."""
    hint = "use a local file system for data_dir, or one whose flock works (NFS: version 4, without nolock)"
    first, second = FileLock(scratch / "lock"), FileLock(scratch / "lock")
    try:
        if not first.try_acquire():
            return problem("disk locks", "a file lock that nobody has is not to be had", hint)
        if second.try_acquire():
            return problem("disk locks", "two can have the same file lock at once", hint)
        first.release()
        if not second.try_acquire():
            return problem("disk locks", "a file lock that was given back is not to be had", hint)
        return ok("disk locks", "flock works")
    except OSError as error:
        return problem("disk locks", f"flock does not work there: {error.strerror}", hint)
    finally:
        first.close()
        second.close()


def _hooks(scratch: Path) -> Finding:
    """Through hooks a push is committed: the folder as a push makes it, and a script that really runs there."""
    hint = "mount the disk of data_dir without noexec"
    try:
        folder = hooks.folder(scratch, scratch / "own")
    except ClusterError as error:
        return problem("hooks", error.what, hint)
    script = folder / "try"
    script.write_text(f"#!/bin/sh\nexit {EXECUTED}\n")
    script.chmod(0o755)
    try:
        done = subprocess.run([str(script)], capture_output=True, timeout=ANSWER, check=False)
    except OSError as error:
        return problem("hooks", f"this device cannot run hooks: {error.strerror}", hint)
    if done.returncode != EXECUTED:
        return problem("hooks", "this device cannot run hooks: a script did not run", "is /bin/sh there?")
    return ok("hooks", "can be run")


def daemon_lock(data_dir: Path) -> Path:
    """What a daemon holds for as long as it serves from a folder (cluster/daemon.py)."""
    return data_dir / "serve.lock"


def holder(lock: Path) -> tuple[bool, int | None]:
    """Whether somebody holds an flock(2) on a file, and the process, where that can be told. Disturbs nobody. OSError
    where the file cannot be looked at."""
    try:
        status = lock.stat()
    except FileNotFoundError:
        return False, None
    device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    with suppress(OSError):
        for line in Path("/proc/locks").read_text().splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE 4711 fe:01:123456 0 EOF
            if len(words) > 5 and words[1] == "FLOCK" and words[5] == device:
                return True, int(words[4]) if int(words[4]) > 0 else None
    fd = os.open(lock, os.O_RDONLY | os.O_CLOEXEC)
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)  # processes of another container are not in that list
    except BlockingIOError:
        return True, None
    finally:
        os.close(fd)
    return False, None
