"""One of the daemon's workers (cluster/crew.py): `python -m cluster.worker`, which nobody but the daemon runs.

It accepts connections from the sockets that it was born with, and serves them as the daemon would. Signals are the
daemon's to hear: a terminal's Ctrl-C and a service manager's SIGTERM reach both, and commits under way are let finish.
"""

from __future__ import annotations

import fcntl
import logging
import os
import signal
import socket
import sys
from collections.abc import Sequence
from multiprocessing.connection import Connection
from threading import Event, Thread
from typing import NoReturn

from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from cluster import logs
from cluster.config import Config
from cluster.endpoints import Endpoints, Sockets
from cluster.errors import ClusterError
from cluster.http.figures import Figures, together
from cluster.meters import Meters
from cluster.opening import open_node
from cluster.sharing import Line, Shared, report

RING, RENEW, LINGER, STOP = b"r", b"c", b"l", b"s"
"""Orders: the database has told of a change; take the certificate anew; say that this device stops; stop."""

REPORT = 1.0
"""Seconds between two reports of what is open here."""

_log = logging.getLogger(__name__)


def main(arguments: Sequence[str]) -> NoReturn:
    """arguments: descriptors of the line, the orders, the daemon's lock, and the sockets (-1: there is none)."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, lambda *_: None)  # not SIG_IGN, which Git's processes would inherit
    logs.to_stream(level=os.environ.get("GIT_CLUSTER_LOG", "INFO"))
    os.umask(0o077)
    line_fd, orders, lock, *listening = map(int, arguments)
    for fd in (line_fd, orders, *listening):
        if fd >= 0:
            os.set_inheritable(fd, False)
    # A process that ends closes its files in the order of their numbers. Who waits for the lock wants the ports.
    fcntl.fcntl(lock, fcntl.F_DUPFD_CLOEXEC, max(listening) + 1)
    os.close(lock)
    line = Line(Connection(line_fd), broken=_end)
    config: Config = line.first
    hooks, ssh, http = (socket.socket(fileno=fd) if fd >= 0 else None for fd in listening)
    assert hooks is not None
    try:
        serve(config, line, orders, Sockets(hooks, ssh, http))
    except ClusterError as error:
        line.tell("unfit", error.what, error.hint)
    except Exception:
        _log.exception("a worker could not start")
    _end()


def serve(config: Config, line: Line, orders: int, sockets: Sockets) -> None:
    """Until the daemon says, or ends."""
    shared = Shared.far(line, config.limits)
    meters = Meters(shared.tally)
    node = open_node(config, os.environ, meters)
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"]

    def figures() -> Figures:
        found: Figures = line.ask("figures")
        workers = MultiProcessCollector(CollectorRegistry(), path=folder)  # type: ignore[no-untyped-call]
        return Figures(
            together([found.counted, workers.collect()]),  # type: ignore[no-untyped-call]
            found.connections,
            found.pools,
            found.processes,
        )

    endpoints = Endpoints(node, config, meters, shared, figures=figures)
    if node.memory:
        node.memory.look()
        Thread(target=node.memory.watch, args=(Event(),), name="memory", daemon=True).start()
    endpoints.start(sockets)
    Thread(target=report, args=(endpoints.state, line, REPORT), name="report", daemon=True).start()
    line.tell("ready")
    while order := os.read(orders, 1):
        if order == RING:
            node.bell.ring()
        elif order == RENEW:
            endpoints.renew()
        elif order == LINGER:
            endpoints.say_that_it_stops()
        elif order == STOP:
            endpoints.say_that_it_stops()
            node.bell.ring()
            endpoints.stop_accepting()
            endpoints.close()
            node.peers.close()
            node.db.close()
            logging.shutdown()
            os._exit(0)


def _end() -> NoReturn:
    """The daemon has ended, or this process cannot go on: at once, as if it had been killed."""
    os._exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])
