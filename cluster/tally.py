"""How a device did in one minute, for the charts of the status page (the table `measurement`)."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from threading import Lock

MOST = 5000
"""Durations that are kept of a minute, of each kind; of more, a sample: percentiles hardly change."""


@dataclass(frozen=True, slots=True)
class Counted:
    """Times in seconds; None where there was nothing to time."""

    pushes: int = 0
    reads: int = 0
    failures: int = 0
    push_p50: float | None = None
    push_p99: float | None = None
    read_p50: float | None = None
    read_p99: float | None = None


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The smallest of `ordered` that at least `share` of them (0 to 1) do not exceed; None: there are none."""
    return ordered[max(0, -(-len(ordered) * int(share * 100) // 100) - 1)] if ordered else None


@dataclass(slots=True)
class _Sample:
    """Vitter's algorithm R: each duration is kept with the same probability."""

    count: int = 0
    kept: list[float] = field(default_factory=list)

    def add(self, seconds: float) -> None:
        self.count += 1
        if len(self.kept) < MOST:
            self.kept.append(seconds)
        elif (place := random.randrange(self.count)) < MOST:
            self.kept[place] = seconds


class Tally:
    """Counts until it is taken. Used from every thread."""

    def __init__(self) -> None:
        self._mutex = Lock()
        self._pushes, self._reads, self._failures = _Sample(), _Sample(), 0

    def pushed(self, seconds: float) -> None:
        """A push was acknowledged."""
        with self._mutex:
            self._pushes.add(seconds)

    def read(self, seconds: float) -> None:
        """A clone, fetch, listing or archive was answered."""
        with self._mutex:
            self._reads.add(seconds)

    def failed(self) -> None:
        """Either of them failed, and not because of who asked."""
        with self._mutex:
            self._failures += 1

    def take(self) -> Counted:
        """What came since the last time."""
        with self._mutex:
            pushes, reads, failures = self._pushes, self._reads, self._failures
            self._pushes, self._reads, self._failures = _Sample(), _Sample(), 0
        pushes.kept.sort()
        reads.kept.sort()
        return Counted(
            pushes.count,
            reads.count,
            failures,
            percentile(pushes.kept, 0.5),
            percentile(pushes.kept, 0.99),
            percentile(reads.kept, 0.5),
            percentile(reads.kept, 0.99),
        )
