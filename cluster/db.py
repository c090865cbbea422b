"""Every SQL statement of git-cluster, one typed method each. The tables are explained in schema.sql.

Contract of this module:

* A method either did all of what its name says, or raised. A compare-and-set that matches no row raises
  WriteConflict: zero rows is never silently "fine".
* A connection that PostgreSQL dropped raises DatabaseUnavailable. Reads are tried again on a fresh connection
  first; writes never are, because only their caller knows whether doing them twice is harmless.
* No connection outlives the method, except the ones handed out by `dedicated()`, for advisory locks.
"""

from __future__ import annotations

import json
import logging
import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, LiteralString, TypeVar
from uuid import UUID

import psycopg
from psycopg.rows import dict_row
from psycopg_pool import ConnectionPool, PoolTimeout

from cluster.errors import (
    DatabaseUnavailable,
    NotFound,
    Refused,
    SchemaMismatch,
    WriteConflict,
)
from cluster.model import (
    Actor,
    ActorKind,
    Checksum,
    Device,
    DeviceMode,
    Grant,
    Intent,
    Level,
    LogEntry,
    Position,
    RefUpdate,
    Replica,
    Repository,
    Snapshot,
    WhenShort,
)

SCHEMA_VERSION = 1
"""The schema that this program speaks. schema.sql is this version; older ones are upgraded by `init`."""

UPGRADES: dict[int, LiteralString] = {}
"""For each older schema, the statements that make the next one of it. `init` runs them in one transaction."""

CHANNEL = "git_cluster"
"""The NOTIFY channel. Payload: the id of a repository that has a new version, or "" for "look around"."""

WRITE_LOCK_CLASS = 0x67697463
"""First key of the two-key advisory locks for writing ("gitc"); the second is the repository's id."""

Connection = psycopg.Connection[dict[str, Any]]
Row = dict[str, Any]
T = TypeVar("T")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds a repository's write lock."""

    device: str
    actor: str
    since: datetime


@dataclass(frozen=True, slots=True)
class UserKey:
    """A registered public key of a user."""

    user: str
    fingerprint: str
    public_key: str
    comment: str
    created_at: datetime


def schema_file() -> Path:
    """schema.sql: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "schema.sql"
    return inside if inside.exists() else package.parent / "schema.sql"


def _unavailable() -> DatabaseUnavailable:
    return DatabaseUnavailable(
        "the cluster's database does not answer",
        hint="try again in a moment; an administrator can run `git-cluster doctor` or look at PostgreSQL",
    )


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (psycopg.OperationalError, psycopg.InterfaceError, PoolTimeout) as error:
        raise _unavailable() from error


class Database:
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

    def open(self, *, check_schema: bool = True) -> Database:
        """Connect once, so that a wrong URL or schema is an error now and not later. Returns self."""
        try:
            with psycopg.connect(self.url, **self._options) as connection:
                if check_schema:
                    _check_schema(_schema_version(connection))
        except psycopg.OperationalError as error:
            reason = str(error).strip().splitlines()[-1]
            raise DatabaseUnavailable(
                f"no connection to the cluster's database: {reason}",
                hint="is PostgreSQL running, and does [cluster] database name it?",
            ) from error
        self._pool.open()
        self._lock_pool.open()
        return self

    def close(self) -> None:
        self._pool.close(timeout=2)
        self._lock_pool.close(timeout=2)

    def __enter__(self) -> Database:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # ------------------------------------------------------------------------------------- connections

    def _read(self, query: LiteralString, params: Mapping[str, Any] | None = None) -> list[Row]:
        """Rows of a statement that may be run twice: a connection found dead is replaced and it is run again."""
        with _translated():
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
        with _translated(), self._live_connection() as connection:
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
        with _translated(), self._live_connection() as connection, connection.transaction():
            yield connection

    @contextmanager
    def dedicated(self) -> Iterator[Connection]:
        """A connection for an advisory lock. Whatever it holds is released when it goes back, or is closed."""
        with _translated():
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
        with _translated(), psycopg.connect(self.url, **self._options) as connection:
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

    # ------------------------------------------------------------------------------------------ schema

    def init(self, name: str) -> str:
        """Apply schema.sql, or upgrade an older one. Returns "created", "upgraded" or "unchanged"."""
        with (
            _translated(),
            psycopg.connect(self.url, **self._options) as connection,
            connection.transaction(),
        ):
            connection.execute("select pg_advisory_xact_lock(%s)", (WRITE_LOCK_CLASS,))
            found = _schema_version(connection)
            if found == SCHEMA_VERSION:
                return "unchanged"
            if found is not None:
                _upgrade(connection, found)
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

    # ------------------------------------------------------------------------------------------ who

    def identity(self, fingerprint: str) -> Actor | None:
        """Whom a key proves, or None. Expired keys and disabled devices prove nobody."""
        rows = self._read(
            """select a.name as user_name, d.name as device_name
                 from key k left join actor a on a.id = k.actor_id left join device d on d.id = k.device_id
                where k.fingerprint = %(fingerprint)s and (k.expires_at is null or k.expires_at > now())
                  and d.mode is distinct from 'disabled'""",
            {"fingerprint": fingerprint},
        )
        if not rows:
            return None
        row = rows[0]
        if row["device_name"]:
            return Actor(ActorKind.DEVICE, row["device_name"], fingerprint)
        if row["user_name"]:
            return Actor(ActorKind.USER, row["user_name"], fingerprint)
        return Actor(ActorKind.OPERATOR, "operator", fingerprint)

    def add_user(self, name: str) -> None:
        with _unique(f"there is a user {name} already", "list them with `git-cluster user list`"):
            self._write("insert into actor (name) values (%(name)s)", {"name": name})

    def users(self) -> list[Row]:
        """name, created_at and number of keys of each user."""
        return self._read(
            """select a.name, a.created_at, count(k.fingerprint) as keys
                 from actor a left join key k on k.actor_id = a.id group by a.id order by a.name"""
        )

    def remove_user(self, name: str) -> None:
        if not self._write("delete from actor where name = %(name)s returning 1", {"name": name}):
            raise _no_user(name)

    def add_key(self, user: str, fingerprint: str, public_key: str, comment: str) -> None:
        with _unique("this key is registered already", "a key belongs to one user or one device only"):
            if not self._write(
                """insert into key (fingerprint, public_key, comment, actor_id)
                   select %(fingerprint)s, %(public_key)s, %(comment)s, id from actor where name = %(user)s
                   returning 1""",
                {"fingerprint": fingerprint, "public_key": public_key, "comment": comment, "user": user},
            ):
                raise _no_user(user)

    def keys(self, user: str | None = None) -> list[UserKey]:
        return [
            UserKey(row["name"], row["fingerprint"], row["public_key"], row["comment"], row["created_at"])
            for row in self._read(
                """select a.name, k.fingerprint, k.public_key, k.comment, k.created_at
                     from key k join actor a on a.id = k.actor_id
                    where %(user)s::text is null or a.name = %(user)s order by a.name, k.created_at""",
                {"user": user},
            )
        ]

    def remove_key(self, fingerprint: str) -> None:
        if not self._write(
            "delete from key where fingerprint = %(f)s and actor_id is not null returning 1",
            {"f": fingerprint},
        ):
            raise NotFound(f"no user has the key {fingerprint}", hint="`git-cluster key list` shows them")

    @contextmanager
    def operator_key(self, fingerprint: str, public_key: str, *, seconds: int) -> Iterator[None]:
        """While inside, `fingerprint` proves an operator, for `seconds` at most."""
        self._write(
            """insert into key (fingerprint, public_key, comment, expires_at)
               values (%(fingerprint)s, %(public_key)s, 'operator', now() + make_interval(secs => %(seconds)s))""",
            {"fingerprint": fingerprint, "public_key": public_key, "seconds": seconds},
        )
        try:
            yield
        finally:
            with suppress(DatabaseUnavailable):
                self._write(
                    """delete from key where fingerprint = %(fingerprint)s
                       or (num_nonnulls(actor_id, device_id) = 0 and expires_at < now())""",
                    {"fingerprint": fingerprint},
                )

    def grant(self, level: Level, user: str | None, pattern: str) -> None:
        """`user` None: everyone with a key. A second grant on the same pattern replaces the first."""
        # One statement: a user removed between a look and the insert would turn the grant into one to everyone.
        if not self._write(
            """insert into access_grant (actor_id, pattern, level)
               select a.id, %(pattern)s, %(level)s::access_level
                 from (select null) one left join actor a on a.name = %(user)s
                where %(user)s::text is null or a.id is not null
               on conflict (actor_id, pattern) do update set level = excluded.level returning 1""",
            {"user": user, "pattern": pattern, "level": level.value},
        ):
            raise _no_user(user or "")

    def revoke(self, user: str | None, pattern: str) -> None:
        if not self._write(
            """delete from access_grant g where pattern = %(pattern)s
               and g.actor_id is not distinct from (select id from actor where name = %(user)s)
               and (g.actor_id is null) = (%(user)s::text is null) returning 1""",
            {"user": user, "pattern": pattern},
        ):
            raise NotFound(
                f"{user or 'everyone'} has no grant on {pattern}", hint="`git-cluster grant list` shows them"
            )

    def grants(self, user: str | None = None) -> list[Grant]:
        """All grants, or those that concern one user."""
        return [
            Grant(row["name"], row["pattern"], Level(row["level"]))
            for row in self._read(
                """select a.name, g.pattern, g.level from access_grant g left join actor a on a.id = g.actor_id
                    where %(user)s::text is null or g.actor_id is null or a.name = %(user)s
                    order by a.name nulls first, g.pattern""",
                {"user": user},
            )
        ]

    # ------------------------------------------------------------------------------------------ devices

    def add_device(
        self,
        name: str,
        *,
        ssh_url: str,
        http_url: str | None,
        fingerprint: str,
        public_key: str,
        host_key: str,
    ) -> None:
        with (
            _unique(
                f"device {name} or its key is registered already", "`git-cluster device list` shows them"
            ),
            self._transaction() as connection,
        ):
            connection.execute(
                """with added as (
                       insert into device (name, ssh_url, http_url, host_key)
                       values (%(name)s, %(ssh_url)s, %(http_url)s, %(host_key)s) returning id)
                   insert into key (fingerprint, public_key, comment, device_id)
                   select %(fingerprint)s, %(public_key)s, %(name)s, id from added""",
                {
                    "name": name,
                    "ssh_url": ssh_url,
                    "http_url": http_url,
                    "fingerprint": fingerprint,
                    "public_key": public_key,
                    "host_key": host_key,
                },
            )

    def devices(self) -> list[Device]:
        return [
            _device(row, "")
            for row in self._read(
                """select d.*, k.public_key, extract(epoch from now() - d.last_seen_at)::float as silent_for
                     from device d join key k on k.device_id = d.id order by d.name"""
            )
        ]

    def device(self, name: str) -> Device:
        found = next((device for device in self.devices() if device.name == name), None)
        if found is None:
            raise NotFound(f"there is no device {name}", hint="`git-cluster device list` shows them")
        return found

    def set_device_mode(self, name: str, mode: DeviceMode) -> None:
        if not self._write(
            "update device set mode = %(mode)s::device_mode where name = %(name)s returning 1",
            {"mode": mode.value, "name": name},
        ):
            raise NotFound(f"there is no device {name}", hint="`git-cluster device list` shows them")

    def remove_device(self, name: str) -> None:
        """Forget a device that holds no replica."""
        try:
            removed = self._write("delete from device where name = %(name)s returning 1", {"name": name})
        except (psycopg.errors.ForeignKeyViolation, psycopg.errors.RestrictViolation) as error:
            raise Refused(
                f"device {name} still holds replicas",
                hint=f"drain it and move them first: `git-cluster repo set REPO --remove-device {name}`",
            ) from error
        if not removed:
            raise NotFound(f"there is no device {name}", hint="`git-cluster device list` shows them")

    def heartbeat(self, device: str, *, stopped: bool = False) -> None:
        self._write(
            "update device set last_seen_at = now(), stopped = %(stopped)s where name = %(device)s",
            {"device": device, "stopped": stopped},
        )

    # ------------------------------------------------------------------------------------- repositories

    def create_repository(
        self,
        name: str,
        *,
        checksum: Checksum,
        head: str,
        object_format: str,
        min_copies: int,
        devices: Sequence[str],
        actor: str,
        device: str = "",
    ) -> int:
        """A repository at version 0 whose only content is HEAD's target; its replicas are absent. Returns its id."""
        with (
            _unique(f"there is a repository {name} already", "`git-cluster repo list` shows them"),
            self._transaction() as connection,
        ):
            row = connection.execute(
                """insert into repository (name, object_format, checksum, min_copies)
                   values (%(name)s, %(object_format)s, %(checksum)s, %(min_copies)s) returning id""",
                {
                    "name": name,
                    "object_format": object_format,
                    "checksum": checksum.accumulator,
                    "min_copies": min_copies,
                },
            ).fetchone()
            assert row is not None
            connection.execute(
                """with entry as (
                       insert into push (repository_id, version, checksum, push_id, actor, device, via)
                       values (%(id)s, 0, %(checksum)s, gen_random_uuid(), %(actor)s, %(device)s, 'create')
                       returning repository_id, version)
                   insert into push_ref (repository_id, version, ref, old, new)
                   select repository_id, version, 'HEAD', '', %(head)s from entry""",
                {
                    "id": row["id"],
                    "checksum": checksum.accumulator,
                    "actor": actor,
                    "device": device,
                    "head": head,
                },
            )
            placed = connection.execute(
                """insert into replica (repository_id, device_id)
                   select %(id)s, id from device where name = any(%(devices)s) returning 1""",
                {"id": row["id"], "devices": list(devices)},
            ).rowcount
            if placed != len(devices):
                raise NotFound(
                    f"not every one of these devices exists: {', '.join(devices)}",
                    hint="`git-cluster device list` shows them",
                )
            _notify(connection, "")
            return int(row["id"])

    def rename_repository(self, name: str, new_name: str) -> None:
        with _unique(f"there is a repository {new_name} already", "choose another name"):
            if not self._write(
                "update repository set name = %(new)s where name = %(name)s returning 1",
                {"name": name, "new": new_name},
            ):
                raise no_repository(name)

    def delete_repository(self, name: str) -> None:
        """Free the name; devices move their copies away when they notice."""
        with self._transaction() as connection:
            row = connection.execute(
                "select id from repository where name = %(name)s for update", {"name": name}
            ).fetchone()
            if row is None:
                raise no_repository(name)
            connection.execute("update repository set name = null where id = %(id)s", {"id": row["id"]})
            _notify(connection, "")

    def set_repository(
        self, name: str, *, min_copies: int | None = None, when_short: WhenShort | None = None
    ) -> None:
        if not self._write(
            """update repository set min_copies = coalesce(%(min_copies)s, min_copies),
                      when_short = coalesce(%(when_short)s::short_policy, when_short)
                where name = %(name)s returning 1""",
            {"name": name, "min_copies": min_copies, "when_short": when_short and when_short.value},
        ):
            raise no_repository(name)

    def freeze(self, repository_id: int, reason: str | None) -> None:
        """Freeze for a stated reason, or (None) end such a freeze."""
        self._write(
            """update repository set frozen = %(reason)s::text,
                      frozen_at = case when %(reason)s::text is null then null else now() end
                where id = %(id)s""",
            {"id": repository_id, "reason": reason},
        )

    def place(self, repository_id: int, device: str) -> None:
        with _unique(f"device {device} holds this repository already", "`git-cluster repo show` lists them"):
            if not self._write(
                """with placed as (
                       insert into replica (repository_id, device_id)
                       select %(id)s, id from device where name = %(device)s returning 1)
                   select pg_notify(%(channel)s, '') from placed""",
                {"id": repository_id, "device": device, "channel": CHANNEL},
            ):
                raise NotFound(f"there is no device {device}", hint="`git-cluster device list` shows them")

    def unplace(self, repository_id: int, device: str) -> None:
        """Forget a replica that is not the last one at the newest version and has no intent."""
        if not self._write(
            """with placed as (
                   delete from replica r using device d, repository p
                    where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s
                      and p.id = r.repository_id and r.intent_token is null
                      and exists (select from replica o where o.repository_id = r.repository_id
                                   and o.device_id <> r.device_id and o.version = p.version
                                   and o.quarantined is null) returning 1)
               select pg_notify(%(channel)s, '') from placed""",
            {"id": repository_id, "device": device, "channel": CHANNEL},
        ):
            raise Refused(
                f"device {device} cannot be removed: it holds the last newest copy, or is writing, or has none",
                hint="add another device and wait until `git-cluster status` shows it as current",
            )

    def snapshot(self, name: str, actor: Actor | None = None) -> Snapshot:
        """The repository, its replicas and the grants of `actor`, in one round trip. NotFound."""
        rows = self._read(
            _SNAPSHOT_WITH_GRANTS + " where p.name = %(name)s order by d.name",
            {
                "name": name,
                "actor": actor.name if actor and actor.kind is ActorKind.USER else None,
                "fingerprint": actor.fingerprint if actor else None,
            },
        )
        if not rows:
            raise no_repository(name)
        return _snapshot(rows)

    def snapshot_of(self, repository_id: int) -> Snapshot:
        """The same by id, without grants. NotFound when it was deleted."""
        rows = self._read(
            _SNAPSHOT + " where p.id = %(id)s and p.name is not null order by d.name", {"id": repository_id}
        )
        if not rows:
            raise NotFound("this repository was deleted")
        return _snapshot(rows)

    def snapshots(self) -> list[Snapshot]:
        """Every repository, by name."""
        rows = self._read(_SNAPSHOT + " where p.name is not null order by p.name, d.name")
        by_repository: dict[int, list[Row]] = {}
        for row in rows:
            by_repository.setdefault(row["p_id"], []).append(row)
        return [_snapshot(group) for group in by_repository.values()]

    # ------------------------------------------------------------------------------------------ writing

    def try_write_lock(self, connection: Connection, repository_id: int, label: str) -> bool:
        """Take the write lock if it is free, and say in pg_stat_activity who has it. No waiting."""
        with _translated():
            row = connection.execute(
                """select set_config('application_name', %(label)s, false),
                          pg_try_advisory_lock(%(class)s, %(id)s) as got""",
                {"label": label, "class": WRITE_LOCK_CLASS, "id": _lock_key(repository_id)},
            ).fetchone()
            assert row is not None
            return bool(row["got"])

    def wait_write_lock(self, connection: Connection, repository_id: int, seconds: float) -> bool:
        """Queue for the write lock for `seconds` at most. False: still not ours."""
        with _translated():
            try:
                with connection.transaction():
                    connection.execute(
                        "select set_config('lock_timeout', %(ms)s, true)",
                        {"ms": f"{max(1, int(seconds * 1000))}ms"},
                    )
                    connection.execute(
                        "select pg_advisory_lock(%(class)s, %(id)s)",
                        {"class": WRITE_LOCK_CLASS, "id": _lock_key(repository_id)},
                    )
            except psycopg.errors.LockNotAvailable:
                return False
            return True

    def release_write_lock(self, connection: Connection, repository_id: int) -> None:
        """Give the write lock back. A lost connection has given it back already."""
        with suppress(psycopg.Error):
            connection.execute(
                """select pg_advisory_unlock(%(class)s, %(id)s),
                          set_config('application_name', 'git-cluster', false)""",
                {"class": WRITE_LOCK_CLASS, "id": _lock_key(repository_id)},
            )

    def write_lock_holder(self, repository_id: int) -> LockHolder | None:
        """Who holds the write lock now, or None when it is free."""
        rows = self._read(
            """select a.application_name as label, a.state_change from pg_locks l
                 left join pg_stat_activity a on a.pid = l.pid
                where l.locktype = 'advisory' and l.granted and l.classid::bigint = %(class)s
                  and l.objid::bigint = %(id)s and l.objsubid = 2
                  and l.database = (select oid from pg_database where datname = current_database())""",
            {"class": WRITE_LOCK_CLASS, "id": _lock_key(repository_id)},
        )
        return _lock_holder(rows[0]) if rows else None

    def write_locks(self) -> dict[int, LockHolder]:
        """All write locks that are held now, by repository id modulo 2^31."""
        rows = self._read(
            """select l.objid::bigint as id, a.application_name as label, a.state_change from pg_locks l
                 left join pg_stat_activity a on a.pid = l.pid
                where l.locktype = 'advisory' and l.granted and l.classid::bigint = %(class)s and l.objsubid = 2
                  and l.database = (select oid from pg_database where datname = current_database())""",
            {"class": WRITE_LOCK_CLASS},
        )
        return {row["id"]: _lock_holder(row) for row in rows}

    def intend(
        self, connection: Connection, repository_id: int, device: str, base: Position, intent: Intent
    ) -> None:
        """Write the intent on the connection that holds the lock. WriteConflict when this replica may not write.

        Allowed only for a trusted replica at the newest version, when no other intent exists and nobody froze the
        repository.
        """
        try:
            with _translated():
                done = connection.execute(
                    """update replica r set intent_token = %(token)s, intent_push = %(push)s, intent_actor = %(actor)s,
                              intent_via = %(via)s, intent_address = %(address)s, intent_at = now(),
                              intent_refs = %(refs)s
                         from device d, repository p
                        where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s
                          and p.id = r.repository_id and p.name is not null and p.frozen is null
                          and p.version = %(version)s and r.version = %(version)s and r.checksum = %(checksum)s
                          and r.quarantined is null and r.intent_token is null returning 1""",
                    {
                        "id": repository_id,
                        "device": device,
                        "version": base.version,
                        "checksum": base.checksum.accumulator,
                        "token": intent.token,
                        "push": intent.push_id,
                        "actor": intent.actor,
                        "via": intent.via,
                        "address": intent.address,
                        "refs": json.dumps([[u.ref, u.old, u.new] for u in intent.refs]),
                    },
                ).fetchall()
        except psycopg.errors.UniqueViolation:
            done = []
        if len(done) != 1:
            raise WriteConflict(
                "the repository changed while the push waited for its turn", hint="push again"
            )

    def clear_intent(self, repository_id: int, token: UUID) -> bool:
        """Withdraw an intent that moved nothing. False: it is not there (any more). Harmless to repeat."""
        return bool(
            self._write(
                """update replica set intent_token = null, intent_push = null, intent_actor = null,
                          intent_via = null, intent_address = null, intent_at = null, intent_refs = null
                    where repository_id = %(id)s and intent_token = %(token)s returning 1""",
                {"id": repository_id, "token": token},
            )
        )

    def commit(
        self,
        repository_id: int,
        device: str,
        base: Position,
        checksum: Checksum,
        intent: Intent,
        moved: Sequence[RefUpdate],
        *,
        connection: Connection | None = None,
    ) -> Position:
        """Make version base + 1 out of an intent: the one statement that decides a push (guarantee G3).

        Compare-and-set of the repository's version and of the replica's version and token, the log entry, and the
        clearing of the intent stand or fall together: where one of them matches no row, a foreign key of the others
        is violated or nothing is returned, and nothing of it remains. WriteConflict: the claim is void for good.
        """
        params = {
            "id": repository_id,
            "device": device,
            "base": base.version,
            "next": base.version + 1,
            "checksum": checksum.accumulator,
            "token": intent.token,
            "push": intent.push_id,
            "actor": intent.actor,
            "via": intent.via,
            "address": intent.address,
            "refs": [u.ref for u in moved],
            "olds": [u.old for u in moved],
            "news": [u.new for u in moved],
            "channel": CHANNEL,
        }
        try:
            if connection is None:
                rows = self._write(_COMMIT, params)
            else:
                with _translated():
                    rows = connection.execute(_COMMIT, params).fetchall()
        except psycopg.IntegrityError as error:
            raise _void() from error
        if len(rows) != 1:
            raise _void()
        return Position(base.version + 1, checksum)

    def committed(self, repository_id: int, push_id: UUID) -> Position | None:
        """Where a push stands in the log, or None: what a writer asks whose commit was cut off."""
        rows = self._read(
            "select version, checksum from push where repository_id = %(id)s and push_id = %(push)s",
            {"id": repository_id, "push": push_id},
        )
        return Position(rows[0]["version"], Checksum(rows[0]["checksum"])) if rows else None

    def commit_decree(
        self,
        repository_id: int,
        base: Position,
        checksum: Checksum,
        push_id: UUID,
        moved: Sequence[RefUpdate],
        *,
        actor: str,
        device: str,
        via: str,
        connection: Connection,
    ) -> Position:
        """Make version base + 1 without an intent, for decisions that are no push (thaw, a new default branch).

        On the connection that holds the write lock. No replica holds the new version yet: each applies it from the
        log. WriteConflict when somebody else was faster, or an intent is there.
        """
        try:
            with _translated():
                rows = connection.execute(
                    """with turned as (
                           update repository p set version = %(next)s, checksum = %(checksum)s
                            where p.id = %(id)s and p.version = %(base)s and not exists (
                                  select from replica r where r.repository_id = p.id and r.intent_token is not null)
                           returning p.id),
                       entry as (
                           insert into push (repository_id, version, checksum, push_id, actor, device, via)
                           select id, %(next)s, %(checksum)s, %(push)s, %(actor)s, %(device)s, %(via)s from turned
                           returning repository_id, version),
                       refs as (
                           insert into push_ref (repository_id, version, ref, old, new)
                           select repository_id, version, u.ref, u.old, u.new
                             from entry, unnest(%(refs)s::text[], %(olds)s::text[], %(news)s::text[]) u (ref, old, new)
                           returning 1)
                       select pg_notify(%(channel)s, repository_id::text) from entry""",
                    {
                        "id": repository_id,
                        "base": base.version,
                        "next": base.version + 1,
                        "checksum": checksum.accumulator,
                        "push": push_id,
                        "actor": actor,
                        "device": device,
                        "via": via,
                        "refs": [u.ref for u in moved],
                        "olds": [u.old for u in moved],
                        "news": [u.new for u in moved],
                        "channel": CHANNEL,
                    },
                ).fetchall()
        except psycopg.IntegrityError as error:
            raise _void() from error
        if len(rows) != 1:
            raise _void()
        return Position(base.version + 1, checksum)

    # ------------------------------------------------------------------------------------------ syncing

    def changes(self, repository_id: int, since: int, until: int) -> tuple[list[RefUpdate], list[LogEntry]]:
        """What happened after `since` up to `until`: each ref's first old and last new value (where they differ),
        and the entries (without their refs)."""
        rows = self._read(
            """select ref, (array_agg(old order by version))[1] as old, (array_agg(new order by version desc))[1] as new
                 from push_ref where repository_id = %(id)s and version > %(since)s and version <= %(until)s
                group by ref order by ref""",
            {"id": repository_id, "since": since, "until": until},
        )
        entries = self._read(
            """select version, push_id, actor, device, via, address, at, checksum from push
                where repository_id = %(id)s and version > %(since)s and version <= %(until)s order by version""",
            {"id": repository_id, "since": since, "until": until},
        )
        updates = [RefUpdate(row["ref"], row["old"], row["new"]) for row in rows if row["old"] != row["new"]]
        return updates, [_log_entry(row, ()) for row in entries]

    def refs_at(self, repository_id: int, version: int) -> dict[str, str]:
        """Every ref (and HEAD) as the log says it stood at `version`; deleted ones are left out."""
        rows = self._read(
            """select distinct on (ref) ref, new from push_ref
                where repository_id = %(id)s and version <= %(version)s order by ref, version desc""",
            {"id": repository_id, "version": version},
        )
        return {row["ref"]: row["new"] for row in rows if row["new"].strip("0")}

    def was_committed(self, repository_id: int, pairs: Iterable[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of `pairs` (ref, value) that some committed version held."""
        wanted = list(pairs)
        rows = self._read(
            """select distinct w.ref, w.value from unnest(%(refs)s::text[], %(values)s::text[]) w (ref, value)
                 join push_ref u on u.repository_id = %(id)s and u.ref = w.ref and u.new = w.value""",
            {
                "id": repository_id,
                "refs": [ref for ref, _ in wanted],
                "values": [value for _, value in wanted],
            },
        )
        return {(row["ref"], row["value"]) for row in rows}

    def position_at(self, repository_id: int, version: int) -> Position | None:
        """What the log says of a version, or None where it has no such version."""
        rows = self._read(
            "select checksum from push where repository_id = %(id)s and version = %(version)s",
            {"id": repository_id, "version": version},
        )
        return Position(version, Checksum(rows[0]["checksum"])) if rows else None

    def synced(self, repository_id: int, device: str, was: Position | None, now: Position) -> None:
        """Move a replica's claim from `was` to `now`, which its disk holds already; trust it again."""
        rows = self._write(
            """update replica r set version = %(version)s, checksum = %(checksum)s, quarantined = null,
                      synced_at = now(), attempts = 0, last_error = null, next_try_at = null
                 from device d
                where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s
                  and r.version is not distinct from %(was)s and r.intent_token is null returning 1""",
            {
                "id": repository_id,
                "device": device,
                "was": was.version if was else None,
                "version": now.version,
                "checksum": now.checksum.accumulator,
            },
        )
        if len(rows) != 1:
            raise WriteConflict("this replica changed while it was synced", hint="try again")

    def sync_failed(self, repository_id: int, device: str, error: str) -> None:
        """Note a failed sync: the next try comes after 1 s, 2 s, 4 s … 5 min."""
        self._write(
            """update replica r set attempts = attempts + 1, last_error = %(error)s,
                      next_try_at = now() + make_interval(secs => least(300, power(2, least(attempts, 10))))
                 from device d
                where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s""",
            {"id": repository_id, "device": device, "error": error[:500]},
        )

    def quarantine(self, repository_id: int, device: str, why: str) -> None:
        """Stop trusting a replica. Its claim stays readable, but it is nobody's leader."""
        self._write(
            """update replica r set quarantined = %(why)s, next_try_at = null from device d
                where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s""",
            {"id": repository_id, "device": device, "why": why[:500]},
        )

    def demote(self, repository_id: int, device: str, why: str, *, connection: Connection) -> None:
        """Withdraw a replica's intent and trust; its next sync rebuilds it. On the connection that holds the lock."""
        with _translated():
            connection.execute(
                """update replica r set quarantined = %(why)s, next_try_at = null, intent_token = null,
                          intent_push = null, intent_actor = null, intent_via = null, intent_address = null,
                          intent_at = null, intent_refs = null from device d
                    where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s""",
                {"id": repository_id, "device": device, "why": why},
            )
            _notify(connection, str(repository_id))

    def claim(self, repository_id: int, device: str, position: Position, *, connection: Connection) -> None:
        """Set a replica's claim by decree: a person declared its content to be `position`, and it is trusted."""
        with _translated():
            connection.execute(
                """update replica r set version = %(version)s, checksum = %(checksum)s, quarantined = null,
                          synced_at = now(), attempts = 0, last_error = null, next_try_at = null from device d
                    where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s""",
                {
                    "id": repository_id,
                    "device": device,
                    "version": position.version,
                    "checksum": position.checksum.accumulator,
                },
            )

    def unfit(self, device: str) -> list[int]:
        """Ids of repositories whose replica here is behind, absent or quarantined, and due for a try."""
        return [
            row["repository_id"]
            for row in self._read(
                """select r.repository_id from replica r join repository p on p.id = r.repository_id
                     join device d on d.id = r.device_id
                    where d.name = %(device)s and p.name is not null and r.intent_token is null
                      and (r.version is distinct from p.version or r.quarantined is not null)
                      and (r.next_try_at is null or r.next_try_at <= now())
                    order by r.next_try_at nulls first, r.repository_id limit 1000""",
                {"device": device},
            )
        ]

    def held(self, device: str) -> dict[int, str | None]:
        """Ids of the repositories that have a replica on `device`, with their names (None: deleted)."""
        return {
            row["id"]: row["name"]
            for row in self._read(
                """select p.id, p.name from replica r join repository p on p.id = r.repository_id
                     join device d on d.id = r.device_id where d.name = %(device)s""",
                {"device": device},
            )
        }

    def forget_replica(self, repository_id: int, device: str) -> None:
        """Drop the row of a deleted repository's replica; the last one takes the repository with it."""
        self._write(
            """with gone as (
                   delete from replica r using device d, repository p
                    where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s
                      and p.id = r.repository_id and p.name is null returning r.repository_id, r.device_id)
               delete from repository p using gone g where p.id = g.repository_id
                  and not exists (select from replica o where o.repository_id = p.id and o.device_id <> g.device_id)""",
            {"id": repository_id, "device": device},
        )

    # ------------------------------------------------------------------------------------------ the log

    def log(self, repository_id: int, *, limit: int = 50, before: int | None = None) -> list[LogEntry]:
        """The newest `limit` entries with their refs, newest first; `before` a version: older ones. Not version 0."""
        rows = self._read(
            """select p.version, p.push_id, p.actor, p.device, p.via, p.address, p.at, p.checksum,
                      coalesce(json_agg(json_build_array(u.ref, u.old, u.new) order by u.ref)
                               filter (where u.ref is not null), '[]') as refs
                 from (select * from push where repository_id = %(id)s and version > 0
                        and (%(before)s::bigint is null or version < %(before)s)
                        order by version desc limit %(limit)s) p
                 left join push_ref u on u.repository_id = p.repository_id and u.version = p.version
                group by p.version, p.push_id, p.actor, p.device, p.via, p.address, p.at, p.checksum
                order by p.version desc""",
            {"id": repository_id, "limit": limit, "before": before},
        )
        return [_log_entry(row, tuple(RefUpdate(*ref) for ref in row["refs"])) for row in rows]

    def last_change(self, repository_id: int, ref: str) -> LogEntry | None:
        """The newest entry that changed `ref`, with that change only."""
        rows = self._read(
            """select p.version, p.push_id, p.actor, p.device, p.via, p.address, p.at, p.checksum, u.old, u.new
                 from push_ref u join push p on p.repository_id = u.repository_id and p.version = u.version
                where u.repository_id = %(id)s and u.ref = %(ref)s order by u.version desc limit 1""",
            {"id": repository_id, "ref": ref},
        )
        if not rows:
            return None
        return _log_entry(rows[0], (RefUpdate(ref, rows[0]["old"], rows[0]["new"]),))


_SNAPSHOT_COLUMNS: LiteralString = """
    p.id as p_id, p.name as p_name, p.object_format, p.version as p_version, p.checksum as p_checksum,
    p.min_copies, p.when_short, p.frozen, p.frozen_at, p.created_at as p_created_at,
    d.id as d_id, d.name as d_name, d.ssh_url as d_ssh_url, d.http_url as d_http_url, d.host_key as d_host_key,
    d.mode as d_mode, d.last_seen_at as d_last_seen_at, d.stopped as d_stopped,
    extract(epoch from now() - d.last_seen_at)::float as d_silent_for,
    r.version, r.checksum, r.quarantined, r.intent_token, r.intent_push, r.intent_actor, r.intent_via,
    r.intent_address, r.intent_at, r.intent_refs, r.synced_at, r.attempts, r.last_error, r.next_try_at"""

_SNAPSHOT_TABLES: LiteralString = """
      from repository p left join replica r on r.repository_id = p.id left join device d on d.id = r.device_id"""

_SNAPSHOT: LiteralString = "select " + _SNAPSHOT_COLUMNS + _SNAPSHOT_TABLES

_SNAPSHOT_WITH_GRANTS: LiteralString = (
    "select "
    + _SNAPSHOT_COLUMNS
    + """,
    (select json_agg(json_build_array(a.name, g.pattern, g.level))
       from access_grant g left join actor a on a.id = g.actor_id
      where g.actor_id is null or a.name = %(actor)s) as grants,
    (%(fingerprint)s::text is null or exists (
        select from key k left join device d on d.id = k.device_id where k.fingerprint = %(fingerprint)s
           and (k.expires_at is null or k.expires_at > now()) and d.mode is distinct from 'disabled')) as actor_known"""
    + _SNAPSHOT_TABLES
)

_COMMIT: LiteralString = """
with turned as (
    update repository p set version = %(next)s, checksum = %(checksum)s
     where p.id = %(id)s and p.version = %(base)s
       and exists (select from replica r join device d on d.id = r.device_id
                    where r.repository_id = p.id and d.name = %(device)s
                      and r.version = %(base)s and r.intent_token = %(token)s)
    returning p.id),
claimed as (
    update replica r set version = %(next)s, checksum = %(checksum)s, synced_at = now(),
           intent_token = null, intent_push = null, intent_actor = null, intent_via = null,
           intent_address = null, intent_at = null, intent_refs = null
      from turned, device d
     where r.repository_id = turned.id and d.id = r.device_id and d.name = %(device)s
       and r.version = %(base)s and r.intent_token = %(token)s
    returning r.repository_id),
entry as (
    insert into push (repository_id, version, checksum, push_id, actor, device, via, address)
    select repository_id, %(next)s, %(checksum)s, %(push)s, %(actor)s, %(device)s, %(via)s, %(address)s from claimed
    returning repository_id, version),
refs as (
    insert into push_ref (repository_id, version, ref, old, new)
    select repository_id, version, u.ref, u.old, u.new
      from entry, unnest(%(refs)s::text[], %(olds)s::text[], %(news)s::text[]) u (ref, old, new)
    returning 1)
select pg_notify(%(channel)s, repository_id::text) from entry"""


def no_repository(name: str) -> NotFound:
    """The one sentence for a repository that is not there, or that the asker may not know of."""
    return NotFound(
        f"there is no repository {name} here, or you may not read it",
        hint="check the name; an administrator can look with `git-cluster access`",
    )


def _no_user(name: str) -> NotFound:
    return NotFound(f"there is no user {name}", hint="`git-cluster user list` shows them")


def _void() -> WriteConflict:
    return WriteConflict(
        "this push's claim was withdrawn before it was committed, so nothing of it counts", hint="push again"
    )


@contextmanager
def _unique(what: str, hint: str) -> Iterator[None]:
    try:
        yield
    except psycopg.errors.UniqueViolation as error:
        raise Refused(what, hint=hint) from error


def _alive(connection: Connection) -> bool:
    """Whether an idle connection still stands: one that PostgreSQL closed has an end-of-file to read."""
    if connection.closed or connection.broken:
        return False
    readable, _, _ = select.select([connection.fileno()], [], [], 0)
    if not readable:
        return True
    try:
        connection.pgconn.consume_input()
        connection.pgconn.notifies()
    except psycopg.Error:
        return False
    return connection.pgconn.status == psycopg.pq.ConnStatus.OK


def _cut(connection: Connection) -> None:
    with suppress(OSError, psycopg.Error), socket.socket(fileno=os.dup(connection.fileno())) as raw:
        raw.shutdown(socket.SHUT_RDWR)


def _release_all_locks(connection: Connection) -> None:
    connection.execute("select pg_advisory_unlock_all()")


def _notify(connection: Connection, payload: str) -> None:
    connection.execute("select pg_notify(%s, %s)", (CHANNEL, payload))


def _lock_key(repository_id: int) -> int:
    return repository_id % 2**31


def lock_label(device: str, actor: str) -> str:
    """What a holder of the write lock is called in pg_stat_activity: 63 bytes at most, PostgreSQL's limit."""
    return f"git-cluster write {int(time.time())} {device} {actor}"[:63]


def _lock_holder(row: Row) -> LockHolder:
    words = (row["label"] or "").split(" ", 4)
    if len(words) == 5 and words[:2] == ["git-cluster", "write"] and words[2].isdigit():
        return LockHolder(words[3], words[4], datetime.fromtimestamp(int(words[2]), UTC))
    return LockHolder("another program", "somebody", row["state_change"] or datetime.now(UTC))


def _schema_version(connection: psycopg.Connection[Any]) -> int | None:
    row = connection.execute("select to_regclass('cluster') is not null as there").fetchone()
    if not row or not row["there"]:
        return None
    try:
        row = connection.execute("select schema_version from cluster").fetchone()
    except psycopg.errors.UndefinedColumn:
        row = None
    if row is None:
        raise SchemaMismatch(
            "the database has a table `cluster` that is not git-cluster's",
            hint="give git-cluster a database of its own",
        )
    return int(row["schema_version"])


def _upgrade(connection: Connection, found: int) -> None:
    """Bring an older schema to ours, step by step, within the caller's transaction."""
    if found > SCHEMA_VERSION:
        _check_schema(found)
    for version in range(found, SCHEMA_VERSION):
        if version not in UPGRADES:
            raise SchemaMismatch(
                f"the database has schema {found}, which this program cannot upgrade",
                hint="upgrade it with the git-cluster release that came after the one that made it",
            )
        connection.execute(UPGRADES[version])
    connection.execute("update cluster set schema_version = %s", (SCHEMA_VERSION,))


def _check_schema(found: int | None) -> None:
    if found is None:
        raise SchemaMismatch("the database has no git-cluster schema yet", hint="run `git-cluster init` once")
    if found > SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has schema {found}, newer than this program's {SCHEMA_VERSION}",
            hint="upgrade git-cluster on this machine",
        )
    if found < SCHEMA_VERSION:
        raise SchemaMismatch(
            f"the database has schema {found}, older than this program's {SCHEMA_VERSION}",
            hint="run `git-cluster init` to upgrade it",
        )


def _device(row: Row, prefix: str) -> Device:
    return Device(
        id=row[prefix + "id"],
        name=row[prefix + "name"],
        ssh_url=row[prefix + "ssh_url"],
        http_url=row[prefix + "http_url"],
        public_key=row.get(prefix + "public_key") or "",
        host_key=row[prefix + "host_key"],
        mode=DeviceMode(row[prefix + "mode"]),
        last_seen_at=row[prefix + "last_seen_at"],
        silent_for=row[prefix + "silent_for"],
        stopped=row[prefix + "stopped"],
    )


def _replica(row: Row) -> Replica:
    intent = None
    if row["intent_token"]:
        intent = Intent(
            token=row["intent_token"],
            push_id=row["intent_push"],
            actor=row["intent_actor"],
            via=row["intent_via"],
            address=row["intent_address"],
            at=row["intent_at"],
            refs=tuple(RefUpdate(*ref) for ref in row["intent_refs"]),
        )
    position = None
    if row["version"] is not None:
        position = Position(row["version"], Checksum(row["checksum"]))
    return Replica(
        device=_device(row, "d_"),
        position=position,
        quarantined=row["quarantined"],
        intent=intent,
        synced_at=row["synced_at"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        next_try_at=row["next_try_at"],
    )


def _snapshot(rows: list[Row]) -> Snapshot:
    first = rows[0]
    return Snapshot(
        repository=Repository(
            id=first["p_id"],
            name=first["p_name"],
            object_format=first["object_format"],
            position=Position(first["p_version"], Checksum(first["p_checksum"])),
            min_copies=first["min_copies"],
            when_short=WhenShort(first["when_short"]),
            frozen=first["frozen"],
            frozen_at=first["frozen_at"],
            created_at=first["p_created_at"],
        ),
        replicas=tuple(_replica(row) for row in rows if row["d_id"] is not None),
        grants=tuple(
            Grant(name, pattern, Level(level)) for name, pattern, level in first.get("grants") or ()
        ),
        actor_known=first.get("actor_known", True),
    )


def _log_entry(row: Row, refs: tuple[RefUpdate, ...]) -> LogEntry:
    return LogEntry(
        version=row["version"],
        push_id=row["push_id"],
        actor=row["actor"],
        device=row["device"],
        via=row["via"],
        address=row["address"],
        at=row["at"],
        checksum=Checksum(row["checksum"]),
        refs=refs,
    )
