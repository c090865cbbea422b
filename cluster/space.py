"""How much of its disk a device has free, said to the cluster for the status page."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from threading import Event

from cluster.errors import DatabaseUnavailable
from cluster.node import Node

EVERY = 10.0
"""Seconds between two looks."""

GRAIN = 16 << 20
"""Bytes to which what is said is rounded, so that a disk that is hardly written to costs the database nothing."""

_log = logging.getLogger(__name__)


def watch(node: Node, stop: Event) -> None:
    """Until `stop`. In a thread of its own: a disk that hangs keeps this waiting, and the heartbeat must not."""
    while True:
        try:
            node.db.set_disk(node.name, *measured(node.store.root))
        except DatabaseUnavailable:
            pass  # the heartbeat says so
        except OSError as error:
            _log.warning("how full the disk is cannot be seen: %s", error.strerror)
        except Exception:
            _log.exception("looking at the disk failed; it is tried again")
        if stop.wait(EVERY):
            return


def measured(folder: Path) -> tuple[int, int]:
    """Bytes in all, and those free for us, of the file system that holds `folder`. OSError."""
    found = os.statvfs(folder)
    total, free = found.f_frsize * found.f_blocks, found.f_frsize * found.f_bavail
    return total, free // GRAIN * GRAIN
