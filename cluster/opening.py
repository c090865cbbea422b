"""Everything that a device works with, from its configuration: checked, and put together."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping

from cluster import certificates, embedded
from cluster.config import Config
from cluster.db import Database
from cluster.errors import ConfigError, NotFound, Refused
from cluster.faults import Faults
from cluster.keyfiles import load_key
from cluster.measure import Measures
from cluster.model import DeviceMode
from cluster.node import Node
from cluster.peer import Peers
from cluster.stale import Memory
from cluster.store import Store

_log = logging.getLogger(__name__)

HEARTBEAT = 2.0
"""Seconds between two signs of life; Device.OFFLINE_AFTER is five of them."""

SERVE_LOCK = "serve.lock"
"""In data_dir: locked by the daemon for as long as it runs."""


def processes(config: Config) -> int:
    """How many answer clients on this machine."""
    return config.device.processes(os.cpu_count() or 1) if config.device else 1


def open_node(config: Config, environ: Mapping[str, str], measures: Measures | None = None) -> Node:
    """Everything that this device works with, checked. ConfigError, DatabaseUnavailable, Refused.

    measures: what counts its work; None: nothing does.
    """
    measures = measures or Measures()
    if config.device is None:
        raise ConfigError(
            f"{config.path} has no [device] section",
            hint="only a device can serve: give it name, data_dir and key",
        )
    data_dir = config.device.data_dir
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"[device] data_dir cannot be made: {error.strerror}", hint="choose another folder"
        ) from error
    if shutil.which("git") is None:
        raise ConfigError(
            "there is no git on the PATH of this device", hint="install Git, or set PATH for the daemon"
        )
    key = load_key(config.device.key, "the key of this device")
    trusted = certificates.load(config.login.trusted_ca)
    url = embedded.start(data_dir / "postgres") if config.cluster.embedded else config.cluster.database
    db = Database(
        url,
        application_name=f"git-cluster {config.device.name}",
        connections=4 if processes(config) > 1 else 8,
        measures=measures,
    ).open()
    try:
        device = db.device(config.device.name)
    except NotFound as error:
        db.close()
        raise Refused(
            f"device {config.device.name} is not registered in this cluster",
            hint=f"register it once: git-cluster device add {config.device.name} --ssh URL --key FILE --host-key FILE",
        ) from error
    if device.public_key.split()[:2] != [key.get_name(), key.get_base64()]:
        db.close()
        raise Refused(
            f"device {device.name} is registered with another key than the one in [device] key",
            hint="name the file that was registered; `git-cluster device list --json` shows its public key",
        )
    if device.mode is DeviceMode.DISABLED:
        _log.warning(
            "this device is disabled: it answers nobody until `git-cluster device enable %s`", device.name
        )
    return Node(
        name=device.name,
        writes=config.writes,
        db=db,
        store=Store(data_dir, device.name, db.cluster_id()),
        peers=Peers(key),
        faults=Faults.parse(environ.get("GIT_CLUSTER_FAULT", "")),
        memory=Memory(db, device.name) if config.reads.stale == "allow" else None,
        upkeep=config.upkeep,
        proxy=config.proxy,
        limits=config.limits,
        trusted=trusted,
        cluster=config.cluster.name,
        webhooks=config.webhooks,
        measures=measures,
    )
