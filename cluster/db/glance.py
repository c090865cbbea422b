"""What the status page asks: what needs somebody, in few rows however many repositories there are.

Of a hundred thousand repositories nearly all are as they should be, or are not for one and the same reason (a device is
down). So what is not is grouped by its shape, and one of each group says what is wrong with all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from cluster.db.connections import Connections
from cluster.db.own import like
from cluster.db.repositories import SNAPSHOT
from cluster.db.rows import event_of, log_entry_of, snapshots_from
from cluster.errors import NotFound
from cluster.model import Event, LogEntry, RefUpdate, Snapshot


@dataclass(frozen=True, slots=True)
class Group:
    """Repositories that are not as they should be, for the same reasons: how many, and the first by name."""

    count: int
    name: str


@dataclass(frozen=True, slots=True)
class Lag:
    """Replicas of one device that are not at the newest version, and since when the first of them could have been."""

    device: str
    behind: int
    since: datetime | None


@dataclass(frozen=True, slots=True)
class Happened:
    """An event and the repository that it happened to."""

    repository: str
    event: Event


@dataclass(frozen=True, slots=True)
class Piece:
    """What one device did in a piece of time that begins at `at`. Times in seconds; None: nothing was measured."""

    device: str
    at: datetime
    pushes: int
    reads: int
    failures: int
    push_p50: float | None
    push_p99: float | None
    read_p50: float | None
    read_p99: float | None
    lag: float | None


@dataclass(frozen=True, slots=True)
class Count:
    """How many copies a repository had from `at` on, of how many wanted."""

    at: datetime
    copies: int
    wanted: int


class Glances(Connections):
    """What the status page asks."""

    def how_many(self) -> int:
        """Repositories."""
        return int(
            self._read(
                "select coalesce(sum(count), 0)::bigint as count from counted where device_id is null"
            )[0]["count"]
        )

    def unfit_groups(
        self, down: Sequence[int], *, among: Sequence[str] | None = None, limit: int = 100
    ) -> tuple[list[Group], int]:
        """Repositories that may not be healthy, in groups: those that a person has to see to first, then the largest;
        and how many there are in all.

        down: ids of the devices that do not serve. among: only of the repositories with these names. The cost grows
        with what is wrong, and where a device is down that is all that it holds: who asks keeps the answer for a while.
        """
        rows = self._read(
            """with candidate as materialized ("""
            + MAY_BE_UNFIT
            + """), shaped as (
                   select p.name, p.frozen is not null or coalesce(bool_or(r.intent_token is not null), false) as first,
                          case when p.frozen is not null then p.id end as alone, p.min_copies, p.version > 0 as pushed,
                          bit_xor(hashint8extended(r.device_id * 64
                                  + case when r.quarantined is not null then 1 when r.version is null then 2
                                         when r.version = p.version and r.checksum = p.checksum then 3 else 4 end
                                  + case when r.attempts > 0 then 8 else 0 end
                                  + case when r.damage is not null then 16 else 0 end,
                                  case when r.intent_token is not null or r.marker_version is not null
                                       then p.id else 0 end)) as shape"""
            + _UNFIT
            + """)
               select min(name) as name, count(*) as count, sum(count(*)) over ()::bigint as every
                 from shaped group by first, alone, min_copies, pushed, shape
                order by first desc, count(*) desc, min(name) limit %(limit)s""",
            {
                "down": list(down),
                "among": None if among is None else list(among),
                "after": "",
                "search": "%",
                "limit": limit,
            },
        )
        return [Group(row["count"], row["name"]) for row in rows], rows[0]["every"] if rows else 0

    def worst_names(self, down: Sequence[int], *, limit: int) -> list[str]:
        """The same repositories, so many: first those that are frozen or have an interrupted write, then those that no
        device which serves has, then the others; by name."""
        rows = self._read(
            "with candidate as materialized ("
            + MAY_BE_UNFIT
            + """), found as (
                   select p.name, case
                          when p.frozen is not null or bool_or(r.intent_token is not null) then 0
                          when not coalesce(bool_or(r.device_id <> all(%(down)s::bigint[]) and (p.version = 0
                                   or (r.version = p.version and r.quarantined is null))), false) then 1
                          else 2 end as worst"""
            + _UNFIT
            + ") select name from found order by worst, name limit %(limit)s",
            {"down": list(down), "among": None, "after": "", "search": "%", "limit": limit},
        )
        return [row["name"] for row in rows]

    def unfit_names(self, down: Sequence[int], *, search: str, after: str, limit: int) -> list[str]:
        """Names, in their order, of the repositories that may not be healthy; after `after`."""
        rows = self._read(
            "with candidate as materialized ("
            + MAY_BE_UNFIT
            + ") select p.name"
            + _UNFIT
            + " order by p.name limit %(limit)s",
            {
                "down": list(down),
                "among": None,
                "after": after,
                "search": f"%{like(search)}",
                "limit": limit,
            },
        )
        return [row["name"] for row in rows]

    def lags(self) -> list[Lag]:
        """Of each device that has replicas which are not current."""
        rows = self._read(
            """select d.name, count(*) as behind, min(n.at) as since
                 from replica r join repository p on p.id = r.repository_id and p.name is not null
                 join device d on d.id = r.device_id
                 left join push n on n.repository_id = r.repository_id and n.version = coalesce(r.version + 1, 0)
                where r.unfit and (r.version is distinct from r.newest or r.quarantined is not null)
                group by d.name order by d.name"""
        )
        return [Lag(row["name"], row["behind"], row["since"]) for row in rows]

    def search_names(
        self, search: str, *, exact: Sequence[str], beginning: Sequence[str], after: str, limit: int
    ) -> list[str]:
        """Names, in their order, that hold `search` (in whatever case) and are one of `exact` or begin with one of
        `beginning`; after `after`."""
        rows = self._read(
            """select name from repository
                where name > %(after)s and name ilike %(search)s
                  and (name like any(%(beginning)s) or name = any(%(exact)s))
                order by name limit %(limit)s""",
            {
                "after": after,
                "search": f"%{like(search)}",
                "beginning": [like(each) for each in beginning],
                "exact": list(exact),
                "limit": limit,
            },
        )
        return [row["name"] for row in rows]

    def snapshots_of(self, names: Sequence[str]) -> list[Snapshot]:
        """Those of `names` that there are, by name."""
        rows = self._read(
            SNAPSHOT + " where p.name = any(%(names)s) order by p.name, d.name", {"names": list(names)}
        )
        return snapshots_from(rows)

    def log_page(
        self, repository_id: int, *, before: int | None, limit: int, most_refs: int
    ) -> list[tuple[LogEntry, bool]]:
        """The newest `limit` entries, or those before a version, newest first: each with its first `most_refs` refs,
        and whether there are more. A push may change a hundred thousand."""
        rows = self._read(
            """select p.version, p.push_id, p.actor, p.device, p.via, p.address, p.at, p.checksum, u.refs
                 from (select * from push where repository_id = %(id)s and version > 0
                        and (%(before)s::bigint is null or version < %(before)s)
                        order by version desc limit %(limit)s) p
                cross join lateral (
                      select coalesce(json_agg(json_build_array(s.ref, s.old, s.new) order by s.ref), '[]') as refs
                        from (select ref, old, new from push_ref
                               where repository_id = p.repository_id and version = p.version
                               order by ref limit %(most)s + 1) s) u
                order by p.version desc""",
            {"id": repository_id, "before": before, "limit": limit, "most": most_refs},
        )
        return [
            (
                log_entry_of(row, tuple(RefUpdate(*ref) for ref in row["refs"][:most_refs])),
                len(row["refs"]) > most_refs,
            )
            for row in rows
        ]

    def refs_of_version(
        self, repository_id: int, version: int, *, after: str, limit: int
    ) -> tuple[LogEntry, list[RefUpdate]]:
        """One entry, and the refs that it changed, in their order; after `after`. NotFound."""
        rows = self._read(
            """select version, push_id, actor, device, via, address, at, checksum from push
                where repository_id = %(id)s and version = %(version)s""",
            {"id": repository_id, "version": version},
        )
        if not rows:
            raise NotFound(f"there is no version {version} of it", hint="its log shows those that there are")
        refs = self._read(
            """select ref, old, new from push_ref where repository_id = %(id)s and version = %(version)s
                  and ref > %(after)s order by ref limit %(limit)s""",
            {"id": repository_id, "version": version, "after": after, "limit": limit},
        )
        return log_entry_of(rows[0], ()), [RefUpdate(row["ref"], row["old"], row["new"]) for row in refs]

    def lately(self, *, before: datetime | None = None, limit: int) -> list[Happened]:
        """Events of all repositories, the newest first. By an index, however many there are."""
        rows = self._read(
            """select p.name, e.version, e.kind::text, e.device, e.at, e.what, e.refs
                 from (select * from event where %(before)s::timestamptz is null or at < %(before)s
                        order by at desc limit %(limit)s) e
                 join repository p on p.id = e.repository_id and p.name is not null order by e.at desc, e.id desc""",
            {"before": before, "limit": limit},
        )
        return [Happened(row["name"], event_of(row)) for row in rows]

    def pieces(self, *, hours: int, minutes: int) -> list[Piece]:
        """How the devices did in the last `hours`, in pieces of `minutes`, the oldest first. Of several minutes the
        sum of what was done; of p50 the mean, by how much was done in each minute; of p99 and lag the worst."""
        rows = self._read(
            """select d.name as device, date_bin(make_interval(mins => %(minutes)s), m.at, 'epoch') as at,
                      sum(m.pushes)::int as pushes, sum(m.reads)::int as reads, sum(m.failures)::int as failures,
                      sum(m.push_p50 * m.pushes) / nullif(sum(m.pushes) filter (where m.push_p50 is not null), 0)
                          as push_p50,
                      max(m.push_p99) as push_p99,
                      sum(m.read_p50 * m.reads) / nullif(sum(m.reads) filter (where m.read_p50 is not null), 0)
                          as read_p50,
                      max(m.read_p99) as read_p99, max(m.lag) as lag
                 from measurement m join device d on d.id = m.device_id
                where m.at > now() - make_interval(hours => %(hours)s)
                group by 1, 2 order by 2, 1""",
            {"hours": hours, "minutes": minutes},
        )
        return [Piece(**row) for row in rows]

    def copies_over_time(self, repository_id: int, *, limit: int) -> list[Count]:
        """The newest `limit` changes of how many copies a repository had, the newest first."""
        rows = self._read(
            """select at, copies, wanted from copies where repository_id = %(id)s order by at desc limit %(limit)s""",
            {"id": repository_id, "limit": limit},
        )
        return [Count(**row) for row in rows]

    def now(self) -> datetime:
        """By the database's clock, which every time in it is of."""
        found: datetime = self._read("select now() as now")[0]["now"]
        return found


MAY_BE_UNFIT: LiteralString = """
    select repository_id as id from replica where unfit
     union select id from repository where unfit
     union select repository_id from replica where device_id = any(%(down)s::bigint[])"""
"""Ids of the repositories that are not as they should be, and of some that are: an index finds each of the three kinds,
so that this costs what is wrong, however much is right. down: ids of the devices that do not serve."""

_UNFIT: LiteralString = """
     from candidate c join repository p on p.id = c.id left join replica r on r.repository_id = p.id
    where p.name > %(after)s and p.name ilike %(search)s and (%(among)s::text[] is null or p.name = any(%(among)s))
    group by p.id
   having p.frozen is not null or count(r.device_id) < p.min_copies
       or bool_or(r.version is distinct from p.version or r.checksum <> p.checksum or r.quarantined is not null
                  or r.intent_token is not null or r.marker_version is not null or r.damage is not null
                  or r.device_id = any(%(down)s::bigint[]))"""
