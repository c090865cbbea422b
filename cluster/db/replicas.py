"""What replicas claim, what they lack, and which of them is trusted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import LiteralString

from cluster.db.connections import CHANNEL, Connections, notify, translated
from cluster.db.devices import MAY_FENCE
from cluster.db.placing import lock_placement
from cluster.db.repositories import SNAPSHOT_OF, the_one
from cluster.db.rows import Row, log_entry_of
from cluster.db.schema import Connection
from cluster.errors import WriteConflict
from cluster.model import (
    Checksum,
    Device,
    EventKind,
    Intent,
    LogEntry,
    Position,
    RefUpdate,
    Snapshot,
)


@dataclass(frozen=True, slots=True)
class Held:
    """A replica on the device that asked. newest: its repository's position.

    claims: what its refs amount to; None: it is absent, not trusted, in the middle of a write, or ahead.
    named: whether its repository is still there.
    """

    repository_id: int
    newest: Position
    claims: Checksum | None
    named: bool


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened between two versions: each ref's first old and last new value (where they differ), and the entries
    (without their refs)."""

    updates: tuple[RefUpdate, ...]
    entries: tuple[LogEntry, ...]

    def lead(self, since: int, until: int) -> bool:
        """Whether they are those after `since` up to `until`."""
        ends = self.entries[:1] + self.entries[-1:]
        return [entry.version for entry in ends] == [since + 1, until]


_NEWEST = (1 << 63) - 1
"""No version is greater: PostgreSQL's largest bigint."""

_CHANGES: LiteralString = """
    select ref, (array_agg(old order by version))[1] as old, (array_agg(new order by version desc))[1] as new,
           null::bigint as version, null::uuid as push_id, null as actor, null as device, null as via, null as address,
           null::timestamptz as at, null::bytea as checksum
      from push_ref where repository_id = %(id)s and version > %(since)s and version <= %(until)s group by ref
     union all
    select null, null, null, version, push_id, actor, device, via, address, at, checksum
      from push where repository_id = %(id)s and version > %(since)s and version <= %(until)s
     order by ref, version"""


def _changes(rows: list[Row]) -> Changes:
    return Changes(
        updates=tuple(
            RefUpdate(row["ref"], row["old"], row["new"])
            for row in rows
            if row["version"] is None and row["old"] != row["new"]
        ),
        entries=tuple(log_entry_of(row, ()) for row in rows if row["version"] is not None),
    )


class Replicas(Connections):
    """What replicas claim, what they lack, and which of them is trusted."""

    def changes(self, repository_id: int, since: int, until: int) -> Changes:
        """What happened after `since` up to `until`."""
        return _changes(self._read(_CHANGES, {"id": repository_id, "since": since, "until": until}))

    def snapshot_and_changes(self, repository_id: int, since: int) -> tuple[Snapshot, Changes]:
        """`snapshot_of`, and what happened after `since`, in one round trip: the changes may be newer. NotFound when
        the repository was deleted."""
        params = {"id": repository_id, "since": since, "until": _NEWEST}
        seen, changed = self._read_both(SNAPSHOT_OF, _CHANGES, params)
        return the_one(seen), _changes(changed)

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
            """with old as (
                   select r.repository_id, r.device_id, r.quarantined from replica r join device d on d.id = r.device_id
                    where r.repository_id = %(id)s and d.name = %(device)s for update of r),
               turned as (
                   update replica r set version = %(version)s, checksum = %(checksum)s, quarantined = null,
                          distrust = null, damage = case when old.quarantined is null then r.damage end,
                          marker_version = null, marker_checksum = null,
                          synced_at = now(), attempts = 0, last_error = null, next_try_at = null
                     from old
                    where r.repository_id = old.repository_id and r.device_id = old.device_id
                      and r.version is not distinct from %(was)s and r.intent_token is null
                   returning r.repository_id, old.quarantined),
               noted as (
                   insert into event (repository_id, version, kind, device, what)
                   select repository_id, %(version)s, 'rebuild', %(device)s,
                          'its copy is trusted again; it was not because: ' || quarantined
                     from turned where quarantined is not null)
               select quarantined is not null as rebuilt from turned""",
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
        if rows[0]["rebuilt"]:
            self.measures.happened(EventKind.REBUILD)

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
        """Stop trusting a replica. Its claim stays readable, but it is nobody's leader. What is demoted stays so."""
        noted = self._write(
            """with turned as (
                   update replica r set quarantined = %(why)s, distrust = coalesce(r.distrust, 'damaged'),
                          next_try_at = null, verified_at = null
                     from device d
                    where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s
                      and r.quarantined is distinct from %(why)s returning r.repository_id)
               insert into event (repository_id, version, kind, device, what)
               select p.id, p.version, 'quarantine', %(device)s, 'its copy is not trusted any more: ' || %(why)s
                 from turned join repository p on p.id = turned.repository_id returning 1""",
            {"id": repository_id, "device": device, "why": why[:500]},
        )
        if noted:
            self.measures.happened(EventKind.QUARANTINE)

    def demote(
        self, repository_id: int, device: str, why: str, intent: Intent | None, *, connection: Connection
    ) -> None:
        """Withdraw a replica's trust, and its intent, which must still be `intent`; its next sync rebuilds it.

        On the connection that holds the lock. WriteConflict: what was interrupted was committed or resolved meanwhile.
        The repository's row is locked first, as a commit does that comes late: else the two may wait for each other.
        """
        with translated():
            lock_placement(connection, repository_id)
            done = connection.execute(
                """update replica r set quarantined = %(why)s, distrust = 'demoted', next_try_at = null,
                          verified_at = null, intent_token = null, intent_push = null, intent_actor = null,
                          intent_via = null, intent_address = null, intent_at = null, intent_refs = null from device d
                    where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s
                      and r.intent_token is not distinct from %(token)s::uuid""",
                {
                    "id": repository_id,
                    "device": device,
                    "why": why,
                    "token": intent.token if intent else None,
                },
            ).rowcount
            if done != 1:
                raise WriteConflict("the repository changed meanwhile", hint="look again")
            notify(connection, str(repository_id))

    def claim(self, repository_id: int, device: str, position: Position, *, connection: Connection) -> None:
        """Set a replica's claim by decree: a person declared its content to be `position`, and it is trusted."""
        with translated():
            lock_placement(connection, repository_id)
            connection.execute(
                """update replica r set version = %(version)s, checksum = %(checksum)s, quarantined = null,
                          distrust = null, damage = null, marker_version = null, marker_checksum = null,
                          synced_at = now(), attempts = 0, last_error = null, next_try_at = null from device d
                    where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s""",
                {
                    "id": repository_id,
                    "device": device,
                    "version": position.version,
                    "checksum": position.checksum.accumulator,
                },
            )

    def interrupted(self, device: str, silent_for: float) -> tuple[list[int], list[int]]:
        """Ids of repositories with an intent: those whose owner is `device`, and those that `device` may fence:
        it holds the newest version itself, the owner has not been seen for `silent_for` seconds, and its own
        heartbeat came without a gap for as long."""
        rows = self._read(
            """select r.repository_id, o.name = %(device)s as own
                 from replica r join device o on o.id = r.device_id
                 join repository p on p.id = r.repository_id and p.name is not null
                 join device me on me.name = %(device)s
                where r.unfit and r.intent_token is not null and (o.id = me.id or ("""
            + MAY_FENCE
            + """
                      and exists (select from replica m
                                   where m.repository_id = r.repository_id and m.device_id = me.id
                                     and m.version = p.version and m.quarantined is null)))""",
            {"device": device, "silent": silent_for},
        )
        own = [row["repository_id"] for row in rows if row["own"]]
        return own, [row["repository_id"] for row in rows if not row["own"]]

    def note_damage(self, repository_id: int, device: str, what: str | None) -> None:
        """Say on a replica's row, for `status`, what only a person can put right there; None: nothing any more.
        The log has it once."""
        noted = self._write(
            """with turned as (
                   update replica r set damage = %(what)s from device d
                    where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s
                      and r.damage is distinct from %(what)s returning r.repository_id)
               insert into event (repository_id, version, kind, device, what)
               select p.id, p.version, 'damage', %(device)s, %(what)s
                 from turned join repository p on p.id = turned.repository_id
                where %(what)s::text is not null returning 1""",
            {"id": repository_id, "device": device, "what": what and what[:1000]},
        )
        if noted:
            self.measures.happened(EventKind.DAMAGE)

    def note_verified(self, repository_id: int, device: str) -> None:
        """A replica was found to be what it should be. With an intent, what only a person can resolve stays said."""
        self._write(
            """update replica r set verified_at = now(),
                      damage = case when r.intent_token is null then null else r.damage end from device d
                where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s""",
            {"id": repository_id, "device": device},
        )

    def due_for_verification(self, device: str, every: float) -> list[tuple[int, bool]]:
        """Ids of repositories whose replica here was not verified for `every` seconds, the longest ago first, and
        whether it is known to be damaged and another device, which is up, could help now."""
        rows = self._read(
            """with here as (select id from device where name = %(device)s),
                    found as (
                   (select * from replica where device_id = (select id from here) and damage is not null limit 1000)
                   union all
                   (select * from replica where device_id = (select id from here) and unfit and damage is null
                       and (verified_at is null
                            or verified_at < now() - make_interval(secs => %(every)s)) limit 1000)
                   union all
                   (select * from replica where device_id = (select id from here) and not unfit
                       and verified_at is null limit 1000)
                   union all
                   (select * from replica where device_id = (select id from here) and not unfit
                       and verified_at < now() - make_interval(secs => %(every)s)
                     order by verified_at limit 1000))
               select r.repository_id, r.damage is not null and exists (
                      select from replica o join device e on e.id = o.device_id
                       where o.repository_id = r.repository_id and o.device_id <> r.device_id
                         and o.version = r.newest and o.quarantined is null and o.damage is null
                         and e.mode <> 'disabled' and not e.stopped
                         and e.last_seen_at > now() - make_interval(secs => %(alive)s)) as helped
                 from found r join repository p on p.id = r.repository_id and p.name is not null
                where r.version is not null and r.quarantined is null and r.intent_token is null
                  and r.marker_version is null
                order by 2 desc, r.verified_at nulls first, md5(r.repository_id::text || %(device)s) limit 1000""",
            {"device": device, "every": every, "alive": Device.OFFLINE_AFTER},
        )
        return [(row["repository_id"], row["helped"]) for row in rows]

    def doubt(self, repository_id: int, device: str) -> None:
        """Have a replica verified next: something looked damaged."""
        self._write(
            """update replica r set verified_at = null from device d
                where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s""",
            {"id": repository_id, "device": device},
        )

    def held_page(self, device: str, *, after: int, limit: int) -> list[Held]:
        """The next `limit` replicas on `device`, by the ids of their repositories, after `after`; fewer: there are no
        more."""
        rows = self._read(
            """select p.id, p.version as newest, p.checksum as newest_checksum, r.checksum,
                      r.version is not null and r.quarantined is null and r.intent_token is null
                          and r.marker_version is null as claims, p.name is not null as named
                 from (select * from replica where device_id = (select id from device where name = %(device)s)
                          and repository_id > %(after)s order by repository_id limit %(limit)s) r
                 join repository p on p.id = r.repository_id order by p.id""",
            {"device": device, "after": after, "limit": limit},
        )
        return [
            Held(
                row["id"],
                Position(row["newest"], Checksum(row["newest_checksum"])),
                Checksum(row["checksum"]) if row["claims"] else None,
                row["named"],
            )
            for row in rows
        ]

    def held_among(self, device: str, repository_ids: Iterable[int]) -> set[int]:
        """Those of these repositories, deleted ones too, that have a replica on `device`."""
        rows = self._read(
            """select repository_id from replica
                where device_id = (select id from device where name = %(device)s)
                  and repository_id = any(%(ids)s::bigint[])""",
            {"device": device, "ids": list(repository_ids)},
        )
        return {row["repository_id"] for row in rows}

    def dropped(self, device: str) -> list[int]:
        """Ids of up to 1,000 repositories that were deleted and of which `device` still has a replica."""
        rows = self._read(
            """select p.id from repository p
                 join replica r on r.repository_id = p.id
                      and r.device_id = (select id from device where name = %(device)s)
                where p.name is null order by p.id limit 1000""",
            {"device": device},
        )
        return [row["id"] for row in rows]

    def nudge(self, repository_id: int) -> None:
        """Have every device look at a repository now."""
        self._write("select pg_notify(%(channel)s, %(id)s)", {"channel": CHANNEL, "id": str(repository_id)})

    def unfit(self, device: str) -> list[int]:
        """Ids of repositories whose replica here is behind, absent or quarantined, and due for a try."""
        return [
            row["repository_id"]
            for row in self._read(
                """select r.repository_id from replica r join repository p on p.id = r.repository_id
                    where r.device_id = (select id from device where name = %(device)s) and r.unfit
                      and p.name is not null and r.intent_token is null
                      and (r.version is distinct from r.newest or r.quarantined is not null)
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
