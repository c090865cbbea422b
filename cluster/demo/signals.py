"""How a demo is told to end: SIGINT, SIGTERM or SIGHUP becomes an exception, at a moment that leaves no loose ends."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Stopped(BaseException):
    """A signal asked for the end. Not an Exception: nothing on the way may take it for an error."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class Signals:
    """Raises Stopped in the main thread. A context manager: outside it, signals do what they did before."""

    def __init__(self) -> None:
        self._deferring = 0
        self._ignoring = False
        self._pending: int | None = None

    def __enter__(self) -> Signals:
        self._before = {number: signal.getsignal(number) for number in NUMBERS}
        for number in NUMBERS:
            if number != signal.SIGHUP or self._before[number] != signal.SIG_IGN:  # as nohup wants it
                signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """What runs inside is not interrupted; what came meanwhile is raised at the end."""
        self._deferring += 1
        try:
            yield
        finally:
            self._deferring -= 1
        if not self._deferring and self._pending is not None and not self._ignoring:
            raise Stopped(self._pending)

    def ignore(self) -> None:
        """The end has begun: another signal changes nothing."""
        self._ignoring = True

    def _handle(self, number: int, _: FrameType | None) -> None:
        if self._ignoring:
            return
        self._pending = number
        if not self._deferring:
            raise Stopped(number)
