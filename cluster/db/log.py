"""The push log, as people read it."""

from __future__ import annotations

from cluster.db.connections import Connections
from cluster.db.rows import log_entry_of
from cluster.model import (
    LogEntry,
    RefUpdate,
)


class Log(Connections):
    """The push log, as people read it."""

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
