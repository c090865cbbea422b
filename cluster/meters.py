"""What the daemon counts (cluster/measure.py), for Prometheus and for the charts of the status page.

docs/monitoring.md lists every figure. A label never names a repository, a user or an address: it has a few values,
known before. What costs a look at the database or at the processes is not counted here but looked up when it is asked
for (cluster/http/metrics.py).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from threading import local
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Histogram, disable_created_metrics

from cluster.errors import ClientGone, LockTimeout
from cluster.faults import Step
from cluster.measure import Answer, Asked, Measures, Outcome, ReadStep, outcome_of
from cluster.model import EventKind
from cluster.tally import Tally

T = TypeVar("T")

QUICK = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
"""Seconds: bounds for what takes a round trip."""

LONG = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0)
"""Seconds: bounds for what a person waits for, uploads and downloads included."""

HELD = (
    0.002,
    0.004,
    0.006,
    0.008,
    0.01,
    0.015,
    0.02,
    0.03,
    0.04,
    0.06,
    0.08,
    0.1,
    0.15,
    0.25,
    0.5,
    1.0,
    5.0,
    60.0,
)
"""Seconds: bounds for how long a write lock is held, which bounds how many pushes a repository takes."""


@dataclass(slots=True)
class _Running(Answer):
    """This thread's request."""

    asked: Asked
    begun: float
    since: float
    step: Step | ReadStep | None = None
    outcome: Outcome | None = None
    acknowledged: bool = False
    passed_on: bool = False

    def ended(self, code: int, *, gone: bool) -> int:
        if self.outcome is None and code != 0:
            self.outcome = Outcome.GONE if gone else Outcome.FAILED
        return code


class Meters(Measures):
    """Used from every thread. registry: what Prometheus is shown. tally: what the charts are made of."""

    def __init__(self, tally: Tally | None = None) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = CollectorRegistry()
        self.tally = tally or Tally()
        self.connections: dict[str, Callable[[], int]] = {}
        """By endpoint: how many are open now."""
        self._now = local()
        self._requests = Counter(
            "git_cluster_requests_total",
            "Requests that have ended, by endpoint, what was asked for, and how it ended.",
            ["endpoint", "service", "outcome"],
            registry=registry,
        )
        self._seconds = Histogram(
            "git_cluster_request_seconds",
            "Seconds that requests took which ended well, from authorizing to the last byte.",
            ["endpoint", "service"],
            buckets=LONG,
            registry=registry,
        )
        self._push_step = Histogram(
            "git_cluster_push_step_seconds",
            "Seconds that pushes spent in each step, those that failed there included.",
            ["step"],
            buckets=LONG,
            registry=registry,
        )
        self._read_step = Histogram(
            "git_cluster_read_step_seconds",
            "Seconds that clones, fetches, listings and archives spent in each step.",
            ["step"],
            buckets=LONG,
            registry=registry,
        )
        self._commits = Counter(
            "git_cluster_commits_total", "Versions that pushes to this device became.", registry=registry
        )
        self._lock_wait = Histogram(
            "git_cluster_write_lock_wait_seconds",
            "Seconds waited for a repository's write lock, by what came of it: got, timeout, gone or failed.",
            ["result"],
            buckets=LONG,
            registry=registry,
        )
        self._lock_hold = Histogram(
            "git_cluster_write_lock_hold_seconds",
            "Seconds for which a repository's write lock was held, until it was given back.",
            buckets=HELD,
            registry=registry,
        )
        self._sync = Histogram(
            "git_cluster_sync_seconds",
            "Seconds that syncs of this device's copies took: how (log, rebuild), and the result (ok, failed).",
            ["how", "result"],
            buckets=LONG,
            registry=registry,
        )
        self._events = Counter(
            "git_cluster_events_total",
            "What this device noted beside pushes: heals, fences, quarantines and so on.",
            ["kind"],
            registry=registry,
        )
        self._query = Histogram(
            "git_cluster_database_query_seconds",
            "Seconds that statements took in the database, those that failed included.",
            buckets=QUICK,
            registry=registry,
        )
        for kind in EventKind:  # so that there is a zero to count from
            self._events.labels(kind.value)

    # Requests

    @contextmanager
    def request(self, asked: Asked) -> Iterator[Answer]:
        now = time.monotonic()
        running = self._now.running = _Running(asked, now, now)
        try:
            yield running
        except BaseException as error:
            running.outcome = outcome_of(error)
            raise
        finally:
            self._now.running = None
            self._ended(running)

    def _ended(self, running: _Running) -> None:
        asked, seconds = running.asked, time.monotonic() - running.begun
        outcome = running.outcome or Outcome.OK
        if asked.anonymous and outcome is Outcome.REFUSED:
            outcome = Outcome.UNAUTHENTICATED
        self._leave(running)
        self._requests.labels(asked.endpoint, asked.service, outcome.value).inc()
        if outcome is Outcome.OK:
            self._seconds.labels(asked.endpoint, asked.service).observe(seconds)
        if not asked.by_user or running.step is None:
            return
        if outcome is Outcome.FAILED:
            self.tally.failed()
        elif outcome is Outcome.OK and not running.passed_on:
            if not asked.writes:
                self.tally.read(seconds)
            elif running.acknowledged:
                self.tally.pushed(seconds)

    def step(self, step: Step | ReadStep) -> None:
        running: _Running | None = getattr(self._now, "running", None)
        if running is None:
            return
        self._leave(running)
        running.step = step
        running.acknowledged |= step is Step.ACKNOWLEDGE
        running.passed_on = step is ReadStep.PASS_ON

    def _leave(self, running: _Running) -> None:
        """The step that it was in is over."""
        now = time.monotonic()
        if running.step is not None and running.step is not Step.DONE:
            seconds = self._push_step if running.asked.writes else self._read_step
            seconds.labels(running.step.value).observe(now - running.since)
        running.since = now

    @contextmanager
    def told(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            running: _Running | None = getattr(self._now, "running", None)
            if running is not None:
                running.outcome = outcome_of(error)
            raise

    def committed(self) -> None:
        self._commits.inc()

    # What requests wait for

    def lock_waited(self, seconds: float, error: BaseException | None = None) -> None:
        self._lock_wait.labels("got" if error is None else _waited_in_vain(error)).observe(seconds)

    def lock_held(self, seconds: float) -> None:
        self._lock_hold.observe(seconds)

    @contextmanager
    def syncing(self, *, trusted: bool) -> Iterator[None]:
        begun, result = time.monotonic(), "failed"
        try:
            yield
            result = "ok"
        finally:
            how = "log" if trusted else "rebuild"
            self._sync.labels(how, result).observe(time.monotonic() - begun)

    def happened(self, kind: EventKind) -> None:
        self._events.labels(kind.value).inc()

    @contextmanager
    def querying(self) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self._query.observe(time.monotonic() - begun)


def _waited_in_vain(error: BaseException) -> str:
    if isinstance(error, LockTimeout):
        return "timeout"
    return "gone" if isinstance(error, ClientGone) else "failed"
