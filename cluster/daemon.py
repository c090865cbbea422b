"""`git-cluster serve`: one device at work.

    endpoints   answer clients, peers and operators (cluster/ssh.py; cluster/openssh.py behind an sshd; cluster/http/),
                in this process, or in workers of its own (cluster/crew.py)
    keeper      what it does without being asked: sync, heartbeat, upkeep (cluster/keeper.py)
    deliverer   tells webhooks of what was committed (cluster/deliver.py)
    recorder    writes down once a minute how this device does

A clean stop lets commits under way finish, refuses new work, and says "stopped", so that nobody waits for it.
"""

from __future__ import annotations

import logging
import os
import resource
import select
import signal
from pathlib import Path
from threading import Event
from typing import NoReturn

from cluster import embedded, leftovers, logs
from cluster.config import Config
from cluster.crew import Crew
from cluster.deliver import Deliverer
from cluster.disk import FileLock
from cluster.endpoints import Endpoints, Sockets
from cluster.errors import ConfigError, Refused
from cluster.keeper import Keeper
from cluster.meters import Meters
from cluster.node import Node
from cluster.opening import SERVE_LOCK, open_node, processes
from cluster.recorder import Recorder
from cluster.sharing import Shared

_log = logging.getLogger(__name__)

WAIT = 3.0
"""Seconds for the workers of a daemon that was killed to be gone; they go at once."""


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
    node.webhooks_bell.ring()
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
    size = 1 if node.faults.step else processes(config)
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
