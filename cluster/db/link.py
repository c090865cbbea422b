"""One connection to PostgreSQL: how it is made, to which of several hosts, and how it is cut."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Mapping
from contextlib import suppress
from threading import Event
from typing import Any, LiteralString, Self

import psycopg
from psycopg.abc import RV, PQGen
from psycopg.conninfo import conninfo_to_dict
from psycopg.generators import fetch_many
from psycopg.rows import dict_row

from cluster.db.schema import Connection
from cluster.errors import ConfigError, DatabaseUnavailable

CONNECT = 5
"""Seconds for a host to accept a connection and let us in."""

_CLIENT_SIDE: dict[str, Any] = {
    "connect_timeout": CONNECT,
    "keepalives_idle": 10,
    "keepalives_interval": 5,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,  # keepalives are not sent while data waits to be acknowledged
    "target_session_attrs": "read-write",
}
"""libpq's parameters where the URL does not say otherwise."""

_SERVER_SIDE = """
select set_config('tcp_keepalives_idle', '10', false), set_config('tcp_keepalives_interval', '5', false),
       set_config('tcp_keepalives_count', '3', false), set_config('tcp_user_timeout', '20s', false),
       set_config('idle_in_transaction_session_timeout', '60s', false),
       set_config('default_transaction_isolation', 'read committed', false)"""
"""So that PostgreSQL, too, notices within 30 s that a device has gone, and gives its locks to others. And so that what
is looked at in the transaction that waits for a lock is what there is once it is got (Writes.wait_write_lock)."""

with suppress(ImportError):  # no part of psycopg's interface: where it moves, we are slower
    from psycopg import _queries

    _queries.MAX_CACHED_STATEMENT_LENGTH = 32768
    # psycopg takes a statement apart once, and a long one each time that it is run: 0.3 ms of every request for ours.
    # It has no other way to be told; its limit (4096) is there for who sends a new text each time.

_TAKES_WRITES = ("read-write", "primary")


class Link(Connection):
    """A connection that knows since when it waits for an answer (time.monotonic(); None: it does not)."""

    unanswered_since: float | None = None
    _parting = False

    @classmethod
    def to(cls, parameters: Mapping[str, Any]) -> Self:
        """A new one, with libpq's parameters. psycopg.OperationalError."""
        return cls.connect("", autocommit=True, row_factory=dict_row, **parameters)

    def set_up(self) -> None:
        """The first thing to be done with it."""
        self.execute(_SERVER_SIDE, prepare=False)

    def wait(self, gen: PQGen[RV], *args: Any, **kwargs: Any) -> RV:
        self.unanswered_since = time.monotonic()
        try:
            return super().wait(gen, *args, **kwargs)
        finally:
            self.unanswered_since = None

    def part_with(self, statement: LiteralString) -> None:
        """Have a last statement run before this connection lies ready, and do not wait for its answer: who takes the
        connection next does (`stands`). psycopg.Error."""
        self.pgconn.send_query(statement.encode())
        self._parting = True
        if self.pgconn.flush():  # the kernel has no room for a line: then the connection is of no use
            raise psycopg.OperationalError("the database takes nothing")

    @property
    def takes_writes(self) -> bool:
        """False once PostgreSQL has said that this session is read-only, or its server a standby."""
        said = map(self.pgconn.parameter_status, (b"default_transaction_read_only", b"in_hot_standby"))
        return b"on" not in said

    @property
    def stands(self) -> bool:
        """Whether an idle connection is of use: one that PostgreSQL closed has an end-of-file to read, behind what
        PostgreSQL had to say about it."""
        if self.closed or self.broken:
            return False
        if self._parting:
            self._parting = False
            try:
                self.wait(fetch_many(self.pgconn))
            except psycopg.Error:
                return False
        readable = select.poll()  # select(2) ends at descriptor 1024
        readable.register(self.fileno(), select.POLLIN)
        while readable.poll(0):
            try:
                self.pgconn.consume_input()
                self.pgconn.notifies()
            except psycopg.Error:
                return False
            if self.pgconn.status != psycopg.pq.ConnStatus.OK:
                return False
        return self.takes_writes

    def call_off(self, over: Event, seconds: float) -> None:
        """From another thread: have a statement end that waits, with an error. over: set once it has; where the server
        does not see to that in so many seconds, the connection is cut."""
        with suppress(psycopg.Error, OSError):
            self.cancel_safe(timeout=seconds)
        if not over.wait(seconds):
            self.cut()

    def cut(self) -> None:
        """End it at the socket, from any thread: whoever waits for an answer gets an error."""
        with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(self.fileno())) as raw:
            if not self.closed:  # else the descriptor may have been another's already
                raw.shutdown(socket.SHUT_RDWR)


def share_sessions(first: Connection, second: Connection) -> bool:
    """Whether a pooler lends one PostgreSQL session to both of these connections, or several to one of them.

    Two statements of one connection, then two of the other. A pooler that keeps one idle session lends it to both;
    one that keeps several lends another one to the second statement, or that of the first connection to the second
    connection, whether it takes the one used last (as pgbouncer does) or first. Three rounds, for pools in which
    others are at work meanwhile.
    """
    seen: tuple[set[int], set[int]] = (set(), set())
    for _ in range(3):
        for connection, pids in zip((first, second), seen, strict=True):
            for _ in range(2):
                row = connection.execute("select pg_backend_pid() as pid", prepare=False).fetchone()
                assert row is not None
                pids.add(row["pid"])
        if any(len(pids) > 1 for pids in seen) or seen[0] & seen[1]:
            return True
    return False


def reason(error: psycopg.Error) -> str:
    """Why a connection could not be made, in one line for an administrator. libpq puts no password into it."""
    lines = (line.strip().removeprefix("- ") for line in str(error).splitlines())
    told = [
        line
        for line in lines
        if line and not line.startswith(("Is the server running", "Multiple connection"))
    ]
    return "; ".join(told).replace("connection failed: ", "") or "no reason was given"


def hosts(url: str, application_name: str) -> list[dict[str, Any]]:
    """libpq's parameters for each host that `url` names, in its order. DatabaseUnavailable, ConfigError."""
    try:
        given = {name: value for name, value in conninfo_to_dict(url).items() if value is not None}
    except psycopg.ProgrammingError:
        raise DatabaseUnavailable(
            "[cluster] database is no database that PostgreSQL's client understands",
            hint="write postgresql://user:password@host:port/name, and special characters as %XX",
        ) from None  # libpq repeats what it could not read, password and all
    params = {**_CLIENT_SIDE, **given, "application_name": application_name}
    if params["target_session_attrs"] not in _TAKES_WRITES:
        raise ConfigError(
            f"[cluster] database asks for a server by target_session_attrs={params['target_session_attrs']}, "
            "which may be one that takes no writes",
            hint=f"leave it out, or say {' or '.join(_TAKES_WRITES)}",
        )
    return _each(params)


def _each(params: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The parameters of each host, where host, hostaddr and port are lists as libpq has them."""
    lists = {name: str(params[name]).split(",") for name in ("host", "hostaddr", "port") if params.get(name)}
    count = len(lists.get("hostaddr") or lists.get("host") or [""])
    if any(len(values) not in (1, count) for values in lists.values()):
        return [dict(params)]  # libpq says what is wrong with it
    return [
        {**params, **{name: values[index % len(values)] for name, values in lists.items()}}
        for index in range(count)
    ]
