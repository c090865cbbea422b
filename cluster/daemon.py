"""`git-cluster serve`: one device at work.

    endpoints   answer clients, peers and operators (cluster/ssh.py; cluster/openssh.py behind an sshd; cluster/http/)
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
import time
from pathlib import Path
from threading import Event
from typing import NoReturn

from cluster import embedded, leftovers, logs
from cluster.config import Config
from cluster.deliver import Deliverer
from cluster.disk import FileLock
from cluster.errors import ConfigError, Refused
from cluster.http.app import App
from cluster.http.server import HttpServer
from cluster.http.site import open_site
from cluster.keeper import Keeper
from cluster.meters import Meters
from cluster.opening import SERVE_LOCK, open_node
from cluster.openssh import HookServer
from cluster.recorder import Recorder
from cluster.requests import Requests
from cluster.ssh import SshServer

_log = logging.getLogger(__name__)

GRACE = 10.0
"""Seconds for requests under way at a clean stop. A commit takes milliseconds; a slow client is not waited for."""


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
    requests = Requests(node)
    hooks = HookServer(node.store.run_directory(), requests)
    servers: list[SshServer | HookServer | HttpServer] = [hooks]
    hooks.start()
    meters.connections["openssh"] = lambda: hooks.open
    where = "SSH through OpenSSH's hooks"
    if config.ssh is not None:
        server = SshServer(config.ssh.listen, config.ssh.host_key, requests, node.limits)
        servers.append(server)
        meters.connections["ssh"] = lambda: server.open
        where = "SSH on {} port {}".format(*server.start())
    site = web = None
    if config.http is not None:
        site = open_site(node, requests, config.http)
        web = HttpServer(config.http, App(site), grace=node.limits.login_grace, finish=GRACE)
        servers.append(web)
        meters.connections["http"] = lambda: web.open
        where += " and HTTP{} on {} port {}".format("S" if config.http.certificate else "", *web.start())
    keeper.start()
    deliverer = Deliverer(node, stop)
    deliverer.start()
    recorder.start()
    _log.info("device %s serves %s", node.name, where)
    print(f"git-cluster: device {node.name} serves {where}", flush=True)
    while os.read(signals, 1)[0] == signal.SIGHUP and web is not None and web.renew():
        pass
    if site is not None and config.http is not None:
        site.stopping.set()
        select.select([signals], [], [], config.http.linger)  # a second signal ends the waiting
    stop.set()
    node.bell.ring()
    _log.info("device %s stops", node.name)
    for endpoint in servers:
        endpoint.stop_accepting()
    node.background.stop()
    until = time.monotonic() + GRACE
    for endpoint in servers:
        endpoint.close(max(0.0, until - time.monotonic()))
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
    if not lock.try_acquire():
        raise Refused(
            "another git-cluster serves from this data_dir already",
            hint="stop that one, or give this one a data_dir",
        )
    return lock
