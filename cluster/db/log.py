"""The push log, as people read it, and what happened between the pushes."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, LiteralString

from cluster.db.connections import Connections, translated
from cluster.db.rows import event_of, log_entry_of
from cluster.db.schema import Connection
from cluster.model import (
    Event,
    EventKind,
    LogEntry,
    RefUpdate,
)


class Log(Connections):
    """The push log, as people read it, and what happened between the pushes."""

    def record(
        self,
        repository_id: int,
        kind: EventKind,
        device: str,
        what: str,
        refs: Iterable[RefUpdate] = (),
        *,
        connection: Connection | None = None,
    ) -> None:
        """Note what `device` ("-": an administrator's command line) did; on `connection`, in its transaction."""
        params: Mapping[str, Any] = {
            "id": repository_id,
            "kind": kind.value,
            "device": device,
            "what": what[:1000],
            "refs": json.dumps([[u.ref, u.old, u.new] for u in refs]),
        }
        if connection is None:
            self._write(_RECORD, params)
        else:
            with translated():
                connection.execute(_RECORD, params)
        self.measures.happened(kind)

    def events(
        self, repository_id: int, *, limit: int = 1000, since: int = 0, until: int | None = None
    ) -> list[Event]:
        """The newest `limit` events, newest first, that happened at versions from `since` to `until`."""
        rows = self._read(
            """select version, kind::text, device, at, what, refs from event
                where repository_id = %(id)s and version >= %(since)s
                  and (%(until)s::bigint is null or version <= %(until)s)
                order by id desc limit %(limit)s""",
            {"id": repository_id, "limit": limit, "since": since, "until": until},
        )
        return [event_of(row) for row in rows]

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
        return [log_entry_of(row, tuple(RefUpdate(*ref) for ref in row["refs"])) for row in rows]

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
        return log_entry_of(rows[0], (RefUpdate(ref, rows[0]["old"], rows[0]["new"]),))


_RECORD: LiteralString = """
insert into event (repository_id, version, kind, device, what, refs)
select id, version, %(kind)s::event_kind, %(device)s, %(what)s, %(refs)s from repository where id = %(id)s"""
