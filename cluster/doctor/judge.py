"""What a machine's figures mean: values in, a finding out. Each threshold stands here once, with its reason."""

from __future__ import annotations

import re

from cluster.db import Server
from cluster.db.schema import check_schema
from cluster.doctor.finding import Finding, Verdict, ok, problem, warning
from cluster.errors import SchemaMismatch

OLDEST_GIT = (2, 37)
"""`git repack --cruft`, by which what no ref reaches is kept for a while and then dropped (cluster/maintenance.py).
core.fsync, without which a power cut takes acknowledged pushes, came with 2.36."""

TRIED_GIT = (2, 39)
"""What the tests run with."""

OLDEST_POSTGRES = 15
"""`unique nulls not distinct`, in schema.sql."""

CLOCK_WARNING, CLOCK_PROBLEM = 1.0, 10.0
"""Seconds. Times in logs of two devices can be compared up to the first; from the second on something is broken that
keeps clocks right, and what expires does so visibly early or late."""

SLOW_DATABASE = 0.020
"""Seconds of one round trip. A read needs one, a push about ten while others wait for its lock."""

SESSIONS_OF_DEVICE, SESSIONS_OF_PROCESS, SESSIONS_OF_COMMAND = 20, 8, 10
"""Database sessions that a device, each of its processes where it has workers, and a command line, need at the most."""

FREE_SESSIONS = 5
"""Fewer free sessions than that, and a device that starts, or a command, may get none."""

GIB = 2**30

SLOW_DISK = 0.100
"""Seconds of one durable write. A push needs several, while others wait for its lock."""

OPEN_FILES = 4096
"""A client that pushes needs about ten."""


def configuration(mode: int, *, secret: bool, exposed: bool, path: str) -> Finding:
    """mode: of the file. secret: it holds a password. exposed: others can get as far as this file."""
    if mode & 0o002 and exposed:
        return problem(
            "configuration",
            f"everybody on this machine can write to {path}",
            f"chmod o-rwx {path}: who writes to it decides which database and keys this machine uses",
        )
    if secret and mode & 0o004 and exposed:
        return warning(
            "configuration",
            f"everybody on this machine can read {path}, which holds the database's password",
            f"chmod o-rwx {path}, and change the password",
        )
    return ok("configuration", path)


def git_version(text: str) -> Finding:
    """text: what `git version` says."""
    found = re.match(r"git version (\d+)\.(\d+)(?:\.(\d+))?", text)
    least, tried = ".".join(map(str, OLDEST_GIT)), ".".join(map(str, TRIED_GIT))
    if not found:
        shown = "".join(c if c.isprintable() else "?" for c in text.strip())[:60]
        return problem(
            "git",
            f"the git on the PATH does not say its version, but {shown!r}",
            f"put Git {least} or newer on the PATH",
        )
    version, shown = (int(found[1]), int(found[2])), found[0].removeprefix("git version ")
    if version < OLDEST_GIT:
        return problem(
            "git",
            f"Git {shown} is too old",
            f"install Git {least} or newer (git-cluster is tried with {tried})",
        )
    if version < TRIED_GIT or version[0] > TRIED_GIT[0]:
        return warning(
            "git", f"Git {shown} was not tried with git-cluster", f"Git {tried} was; a newer 2.x is fine, too"
        )
    return ok("git", f"Git {shown}")


def postgres(server: Server, round_trip: float) -> Finding:
    """round_trip: in seconds."""
    version, where = server.version // 10_000, f" at {server.host}" if server.host else ""
    what = f"PostgreSQL {version}.{server.version % 10_000}{where}, {milliseconds(round_trip)} away"
    if version < OLDEST_POSTGRES:
        return problem("database", f"{what}: too old", f"upgrade to PostgreSQL {OLDEST_POSTGRES} or newer")
    if server.writes is False:
        return problem(
            "database",
            f"{what}: this role may not write to git-cluster's tables",
            "name the role that owns them in [cluster] database, or grant it select, insert, update and delete on all",
        )
    if round_trip > SLOW_DATABASE:
        return warning(
            "database",
            f"{what}: that is slow",
            f"reads wait for one round trip, pushes for about ten: have it within {milliseconds(SLOW_DATABASE)}",
        )
    return ok("database", what)


def schema(found: int | None) -> Finding:
    try:
        check_schema(found)
    except SchemaMismatch as error:
        return problem("schema", error.what, error.hint)
    return ok("schema", f"version {found}")


def durability(server: Server) -> Finding:
    """Whether what PostgreSQL has committed outlives a power cut, and a fail-over."""
    check = "durability"
    if not server.fsync:
        return problem(
            check,
            "fsync is off: a power cut destroys the database, acknowledged pushes and all",
            "alter system set fsync = on, then reload PostgreSQL",
        )
    if not server.full_page_writes:
        return problem(
            check,
            "full_page_writes is off: a power cut can leave torn pages behind",
            "alter system set full_page_writes = on, then reload PostgreSQL",
        )
    if server.synchronous_commit == "off":
        return warning(
            check,
            "synchronous_commit is off: a crash of PostgreSQL takes the pushes acknowledged last",
            "set it to on, for the server or for git-cluster's role: alter role … set synchronous_commit = on",
        )
    if server.synchronous_standbys and server.synchronous_commit == "local":
        return warning(
            check,
            "synchronous_commit is local: a fail-over may take the pushes acknowledged last",
            "set it to on, so that commits wait for the standby",
        )
    return ok(
        check,
        f"fsync is on, synchronous_commit is {server.synchronous_commit}"
        + (", with a synchronous standby" if server.synchronous_standbys else ""),
    )


def connections(most: int, used: int, devices: int, workers: int = 1) -> Finding:
    """most: sessions that PostgreSQL grants us. used: those of everybody, now. devices: that are not disabled.

    workers: of this device; that of the others is taken to be alike.
    """
    check, free = "connections", most - used
    of_device = SESSIONS_OF_DEVICE if workers == 1 else SESSIONS_OF_PROCESS * (workers + 1) + 4
    need = of_device * devices + SESSIONS_OF_COMMAND
    more = "raise max_connections (and the connection limit of role and database, if there is one)"
    if free < FREE_SESSIONS:
        return problem(check, f"{max(free, 0)} of {most} database sessions are left", f"{more}, or end some")
    if most < need:
        return warning(
            check,
            f"{most} database sessions for {devices} device{'' if devices == 1 else 's'}, which may need {need}",
            more,
        )
    return ok(check, f"{most} database sessions, {free} of them free; {need} may be needed")


def at_least(skew: float, doubt: float) -> float:
    """By how much a clock is off for certain, which was looked at with a doubt of so many seconds either way."""
    return max(0.0, skew - doubt) if skew > 0 else min(0.0, skew + doubt)


def clock(skew: float, whose: str = "the database's") -> Finding:
    """skew: seconds by which that clock is ahead of this machine's."""
    amount, check = abs(skew), "clock"
    if amount <= CLOCK_WARNING:
        return ok(check, f"within {max(amount, 0.001):.3f} s of {whose}")
    return Finding(
        check,
        Verdict.PROBLEM if amount > CLOCK_PROBLEM else Verdict.WARNING,
        f"this machine's clock is {seconds(amount)} {'behind' if skew > 0 else 'ahead of'} {whose}",
        "have the clocks of both kept right: chrony, systemd-timesyncd or another NTP client",
    )


def disk_space(free: int, total: int) -> Finding:
    """In bytes. Repacking writes a repository's packs once more before it drops the old ones, and one push may bring
    10 GiB. A share of a large disk is a lot of room, so above some size the share does not matter."""
    share = free / total if total else 0.0
    what = f"{size(free)} free of {size(total)} ({share:.0%})"
    hint = "make room, or move data_dir to a larger disk: pushes and syncs fail when it is full"
    if free < GIB or (share < 0.05 and free < 50 * GIB):
        return problem("disk space", what, hint)
    if share < 0.15 and free < 100 * GIB:
        return warning("disk space", what, hint)
    return ok("disk space", what)


def inodes(free: int, total: int) -> Finding | None:
    """None: all is well, or the file system has no fixed number of files."""
    share = free / total if total else 1.0
    if share >= 0.10:
        return None
    return Finding(
        "disk space",
        Verdict.PROBLEM if share < 0.02 or free < 1000 else Verdict.WARNING,
        f"room for {free:,} more files ({share:.0%} of all)",
        "remove files, or make the file system anew with more inodes",
    )


def disk_writes(taken: float) -> Finding:
    """taken: seconds of one durable write."""
    what = f"a durable write takes {milliseconds(taken)}"
    if taken > SLOW_DISK:
        return warning(
            "disk writes",
            f"{what}: that is slow",
            "every push waits for several: use a faster disk, or one less busy",
        )
    return ok("disk writes", what)


def open_files(most: int | None, whose: str) -> Finding:
    """most: the hard limit, None: there is none."""
    if most is not None and most < OPEN_FILES:
        return warning(
            "open files",
            f"{whose} may have {most} files open: enough for some {most // 10} pushes at once",
            "LimitNOFILE=65536 in git-cluster.service, or `ulimit -Hn`",
        )
    return ok("open files", f"{whose} may have {'any number' if most is None else most} open")


def private_file(check: str, mode: int, path: str) -> Finding | None:
    """Of a private key. None: only its owner can do anything with it."""
    if mode & 0o007:
        return problem(
            check,
            f"everybody on this machine can get at the private key {path} (mode {mode & 0o777:04o})",
            f"chmod 0600 {path}, and replace the key if somebody else could have read it",
        )
    if mode & 0o070:
        return warning(
            check,
            f"the group of {path} can get at this private key (mode {mode & 0o777:04o})",
            f"chmod 0600 {path}",
        )
    return None


def data_dir(path: str, *, owner: str, mine: bool, mode: int, root: bool) -> Finding:
    """owner: whose it is. mine: that is who asks. root: root asks."""
    check = "data folder"
    if mode & 0o002:
        return problem(check, f"everybody on this machine can write to {path}", f"chmod o-rwx {path}")
    if not mine:
        whom = "root" if root else "the user that runs this"
        finding = warning if root else problem
        return finding(
            check,
            f"{path} belongs to {owner}, not to {whom}; what is said of files and keys may not be true for {owner}",
            f"run it as {owner}: sudo -u {owner} git-cluster doctor",
        )
    if mode & 0o004:
        return warning(check, f"everybody on this machine can list {path}", f"chmod o-rw {path}")
    return ok(check, path)


def milliseconds(taken: float) -> str:
    value = taken * 1000
    return f"{value:.1f} ms" if value < 10 else f"{value:.0f} ms"


def seconds(amount: float) -> str:
    """A stretch of time, roughly."""
    for unit, name in ((86400, "days"), (3600, "h"), (60, "min")):
        if amount >= 2 * unit:
            return f"{amount / unit:.0f} {name}"
    return f"{amount:.1f} s" if amount < 10 else f"{amount:.0f} s"


def size(count: int) -> str:
    for unit, name in ((2**40, "TiB"), (2**30, "GiB"), (2**20, "MiB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count / 1024:.0f} KiB"
