"""`git-cluster serve`: one device at work.

    endpoints   answer clients, peers and operators (cluster/ssh.py; cluster/openssh.py behind an sshd; cluster/http/),
                in this process, or in workers of its own (cluster/crew.py)
    listener    LISTEN wakes it; a query every few seconds is the truth: "behind" cannot be missed
    workers     sync replicas that are not what they should be, a few at a time; back-off is on the replica's row
    heartbeat   says every 2 s that this device is alive
    deliverer   tells webhooks of what was committed (cluster/deliver.py)
    recorder    writes down once a minute how this device does
    disk space  says how much of its disk is free

A clean stop lets commits under way finish, refuses new work, and says "stopped", so that nobody waits for it.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from threading import Event, Lock, Thread
from typing import NoReturn

from cluster import embedded, failing, heal, history, leftovers, logs, removed, space, upkeep
from cluster.config import Config
from cluster.crew import Crew
from cluster.deliver import Deliverer
from cluster.disk import FileLock
from cluster.endpoints import Endpoints, Sockets
from cluster.errors import ClusterError, ConfigError, DatabaseUnavailable, DiskFailed, NotFound, Refused
from cluster.meters import Meters
from cluster.model import Device
from cluster.node import Node
from cluster.opening import HEARTBEAT, SERVE_LOCK, open_node
from cluster.recorder import Recorder
from cluster.sharing import Shared
from cluster.sync import catch_up

_log = logging.getLogger(__name__)

SYNCS = 4
"""Replicas that are synced at the same time."""

WAIT = 3.0
"""Seconds for the workers of a daemon that was killed to be gone; they go at once."""

SWEEP = 60.0
"""Seconds between two looks for what a crash may have left: deleted repositories, staged refs of dead pushes."""


def run(config: Config) -> NoReturn:
    """Serve until SIGTERM or SIGINT, then exit with 0."""
    logs.to_stream(level=os.environ.get("GIT_CLUSTER_LOG", "INFO"))
    os.umask(0o077)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # a client that pushes needs about ten
    meters = Meters()
    node = open_node(config, dict(os.environ), meters)
    alone = _alone(node.store.root)
    stop, signals = Event(), _signals(renews=bool(config.http and config.http.certificate))
    leftovers.clean_at_start(node.store)
    if ended := node.db.end_sessions_of(node.name):
        _log.info("ended %s database sessions of this device's former process", ended)
    keeper = Keeper(node, stop)
    recorder = Recorder(node.db, node.name, meters.tally, stop)
    deliverer = Deliverer(node, stop)
    sockets = Sockets.bind(config, node.store.run_directory())
    clients = _who_answers(node, config, meters, alone)
    clients.start(sockets)
    for part in (keeper, deliverer, recorder):
        part.start()
    where = sockets.where(config)
    _log.info("device %s serves %s", node.name, where)
    print(f"git-cluster: device {node.name} serves {where}", flush=True)
    while os.read(signals, 1)[0] == signal.SIGHUP and clients.renew():
        pass
    if config.http is not None:
        clients.say_that_it_stops()
        select.select([signals], [], [], config.http.linger)  # a second signal ends the waiting
    stop.set()
    node.bell.ring()
    _log.info("device %s stops", node.name)
    clients.stop_accepting()
    node.background.stop()
    clients.close()
    deliverer.finish()
    recorder.finish()
    keeper.finish()
    node.peers.close()
    node.db.close()
    if config.cluster.embedded and config.device is not None:
        embedded.stop(config.device.data_dir / "postgres")
    logging.shutdown()
    alone.close()
    os._exit(0)  # a sync of hours is not waited for: it resumes after the next start


def _who_answers(node: Node, config: Config, meters: Meters, alone: FileLock) -> Crew | Endpoints:
    """The daemon's workers; or itself, where one process is to do it. So it is with a fault, which stops a process."""
    size = config.device.processes(os.cpu_count() or 1) if config.device and not node.faults.step else 1
    if size > 1:
        return Crew(size, node, config, meters, alone.fd)
    return Endpoints(node, config, meters, Shared.own(node.limits, meters.tally))


def _signals(*, renews: bool) -> int:
    """A file descriptor from which a byte can be read once SIGTERM, SIGINT or, where it `renews` a certificate,
    SIGHUP has come: the signal's number.

    The kernel may give a signal to any thread. Python's handlers run in the main thread, and nothing wakes that up
    from a lock that it waits for; this descriptor is written to by whichever thread it was.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for number in (signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if renews else [])):
        signal.signal(number, lambda *_: None)
    return reader


def _alone(data_dir: Path) -> FileLock:
    """A lock that lasts as long as this process: two daemons on one disk would undo each other's work."""
    try:
        lock = FileLock(data_dir / SERVE_LOCK)
    except OSError as error:
        raise ConfigError(
            f"[device] data_dir cannot be written to: {error.strerror}",
            hint="it must belong to the user that runs git-cluster, and not be mounted read-only",
        ) from error
    if not lock.acquire(WAIT):
        raise Refused(
            "another git-cluster serves from this data_dir already",
            hint="stop that one, or give this one a data_dir",
        )
    return lock


class Keeper:
    """What a device does without being asked: stay current, stay known to be alive, tidy up."""

    def __init__(self, node: Node, stop: Event) -> None:
        self._node, self._stop = node, stop
        self._workers = ThreadPoolExecutor(SYNCS, thread_name_prefix="sync")
        self._pending: set[int] = set()
        self._again: dict[int, bool] = {}
        self._stood_in: set[int] = set()
        self._mutex = Lock()
        self._swept = 0.0
        self._warned: dict[str, float] = {}
        self._caretaker = upkeep.Caretaker(node, stop)
        self._looked: dict[int, float] = {}
        self._threads = [
            Thread(target=self._beat, name="heartbeat", daemon=True),
            Thread(target=self._listen, name="listener", daemon=True),
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
                    self._node.bell.ring()
                    if self._stop.is_set():
                        return
                    if not looked:  # from here on nothing is missed
                        looked = True
                        self._look_at_everything()
                    if payload.isdigit():
                        self._sync_soon(int(payload))
                    else:
                        self._look_around()
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

    def _look_at_everything(self) -> None:
        """After a start, and after the database was away: this disk, or that database, may not be what it was."""
        for repository_id, name in self._node.db.held(self._node.name).items():
            if name is not None:
                self._sync_soon(repository_id, force=True)
        for line in history.strangers(self._node):
            _log.warning("%s", line)

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
            self._workers.submit(self._tidy)

    def _sync_soon(self, repository_id: int, *, force: bool = False) -> None:
        """Look at a replica in the background; once more if it changes while it is looked at."""
        with self._mutex:
            if repository_id in self._pending:
                self._again[repository_id] = force or self._again.get(repository_id, False)
                return
            self._pending.add(repository_id)
        with suppress(RuntimeError):  # shutting down
            self._workers.submit(self._sync, repository_id, force)

    def _sync(self, repository_id: int, force: bool) -> None:
        try:
            self._sync_now(repository_id, force)
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
            again = self._again.pop(repository_id, None)
        if again is not None:
            self._sync_soon(repository_id, force=again)

    def _sync_now(self, repository_id: int, force: bool) -> None:
        node = self._node
        try:
            snapshot = node.db.snapshot_of(repository_id)
            mine = snapshot.of(node.name)
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
            name = snapshot.repository.name
            catch_up(node, repository_id, lambda line: _log.info(line, extra=logs.fields(repository=name)))
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

    def _tidy(self) -> None:
        try:
            for repository_id in history.ahead(self._node):
                self._sync_soon(repository_id, force=True)
            upkeep.tidy(self._node, self._looked)
            removed.sweep(self._node)
        except Exception:
            _log.exception("tidying up failed; it is tried again in a minute")
