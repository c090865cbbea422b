"""What the charts of the status page are drawn from: how devices did, and how many copies repositories had."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from cluster.db.connections import Connections
from cluster.model import Device

KEPT_DAYS = 8
"""Days for which it is kept how a device did in each minute."""

COPIES_DAYS, MOST_COPIES = 90, 500
"""Days for which it is kept how many copies a repository had, and rows for each. The newest one always is."""

COPIES_LOCK = 0x67697470
"""Key of the advisory lock of whoever looks ("gitp")."""

OVERLAP = 30.0
"""Seconds that one look goes back before the one before: a push or event is in the table only once it is committed."""

MOST_LOOKED_AT = 20_000
"""Ids of repositories that a look at all of them takes at once: some 100 ms."""

MOST_SHORT = 5000
"""Repositories that are looked at again because they were short of copies, at the most."""


@dataclass(frozen=True, slots=True)
class Minute:
    """How a device did in the minute from `at`, seconds since 1970 by the database's clock: a row of `measurement`."""

    at: int
    pushes: int = 0
    reads: int = 0
    failures: int = 0
    push_p50: float | None = None
    push_p99: float | None = None
    read_p50: float | None = None
    read_p99: float | None = None
    behind: int = 0
    lag: float | None = None


@dataclass(frozen=True, slots=True)
class CopiesLook:
    """at: when, by the database's clock. short: repositories that have fewer copies than wanted, for the next look."""

    at: datetime
    short: tuple[int, ...]


class Measurements(Connections):
    """What the charts of the status page are drawn from."""

    def add_minutes(self, device: str, minutes: Sequence[Minute]) -> None:
        """Note how a device did. Harmless to repeat: of two rows for the same minute, the larger figures stay, so that
        a daemon that was restarted within a minute, or one whose answer was lost, leaves one row."""
        self._write(
            """insert into measurement as m (device_id, at, pushes, reads, failures, push_p50, push_p99, read_p50,
                                             read_p99, behind, lag)
               select d.id, to_timestamp(u.at), u.pushes, u.reads, u.failures, u.push_p50, u.push_p99, u.read_p50,
                      u.read_p99, u.behind, u.lag
                 from device d, unnest(%(at)s::bigint[], %(pushes)s::int[], %(reads)s::int[], %(failures)s::int[],
                                       %(push_p50)s::real[], %(push_p99)s::real[], %(read_p50)s::real[],
                                       %(read_p99)s::real[], %(behind)s::int[], %(lag)s::real[])
                           u (at, pushes, reads, failures, push_p50, push_p99, read_p50, read_p99, behind, lag)
                where d.name = %(device)s
               on conflict (device_id, at) do update set
                      pushes = greatest(m.pushes, excluded.pushes), reads = greatest(m.reads, excluded.reads),
                      failures = greatest(m.failures, excluded.failures),
                      push_p50 = greatest(m.push_p50, excluded.push_p50),
                      push_p99 = greatest(m.push_p99, excluded.push_p99),
                      read_p50 = greatest(m.read_p50, excluded.read_p50),
                      read_p99 = greatest(m.read_p99, excluded.read_p99),
                      behind = greatest(m.behind, excluded.behind), lag = greatest(m.lag, excluded.lag)""",
            {
                "device": device,
                **{
                    name: [getattr(minute, name) for minute in minutes]
                    for name in Minute.__dataclass_fields__
                },
            },
        )

    def forget_minutes(self, device: str) -> None:
        """Drop what is older than KEPT_DAYS."""
        self._write(
            """delete from measurement where device_id = (select id from device where name = %(device)s)
                  and at < now() - make_interval(days => %(days)s)""",
            {"device": device, "days": KEPT_DAYS},
        )

    # Copies

    def look_at_copies(
        self, device: str, since: datetime | None, short: Collection[int]
    ) -> CopiesLook | None:
        """Note where the number of copies of a repository is another than the newest row says.

        Looked at are the repositories that were pushed to, or had something happen to them, since the last look
        (`since`), and those that were `short` then; an index finds each. since None: all of them, which reads every
        replica, some at a time. None: another device is to look (of those that are up, the one that was added first),
        or just does.
        """
        if since is not None:
            return self._look_at_copies(device, since, short, range(0))
        newest = self._read("select coalesce(max(id), 0) as id from repository")[0]["id"]
        at, found = None, list[int]()
        for first in range(1, newest + 2, MOST_LOOKED_AT):
            look = self._look_at_copies(device, None, (), range(first, first + MOST_LOOKED_AT))
            if look is None:
                return None
            at = at or look.at
            found += look.short
        assert at is not None
        return CopiesLook(at, tuple(found))

    def _look_at_copies(
        self, device: str, since: datetime | None, short: Collection[int], ids: range
    ) -> CopiesLook | None:
        """The same; since None: of the repositories with these ids."""
        wanted = list(short)[:MOST_SHORT]
        with self._transaction() as connection:
            row = connection.execute(
                """select pg_try_advisory_xact_lock(%(lock)s) and %(device)s = (
                          select name from device
                           where not stopped and last_seen_at > now() - make_interval(secs => %(alive)s)
                           order by id limit 1) as mine, now() as at""",
                {"lock": COPIES_LOCK, "device": device, "alive": Device.OFFLINE_AFTER},
            ).fetchone()
            assert row is not None
            if not row["mine"]:
                return None
            found = connection.execute(
                """with candidate as materialized (
                       select repository_id as id from push
                        where at > %(since)s::timestamptz - make_interval(secs => %(overlap)s)
                       union select repository_id from event
                        where at > %(since)s::timestamptz - make_interval(secs => %(overlap)s)
                       union select unnest(%(short)s::bigint[])
                       union select id from repository where id >= %(first)s and id < %(end)s),
                   counted as (
                       select p.id, count(r.device_id) as wanted,
                              count(*) filter (where r.version = p.version and r.quarantined is null) as copies
                         from candidate join repository p on p.id = candidate.id and p.name is not null
                         left join replica r on r.repository_id = p.id group by p.id),
                   changed as materialized ( -- sorted, so that none is noted before all are known
                       select c.id, c.copies, c.wanted from counted c left join lateral (
                              select l.copies, l.wanted from copies l where l.repository_id = c.id
                               order by l.at desc limit 1) newest on true
                        where (newest.copies, newest.wanted) is distinct from (c.copies::int, c.wanted::int)
                        order by c.copies, c.id),
                   noted as (
                       insert into copies (repository_id, at, copies, wanted)
                       select id, clock_timestamp(), copies, wanted from changed returning repository_id)
                   select c.id, c.copies < c.wanted as short, n.repository_id is not null as noted
                     from counted c left join noted n on n.repository_id = c.id
                    where c.copies < c.wanted or n.repository_id is not null""",
                {
                    "since": since,
                    "overlap": OVERLAP,
                    "short": wanted,
                    "first": ids.start,
                    "end": ids.stop,
                },
            ).fetchall()
            noted = [each["id"] for each in found if each["noted"]]
            if since is None:
                connection.execute(
                    """delete from copies c where c.repository_id >= %(first)s and c.repository_id < %(end)s
                          and c.at < now() - make_interval(days => %(days)s) and exists (
                              select from copies l where l.repository_id = c.repository_id and l.at > c.at)""",
                    {"days": COPIES_DAYS, "first": ids.start, "end": ids.stop},
                )
            elif noted:
                connection.execute(
                    """delete from copies c using (
                              select id, (select max(at) from copies where repository_id = id) as newest,
                                     (select at from copies where repository_id = id
                                       order by at desc offset %(most)s - 1 limit 1) as last
                                from unnest(%(ids)s::bigint[]) id) n
                        where c.repository_id = n.id and c.at < n.newest
                          and (c.at < n.last or c.at < now() - make_interval(days => %(days)s))""",
                    {"ids": noted, "days": COPIES_DAYS, "most": MOST_COPIES},
                )
        again = [each["id"] for each in found if each["short"]]
        # In turn, where there are more than one look takes: those not looked at now come first next time.
        looked = set(wanted)
        left = [id for id in short if id not in looked]
        return CopiesLook(row["at"], (*left, *again))
