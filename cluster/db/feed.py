"""The changes of all repositories in one order, for those who are told of them.

A change is numbered after its commit, not in it: a sequence in the commit would show 8 before 7, and who had read up to
8 would never see 7. Invariants, so that whoever reads `number > x order by number` misses nothing:

* One transaction at a time gives numbers (an advisory lock, released after its commit is seen), and each gives greater
  ones than all before it. So no number appears below one that could be read already.
* A version gets its number after the versions before it: a chunk reaches back to those that have none yet.
* A number that was given is given to no other change, even if the change is gone. Where the database came back older
  than what was told already, the numbers go on after that (`known`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import LiteralString

from cluster.db.connections import Connections
from cluster.db.rows import Row, log_entry_of
from cluster.db.who import COUNTS_AS_PROOF
from cluster.model import Grant, Level, LogEntry, RefUpdate

CHUNK = 5000
"""Changes that are numbered in one transaction: some 200 ms."""

MOST_REFS = 1000
"""Refs that are told of one change. A push of a hundred thousand would be held in memory once for each listener."""

FEED_LOCK = 0x67697466
"""The advisory lock of whoever gives numbers ("gitf")."""


@dataclass(frozen=True, slots=True)
class Change:
    """A committed change of a repository, as it is told. number: 0: not given yet. refs_total: how many refs it
    changed, of which entry.refs has the first MOST_REFS."""

    number: int
    repository_id: int
    repository: str
    entry: LogEntry
    refs_total: int


class Feed(Connections):
    """The changes of all repositories in one order."""

    def number_changes(self, *, known: int = 0) -> int:
        """Number CHUNK of those that have none, and some; how many it were. 0: all have one that were committed before.
        DatabaseUnavailable, too, where somebody else is at it for seconds.

        known: a number that was told already: greater ones only are given.
        """
        if (
            not known
            and not self._read("select exists (select from push where number is null) as any")[0]["any"]
        ):
            return 0
        with self._transaction() as connection:
            connection.execute(
                "select set_config('lock_timeout', '5s', true)"  # its holder may have been stopped in the middle
            )
            connection.execute("select pg_advisory_xact_lock(%(lock)s)", {"lock": FEED_LOCK})
            if known:
                connection.execute(
                    "select setval('push_number', %(known)s) from push_number where last_value < %(known)s",
                    {"known": known},
                )
            return connection.execute(_NUMBER, {"chunk": CHUNK}).rowcount

    def numbers(self) -> tuple[int, int]:
        """The greatest of a change that is there, and the greatest that was given to any. 0: none."""
        row = self._read(
            """select coalesce(
                          (select number from push where number is not null order by number desc limit 1), 0) as newest,
                      case when is_called then last_value else 0 end as given from push_number"""
        )[0]
        return int(row["newest"]), int(row["given"])

    def feed(self, after: int, *, most: int) -> list[Change]:
        """Those with the next numbers, of repositories that are still there. Creations (version 0) are none."""
        return [
            _change(row)
            for row in self._read(
                _CHANGE + "where p.number > %(after)s and p.version > 0 order by p.number limit %(most)s",
                {"after": after, "most": most, "refs": MOST_REFS},
            )
        ]

    def feed_of(self, repository_id: int, version: int) -> Change | None:
        """None: there is no such version, or the repository is gone."""
        rows = self._read(
            _CHANGE + "where p.repository_id = %(id)s and p.version = %(version)s",
            {"id": repository_id, "version": version, "refs": MOST_REFS},
        )
        return _change(rows[0]) if rows else None

    def still(self, tokens: Sequence[int]) -> dict[int | None, list[Grant]]:
        """The grants that concern each user whom one of these tokens proves now; None: those to everyone.

        A token that proves nobody any more is not in it. One statement, however many they are.
        """
        found: dict[int | None, list[Grant]] = {None: []}
        for row in self._read(_STILL, {"tokens": list(tokens)}):
            grants = found.setdefault(row["token"], [])
            if row["pattern"] is not None:
                grants.append(Grant(row["actor"], row["pattern"], Level(row["level"])))
        everyone = found[None]
        return {token: grants + (everyone if token is not None else []) for token, grants in found.items()}


_NUMBER: LiteralString = """
with recursive chunk as (
    select repository_id, version, at from push where number is null order by at limit %(chunk)s),
reaching (repository_id, version, at) as (
    select * from chunk
    union
    select p.repository_id, p.version, p.at
      from reaching r join push p on p.repository_id = r.repository_id and p.version = r.version - 1
     where p.number is null),
ordered as (
    select repository_id, version, max(at) over (partition by repository_id order by version) as at from reaching),
given as materialized (
    select repository_id, version, nextval('push_number') as number
      from (select * from ordered order by at, repository_id, version) o)
update push p set number = given.number from given
 where p.repository_id = given.repository_id and p.version = given.version"""
"""By the times of the commits, but a version never before an earlier one, whatever the clocks said."""

_CHANGE: LiteralString = """
select p.number, p.repository_id, r.name as repository, p.version, p.push_id, p.actor, p.device, p.via, p.address, p.at,
       p.checksum, u.refs,
       (select count(*) from push_ref c where c.repository_id = p.repository_id and c.version = p.version) as refs_total
  from push p join repository r on r.id = p.repository_id and r.name is not null
       cross join lateral (
           select json_agg(json_build_array(s.ref, s.old, s.new) order by s.ref) as refs
             from (select ref, old, new from push_ref
                    where repository_id = p.repository_id and version = p.version order by ref limit %(refs)s) s) u
 """

_STILL: LiteralString = (
    """
with proven as (
    select t.id, t.actor_id, a.name from token t join actor a on a.id = t.actor_id
     where t.id = any(%(tokens)s::bigint[]) and """
    + COUNTS_AS_PROOF
    + """)
select null::bigint as token, null::text as actor, pattern, level::text from access_grant
 where actor_id is null and group_id is null
union all
select id, name, null, null from proven
union all
select p.id, p.name, g.pattern, g.level::text from proven p join access_grant g on g.actor_id = p.actor_id
union all
select p.id, '@' || q.name, g.pattern, g.level::text
  from proven p join group_member m on m.actor_id = p.actor_id join actor_group q on q.id = m.group_id
  join access_grant g on g.actor_id is null and g.group_id = q.id"""
)


def _change(row: Row) -> Change:
    refs = tuple(RefUpdate(*ref) for ref in row["refs"] or ())
    return Change(
        row["number"] or 0,
        row["repository_id"],
        row["repository"],
        log_entry_of(row, refs),
        row["refs_total"],
    )
