"""The whole cluster in a few numbers, for Prometheus and load balancers. What is counted here reads as much as it must
and no more; whoever asks keeps the answer for a while (cluster/looked.py)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import LiteralString

from cluster.db.connections import WRITE_LOCK_CLASS, Connections
from cluster.db.glance import MAY_BE_UNFIT
from cluster.db.schema import check_schema
from cluster.model import Device, DeviceMode

STATES = ("healthy", "degraded", "frozen", "unavailable")
"""Of repositories, as cluster/status.py names them."""


@dataclass(frozen=True, slots=True)
class Behind:
    """A device's copies that are not at the newest version.

    count: how many. absent: how many of them hold nothing yet. lag: seconds since the one that has been behind for
    longest lacks a version; None: none has had one.
    """

    device: str
    count: int
    absent: int
    lag: float | None


@dataclass(frozen=True, slots=True)
class Backlog:
    """Webhooks that have not heard of every version: how many, of how many versions, and for how many seconds the one
    that waits for longest has been waiting."""

    webhooks: int
    versions: int
    delay: float


@dataclass(frozen=True, slots=True)
class Presence:
    """This device as the database knows it. silent_for: seconds since its heartbeat; None: there was none."""

    mode: DeviceMode
    stopped: bool
    silent_for: float | None


@dataclass(frozen=True, slots=True)
class Stuck:
    """Copies of a device: how many it holds, how many of them cannot be brought to the newest version although that was
    tried again, and of how many of those another device that is up has it."""

    held: int
    stuck: int
    elsewhere: int


class Overview(Connections):
    """The whole cluster in a few numbers."""

    def repository_states(self) -> dict[str, int]:
        """How many repositories are in each of STATES, by the rules of cluster/status.py. Only those are looked at that
        may not be healthy.

        A replica at the repository's version holds its newest position: the push log has one checksum for a version.
        An intent that is two seconds old and whose lock is free is left over: a push that ends while this looks is
        younger.
        """
        # Not within the statement: PostgreSQL plans by how many devices these are.
        down = [
            row["id"]
            for row in self._read(
                """select id from device where mode = 'disabled' or stopped or last_seen_at is null
                       or last_seen_at <= now() - make_interval(secs => %(alive)s)""",
                {"alive": Device.OFFLINE_AFTER},
            )
        ]
        rows = self._read(
            """with candidate as materialized ("""
            + MAY_BE_UNFIT
            + """),
               left_over as (
                   select r.repository_id from replica r
                    where r.unfit and r.intent_token is not null and r.intent_at < now() - interval '2 s'
                      and not exists (
                          select from pg_locks l
                           where l.locktype = 'advisory' and l.granted and l.classid::bigint = %(class)s
                             and l.objid::bigint = r.repository_id %% 2147483648 and l.objsubid = 2
                             and l.database = (select oid from pg_database where datname = current_database()))),
               held as (
                   select p.id, p.version, p.min_copies,
                          count(*) filter (where r.version = p.version and r.quarantined is null) as leaders,
                          coalesce(bool_or(r.device_id <> all(%(down)s::bigint[]) and (p.version = 0
                                           or (r.version = p.version and r.quarantined is null))), false) as available,
                          coalesce(bool_or(r.device_id = any(%(down)s::bigint[]) or r.quarantined is not null
                                           or r.version is distinct from p.version or r.damage is not null),
                                   false) as trouble
                     from candidate c join repository p on p.id = c.id left join replica r on r.repository_id = p.id
                    where p.name is not null and p.frozen is null
                      and p.id not in (select repository_id from left_over)
                    group by p.id),
               found as (
               select case when not available then 'unavailable'
                           when trouble or leaders < min_copies then 'degraded' else 'healthy' end as state,
                      count(*) as count from held group by 1
               union all
               select 'frozen', count(*) from candidate c join repository p on p.id = c.id
                where p.name is not null
                  and (p.frozen is not null or p.id in (select repository_id from left_over)))
               select state, count from found where state <> 'healthy' and count > 0
               union all
               select 'healthy', (select coalesce(sum(count), 0) from counted where device_id is null)
                                 - (select coalesce(sum(count), 0) from found where state <> 'healthy')""",
            {"class": WRITE_LOCK_CLASS, "down": down},
        )
        return dict.fromkeys(STATES, 0) | {row["state"]: max(0, int(row["count"])) for row in rows}

    def behind(self, device: str | None = None) -> list[Behind]:
        """Of each device; or of one, whose replicas an index finds."""
        here: LiteralString = (
            " r.device_id = (select id from device where name = %(device)s)" if device else " true"
        )
        rows = self._read(
            """select d.name, count(r.device_id) as count,
                      count(r.device_id) filter (where r.version is null) as absent,
                      extract(epoch from now() - min(p.at))::float as lag
                 from device d
                 left join (select r.device_id, r.repository_id, r.version
                              from replica r join repository p on p.id = r.repository_id
                             where p.name is not null and r.unfit and r.version is distinct from r.newest and"""
            + here
            + """) r on r.device_id = d.id
                 left join push p on p.repository_id = r.repository_id and p.version = r.version + 1
                where %(device)s::text is null or d.name = %(device)s
                group by d.name order by d.name""",
            {"device": device},
        )
        return [Behind(row["name"], row["count"], row["absent"], row["lag"]) for row in rows]

    def backlog(self) -> Backlog:
        rows = self._read(
            """select count(*) as webhooks, coalesce(sum(p.version - w.delivered), 0)::bigint as versions,
                      coalesce(extract(epoch from now() - min(e.at)), 0)::float as delay
                 from webhook w join repository p on p.id = w.repository_id and p.name is not null
                 left join push e on e.repository_id = w.repository_id and e.version = w.delivered + 1
                where w.due"""
        )
        return Backlog(rows[0]["webhooks"], rows[0]["versions"], max(0.0, rows[0]["delay"]))

    def presence(self, device: str) -> Presence | None:
        """None: it is not registered any more. SchemaMismatch: the database is another program's by now."""
        rows = self._read(
            """select c.schema_version, d.mode::text, d.stopped,
                      extract(epoch from now() - d.last_seen_at)::float as silent_for
                 from cluster c left join device d on d.name = %(device)s""",
            {"device": device},
        )
        check_schema(rows[0]["schema_version"] if rows else None)
        row = rows[0]
        return Presence(DeviceMode(row["mode"]), row["stopped"], row["silent_for"]) if row["mode"] else None

    def stuck(self, device: str) -> Stuck:
        rows = self._read(
            """select (select coalesce(sum(count), 0)::bigint from counted
                        where device_id = (select id from device where name = %(device)s)) as held,
                      count(*) filter (where s.stuck) as stuck,
                      count(*) filter (where s.stuck and exists (
                          select from replica o join device e on e.id = o.device_id
                           where o.repository_id = s.repository_id and o.device_id <> s.device_id
                             and o.version = s.newest and o.quarantined is null and e.mode <> 'disabled'
                             and not e.stopped and e.last_seen_at > now() - make_interval(secs => %(alive)s)
                      )) as elsewhere
                 from (select r.repository_id, r.device_id, p.version as newest, r.attempts > 1
                              and (r.version is distinct from r.newest or r.quarantined is not null) as stuck
                         from replica r join repository p on p.id = r.repository_id and p.name is not null
                        where r.unfit and r.device_id = (select id from device where name = %(device)s)) s""",
            {"device": device, "alive": Device.OFFLINE_AFTER},
        )
        return Stuck(**rows[0])
