"""The answer to a question that costs something, kept for a while: however many ask, it is asked once at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from threading import Condition, Thread
from typing import Generic, TypeVar

T = TypeVar("T")


class NoAnswer(Exception):
    """The question is still being asked, and nothing is known that counts."""


class Looked(Generic[T]):
    """What `look` returned, or raised, last.

    least: seconds for which that counts. rest: it counts for so many times as long as `look` took, at least, so that
    looking takes no more than one part in `rest` of the time. bygone: seconds for which an older answer is better than
    none.
    """

    def __init__(
        self, look: Callable[[], T], *, least: float, rest: float = 0.0, bygone: float = 0.0
    ) -> None:
        self._look, self._least, self._rest, self._bygone = look, least, rest, bygone
        self._change = Condition()
        self._answer: T | None = None
        self._error: Exception | None = None
        self._at, self._until = float("-inf"), float("-inf")
        self._looking = False

    def get(self, patience: float) -> T:
        """The answer. NoAnswer: there was none within `patience` seconds. Whatever `look` raises."""
        with self._change:
            if time.monotonic() >= self._until and not self._looking:
                self._looking = True
                Thread(target=self._work, name="look", daemon=True).start()
            self._change.wait_for(lambda: not self._looking or time.monotonic() < self._until, patience)
            if (
                time.monotonic() >= self._until
                and time.monotonic() - self._at > self._bygone
                and self._looking
            ):
                raise NoAnswer
            if self._error is not None:
                raise self._error
            if self._answer is None:
                raise NoAnswer
            return self._answer

    def _work(self) -> None:
        begun = time.monotonic()
        answer, error = None, None
        try:
            answer = self._look()
        except Exception as caught:
            error = caught
        with self._change:
            now = time.monotonic()
            self._answer, self._error, self._at = answer, error, now
            self._until = now + max(self._least, self._rest * (now - begun))
            self._looking = False
            self._change.notify_all()
