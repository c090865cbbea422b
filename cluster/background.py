"""Git processes that may take their time: at the lowest priority, and ended with the daemon.

CPU time comes from whoever leaves some (nice 19), and so does the disk (the idle class of ionice, on schedulers that
know it). Each runs in a process group of its own, with the children that Git starts.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock, Thread
from typing import IO

from cluster import git
from cluster.errors import GitFailed

SPARING = {"pack.threads": "1"}

PATIENCE = 2.0
"""Seconds for a process to end when it is asked to, before it is made to."""

KEPT = 1 << 16
"""Bytes of what a process says that are kept, of its beginning and of its end."""


@dataclass(frozen=True, slots=True)
class Done:
    """A process that has ended: its exit code (negative: the number of a signal) and what it said."""

    code: int
    out: bytes
    err: bytes


class Background:
    """The processes that run now. One for each daemon."""

    def __init__(self) -> None:
        self._mutex = Lock()
        self._running: set[subprocess.Popen[bytes]] = set()
        self._stopped = False

    def run(
        self,
        arguments: Sequence[str],
        *,
        git_dir: Path | None = None,
        env: Mapping[str, str] | None = None,
        config: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> Done:
        """`git <arguments>`, however it ends. GitFailed where it did not begin, or was ended by `stop`."""
        full = git.environment({**SPARING, **(config or {})}, **(env or {}))
        if git_dir is not None:
            full["GIT_DIR"] = str(git_dir)
        process = self._start([*_prefix(), "git", *arguments], full, pass_fds)
        assert process.stdout is not None and process.stderr is not None
        with process:
            out, err = _Heard(process.stdout), _Heard(process.stderr)
            out.join()
            err.join()
            process.wait()
        with self._mutex:
            self._running.discard(process)
            if self._stopped:
                raise _stopping(arguments)
        return Done(process.returncode, out.text, err.text)

    def do(
        self,
        arguments: Sequence[str],
        *,
        git_dir: Path,
        config: Mapping[str, str] | None = None,
        pass_fds: Sequence[int] = (),
    ) -> None:
        """The same, where it has to succeed. GitFailed carries what Git said was wrong."""
        done = self.run(arguments, git_dir=git_dir, config=config, pass_fds=pass_fds)
        if done.code != 0:
            raise git.failed(arguments[0], done.err)

    def _start(
        self, command: Sequence[str], env: Mapping[str, str], pass_fds: Sequence[int]
    ) -> subprocess.Popen[bytes]:
        with self._mutex:
            if self._stopped:
                raise _stopping(command)
            try:
                process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    env=env,
                    pass_fds=pass_fds,
                    start_new_session=True,
                )
            except OSError as error:
                raise GitFailed(
                    "git could not be started", hint="is Git installed on this device?"
                ) from error
            self._running.add(process)
            return process

    def stop(self) -> None:
        """End everything that runs, and begin nothing any more. Git removes its temporary files when it is asked."""
        with self._mutex:
            self._stopped = True
            running = list(self._running)
        for how in (signal.SIGTERM, signal.SIGKILL):
            for process in running:
                if process.poll() is None:
                    with suppress(ProcessLookupError):
                        os.killpg(process.pid, how)
            deadline = time.monotonic() + PATIENCE
            for process in running:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(max(0.0, deadline - time.monotonic()))


class _Heard(Thread):
    """Reads a stream to its end; keeps its beginning and its end."""

    def __init__(self, stream: IO[bytes]) -> None:
        super().__init__(daemon=True, name="background output")
        self._stream, self._first, self._last = stream, b"", b""
        self.start()

    def run(self) -> None:
        while data := os.read(self._stream.fileno(), KEPT):
            if (room := KEPT - len(self._first)) > 0:
                self._first += data[:room]
                data = data[room:]
            self._last = (self._last + data)[-KEPT:]

    @property
    def text(self) -> bytes:
        return self._first + self._last


def _prefix() -> list[str]:
    """What lowers the priority of the command behind it, of the programs that are there."""
    return (["nice", "-n", "19"] if shutil.which("nice") else []) + (
        ["ionice", "-c", "3", "-t"] if shutil.which("ionice") else []
    )


def _stopping(arguments: Sequence[str]) -> GitFailed:
    return GitFailed(f"git {arguments[0]} did not run to its end: this device stops")
