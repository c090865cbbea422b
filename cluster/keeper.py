"""What a device does without being asked: stay current, stay known to be alive, tidy up.

    listener    LISTEN wakes it; a query every few seconds is the truth: "behind" cannot be missed
    workers     sync replicas that are not what they should be, a few at a time; back-off is on the replica's row
    heartbeat   says every 2 s that this device is alive
    disk space  says how much of its disk is free
    looker      after a start, and after the database was away, has every replica looked at
    tidying     goes through all replicas, again and again, for what a crash may have left

The last two go through the replicas a page at a time (rounds.py), so that a device with a million of them serves, and
syncs what is behind, from its first second on: what is known to need work is never queued behind what may need some.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from enum import IntEnum
from threading import Condition, Event, Lock, Thread

from cluster import failing, heal, history, logs, removed, rounds, space, upkeep
from cluster.errors import ClusterError, DatabaseUnavailable, DiskFailed, Frozen, NotFound
from cluster.hints import Hint
from cluster.model import Device
from cluster.node import Node
from cluster.opening import HEARTBEAT
from cluster.sync import catch_up

_log = logging.getLogger(__name__)

SYNCS = 4
"""Replicas that are synced at the same time."""

AHEAD = 2 * SYNCS
"""Replicas under way or queued, of whatever kind, below which the looker adds another one."""

SWEEP = 60.0
"""Seconds between two looks for what a crash may have left: deleted repositories, staged refs of dead pushes."""

LOOK_REST, TIDY_REST = 1.0, 4.0
"""Times as long as a page of replicas took, for which the looker and the tidying rest before the next one."""


class _Look(IntEnum):
    """How a replica is looked at; who asks for more than one is served by the last."""

    COMMITTED = 0
    """Another device has committed a version: sync at once, and see what is the matter only where that fails."""
    DATABASE = 1
    """See what the database says, and sync where it says so."""
    DISK = 2
    """See what the disk says, too."""


class Keeper:
    """What a device does without being asked: stay current, stay known to be alive, tidy up."""

    def __init__(self, node: Node, stop: Event) -> None:
        self._node, self._stop = node, stop
        self._workers = ThreadPoolExecutor(SYNCS, thread_name_prefix="sync")
        self._pending: set[int] = set()
        self._again: dict[int, _Look] = {}
        self._stood_in: set[int] = set()
        self._mutex = Lock()
        self._freed = Condition(self._mutex)
        self._everything = Event()
        self._swept = 0.0
        self._warned: dict[str, float] = {}
        self._caretaker = upkeep.Caretaker(node, stop)
        self._threads = [
            Thread(target=self._beat, name="heartbeat", daemon=True),
            Thread(target=self._listen, name="listener", daemon=True),
            Thread(target=self._look_through, name="looker", daemon=True),
            Thread(target=self._tidy, name="tidying", daemon=True),
        ]
        self._threads.append(Thread(target=space.watch, args=(node, stop), name="disk space", daemon=True))
        if memory := node.memory:
            memory.look()
            self._threads.append(Thread(target=memory.watch, args=(stop,), name="memory", daemon=True))

    def start(self) -> None:
        """Say that this device is alive, and begin."""
        with suppress(DatabaseUnavailable):  # gone again already: the heart goes on beating
            self._node.db.heartbeat(self._node.name)
        for thread in self._threads:
            thread.start()
        self._caretaker.start()

    def finish(self) -> None:
        """End the background work and say "stopped"."""
        self._workers.shutdown(wait=False, cancel_futures=True)
        self._threads[0].join(HEARTBEAT)  # a heartbeat on its way would take back what comes next
        with suppress(ClusterError):
            self._node.db.heartbeat(self._node.name, stopped=True)

    def _beat(self) -> None:
        gap = min(Device.OFFLINE_AFTER, max(3 * HEARTBEAT, self._node.writes.fence_after))
        while not self._stop.wait(HEARTBEAT):
            try:
                self._node.db.heartbeat(self._node.name, gap=gap)
            except DatabaseUnavailable as error:
                self._warn(f"no heartbeat: {error.what}")
            except Exception:
                _log.exception("the heartbeat failed; it is tried again")

    def _listen(self) -> None:
        while not self._stop.is_set():
            try:
                looked = False
                for payload in self._node.db.listen():
                    hint = Hint.of(payload)
                    self._node.bell.ring()
                    if hint.webhooks:
                        self._node.webhooks_bell.ring()
                    if self._stop.is_set():
                        return
                    if not looked:  # from here on nothing is missed
                        looked = True
                        self._everything.set()
                    if hint.repository_id is None:
                        self._look_around()
                    elif hint.by == self._node.name:
                        self._caretaker.changed(hint.repository_id)
                    elif hint.concerns(self._node.name):
                        self._sync_soon(hint.repository_id, _Look.COMMITTED if hint.by else _Look.DATABASE)
            except ClusterError as error:
                self._warn(f"not listening: {error.what}")
                self._stop.wait(0.5)
            except Exception:
                _log.exception("the listener failed; it starts again")
                self._stop.wait(2.0)

    def _warn(self, what: str) -> None:
        """One line a minute about what fails again and again."""
        if time.monotonic() - self._warned.get(what, -SWEEP) >= SWEEP:
            self._warned[what] = time.monotonic()
            _log.warning("%s", what)

    def _look_through(self) -> None:
        """After a start, and after the database was away, look at every replica: this disk, or that database, may not
        be what it was. From the beginning, where the database was away again meanwhile."""
        while not self._stop.is_set():
            if not self._everything.wait(1.0):
                continue
            self._everything.clear()
            try:
                self._look_at_everything()
            except ClusterError as error:
                self._warn(f"not every replica was looked at: {error.what}")
                self._stop.wait(1.0)
                self._everything.set()
            except Exception:
                _log.exception("looking at every replica failed; it is begun again in a minute")
                self._stop.wait(SWEEP)
                self._everything.set()

    def _look_at_everything(self) -> None:
        for line in history.strangers(self._node):
            _log.warning("%s", line)
        for page in rounds.pages(self._node.db, self._node.name):
            begun = time.monotonic()
            for held in page:
                if not held.named:
                    continue
                if not self._has_room() or self._everything.is_set():
                    return
                self._sync_soon(held.repository_id, _Look.DISK)
            if len(page) == rounds.PAGE:
                self._stop.wait(LOOK_REST * (time.monotonic() - begun))

    def _has_room(self) -> bool:
        """Wait until little is queued; False: this device stops."""
        with self._freed:
            while not self._stop.is_set():
                if self._freed.wait_for(lambda: len(self._pending) < AHEAD, 1.0):
                    return True
        return False

    def _look_around(self) -> None:
        node = self._node
        if node.memory:
            node.memory.look_soon()
        for repository_id in node.db.unfit(node.name):
            self._sync_soon(repository_id)
        own, silent = node.db.interrupted(node.name, node.writes.fence_after)
        for repository_id in own:
            self._sync_soon(repository_id)
        for repository_id in silent if node.heals else ():
            self._workers.submit(self._fence, repository_id)
        if time.monotonic() - self._swept > SWEEP:
            self._swept = time.monotonic()
            self._workers.submit(self._drop_deleted)

    def _sync_soon(self, repository_id: int, look: _Look = _Look.DATABASE) -> None:
        """Look at a replica in the background; once more if it changes while it is looked at."""
        with self._mutex:
            if repository_id in self._pending:
                self._again[repository_id] = max(look, self._again.get(repository_id, look))
                return
            self._pending.add(repository_id)
        with suppress(RuntimeError):  # shutting down
            self._workers.submit(self._sync, repository_id, look)

    def _sync(self, repository_id: int, look: _Look) -> None:
        try:
            self._sync_now(repository_id, look)
        except Exception as error:
            disk = failing.of_error(error)
            if disk is None:
                _log.exception("syncing repository %s failed", repository_id)
            else:
                _log.error("syncing repository %s failed: %s", repository_id, error.__cause__ or error)
            why = disk.on(self._node.name).what if disk else "an unforeseen error; the device's log has it"
            with suppress(ClusterError):
                self._node.db.sync_failed(repository_id, self._node.name, why)
        self._caretaker.changed(repository_id)
        with self._mutex:
            self._pending.discard(repository_id)
            self._freed.notify()
            again = self._again.pop(repository_id, None)
        if again is not None:
            self._sync_soon(repository_id, again)

    def _sync_now(self, repository_id: int, look: _Look) -> None:
        node = self._node
        try:
            if look is _Look.COMMITTED:
                with suppress(Frozen, NotFound):  # an intent of our own, or no replica any more: see below
                    self._catch_up(repository_id, str(repository_id))
                    return
            snapshot = node.db.snapshot_of(repository_id)
            mine, force = snapshot.of(node.name), look is _Look.DISK
            if mine is not None and mine.intent is not None:
                history.refuse_other_history(node, snapshot)
                if not self._recover(repository_id):
                    return
                snapshot, force = node.db.snapshot_of(repository_id), True
                mine = snapshot.of(node.name)
            if mine is None:
                removed.set_aside(node, repository_id)
                return
            if mine.position == snapshot.repository.position and not mine.quarantined and not force:
                return
            self._catch_up(repository_id, snapshot.repository.name)
        except (NotFound, DatabaseUnavailable) as error:
            _log.info("repository %s: %s", repository_id, error.what)
        except DiskFailed:
            raise
        except ClusterError as error:
            _log.warning("repository %s: %s", repository_id, error.what, exc_info=error.__cause__)
            cause = error.__cause__
            why = f"{error.what}: {cause.what}" if isinstance(cause, ClusterError) else error.what
            with suppress(DatabaseUnavailable):
                node.db.sync_failed(repository_id, node.name, why)

    def _catch_up(self, repository_id: int, name: str) -> None:
        catch_up(self._node, repository_id, lambda line: _log.info(line, extra=logs.fields(repository=name)))

    def _recover(self, repository_id: int) -> bool:
        """See to a write of this device that nobody holds the cluster's lock for; whether it is resolved.

        One that lives has lost its connection to the database, and is stood in for; another was interrupted.
        """
        node = self._node
        if node.db.write_lock_holder(repository_id) is not None:
            return False
        if heal.alive(node, repository_id, 0.0):
            self._stand_in(repository_id)
            return False
        if not node.heals:
            return False
        try:
            for line in heal.recover(node, repository_id):
                _log.warning("healed: %s", line, extra=logs.fields(repository=repository_id))
        except DatabaseUnavailable:
            raise
        except ClusterError as error:
            _log.info("not healed: %s", error.what, extra=logs.fields(repository=repository_id))
            return False
        return True

    def _stand_in(self, repository_id: int) -> None:
        """In a thread of its own: a write may go on for long, and the workers have others to see to."""
        with self._mutex:
            if repository_id in self._stood_in:
                return
            self._stood_in.add(repository_id)

        def work() -> None:
            try:
                heal.stand_in(self._node, repository_id)
            except ClusterError as error:
                _log.info("not standing in: %s", error.what, extra=logs.fields(repository=repository_id))
            finally:
                with self._mutex:
                    self._stood_in.discard(repository_id)

        Thread(target=work, name="stand in", daemon=True).start()

    def _fence(self, repository_id: int) -> None:
        try:
            for line in heal.fence(self._node, repository_id):
                _log.warning("fenced: %s", line, extra=logs.fields(repository=repository_id))
        except ClusterError as error:
            _log.info("not fenced: %s", error.what, extra=logs.fields(repository=repository_id))
        except Exception:
            _log.exception("fencing in repository %s failed", repository_id)

    def _drop_deleted(self) -> None:
        try:
            upkeep.drop_deleted(self._node)
        except ClusterError as error:
            _log.info("copies of deleted repositories stay for now: %s", error.what)
        except Exception:
            _log.exception(
                "setting copies of deleted repositories aside failed; it is tried again in a minute"
            )

    def _tidy(self) -> None:
        thoroughly = -upkeep.THOROUGH
        while not self._stop.is_set():
            begun = time.monotonic()
            thorough = begun - thoroughly >= upkeep.THOROUGH
            try:
                for held in rounds.paced(self._node.db, self._node.name, self._stop, rest=TIDY_REST):
                    if history.ahead(self._node, held):
                        self._sync_soon(held.repository_id, _Look.DISK)
                    upkeep.tidy(self._node, held.repository_id, thorough=thorough)
                thoroughly = begun if thorough else thoroughly
                removed.sweep(self._node)
            except ClusterError as error:
                _log.info("not everything is tidied up: %s", error.what)
            except Exception:
                _log.exception("tidying up failed; it is tried again in a minute")
            self._stop.wait(max(0.0, SWEEP - (time.monotonic() - begun)))
