"""Writes down how this device does, a row a minute, and how many copies repositories have: what the charts of the
status page are drawn from (cluster/db/measurements.py).

Minutes are those of the database's clock, so that the devices' rows are of the same minutes. One that could not be
written, because the database was away, is written later. What a device does not run to see, nobody writes down.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from contextlib import suppress
from dataclasses import asdict
from datetime import datetime
from threading import Event, Thread

from cluster.db import Database, Minute
from cluster.errors import ClusterError, DatabaseUnavailable
from cluster.tally import Counted, Tally

_log = logging.getLogger(__name__)

MINUTE = 60
"""Seconds that a row is about."""

MOST_PENDING = 60
"""Minutes that are kept for a database that is away."""

FORGET_EVERY = 3600.0
"""Seconds between two times that what is too old is dropped."""

LOOK_AT_ALL = 600.0
"""Seconds between two looks at the copies of all repositories: copies that were placed or taken away leave no event."""

REST = 200.0
"""Times as long as such a look took, before the next one."""


class Recorder:
    """One for each daemon."""

    def __init__(self, db: Database, device: str, tally: Tally, stop: Event) -> None:
        self._db, self._device, self._tally, self._stop = db, device, tally, stop
        self._ahead = 0.0
        self._minute = 0
        self._pending: deque[Minute] = deque(maxlen=MOST_PENDING)
        self._forgot = float("-inf")
        self._looked: datetime | None = None
        self._short: tuple[int, ...] = ()
        self._all_due = float("-inf")
        self._thread = Thread(target=self._run, name="recorder", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """Write down what there is of this minute. Call it once `stop` is set."""
        self._thread.join(2.0)
        if not self._thread.is_alive() and self._minute:
            with suppress(ClusterError):
                self._pending.append(minute_of(self._minute, self._tally.take()))
                self._write()

    def _run(self) -> None:
        with suppress(DatabaseUnavailable):
            self._set_clock()
        self._minute = self._now()
        while not self._stop.wait(max(0.05, self._minute + MINUTE - time.time() - self._ahead)):
            try:
                self.tick()
            except DatabaseUnavailable as error:
                _log.info("how this device does is not written down: %s", error.what)
            except Exception:
                _log.exception("the recorder failed; it goes on with the next minute")

    def tick(self) -> None:
        """Called when a minute may be over, by our clock: write down what is known of it. DatabaseUnavailable."""
        now = self._now()
        if now == self._minute:
            return
        minute, self._minute = self._minute, now
        self._pending.append(minute_of(minute, self._tally.take()))
        self._set_clock()
        for mine in self._db.behind(self._device):  # none, where it was removed
            last = self._pending.pop()
            self._pending.append(minute_of(minute, last, behind=mine.count, lag=mine.lag))
        self._write()
        self._look_at_copies()
        if time.monotonic() - self._forgot > FORGET_EVERY:
            self._db.forget_minutes(self._device)
            self._forgot = time.monotonic()

    def _now(self) -> int:
        """The minute that it is, by the database's clock as far as we know it."""
        return int((time.time() + self._ahead) // MINUTE) * MINUTE

    def _set_clock(self) -> None:
        tick = self._db.tick()
        self._ahead = tick.theirs - tick.ours

    def _write(self) -> None:
        self._db.add_minutes(self._device, list(self._pending))
        self._pending.clear()

    def _look_at_copies(self) -> None:
        began = time.monotonic()
        everything = self._looked is None or began >= self._all_due
        look = self._db.look_at_copies(self._device, None if everything else self._looked, self._short)
        if (
            look is None
        ):  # another device does; should it be ours again, we know nothing of what happened meanwhile
            self._looked, self._short = None, ()
            return
        self._looked, self._short = look.at, look.short
        if everything:
            now = time.monotonic()
            self._all_due = now + max(LOOK_AT_ALL, REST * (now - began))


def minute_of(at: int, counted: Counted | Minute, *, behind: int = 0, lag: float | None = None) -> Minute:
    """The row of the minute that begins at `at`."""
    return Minute(**{**asdict(counted), "at": at, "behind": behind, "lag": lag})
