"""Connections: a small pool for statements, another for connections that hold locks, one to listen on."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, LiteralString, Self, TypeVar
from uuid import UUID

import psycopg

from cluster.db.link import Link, reason, share_sessions
from cluster.db.pool import Dialer, Pool, Usage
from cluster.db.rows import Row
from cluster.db.schema import (
    SCHEMA_VERSION,
    Connection,
    check_schema,
    schema_file,
    schema_version_of,
    upgrade,
)
from cluster.errors import ConfigError, DatabaseUnavailable, Exists
from cluster.measure import Measures

T = TypeVar("T")

CHANNEL = "git_cluster"
"""The NOTIFY channel. Payload: the id of a repository that has a new version, or "" for "look around"."""

LOOK_AROUND = 5.0
"""Seconds after which a listener looks around by itself, however much it hears."""

WRITE_LOCK_CLASS = 0x67697463
"""First key of the two-key advisory locks for writing ("gitc"); the second is the repository's id."""


_RELEASE: LiteralString = (
    "select pg_advisory_unlock_all(), set_config('application_name', 'git-cluster', false)"
)
"""Gives back whatever a connection for locks holds, and the name under which it was held."""


def _unavailable() -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "the cluster's database does not answer",
        hint="try again in a moment; an administrator can run `git-cluster doctor` or look at PostgreSQL",
    )


def _unreachable(error: psycopg.Error, *, again: bool) -> DatabaseUnavailable:
    """again: a first connection was made."""
    why = reason(error)
    if again:
        return DatabaseUnavailable(
            f"no second connection to the cluster's database: {why}",
            hint="a device needs up to 20, a command up to 10: see max_connections, or the size of the pooler's pool",
        )
    hint = "is PostgreSQL running, and does [cluster] database name it?"
    if "read-only" in why:
        hint = "name the server that takes writes in [cluster] database, or each that may: host=one,two"
    return DatabaseUnavailable(f"no connection to the cluster's database: {why}", hint=hint)


def _forbidden(error: psycopg.errors.InsufficientPrivilege) -> DatabaseUnavailable:
    return DatabaseUnavailable(
        f"the database refuses its user: {error.diag.message_primary}",
        hint="[cluster] database must name a user who owns git-cluster's tables, or may use all of them",
    )


class _Ended(psycopg.OperationalError):
    """The connection ended under a statement."""


@contextmanager
def translated() -> Iterator[None]:
    """psycopg's errors as ours. A server that has become a standby is as good as away: the next connection is made
    to one that takes writes."""
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError, psycopg.errors.ReadOnlySqlTransaction) as error:
        raise _unavailable() from error
    except psycopg.errors.InsufficientPrivilege as error:
        raise _forbidden(error) from error


class Connections:
    """The cluster's PostgreSQL: a small pool for short statements, another for connections that hold locks."""

    def __init__(
        self,
        url: str,
        *,
        application_name: str = "git-cluster",
        connections: int = 8,
        measures: Measures | None = None,
    ) -> None:
        self.url = url
        self.measures = measures or Measures()
        self._dialer = Dialer(url, application_name)
        self._pool = Pool(self._dialer, connections, patience=6)
        self._lock_pool = Pool(self._dialer, connections, patience=30, parting=_RELEASE)

    def open(self, *, any_schema: bool = False) -> Self:
        """Connect twice, so that a wrong URL or schema, or a pooler in the way, is an error now and not later.

        DatabaseUnavailable, SchemaMismatch, ConfigError. Returns self.
        """
        first = None
        try:
            first = self._dialer.connect()
            second = self._dialer.connect()
            if share_sessions(first, second):
                raise ConfigError(
                    "the database is behind a pooler that shares its connections between transactions (pgbouncer: "
                    "pool_mode = transaction or statement); locks, LISTEN and settings do not survive there",
                    hint="set pool_mode = session for this database, or connect to PostgreSQL directly",
                )
            if not any_schema:
                check_schema(schema_version_of(first))
        except (psycopg.OperationalError, psycopg.InterfaceError) as error:
            self.close()
            raise _unreachable(error, again=first is not None) from error
        except psycopg.errors.InsufficientPrivilege as error:
            self.close()
            raise _forbidden(error) from error
        except BaseException:
            self.close()
            raise
        self._pool.keep(first)
        self._lock_pool.keep(second)
        return self

    def close(self) -> None:
        self._pool.close()
        self._lock_pool.close()
        self._dialer.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, query: LiteralString, params: Mapping[str, Any] | None = None) -> list[Row]:
        """Rows of a statement that may be run twice: on a new connection where the first one ended under it."""
        return self._answers(lambda link: link.execute(query, params).fetchall())

    def _read_both(
        self, one: LiteralString, other: LiteralString, params: Mapping[str, Any]
    ) -> tuple[list[Row], list[Row]]:
        """The same of two statements that go out together and cost one round trip. The second one may see more."""

        def ask(link: Link) -> tuple[list[Row], list[Row]]:
            with link.pipeline():
                cursors = link.execute(one, params), link.execute(other, params)
            return cursors[0].fetchall(), cursors[1].fetchall()

        return self._answers(ask)

    def _answers(self, ask: Callable[[Link], T]) -> T:
        with translated():
            try:
                return self._asked(ask)
            except _Ended:
                self._pool.reap(0)
            return self._asked(ask)

    def _asked(self, ask: Callable[[Link], T]) -> T:
        with self._pool.connection() as link:
            try:
                with self.measures.querying():
                    answer = ask(link)
            except (psycopg.OperationalError, psycopg.InterfaceError) as error:
                if link.closed:
                    raise _Ended(str(error)) from error
                raise
            if not link.takes_writes:
                raise _Ended("the server has become read-only")
            return answer

    def _write(self, query: LiteralString, params: Mapping[str, Any] | None = None) -> list[Row]:
        """Rows of a statement that is run once. Raises DatabaseUnavailable when it is unknown whether it was."""
        with translated(), self._pool.connection() as link:
            with self.measures.querying():
                cursor = link.execute(query, params)
            return cursor.fetchall() if cursor.description else []

    def _taken(self, statement: LiteralString, params: Mapping[str, Any]) -> bool:
        """Run a statement that takes something from somebody, and have the devices hear of it at once: those that
        serve reads while the database is away decide by what they heard last. Whether there was anything to take."""
        return bool(
            self._write(
                "with taken as (" + statement + ") select pg_notify(%(channel)s, '') from taken",
                {**params, "channel": CHANNEL},
            )
        )

    @contextmanager
    def _transaction(self) -> Iterator[Connection]:
        with translated(), self._pool.connection() as link, link.transaction():
            yield link

    @contextmanager
    def dedicated(self) -> Iterator[Link]:
        """A connection for an advisory lock. Whatever it holds is released when it goes back, or is closed: PostgreSQL
        has been told so then, and its answer is not waited for."""
        with translated():
            link = self._lock_pool.take()
        try:
            yield link
        finally:
            self._lock_pool.give(link)

    def usage(self) -> dict[str, Usage]:
        """The connections of each pool: for statements, and for those that hold locks."""
        return {"statements": self._pool.usage(), "locks": self._lock_pool.usage()}

    def cut_connections(self) -> None:
        """Close every connection at the socket, as a network that fails would. For fault injection only."""
        for link in self._dialer.links():
            link.cut()

    def listen(self) -> Iterator[str]:
        """Payloads of NOTIFY on a connection of its own, for ever; "" at the beginning, and again every 5 s.

        Raises DatabaseUnavailable when the connection is lost: whoever listens looks at the truth, then calls again.
        """
        with translated(), self._dialer.connect() as link:
            link.execute(f"listen {CHANNEL}")
            swept = -LOOK_AROUND
            while True:
                if time.monotonic() - swept >= LOOK_AROUND:
                    link.execute("select 1")
                    if not link.takes_writes:
                        raise psycopg.OperationalError("the server has become read-only")
                    yield ""
                    swept = time.monotonic()
                for notification in link.notifies(timeout=LOOK_AROUND, stop_after=1):
                    yield notification.payload

    def init(self, name: str) -> str:
        """Apply schema.sql, or upgrade an older one. Returns "created", "upgraded" or "unchanged"."""
        with translated(), self._dialer.connect() as connection, connection.transaction():
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
        raise Exists(what, hint=hint) from error


def notify(connection: Connection, payload: str) -> None:
    connection.execute("select pg_notify(%s, %s)", (CHANNEL, payload))
