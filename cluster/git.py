"""Running Git. The only module that starts Git processes, so that all of them run in the same clean environment."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from cluster import failing
from cluster.errors import GitFailed

ZERO = {"sha1": "0" * 40, "sha256": "0" * 64}
"""Git's "no object" in each object format."""

DURABLE = {"core.fsync": "committed,pack-metadata", "core.fsyncMethod": "batch"}
"""An acknowledged push must outlive a power cut: loose objects, packs with their indexes, and refs are flushed before
Git says done. (Git's own default leaves loose objects and refs to the kernel.)"""

HIDDEN = {"transfer.hideRefs": "refs/cluster"}
"""refs/cluster/ is ours: not advertised, and not to be written by anybody's push."""

TELL = 3.0
"""Seconds between two lines of progress to a person who waits."""

PATH = re.compile(r"(?<![\w:/.])/(?:[^\s'\":]+/)+([^\s'\":/]+)")
"""An absolute path; its last component is what a person may see."""

_KEPT = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "TZ", "LD_LIBRARY_PATH")


def environment(config: Mapping[str, str] | None = None, **more: str) -> dict[str, str]:
    """What a Git process of ours sees: nothing of the daemon's environment that could steer it.

    config: settings that win over the repository's own, by way of GIT_CONFIG_COUNT.
    """
    env = {name: os.environ[name] for name in _KEPT if name in os.environ}
    env.update(GIT_CONFIG_NOSYSTEM="1", GIT_CONFIG_GLOBAL=os.devnull, GIT_TERMINAL_PROMPT="0", LC_ALL="C")
    env["GIT_NO_REPLACE_OBJECTS"] = "1"
    settings = {"safe.directory": "*", **(config or {})}
    env["GIT_CONFIG_COUNT"] = str(len(settings))
    for number, (key, value) in enumerate(settings.items()):
        env[f"GIT_CONFIG_KEY_{number}"] = key
        env[f"GIT_CONFIG_VALUE_{number}"] = value
    env.update(more)
    return env


def run(
    arguments: Sequence[str],
    *,
    git_dir: Path | None = None,
    data: bytes | Iterable[bytes] = b"",
    config: Mapping[str, str] | None = None,
    env: Mapping[str, str] | None = None,
    pass_fds: Sequence[int] = (),
    timeout: float | None = None,
    refuse: re.Pattern[bytes] | None = None,
) -> bytes:
    """Standard output of `git <arguments>`. GitFailed carries the last line that Git wrote to stderr; DiskFailed has it
    as its cause. refuse: words on stderr that make it a failure, though Git itself goes on."""
    full = environment(config, **(env or {}))
    if git_dir is not None:
        full["GIT_DIR"] = str(git_dir)
    try:
        done = subprocess.run(
            ["git", *arguments],
            input=data if isinstance(data, bytes) else b"".join(data),
            capture_output=True,
            env=full,
            pass_fds=pass_fds,
            timeout=timeout,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise GitFailed(f"git {arguments[0]} took too long", hint="look at this device's load") from error
    except OSError as error:
        raise GitFailed("git could not be started", hint="is Git installed on this device?") from error
    if done.returncode != 0 or (refuse and refuse.search(done.stderr)):
        raise failed(arguments[0], done.stderr)
    return done.stdout


def run_telling(
    arguments: Sequence[str],
    *,
    data: bytes,
    env: Mapping[str, str],
    config: Mapping[str, str],
    pass_fds: Sequence[int],
    tell: Callable[[str], None],
) -> None:
    """Run `git <arguments>`, which reports its progress on stderr, and pass on how far it is every TELL seconds."""
    heard, last = b"", time.monotonic()
    with tempfile.TemporaryFile() as names:
        names.write(data)
        names.seek(0)
        with subprocess.Popen(
            ["git", *arguments],
            stdin=names,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=environment(config, **env),
            pass_fds=pass_fds,
        ) as process:
            assert process.stderr is not None
            while text := os.read(process.stderr.fileno(), 65536):
                heard = (heard + text)[-4096:]
                if time.monotonic() - last > TELL:
                    last = time.monotonic()
                    tell(heard.replace(b"\r", b"\n").decode("utf-8", "replace").strip().rpartition("\n")[2])
    if process.returncode != 0:
        raise failed(arguments[0], heard)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a process that leads a group, and its hooks and children, unless it has ended: its number may be another
    process's by now."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def succeeds(
    arguments: Sequence[str], *, git_dir: Path, data: bytes = b"", env: Mapping[str, str] | None = None
) -> bool:
    """Whether `git <arguments>` exits with 0."""
    try:
        run(arguments, git_dir=git_dir, data=data, env=env)
    except GitFailed:
        return False
    return True


def failed(command: str, stderr: bytes) -> GitFailed:
    """The error for a Git process that ended badly, from what it said."""
    error = GitFailed(f"git {command} failed: {last_line(stderr)}", hint="see this device's log")
    disk = failing.of_words(stderr)
    if disk is None:
        return error
    disk.__cause__ = error
    return disk


def last_line(stderr: bytes) -> str:
    """What a process says was wrong, cut to what fits a message, without the server's paths: of a full disk, else its
    last error, else its last line (Git's advice comes behind its errors)."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    telling = (
        [line for line in lines if failing.WORDS.search(line)]
        or [line for line in lines if line.startswith((b"fatal: ", b"error: "))]
        or lines
    )
    said = telling[-1].decode("utf-8", "replace").strip() if telling else "no message"
    return PATH.sub(r"\1", said)[:300]
