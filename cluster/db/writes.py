"""The write lock, the intent and the commit: what a push rests on."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, LiteralString
from uuid import UUID

import psycopg

from cluster.db.connections import CHANNEL, WRITE_LOCK_CLASS, Connections, translated
from cluster.db.devices import MAY_FENCE
from cluster.db.repositories import SNAPSHOT_OF, the_one
from cluster.db.rows import Row
from cluster.db.schema import Connection
from cluster.errors import DatabaseUnavailable, WriteConflict
from cluster.model import (
    Checksum,
    Intent,
    LogEntry,
    Position,
    RefUpdate,
    Snapshot,
)


@dataclass(frozen=True, slots=True)
class LockHolder:
    """Who holds a repository's write lock."""

    device: str
    actor: str
    since: datetime


class Writes(Connections):
    """The write lock, the intent and the commit: what a push rests on."""

    def try_write_lock(self, connection: Connection, repository_id: int, label: str) -> Snapshot | None:
        """Take the write lock if it is free, and say in pg_stat_activity who has it. No waiting. None: it is not free.

        The lock and the look at what it protects are two statements, so that the look sees what there was before the
        lock was got; they go out together and cost one round trip. The connection gives the lock back (`dedicated`).
        NotFound: the repository was deleted.
        """
        with translated():
            with connection.pipeline():
                lock = connection.execute(
                    """select set_config('application_name', %(label)s, false),
                              pg_try_advisory_lock(%(class)s, %(id)s) as got""",
                    {"label": label, "class": WRITE_LOCK_CLASS, "id": _lock_key(repository_id)},
                )
                look = connection.execute(SNAPSHOT_OF, {"id": repository_id})
            row = lock.fetchone()
            assert row is not None
            return the_one(look.fetchall()) if row["got"] else None

    def keep_write_lock(self, connection: Connection, repository_id: int, label: str) -> Snapshot:
        """Look at what the write lock protects, which `connection` holds already, on behalf of somebody else. NotFound
        as `try_write_lock`."""
        with translated():
            with connection.pipeline():
                connection.execute(
                    "select set_config('application_name', %(label)s, false)", {"label": label}
                )
                look = connection.execute(SNAPSHOT_OF, {"id": repository_id})
            return the_one(look.fetchall())

    def wait_write_lock(self, connection: Connection, repository_id: int, seconds: float) -> Snapshot | None:
        """Queue for the write lock for `seconds` at most. None: still not ours. NotFound as `try_write_lock`."""
        with translated():
            try:
                with connection.pipeline():  # one transaction, up to its end
                    connection.execute(
                        "select set_config('lock_timeout', %(ms)s, true)",
                        {"ms": f"{max(1, int(seconds * 1000))}ms"},
                    )
                    connection.execute(
                        "select pg_advisory_lock(%(class)s, %(id)s)",
                        {"class": WRITE_LOCK_CLASS, "id": _lock_key(repository_id)},
                    )
                    look = connection.execute(SNAPSHOT_OF, {"id": repository_id})
            except psycopg.errors.LockNotAvailable:
                return None
            return the_one(look.fetchall())

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

    def end_session(self, pid: int) -> bool:
        """End the session of a write's connection that was cut, if PostgreSQL still works for it; whether it did."""
        ended = self._end_sessions(
            """select pg_terminate_backend(pid) from pg_stat_activity
                where pid = %(pid)s and application_name like 'git-cluster write %%'""",
            {"pid": pid},
        )
        return ended is None or ended > 0

    def end_sessions_of(self, device: str) -> int:
        """End the sessions in which a former process of `device` holds or awaits write locks; how many there were.

        Of a machine that lost its power PostgreSQL does not know that it is gone, nor may others break its locks once
        it is back. Only for a daemon that knows that it is the only one.
        """
        ended = self._end_sessions(
            """select pg_terminate_backend(pid) from pg_stat_activity
                where datname = current_database() and application_name like 'git-cluster write %%'
                  and split_part(application_name, ' ', 4) = %(device)s""",
            {"device": device},
        )
        return ended or 0

    def break_write_lock(self, repository_id: int, device: str, silent_for: float) -> bool:
        """End the database session of a device that holds the write lock and has been silent for so many seconds.

        A stopped process, or one whose network swallows everything, keeps its connection and so the lock. `device`, who
        asks, must have had a heartbeat without a gap for as long itself. Safety does not need this lock (G3).
        """
        ended = self._end_sessions(
            """select pg_terminate_backend(l.pid)
                 from pg_locks l join pg_stat_activity a on a.pid = l.pid
                 join device o on o.name = split_part(a.application_name, ' ', 4)
                 join device me on me.name = %(device)s
                where l.locktype = 'advisory' and l.granted and l.classid::bigint = %(class)s
                  and l.objid::bigint = %(id)s and l.objsubid = 2
                  and l.database = (select oid from pg_database where datname = current_database())
                  and a.application_name like 'git-cluster write %%' and o.id <> me.id and """
            + MAY_FENCE,
            {
                "class": WRITE_LOCK_CLASS,
                "id": _lock_key(repository_id),
                "device": device,
                "silent": silent_for,
            },
        )
        return bool(ended)

    def _end_sessions(self, query: LiteralString, params: Mapping[str, Any]) -> int | None:
        """How many sessions `query` ended. None: devices that share no database user cannot do this for one another."""
        try:
            return len(self._write(query, params))
        except DatabaseUnavailable as error:
            if isinstance(error.__cause__, psycopg.errors.InsufficientPrivilege):
                return None
            raise

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
        self,
        connection: Connection,
        repository_id: int,
        device: str,
        base: Position,
        intent: Intent,
        copies: Sequence[str] = (),
    ) -> None:
        """Write the intent on the connection that holds the lock. WriteConflict when this replica may not write.

        Allowed only for a trusted replica at the newest version, when no other intent exists and nobody froze the
        repository, and the devices in `copies`, which hold what the push brings, still hold the repository (G9). None
        of them is taken away before the commit (placing.py).
        """
        try:
            with translated():
                done = connection.execute(
                    """update replica r set intent_token = %(token)s, intent_push = %(push)s, intent_actor = %(actor)s,
                              intent_via = %(via)s, intent_address = %(address)s, intent_at = now(),
                              intent_refs = %(refs)s
                         from device d, (select * from repository where id = %(id)s for share) p,
                              lateral (select count(*) from (
                                  select from replica o join device c on c.id = o.device_id
                                   where o.repository_id = p.id and c.name = any(%(copies)s)
                                     for key share of o) o) held
                        where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s
                          and p.id = r.repository_id and p.name is not null and p.frozen is null
                          and p.version = %(version)s and r.version = %(version)s and r.checksum = %(checksum)s
                          and r.quarantined is null and r.intent_token is null
                          and held.count = %(count)s returning 1""",
                    {
                        "copies": list(copies),
                        "count": len(copies),
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

    def clear_intent(self, repository_id: int, token: UUID, *, connection: Connection | None = None) -> bool:
        """Withdraw an intent that moved nothing. False: it is not there (any more). Harmless to repeat."""
        params = {"id": repository_id, "token": token}
        if connection is None:
            return bool(self._write(_CLEAR, params))
        with translated():
            return bool(connection.execute(_CLEAR, params).fetchall())

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
    ) -> LogEntry:
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
                with translated():
                    rows = connection.execute(_COMMIT, params).fetchall()
        except psycopg.IntegrityError as error:
            raise _void() from error
        if len(rows) != 1:
            raise _void()
        return LogEntry(
            version=base.version + 1,
            push_id=intent.push_id,
            actor=intent.actor,
            device=device,
            via=intent.via,
            address=intent.address,
            at=rows[0]["at"],
            checksum=checksum,
            refs=tuple(moved),
        )

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
            with translated():
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


_CLEAR: LiteralString = """
update replica set intent_token = null, intent_push = null, intent_actor = null,
       intent_via = null, intent_address = null, intent_at = null, intent_refs = null
 where repository_id = %(id)s and intent_token = %(token)s returning 1"""

_COMMIT: LiteralString = """
with turned as (
    update repository p set version = %(next)s, checksum = %(checksum)s
     where p.id = %(id)s and p.version = %(base)s
       and exists (select from replica r join device d on d.id = r.device_id
                    where r.repository_id = p.id and d.name = %(device)s
                      and r.version = %(base)s and r.intent_token = %(token)s)
    returning p.id),
claimed as (
    update replica r set version = %(next)s, checksum = %(checksum)s, newest = %(next)s, synced_at = now(),
           intent_token = null, intent_push = null, intent_actor = null, intent_via = null,
           intent_address = null, intent_at = null, intent_refs = null
      from turned, device d
     where r.repository_id = turned.id and d.id = r.device_id and d.name = %(device)s
       and r.version = %(base)s and r.intent_token = %(token)s
    returning r.repository_id),
entry as (
    insert into push (repository_id, version, checksum, push_id, actor, device, via, address)
    select repository_id, %(next)s, %(checksum)s, %(push)s, %(actor)s, %(device)s, %(via)s, %(address)s from claimed
    returning repository_id, version, at),
refs as (
    insert into push_ref (repository_id, version, ref, old, new)
    select repository_id, version, u.ref, u.old, u.new
      from entry, unnest(%(refs)s::text[], %(olds)s::text[], %(news)s::text[]) u (ref, old, new)
    returning 1)
select pg_notify(%(channel)s, entry.repository_id || held.names || hooked.word), entry.at
  from entry,
       lateral (select case when sum(length(d.name) + 1) < 7000
                            then ' ' || string_agg(d.name, ',') || ' by:' || %(device)s else '' end as names
                  from replica r join device d on d.id = r.device_id where r.repository_id = entry.repository_id) held,
       lateral (select case when held.names <> '' and exists (
                            select from webhook h where h.repository_id = entry.repository_id and h.enabled)
                            then ' w' else '' end as word) hooked"""
"""Its word to the listeners: cluster/hints.py. A payload has 8,000 bytes at the most."""


def _void() -> WriteConflict:
    return WriteConflict(
        "this push's claim was withdrawn before it was committed, so nothing of it counts", hint="push again"
    )


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
