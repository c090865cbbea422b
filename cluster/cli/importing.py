"""The work of `git-cluster repo import`: fetch another repository whole, then push it as one version.

It is fetched with the person's own Git settings (credentials, proxies) into a temporary bare repository, and
pushed with none of their SSH settings to a device, as any push is: what the cluster promises of a push holds for it.
All refs go along, pull requests' and notes too, except refs/cluster/, which is the cluster's own.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from cluster.cli import show
from cluster.db import Database
from cluster.errors import ClusterError, GitFailed, NoSource, NotFound, Refused
from cluster.model import Device, Snapshot
from cluster.operator import ssh_environment

_LOCAL = (
    "GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY", "GIT_COMMON_DIR", "GIT_NAMESPACE",
    "GIT_ALTERNATE_OBJECT_DIRECTORIES", "GIT_QUARANTINE_PATH", "GIT_PREFIX", "GIT_SHALLOW_FILE",
)  # fmt: skip
"""What would point our Git at the repository in which somebody typed `git-cluster repo import`."""


@dataclass(frozen=True, slots=True)
class Fetched:
    """A mirror of the source. `head`: the ref its HEAD means; refs: how many it has."""

    git_dir: Path
    head: str
    object_format: str
    refs: int


@contextmanager
def fetched(source: str) -> Iterator[Fetched]:
    """A mirror of `source`, for as long as it is needed."""
    _check(source)
    with tempfile.TemporaryDirectory(prefix="git-cluster-import-", ignore_cleanup_errors=True) as name:
        git_dir = Path(name, "mirror.git")
        # A local path as it is, so that one that looks like "host:path" or "-x" is not taken for something else.
        place = str(Path(source).absolute()) if Path(source).exists() else source
        _git(
            ["clone", "--mirror", "--no-tags", "--quiet", *_progress(), "--", place, str(git_dir)],
            failed=f"{show.printable(source)} cannot be fetched",
            hint="Is it a repository, and can you `git clone` it from here yourself?",
        )
        yield _look(source, git_dir)


def _check(source: str) -> None:
    """Say plainly what Git would say in riddles: a local path that is not there or holds no repository."""
    if "://" in source or re.match(r"[^/]+:", source) or "::" in source:
        return
    path, shown = Path(source), show.printable(source)
    if not path.exists():
        raise NotFound(f"there is nothing at {shown}", hint="Give the path of a repository, or a URL.")
    if path.is_dir():
        done = subprocess.run(
            ["git", "-C", str(path.absolute()), "rev-parse", "--git-dir"],
            env=_environment(),
            capture_output=True,
            check=False,
        )
        # One that belongs to somebody else is a repository, too: Git's own words about it come with the clone.
        if done.returncode and b"not a git repository" in done.stderr:
            raise NotFound(
                f"{shown} is not a Git repository", hint="Give the path of a repository, or a URL."
            )


def _look(source: str, git_dir: Path) -> Fetched:
    if _ask(git_dir, "rev-parse", "--is-shallow-repository") == "true":
        raise Refused(
            f"{show.printable(source)} is a shallow clone, whose history is not whole",
            hint="Make it whole first, with `git fetch --unshallow`, or import what it was cloned from.",
        )
    refs = _ask(git_dir, "for-each-ref", "--format=%(refname)").splitlines()
    ours = [ref for ref in refs if ref.startswith("refs/cluster/")]
    if ours:
        _git(["update-ref", "--stdin"], git_dir=git_dir, data="".join(f"delete {ref}\n" for ref in ours))
    kept = [ref for ref in refs if not ref.startswith("refs/cluster/")]
    return Fetched(
        git_dir,
        head=_default_branch(_ask(git_dir, "symbolic-ref", "--quiet", "HEAD"), kept),
        # Where there is nothing to clone, Git 2.39 takes its own default for the format.
        object_format=(not kept and _ask(None, "-C", source, "rev-parse", "--show-object-format"))
        or _ask(git_dir, "rev-parse", "--show-object-format"),
        refs=len(kept),
    )


def _default_branch(head: str, refs: Sequence[str]) -> str:
    """HEAD's target; where it is detached or points at nothing: main, or the first branch there is."""
    branches = [ref for ref in refs if ref.startswith("refs/heads/")]
    if head.startswith("refs/heads/") and (head in branches or not branches):
        return head
    main = "refs/heads/main"
    return main if main in branches or not branches else branches[0]


def push(db: Database, repository_id: int, name: str, copy: Fetched) -> str | None:
    """Push everything in one go; the device that took it, or None where there was nothing. Undoes a failure.

    The repository is deleted again only while it is at version 0: once somebody has pushed to it, it is theirs.
    """
    if not copy.refs:
        return None
    try:
        device = _reachable(db.snapshot_of(repository_id))
        with ssh_environment(db, device, _environment()) as environment:
            _git(
                ["push", "--atomic", "--quiet", *_progress(), f"{device.ssh_url}/{name}", "refs/*:refs/*"],
                git_dir=copy.git_dir,
                environment=environment,
                failed=f"the push to device {device.name} failed",
                hint="Nothing was imported. `git-cluster status` shows the devices.",
            )
    except BaseException:
        with suppress(ClusterError):
            if db.snapshot_of(repository_id).repository.version == 0:
                db.delete_repository(name)
        raise
    return device.name


def _reachable(snapshot: Snapshot) -> Device:
    """An online device of the repository that takes a connection from here."""
    import socket
    from urllib.parse import urlsplit

    for replica in snapshot.replicas:
        url = urlsplit(replica.device.ssh_url)
        if replica.device.online:
            with suppress(OSError):
                socket.create_connection((url.hostname or "", url.port or 22), 5).close()
                return replica.device
    raise NoSource(
        "no device that would hold it is online and can be reached from here",
        hint="Start one with `git-cluster serve`; `git-cluster status` shows them.",
    )


# Git, with its progress for the person who waits


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if name not in _LOCAL} | {"LC_ALL": "C"}


def _progress() -> list[str]:
    return ["--progress"] if sys.stderr.isatty() else []


def _ask(git_dir: Path | None, *arguments: str) -> str:
    """The output of a Git command; "" where it has none or fails, as `symbolic-ref` does for a detached HEAD."""
    done = subprocess.run(
        ["git", *arguments],
        env=_environment() | ({"GIT_DIR": str(git_dir)} if git_dir else {}),
        capture_output=True,
        check=False,
    )
    return done.stdout.decode("utf-8", "surrogateescape").strip()


def _git(
    arguments: Sequence[str],
    *,
    git_dir: Path | None = None,
    environment: Mapping[str, str] | None = None,
    data: str | None = None,
    failed: str = "git failed",
    hint: str = "",
) -> None:
    """Run Git; what it says goes to our stderr as it comes. GitFailed with the line that says why."""
    env = dict(environment or _environment())
    if git_dir:
        env["GIT_DIR"] = str(git_dir)
    with subprocess.Popen(
        ["git", *arguments],
        env=env,
        stdin=subprocess.PIPE if data is not None else None,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    ) as process:
        assert process.stderr is not None
        try:
            if process.stdin:
                process.stdin.write((data or "").encode("utf-8", "surrogateescape"))
                process.stdin.close()
            said = _pass_on(process.stderr.fileno())
            code = process.wait()
        except BaseException:
            process.send_signal(signal.SIGTERM)
            raise
    if code:
        raise GitFailed(f"{failed}: {_why(said)}", hint=hint)


def _pass_on(descriptor: int) -> str:
    """What Git says, all of it returned, and shown as it comes: its progress, and what the far side has to say.

    Its errors are not shown, nor what it adds to them: one line sums them up.
    """
    said = rest = b""
    shows_progress, failed = sys.stderr.isatty(), False
    while chunk := os.read(descriptor, 8192):
        said = (said + chunk)[-65536:]
        *pieces, rest = re.split(rb"(?<=[\r\n])", rest + chunk)
        for piece in pieces:
            failed = failed or piece.startswith((b"fatal: ", b"error: ", b"To "))
            if not failed and (shows_progress or piece.startswith(b"remote: ")):
                sys.stderr.buffer.write(piece)
        sys.stderr.flush()
    return said.decode(errors="replace")


def _why(said: str) -> str:
    """The line of Git's stderr that says what was wrong: a refusal, the cluster's own word, else the first error."""
    lines = [show.printable(line.strip()) for line in re.split(r"[\r\n]+", said) if line.strip()]
    for mark in ("! [", "remote: cluster: ", "ERROR: ", "fatal: ", "error: "):
        for number, line in enumerate(lines):
            if mark in line:
                if number and "Could not read from remote repository" in line:
                    return lines[number - 1]  # ssh's own word
                return line.partition(mark)[2] if mark.endswith(": ") else line
    return lines[-1] if lines else "git said nothing"
