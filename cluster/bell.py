"""Wakes whoever waits for something to happen in the database: rung by the daemon's listener, whatever it heard.

A hint, never the truth: who waits looks every few seconds anyway, and whoever rings twice while nobody waits is heard
once.
"""

from __future__ import annotations

from threading import Condition


class Bell:
    """heard: how often it had rung when somebody looked last; ringing since then is not missed."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._rung = 0

    def ring(self) -> None:
        with self._changed:
            self._rung += 1
            self._changed.notify_all()

    @property
    def rung(self) -> int:
        """How often, so far."""
        return self._rung

    def wait(self, heard: int, seconds: float) -> int:
        """Until it has rung since `heard`, for so many seconds at the most; what to say as `heard` next time."""
        with self._changed:
            self._changed.wait_for(lambda: self._rung != heard, seconds)
            return self._rung
