"""What a device does for its copies in the background.

    tidy            once a minute: copies of deleted repositories, staged refs of dead pushes, leftovers of killed Git
    maintenance     every few seconds a look at the replicas that changed, and at some of the others, in turn; one at a
                    time is repacked, at low priority, and then left alone for as long as that took
    verification    one replica at a time, the one verified longest ago, once that is older than verify_every

After a check that took t seconds, verification rests for 9 t, so it is at work for a tenth of the time at most. Every
ten minutes all refs are held against their positions; those whose files did not change are not even read.

What is about all replicas goes through them a page at a time (rounds.py): a minute and ten minutes hold for some
thousand replicas, and of more than that each has its turn later.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from threading import Event, Lock, Thread

from cluster import aside, leftovers, maintenance, rounds, stage, verify
from cluster.db import Held
from cluster.errors import ClusterError, DatabaseUnavailable, DiskFailed, NotFound
from cluster.logs import fields
from cluster.node import Node

_log = logging.getLogger(__name__)

LOOK = 2.0
"""Seconds between two looks at the replicas that changed."""

SWEEP = 60.0
"""Seconds between two looks at all replicas: staged copies arrive without a word."""

REFS_EVERY = 600.0
"""Seconds between two times that all refs are held against their positions."""

RETRY = 3600.0
"""Seconds after which a replica is verified again that could not be, or that is damaged."""

HELP = 60.0
"""Seconds after which that is tried again where another device can help now, or a copy is still aside."""

MOST_TRIED = 10_000
"""Replicas of which it is remembered when they were verified, before those are forgotten for which RETRY is over."""

REST = 9.0
"""Times the time that a check took, for which verification rests."""

THOROUGH = 24 * 3600.0
"""Seconds between two rounds that look for leftovers among the loose objects, too: 256 folders for each replica."""


def drop_deleted(node: Node) -> None:
    """Set the copies of deleted repositories aside."""
    for repository_id in node.db.dropped(node.name):
        node.store.set_aside(repository_id, "deleted")
        node.db.forget_replica(repository_id, node.name)


def tidy(node: Node, repository_id: int, *, thorough: bool) -> None:
    """Drop staged refs that nobody will settle, remove what killed Git processes left, in one replica. thorough: among
    its loose objects, too."""
    with suppress(ClusterError):
        stage.sweep(node, repository_id)
    leftovers.clean(node.store, repository_id, thorough=thorough)


class Caretaker:
    """Maintenance and verification, in a thread each, until `stop` is set."""

    def __init__(self, node: Node, stop: Event) -> None:
        self._node, self._stop = node, stop
        self._mutex = Lock()
        self._changed: set[int] = set()
        self._rests: dict[int, float] = {}
        self._tried: dict[int, float] = {}
        self._suspects: set[int] = set()
        self._threads = [
            Thread(target=self._forever, args=(work, name), name=name, daemon=True)
            for work, name in ((self._maintain, "maintenance"), (self._verify, "verification"))
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def changed(self, repository_id: int) -> None:
        """A push or a sync came by."""
        with self._mutex:
            self._changed.add(repository_id)

    def _forever(self, work: Callable[[], None], name: str) -> None:
        while not self._stop.is_set():
            try:
                work()
            except DatabaseUnavailable as error:
                _log.info("%s waits: %s", name, error.what)
            except Exception:
                _log.exception("%s failed; it is begun again in a minute", name)
            self._stop.wait(SWEEP)

    # ------------------------------------------------------------------------------------------ maintenance

    def _maintain(self) -> None:
        swept = float("-inf")
        round_: Iterator[list[Held]] = iter(())
        while not self._stop.wait(LOOK):
            page = next(round_, None)
            if page is None and time.monotonic() - swept > SWEEP:
                swept = time.monotonic()
                round_ = rounds.pages(self._node.db, self._node.name)
                page = next(round_, None)
            for held in page or ():
                if held.named:
                    self.changed(held.repository_id)
            with self._mutex:
                changed, self._changed = self._changed, set()
            for repository_id in changed:
                if self._stop.is_set():
                    return
                self._see_to(repository_id)

    def _see_to(self, repository_id: int) -> None:
        node, begun = self._node, time.monotonic()
        if begun < self._rests.get(repository_id, 0.0):
            self.changed(repository_id)
            return
        try:
            need = maintenance.needed(node.store, repository_id, node.upkeep)
            if need is None:
                return
            if not maintenance.maintain(node, repository_id, need):
                self.changed(repository_id)
        except (NotFound, DatabaseUnavailable) as error:
            _log.info("repository %s: no maintenance: %s", repository_id, error.what)
        except DiskFailed as error:
            _log.error("repository %s: no maintenance: %s", repository_id, error.what)
            self._rests[repository_id] = time.monotonic() + SWEEP
            return
        except ClusterError as error:
            if not self._stop.is_set():
                _log.warning("repository %s: maintenance failed, verifying it: %s", repository_id, error.what)
                with self._mutex:
                    self._suspects.add(repository_id)
            self._rests[repository_id] = time.monotonic() + RETRY
            return
        now = time.monotonic()
        self._rests[repository_id] = now + (now - begun)

    # ----------------------------------------------------------------------------------------- verification

    def _verify(self) -> None:
        every = self._node.upkeep.verify_every
        looked = time.monotonic()
        round_: Iterator[list[Held]] = iter(())
        pause = min(every, SWEEP) * random.uniform(0.5, 1.5)  # not all devices the same repository at once
        while not self._stop.wait(pause):
            page = next(round_, None)
            if page is None and time.monotonic() - looked > min(every, REFS_EVERY):
                looked = time.monotonic()
                round_ = rounds.pages(self._node.db, self._node.name)
                page = next(round_, None)
            self._hold_refs(page or ())
            chosen = self._choose()
            if chosen is None:
                pause = (
                    0.1 if page and len(page) == rounds.PAGE else min(every, SWEEP) * random.uniform(0.5, 1.5)
                )
                continue
            begun = time.monotonic()
            self._verify_now(chosen)
            pause = max(0.1, REST * (time.monotonic() - begun))

    def _choose(self) -> int | None:
        """The replica to verify now, or None."""
        node, now = self._node, time.monotonic()
        unfinished = aside.unfinished(node.store)
        with self._mutex:
            first = [*self._suspects, *unfinished]
        due = node.db.due_for_verification(node.name, node.upkeep.verify_every)
        soon = {*unfinished, *(repository_id for repository_id, helped in due if helped)}
        for repository_id in [*first, *(repository_id for repository_id, _ in due)]:
            wait = min(HELP if repository_id in soon else RETRY, node.upkeep.verify_every)
            if now - self._tried.get(repository_id, float("-inf")) >= wait:
                return repository_id
        return None

    def _verify_now(self, repository_id: int) -> None:
        node = self._node
        self._tried[repository_id] = now = time.monotonic()
        if len(self._tried) > MOST_TRIED:
            self._tried = {id: at for id, at in self._tried.items() if now - at < RETRY}
        with self._mutex:
            self._suspects.discard(repository_id)
        try:
            verdict = verify.verify(node, repository_id, lambda line: None)
            if verdict.fault is not None:
                _log.warning(
                    "made anew after a fault: %s", verdict.fault, extra=fields(repository=repository_id)
                )
        except (NotFound, DatabaseUnavailable) as error:
            _log.info("repository %s: not verified: %s", repository_id, error.what)
        except (ClusterError, OSError) as error:
            if not self._stop.is_set():
                what = error.what if isinstance(error, ClusterError) else str(error)
                _log.warning("repository %s: not verified: %s", repository_id, what)

    def _hold_refs(self, page: Iterable[Held]) -> None:
        """Verify the replicas whose refs are not those of their positions. Most are not even read."""
        node = self._node
        for held in page:
            repository_id, begun = held.repository_id, time.monotonic()
            if held.claims is None or not held.named:
                continue
            with suppress(ClusterError, OSError):
                if node.store.checksum(repository_id) != held.claims and verify.differs(node, repository_id):
                    self._verify_now(repository_id)
            if self._stop.wait(REST * (time.monotonic() - begun)):
                return
