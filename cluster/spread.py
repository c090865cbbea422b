"""Copies on several devices at once: as many attempts as copies are needed, and another one where one falls silent.

    needed 2    one ─────▶ kept        two ─ ─ (silent for HEDGE) ─ ─     three ─────▶ kept: enough

No decision of who comes first is made here: candidates come best first (versions.stage_peers).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from threading import Condition, Thread
from typing import Generic, TypeVar

from cluster.errors import PeerFailed

T = TypeVar("T")

HEDGE = 2.5
"""Seconds without a sign of life after which the next device is asked as well: who is at work says so every 2 s."""


class Attempt:
    """What one attempt tells of itself, in its own thread."""

    def __init__(self) -> None:
        self.seen = time.monotonic()
        self.off = False
        self._abandon: Callable[[], None] = lambda: None

    def alive(self) -> None:
        """Something went on. PeerFailed: it is not needed any more."""
        self.seen = time.monotonic()
        if self.off:
            raise PeerFailed("enough copies were made elsewhere")

    def begun(self, abandon: Callable[[], None]) -> None:
        """abandon: what ends it from another thread, where it waits for the device."""
        self._abandon = abandon
        self.alive()

    def call_off(self) -> None:
        self.off = True
        self._abandon()


class Spread(Generic[T]):
    """attempt: makes a copy, or raises PeerFailed. failed: hears of that. late: of a copy that is not
    needed any more, or may be there in spite of its end.

    Whatever else `attempt` raises ends it all, and is raised by `run`.
    """

    def __init__(
        self,
        attempt: Callable[[T, Attempt], None],
        *,
        failed: Callable[[T, PeerFailed], None],
        late: Callable[[T], None],
    ) -> None:
        self._attempt, self._failed, self._late = attempt, failed, late
        self._change = Condition()
        self._made: list[T] = []
        self._running: list[Attempt] = []
        self._error: BaseException | None = None
        self._over = False

    def run(self, candidates: Sequence[T], needed: int) -> list[T]:
        """The candidates that made a copy, `needed` of them at most."""
        left = deque(candidates)
        with self._change:
            while len(self._made) < needed and self._error is None:
                lacking = needed - len(self._made)
                now = time.monotonic()
                lively = sum(now - attempt.seen < HEDGE for attempt in self._running)
                while left and lively < lacking:
                    self._start(left.popleft())
                    lively += 1
                if not self._running:
                    break
                self._change.wait(HEDGE / 5 if left else None)
            self._over = True
            running, made = list(self._running), list(self._made)
        for attempt in running:
            attempt.call_off()
        if self._error is not None:
            raise self._error
        return made

    def _start(self, candidate: T) -> None:
        attempt = Attempt()
        self._running.append(attempt)
        Thread(target=self._work, args=(candidate, attempt), name="stage", daemon=True).start()

    def _work(self, candidate: T, attempt: Attempt) -> None:
        failure: PeerFailed | None = None
        error: BaseException | None = None
        try:
            self._attempt(candidate, attempt)
        except PeerFailed as caught:
            failure = caught
        except BaseException as caught:
            error = caught
        with self._change:
            self._running.remove(attempt)
            over = self._over
            if not over and error is not None:
                self._error = error
            elif not over and failure is None:
                self._made.append(candidate)
            if failure is not None and not over:
                self._failed(candidate, failure)
            self._change.notify_all()
        if over and error is None:  # it may have been called off just as it was done
            with suppress(PeerFailed):
                self._late(candidate)
