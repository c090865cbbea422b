"""Connections: a small pool for statements, another for connections that hold locks, one to listen on."""

from __future__ import annotations

import logging
import os
import select
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, LiteralString, Self
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from cluster.db.rows import Row
from cluster.db.schema import (
    SCHEMA_VERSION,
    Connection,
    check_schema,
    schema_file,
    schema_version_of,
    upgrade,
)
from cluster.errors import DatabaseUnavailable, Refused

CHANNEL = "git_cluster"
"""The NOTIFY channel. Payload: the id of a repository that has a new version, or "" for "look around"."""

WRITE_LOCK_CLASS = 0x67697463
"""First key of the two-key advisory locks for writing ("gitc"); the second is the repository's id."""


def _unavailable() -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "the cluster's database does not answer",
        hint="try again in a moment; an administrator can run `git-cluster doctor` or look at PostgreSQL",
    )


def _forbidden(error: psycopg.errors.InsufficientPrivilege) -> DatabaseUnavailable:
    return DatabaseUnavailable(
        f"the database refuses its user: {error.diag.message_primary}",
        hint="[cluster] database must name a user who owns git-cluster's tables, or may use all of them",
    )


@contextmanager
def translated() -> Iterator[None]:
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
        raise _unavailable() from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise _forbidden(error) from error


class Connections:
    """The cluster's PostgreSQL: a small pool for short statements, another for connections that hold locks."""

    def __init__(self, url: str, *, application_name: str = "git-cluster", connections: int = 8) -> None:
        self.url = url
        options: dict[str, Any] = {
            "autocommit": True,
            "row_factory": dict_row,
            "application_name": application_name,
            "connect_timeout": 5,
            "keepalives_idle": 10,
            "keepalives_interval": 5,
            "keepalives_count": 3,
        }
        self._options = options

        def pool(
            name: str, most: int, reset: Callable[[Connection], None] | None = None
        ) -> ConnectionPool[Connection]:
            return ConnectionPool(
                url,
                connection_class=psycopg.Connection[dict[str, Any]],
                kwargs=options,
                min_size=0,
                max_size=most,
                timeout=6,
                max_idle=120,
                reconnect_timeout=0,
                reset=reset,
                name=name,
                open=False,
            )

        logging.getLogger("psycopg.pool").setLevel(logging.ERROR)
        self._dedicated: set[Connection] = set()
        self._pool = pool("statements", connections)
        self._lock_pool = pool("locks", connections, _release_all_locks)

    def open(self, *, any_schema: bool = False) -> Self:
        """Connect once, so that a wrong URL or schema is an error now and not later. Returns self."""
        try:
            with psycopg.connect(self.url, **self._options) as connection:
                if not any_schema:
                    check_schema(schema_version_of(connection))
        except psycopg.OperationalError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DatabaseUnavailable(
                f"no connection to the cluster's database: {reason}",
                hint="is PostgreSQL running, and does [cluster] database name it?",
            ) from error
        except psycopg.errors.InsufficientPrivilege as error:
            raise _forbidden(error) from error
        except psycopg.ProgrammingError as error:
            if error.sqlstate:
                raise
            raise DatabaseUnavailable(
                "[cluster] database is no database that PostgreSQL's client understands",
                hint="write postgresql://user:password@host:port/name, and special characters as %XX",
            ) from None  # libpq repeats what it could not read, password and all
        self._pool.open()
        self._lock_pool.open()
        return self

    def close(self) -> None:
        self._pool.close(timeout=2)
        self._lock_pool.close(timeout=2)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, query: LiteralString, params: Mapping[str, Any] | None = None) -> list[Row]:
        """Rows of a statement that may be run twice: a connection found dead is replaced and it is run again."""
        with translated():
            while True:
                with self._pool.connection() as connection:
                    try:
                        return connection.execute(query, params).fetchall()
                    except (psycopg.OperationalError, psycopg.InterfaceError):
                        if not connection.closed:
                            raise
                        self._pool.check()

    def _write(self, query: LiteralString, params: Mapping[str, Any] | None = None) -> list[Row]:
        """Rows of a statement that is run once. Raises DatabaseUnavailable when it is unknown whether it was."""
        with translated(), self._live_connection() as connection:
            cursor = connection.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    @contextmanager
    def _live_connection(self) -> Iterator[Connection]:
        """A pooled connection that PostgreSQL has not dropped while it was idle."""
        with self._pool.connection() as connection:
            if _alive(connection):
                yield connection
                return
        self._pool.check()
        with self._pool.connection() as connection:
            yield connection

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with translated(), self._live_connection() as connection, connection.transaction():
            yield connection

    @contextmanager
    def dedicated(self) -> Iterator[Connection]:
        """A connection for an advisory lock. Whatever it holds is released when it goes back, or is closed."""
        with translated():
            while True:
                connection = self._lock_pool.getconn()
                if _alive(connection):
                    break
                connection.close()
                self._lock_pool.putconn(connection)
        self._dedicated.add(connection)
        try:
            yield connection
        finally:
            self._dedicated.discard(connection)
            with suppress(psycopg.Error):
                self._lock_pool.putconn(connection)

    def cut_connections(self) -> None:
        """Close every connection at the socket, as a network that fails would. For fault injection only."""
        for connection in [*self._pool._pool, *self._lock_pool._pool, *self._dedicated]:
            _cut(connection)

    def listen(self) -> Iterator[str]:
        """Payloads of NOTIFY on a connection of its own, for ever; "" every 5 s when nothing came.

        Raises DatabaseUnavailable when the connection is lost: whoever listens looks at the truth, then calls again.
        """
        with translated(), psycopg.connect(self.url, **self._options) as connection:
            connection.execute(f"listen {CHANNEL}")
            yield ""
            while True:
                came = False
                for notification in connection.notifies(timeout=5, stop_after=1):
                    came = True
                    yield notification.payload
                if not came:
                    connection.execute("select 1")
                    yield ""

    def init(self, name: str) -> str:
        """Apply schema.sql, or upgrade an older one. Returns "created", "upgraded" or "unchanged"."""
        with (
            translated(),
            psycopg.connect(self.url, **self._options) as connection,
            connection.transaction(),
        ):
            connection.execute("select pg_advisory_xact_lock(%s)", (WRITE_LOCK_CLASS,))
            found = schema_version_of(connection)
            if found == SCHEMA_VERSION:
                return "unchanged"
            if found is not None:
                upgrade(connection, found)
                return "upgraded"
            connection.execute(schema_file().read_text())
            connection.execute(
                "insert into cluster (schema_version, name) values (%s, %s)", (SCHEMA_VERSION, name)
            )
            return "created"

    def cluster_id(self) -> UUID:
        """What every on-disk marker carries, so that another cluster's disk is noticed."""
        value: UUID = self._read("select cluster_id from cluster")[0]["cluster_id"]
        return value


@contextmanager
def unique(what: str, hint: str) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.UniqueViolation as error:
        raise Refused(what, hint=hint) from error


def _alive(connection: Connection) -> bool:
    """Whether an idle connection still stands: one that PostgreSQL closed has an end-of-file to read, behind what
    PostgreSQL had to say about it."""
    if connection.closed or connection.broken:
        return False
    readable = select.poll()  # select(2) ends at descriptor 1024
    readable.register(connection.fileno(), select.POLLIN)
    while readable.poll(0):
        try:
            connection.pgconn.consume_input()
            connection.pgconn.notifies()
        except psycopg.Error:
            return False
        if connection.pgconn.status != psycopg.pq.ConnStatus.OK:
            return False
    return True


def _cut(connection: Connection) -> None:
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as raw:
        raw.shutdown(socket.SHUT_RDWR)


def _release_all_locks(connection: Connection) -> None:
    connection.execute("select pg_advisory_unlock_all()")


def notify(connection: Connection, payload: str) -> None:
    connection.execute("select pg_notify(%s, %s)", (CHANNEL, payload))
