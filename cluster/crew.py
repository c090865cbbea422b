"""The daemon's workers: processes that answer clients, so that they use more than one core of the machine.

    daemon    opens the sockets, starts the workers and others in the place of those that end, keeps the device
              (keeper.py), and has what all of them share (sharing.py)
    worker    accepts connections from the sockets, and serves them from beginning to end (worker.py)

A socket is shared: whichever worker is free takes the next connection. A session is in one process, and nothing in
the protocol of writes knows which: locks are the database's and the disk's. What a worker that was killed leaves behind
is what a daemon leaves that was, and is healed alike; the others go on.

Between the two are a Line, on which a worker asks, and a pipe of orders, each of one byte. The end of either is the
end of the process behind it; a worker does not outlive its daemon.
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from socket import socketpair
from typing import Any

from cluster import embedded
from cluster.config import Config
from cluster.endpoints import GRACE, Sockets
from cluster.errors import ClusterError, ConfigError
from cluster.http.figures import Figures, pools_together
from cluster.limits import FailedLogins, Key
from cluster.meters import Meters
from cluster.node import Node
from cluster.sharing import Shared, State
from cluster.worker import LINGER, RENEW, RING, STOP

START = 60.0
"""Seconds for a worker to be ready."""

PATIENCE = 5.0
"""Seconds beyond GRACE for a worker to end, before it is made to."""

YOUNG, PAUSES = 10.0, (0.0, 1.0, 2.0, 5.0, 10.0)
"""A worker that ends within so many seconds is followed by another after a pause: of the first, second, … in a row."""

METRICS = "metrics"
"""Folder in the device's run directory: what the workers count, also those that have ended."""

_log = logging.getLogger(__name__)


class Crew:
    """`size` workers. `start` and `close` once each.

    lock: a descriptor that each of them keeps open: this device is served for as long as one of them is there.
    """

    def __init__(self, size: int, node: Node, config: Config, meters: Meters, lock: int) -> None:
        self._node, self._meters, self._lock = node, meters, lock
        self._config = _resolved(config)
        self.shared = Shared.own(node.limits, meters.tally)
        self._folder = node.store.run_directory() / METRICS
        self._stopping = threading.Event()
        self._workers: dict[int, _Worker] = {}
        self._threads = [
            threading.Thread(target=self._keep, args=(number,), name=f"worker {number}", daemon=True)
            for number in range(size)
        ]
        self._ready = [threading.Event() for _ in range(size)]
        self._unfit: ClusterError | None = None

    def start(self, sockets: Sockets) -> None:
        """Returns once all of them answer. ConfigError, as soon as one of them says why it cannot."""
        self._sockets = sockets
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir()
        for thread in self._threads:
            thread.start()
        until = time.monotonic() + START
        for ready in self._ready:
            if not ready.wait(max(0.0, until - time.monotonic())):
                self._unfit = self._unfit or ConfigError(
                    "the daemon's workers did not start", hint="the log says why"
                )
            if self._unfit is not None:
                self._end()
                raise self._unfit
        threading.Thread(target=self._pass_on_the_bell, name="workers' bell", daemon=True).start()

    # What the daemon has them do

    def renew(self) -> bool:
        """Take the certificate's files anew. False: there is none."""
        self._order(RENEW)
        return self._config.http is not None and self._config.http.certificate is not None

    def say_that_it_stops(self) -> None:
        """Whoever asks how this device is hears it; streams end."""
        self._order(LINGER)

    def stop_accepting(self) -> None:
        """No new connections, and no new commands on those that are open; they end when those are done."""
        self._stopping.set()
        self._order(STOP)
        self._sockets.close()

    def close(self) -> None:
        """Wait for what is under way, GRACE at the most."""
        self.stop_accepting()
        until = time.monotonic() + GRACE + PATIENCE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._end()

    def _end(self) -> None:
        self._stopping.set()
        for worker in list(self._workers.values()):
            worker.process.kill()

    def _order(self, order: bytes) -> None:
        for worker in list(self._workers.values()):
            worker.order(order)

    def _pass_on_the_bell(self) -> None:
        heard = 0
        while not self._stopping.is_set():
            before, heard = heard, self._node.bell.wait(heard, 5.0)
            if heard != before:
                self._order(RING)

    # Their lives

    def _keep(self, number: int) -> None:
        """Have a worker in this place, whatever becomes of it."""
        quick = 0
        while not self._stopping.wait(PAUSES[min(quick, len(PAUSES) - 1)]):
            begun = time.monotonic()
            try:
                worker = _Worker(self._config, self._sockets, self._folder, self._lock)
            except OSError as error:
                _log.error("a worker could not be started: %s", error.strerror)
                quick += 1
                continue
            self._workers[number] = worker
            if self._stopping.is_set():  # stop_accepting may have looked before it was there
                worker.order(STOP)
            try:
                worker.listen(partial(self._answer, number, worker))
            finally:
                code = worker.end()
                self._workers.pop(number, None)
                for key in worker.running.elements():
                    self.shared.running.end([key])
            if self._stopping.is_set():
                return
            quick = quick + 1 if time.monotonic() - begun < YOUNG else 0
            _log.error(
                "worker %d, process %d, ended (%s); another takes its place", number, worker.process.pid, code
            )

    def _answer(self, number: int, worker: _Worker, what: str, arguments: Sequence[Any]) -> Any:
        """What a worker asks or tells."""
        shared = self.shared
        logins: dict[str, FailedLogins] = {"ssh_logins": shared.ssh_logins, "http_logins": shared.http_logins}
        match what, *arguments:
            case "begin", keys, most:
                full = shared.running.begin(keys, most)
                worker.running.update(() if full else keys)
                return full
            case "end", keys:
                worker.running.subtract(keys)
                shared.running.end(keys)
            case "failed", which, address:
                return logins[which].failed(address)
            case "succeeded", which, address:
                logins[which].succeeded(address)
            case "delay", which, address:
                return logins[which].delay(address)
            case "pushed", seconds:
                shared.tally.pushed(seconds)
            case "read", seconds:
                shared.tally.read(seconds)
            case "failure", *_:
                shared.tally.failed()
            case "state", state:
                worker.state = state
            case "figures", *_:
                return self._figures()
            case "ready", *_:
                self._ready[number].set()
            case "unfit", why, hint:
                self._unfit = ConfigError(why, hint=hint)
                self._ready[number].set()
        return None

    def _figures(self) -> Figures:
        """Of the whole device, but for what workers have counted: that is in their folder."""
        states = [worker.state for worker in list(self._workers.values())]
        connections = Counter[str]()
        for state in states:
            connections.update(state.connections)
        return Figures(
            list(self._meters.registry.collect()),
            connections,
            pools_together([self._node.db.usage(), *(state.pools for state in states)]),
            [os.getpid(), *(worker.process.pid for worker in list(self._workers.values()))],
        )


class _Worker:
    """One process, and our ends of its line and its orders.

    running: the commands that it was let begin. state: what it has open, as it said last.
    """

    def __init__(self, config: Config, sockets: Sockets, metrics: Path, lock: int) -> None:
        ours, theirs = socketpair()
        orders, self._orders = os.pipe()
        os.set_blocking(self._orders, False)
        self._line = Connection(ours.detach())
        self.running = Counter[Key]()
        self.state = State()
        listening = [each.fileno() if each else -1 for each in (sockets.hooks, sockets.ssh, sockets.http)]
        fds = [theirs.fileno(), orders, lock, *listening]
        try:
            # -P: never from the folder that the daemon was started in.
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "cluster.worker", *map(str, fds)],
                stdin=subprocess.DEVNULL,
                env={**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(metrics)},
                pass_fds=[fd for fd in fds if fd >= 0],
            )
        except OSError:
            self._line.close()
            os.close(self._orders)
            raise
        finally:
            theirs.close()
            os.close(orders)
        with suppress(OSError):
            self._line.send(config)

    def listen(self, answer: Callable[[str, Sequence[Any]], Any]) -> None:
        """Answer until it has ended."""
        with suppress(EOFError, OSError):
            while True:
                number, what, arguments = self._line.recv()
                found = answer(what, arguments)
                if number:
                    self._line.send((number, found))

    def order(self, order: bytes) -> None:
        """Never waits: a worker that was stopped hears nothing, and is not waited for."""
        with suppress(OSError):
            os.write(self._orders, order)

    def end(self) -> str:
        """Its line has ended, and so must it; how it did, for the log."""
        self._line.close()
        orders, self._orders = self._orders, -1  # its number is another file's a moment later
        os.close(orders)
        try:
            code = self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            code = self.process.wait()
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


def _resolved(config: Config) -> Config:
    """A worker does not start a database."""
    if not config.cluster.embedded or config.device is None:
        return config
    url = embedded.start(config.device.data_dir / "postgres")
    return replace(config, cluster=replace(config.cluster, database=url))
