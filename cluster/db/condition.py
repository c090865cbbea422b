"""What PostgreSQL says of itself, for `git-cluster doctor`. Nothing here is written."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import NamedTuple

from cluster.db.connections import Connections, translated
from cluster.db.schema import schema_version_of


@dataclass(frozen=True, slots=True)
class Server:
    """One PostgreSQL server and our place in it.

    version: as server_version_num has it, 150004 for 15.4. host: where it is, "" for a Unix socket.
    most: sessions that this role can have in this database; used: sessions of everybody, now.
    synchronous_standbys: whether commits wait for another server.
    writes: whether this role may write to git-cluster's tables; None: there are none.
    """

    version: int
    host: str
    fsync: bool
    full_page_writes: bool
    synchronous_commit: str
    synchronous_standbys: bool
    most: int
    used: int
    writes: bool | None


@dataclass(frozen=True, slots=True)
class Alike:
    """Repositories in the same condition on the same devices: how many, and the names of the first three."""

    count: int
    names: tuple[str, ...]


class Tick(NamedTuple):
    """One look at the database's clock, in seconds: what it said, what ours said half-way, how long it took."""

    theirs: float
    ours: float
    taken: float


class Condition(Connections):
    """What PostgreSQL says of itself."""

    def server(self) -> Server:
        with translated(), self._pool.connection() as link:
            row = link.execute(
                """select current_setting('server_version_num')::int as version,
                          current_setting('fsync') = 'on' as fsync,
                          current_setting('full_page_writes') = 'on' as full_page_writes,
                          current_setting('synchronous_commit') as synchronous_commit,
                          current_setting('synchronous_standby_names') <> '' as synchronous_standbys,
                          (select least(nullif(rolconnlimit, -1), nullif(datconnlimit, -1),
                                        current_setting('max_connections')::int
                                        - current_setting('superuser_reserved_connections')::int
                                        - coalesce(current_setting('reserved_connections', true), '0')::int)
                             from pg_roles, pg_database
                            where rolname = current_user and datname = current_database()) as most,
                          (select sum(numbackends) from pg_stat_database)::int as used,
                          (select bool_and(has_table_privilege(oid, 'insert') and has_table_privilege(oid, 'update'))
                             from unnest(array[to_regclass('push'), to_regclass('replica'), to_regclass('device')]) oid
                            where oid is not null) as writes"""
            ).fetchone()
            assert row is not None
            host = link.info.host
        return Server(**row, host="" if host.startswith("/") else f"{host} port {link.info.port}")

    def tick(self) -> Tick:
        """One round trip. DatabaseUnavailable."""
        with translated(), self._pool.connection() as link:
            began, since = time.time(), time.monotonic()
            row = link.execute(
                "select extract(epoch from clock_timestamp())::float as now", prepare=False
            ).fetchone()
            taken = time.monotonic() - since
        assert row is not None
        return Tick(row["now"], began + taken / 2, taken)

    def schema_version(self) -> int | None:
        """Of git-cluster's schema in this database; None: it has none. SchemaMismatch: it has somebody else's."""
        with translated(), self._pool.connection() as link:
            return schema_version_of(link)

    def alike(self) -> list[Alike]:
        """All repositories in groups of which cluster/status.py says the same of each: the largest first.

        A hundred thousand repositories are a few groups. One that is being written to, or was interrupted in that, is a
        group by itself, because a lock decides about it.
        """
        rows = self._read(
            """with shaped as (
                   select p.id, p.name, concat_ws('/', p.frozen is not null, p.version > 0, p.min_copies,
                          string_agg(concat(r.device_id,
                              case when r.intent_token is not null then concat('i', p.id)
                                   when r.quarantined is not null then 'q'
                                   when r.version is null then 'a'
                                   when r.version = p.version and r.checksum = p.checksum then 'c'
                                   else 'b' end,
                              case when r.marker_version is not null then concat('m', p.id) end,
                              case when r.damage is not null then 'd' end), ',' order by r.device_id)) as shape
                     from repository p left join replica r on r.repository_id = p.id
                    where p.name is not null group by p.id)
               select count(*) as count, (array_agg(name order by name))[1:3] as names
                 from shaped group by shape order by count(*) desc, min(name)"""
        )
        return [Alike(row["count"], tuple(row["names"])) for row in rows]
