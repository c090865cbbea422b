"""Delivers webhooks: the part of the daemon that tells of changes.

    the bell, or a sweep ── lease what is due ── for each, in a worker: the next change ── resolve ── renew the lease
        ── POST ── 2xx: `delivered` moves on, then the next change ── else: back-off, and the lease is given back

Invariant: a POST begins with a lease of LEASE seconds and ends within DEADLINE, which is shorter. So no two devices
deliver one webhook at the same time, and the next version goes out only after the one before was taken.
"""

from __future__ import annotations

import json
import logging
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from cluster import webhooks
from cluster.db import Change, Database, Lease
from cluster.errors import ClusterError, DatabaseUnavailable
from cluster.feed import document
from cluster.node import Node
from cluster.webhooks import DEADLINE

if TYPE_CHECKING:  # an HTTP client takes long to import, and most devices have nobody to tell
    from cluster.delivery import Outcome

_log = logging.getLogger(__name__)

LEASE = DEADLINE + 8.0
"""Seconds for which a device delivers a webhook alone; those of a device that died go on elsewhere after that."""

WORKERS, FAILING = 6, 3
"""Deliveries at once, and those of webhooks whose last one failed: receivers that hang do not hold up the others."""

TURN = 50
"""Changes of one webhook in a row, then others have their turn."""

SWEEP = 5.0
"""Seconds after which due webhooks are looked for however quiet it is."""


class Deliverer:
    """Delivers what is due, in threads of its own, until `stop` is set."""

    def __init__(self, node: Node, stop: threading.Event) -> None:
        self._node, self._stop = node, stop
        self._private = node.webhooks.private_addresses == "allow"
        self._workers = ThreadPoolExecutor(WORKERS, thread_name_prefix="webhook")
        self._busy: dict[int, bool] = {}
        self._mutex = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self) -> None:
        """`stop` is set: begin nothing more."""
        self._workers.shutdown(wait=False, cancel_futures=True)

    def _run(self) -> None:
        heard, released = -1, False
        while not self._stop.is_set():
            wait = SWEEP
            try:
                if not released:
                    self._node.db.release_webhooks(self._node.name)
                    released = True
                due, soon = self._node.db.webhooks_due()
                if due:
                    self._look()
                    _, soon = self._node.db.webhooks_due()
                wait = min(SWEEP, max(0.05, soon or SWEEP))
            except DatabaseUnavailable:
                wait = 1.0
            except Exception:
                _log.exception("looking for due webhooks failed; it is tried again")
            heard = self._node.webhooks_bell.wait(heard, wait)

    def _look(self) -> None:
        """Those that are fresh come first; those that failed before have room of their own."""
        for fresh in (True, False):
            with self._mutex:
                busy = list(self._busy)
                room = WORKERS - len(busy)
                if not fresh:
                    room = min(room, FAILING - sum(self._busy.values()))
            if room <= 0:
                continue
            leases = self._node.db.lease_webhooks(
                self._node.name, most=room, fresh=fresh, seconds=LEASE, but=busy
            )
            for lease in leases:
                with self._mutex:
                    self._busy[lease.id] = lease.attempts > 0
                try:
                    self._workers.submit(self._work, lease)
                except RuntimeError:  # shutting down
                    return

    def _work(self, lease: Lease) -> None:
        try:
            self._deliver(lease)
        except ClusterError as error:
            _log.info("webhook %s: %s", lease.id, error.what)
        except Exception:
            _log.exception("webhook %s: an unforeseen error", lease.id)
        finally:
            with self._mutex:
                self._busy.pop(lease.id, None)
            self._node.webhooks_bell.ring()

    def _deliver(self, lease: Lease) -> None:
        db, name = self._node.db, self._node.name
        for _ in range(TURN):
            change = None if self._stop.is_set() else _next(db, lease)
            if change is None:
                break
            outcome = self._tell(lease, change)
            if outcome is None:
                break
            if outcome.error:
                seconds = webhooks.pause(lease.attempts + 1, random.random())
                _log.info("webhook %s: version %s: %s", lease.id, change.entry.version, outcome.error)
                db.webhook_failed(
                    lease, name, outcome.error, outcome.status, seconds=seconds, gone=outcome.gone
                )
                return
            assert outcome.status is not None
            lease = db.webhook_delivered(lease, name, outcome.status)
        db.release_webhook(lease, name)

    def _tell(self, lease: Lease, change: Change) -> Outcome | None:
        """None: the lease has run out meanwhile, or the webhook is not wanted any more."""
        from cluster.delivery import send

        body = json.dumps(document(change)).encode()
        return send(
            lease.url,
            lease.secret,
            f"msg_{change.entry.push_id.hex}_{lease.id}",
            body,
            private=self._private,
            ready=lambda: self._node.db.renew_lease(lease, self._node.name, seconds=LEASE),
        )


def _next(db: Database, lease: Lease) -> Change | None:
    """The change that the webhook is to hear of next, with its number."""
    while (change := db.feed_of(lease.repository_id, lease.delivered + 1)) and not change.number:
        db.number_changes()
    return change
