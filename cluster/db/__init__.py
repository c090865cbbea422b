"""Every SQL statement of git-cluster, one typed method each. schema.sql explains the tables.

Contract of this package:

* A method either did all of what its name says, or raised. A compare-and-set that matches no row raises
  WriteConflict: zero rows is never silently "fine".
* A connection that PostgreSQL dropped raises DatabaseUnavailable. Reads are tried again on a fresh connection
  first; writes never are, because only their caller knows whether doing them twice is harmless.
* No connection outlives the method, except the ones handed out by `dedicated()`, for advisory locks.
"""

from __future__ import annotations

from cluster.db.condition import Alike, Condition, Server
from cluster.db.devices import Devices
from cluster.db.feed import Change, Feed
from cluster.db.glance import Count, Glances, Group, Happened, Lag, Piece
from cluster.db.groups import Groups
from cluster.db.history import History
from cluster.db.link import Link
from cluster.db.log import Log
from cluster.db.measurements import Measurements, Minute
from cluster.db.overview import STATES, Backlog, Behind, Overview, Presence, Stuck
from cluster.db.own import Listed, Own, OwnKey, Standing
from cluster.db.placing import Placing
from cluster.db.recall import Copy, Recall, Recollection
from cluster.db.replicas import Changes, Held, Replicas
from cluster.db.repositories import Repositories, no_repository
from cluster.db.schema import SCHEMA_VERSION, Connection, schema_file
from cluster.db.tokens import Token, Tokens
from cluster.db.webhooks import Lease, Webhook, Webhooks, no_webhook
from cluster.db.who import UserKey, Who, key_gone
from cluster.db.writes import LockHolder, Writes, lock_label


class Database(
    Who,
    Tokens,
    Own,
    Groups,
    Devices,
    Placing,
    Repositories,
    Writes,
    Replicas,
    History,
    Log,
    Feed,
    Webhooks,
    Recall,
    Condition,
    Overview,
    Measurements,
    Glances,
):
    """The cluster's PostgreSQL."""


__all__ = [
    "SCHEMA_VERSION",
    "STATES",
    "Alike",
    "Backlog",
    "Behind",
    "Change",
    "Changes",
    "Connection",
    "Copy",
    "Count",
    "Database",
    "Group",
    "Happened",
    "Held",
    "Lag",
    "Lease",
    "Link",
    "Listed",
    "LockHolder",
    "Minute",
    "OwnKey",
    "Piece",
    "Presence",
    "Recollection",
    "Server",
    "Standing",
    "Stuck",
    "Token",
    "UserKey",
    "Webhook",
    "key_gone",
    "lock_label",
    "no_repository",
    "no_webhook",
    "schema_file",
]
