"""A request of sshd's on a device whose daemon is not there: the same session, in a process of its own.

What the daemon would do around it is done here for as long as the request lasts: a push has a heartbeat, so that
no other device takes it for the write of one that died. Nobody reads this process's log, so it goes to syslog; where
there is none, to a file in the device's run directory.
"""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from threading import Event, Thread

from cluster import logs, openssh
from cluster.config import Config
from cluster.disk import FileLock
from cluster.endpoint import answer, tell, unforeseen, unknown_for_now
from cluster.errors import ClusterError, DatabaseUnavailable, UsageError
from cluster.fd_client import FdClient
from cluster.model import Service
from cluster.node import Node
from cluster.opening import HEARTBEAT, SERVE_LOCK, open_node
from cluster.requests import Requests

_log = logging.getLogger(__name__)

_UNFIT = "this device is not set up right"
_UNFIT_HINT = "its administrator sees what is wrong with `git-cluster doctor`"


def keys(config: Config, environ: Mapping[str, str], hook: str, key_type: str, key_base64: str) -> str:
    """What AuthorizedKeysCommand prints. Where this device cannot work now, the key may come in and is told so."""
    _quietly(config)
    fingerprint = openssh.fingerprint_of(key_base64)
    try:
        node = open_node(config, environ)
    except ClusterError as error:
        _log.error("%s (%s)", error.what, error.hint)
        return openssh.let_in(hook, f"unknown {fingerprint}", f"{key_type} {key_base64}")
    return openssh.authorize(Requests(node), hook, key_type, key_base64)


def serve(config: Config, environ: Mapping[str, str], who: Sequence[str]) -> int:
    """What the forced command does, between this process's standard descriptors and Git; the exit code."""
    _quietly(config)
    os.umask(0o077)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    client = FdClient(0, 1, 2)
    values = (environ.get(name) for name in ("SSH_ORIGINAL_COMMAND", "GIT_PROTOCOL", "SSH_CONNECTION"))
    asked = openssh.Asked.of(*(None if value is None else os.fsencode(value) for value in values))
    try:
        node = open_node(config, environ)
    except DatabaseUnavailable as error:
        _log.warning("%s", error.what)
        return tell(client, unknown_for_now(error))
    except ClusterError as error:
        _log.error("%s (%s)", error.what, error.hint)
        return tell(client, ClusterError(_UNFIT, hint=_UNFIT_HINT))
    except Exception:
        return tell(client, unforeseen(asked.address))
    handlers = Requests(replace(node, alone=True))
    with _alive(node, asked):
        return answer(
            handlers,
            openssh.known(handlers, who),
            asked.command,
            client,
            protocol=asked.protocol,
            address=asked.address,
        )


@contextmanager
def _alive(node: Node, asked: openssh.Asked) -> Iterator[None]:
    """A heartbeat inside, where it is a push and no daemon has one; afterwards the device is stopped again."""
    if Service.RECEIVE_PACK.removeprefix("git-").encode() not in (asked.command or b"") or _served(node):
        yield
        return
    stop = Event()

    def beat() -> None:
        while not stop.wait(HEARTBEAT):
            with suppress(ClusterError):
                node.db.heartbeat(node.name)

    with suppress(ClusterError):
        node.db.heartbeat(node.name)
    beating = Thread(target=beat, daemon=True, name="heartbeat")
    beating.start()
    try:
        yield
    finally:
        stop.set()
        beating.join(HEARTBEAT)
        if not _served(node):
            with suppress(ClusterError):
                node.db.heartbeat(node.name, stopped=True)


def _served(node: Node) -> bool:
    """Whether a daemon runs on this disk."""
    lock = FileLock(node.store.root / SERVE_LOCK)
    try:
        return not lock.try_acquire()
    finally:
        lock.close()


def _quietly(config: Config) -> None:
    """Standard error is the client's."""
    if config.device is None:
        raise UsageError(
            f"{config.path} has no [device] section", hint="sshd's hooks need the configuration of a device"
        )
    logs.to_syslog(config.device.data_dir / "run" / "hooks.log", os.environ.get("GIT_CLUSTER_LOG", "INFO"))
