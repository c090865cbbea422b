"""Work that many ask for at the same time, and one of them does: a sync, above all.

Whoever comes while nobody is at work does it. Whoever comes later waits for the end of it, without a lock, and hears
how far it is. An attempt that began before somebody came tells them nothing of how things are now: where it failed,
they make another one, or wait for that; so nobody waits for more than two.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Condition, Lock
from typing import TypeVar

from cluster.errors import ClientGone, ClusterError

T = TypeVar("T")
Say = Callable[[str], None]

QUIET = 1.0
"""Seconds of waiting before the person is told: most syncs are over by then."""

SLICE = 1.0
"""Seconds between two looks whether the client that waits is still there."""


@dataclass(eq=False, slots=True)
class _Attempt:
    change: Condition = field(default_factory=Condition)
    line: str = ""
    ended: bool = False
    error: ClusterError | None = None


class Joined:
    """What is at work in this process, by key. quiet: seconds for which who waits is told nothing."""

    def __init__(self, quiet: float = QUIET) -> None:
        self._quiet = quiet
        self._mutex = Lock()
        self._attempts: dict[int, _Attempt] = {}

    def run(self, key: int, work: Callable[[Say], T], say: Say, gone: Callable[[], bool]) -> T | None:
        """What `work` returns; None: somebody else did it meanwhile, and it went well.

        `work` gets a way to tell how far it is, to everybody who waits. Whatever it raises; ClientGone.
        """
        tried = 0
        while True:
            with self._mutex:
                attempt = self._attempts.get(key)
                mine = attempt is None
                if attempt is None:
                    attempt = self._attempts[key] = _Attempt()
            if mine:
                return self._do(key, attempt, work, say)
            self._wait(attempt, say, gone)
            if attempt.error is None:
                return None
            tried += 1
            if tried > 1:  # this one began after we had come
                raise copy.copy(attempt.error) from attempt.error

    def _do(self, key: int, attempt: _Attempt, work: Callable[[Say], T], say: Say) -> T:
        def tell(line: str) -> None:
            with attempt.change:
                attempt.line = line
                attempt.change.notify_all()
            say(line)

        error: ClusterError | None = None
        try:
            return work(tell)
        except ClientGone:  # its own client, which is no reason for the others
            raise
        except ClusterError as caught:
            error = caught
            raise
        finally:
            with self._mutex:
                del self._attempts[key]
            with attempt.change:
                attempt.error, attempt.ended = error, True
                attempt.change.notify_all()

    def _wait(self, attempt: _Attempt, say: Say, gone: Callable[[], bool]) -> None:
        """Until it has ended. Each says for themselves how far it is: a client that reads slowly delays nobody else."""
        told, speak = "", time.monotonic() + self._quiet
        while True:
            with attempt.change:
                if not attempt.ended and (attempt.line == told or time.monotonic() < speak):
                    attempt.change.wait(SLICE)
                line, ended = attempt.line, attempt.ended
            if ended:
                return
            if line != told and time.monotonic() >= speak:
                told = line
                say(line)
            if gone():
                raise ClientGone("the client hung up while it waited for a sync")
