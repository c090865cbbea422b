"""Versions that this database has lost and disks still know (guarantee G7): noticing them, and putting them back."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import LiteralString

import psycopg

from cluster.db.connections import Connections, notify, translated
from cluster.db.rows import log_entry_of
from cluster.db.schema import Connection
from cluster.errors import WriteConflict
from cluster.model import Checksum, EventKind, LogEntry, Position, RefUpdate


class History(Connections):
    """Versions that this database has lost and disks still know: noticing them, and putting them back."""

    def report_marker(self, repository_id: int, device: str, version: int, checksum: str, why: str) -> bool:
        """Note that the marker on a device's disk names a version that the log has not, or has otherwise, and freeze
        the repository (`why`) where it is not frozen already. False, and nothing is noted: the log does have it.

        What demoted the replica did not know of this, so it has not given it up. checksum: as people see it. The log is
        looked at with the repository's row locked, so that what is being put back is seen.
        """
        with self._transaction() as connection:
            connection.execute(
                "select from repository where id = %(id)s for update", {"id": repository_id}
            ).fetchall()
            known = connection.execute(
                "select checksum from push where repository_id = %(id)s and version = %(version)s",
                {"id": repository_id, "version": version},
            ).fetchone()
            if known and str(Checksum(known["checksum"])) == checksum:
                return False
            connection.execute(
                """update replica r set marker_version = %(version)s, marker_checksum = %(checksum)s,
                          distrust = case when r.distrust = 'demoted' then 'damaged' else r.distrust end from device d
                    where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s""",
                {"id": repository_id, "device": device, "version": version, "checksum": checksum},
            )
            connection.execute(
                """with turned as (
                       update repository set frozen = %(why)s, frozen_at = now()
                        where id = %(id)s and frozen is null returning id, version)
                   insert into event (repository_id, version, kind, device, what)
                   select id, version, 'freeze', %(device)s, %(why)s from turned""",
                {"id": repository_id, "device": device, "why": why},
            )
        self.measures.happened(EventKind.FREEZE)
        return True

    def forget_marker(self, repository_id: int, device: str) -> None:
        """Take that back: the log has what the disk's marker names."""
        self._write(
            """update replica r set marker_version = null, marker_checksum = null from device d
                where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s""",
            {"id": repository_id, "device": device},
        )

    def unknown(self, repository_ids: Iterable[int]) -> set[int]:
        """Those of these ids that no repository has, not even a deleted one."""
        wanted = list(repository_ids)
        rows = self._read("select id from repository where id = any(%(ids)s)", {"ids": wanted})
        return set(wanted) - {row["id"] for row in rows}

    def checksums(self, repository_id: int, versions: Sequence[int]) -> dict[int, Checksum]:
        """Those of `versions` that the log has."""
        rows = self._read(
            "select version, checksum from push where repository_id = %(id)s and version = any(%(versions)s)",
            {"id": repository_id, "versions": list(versions)},
        )
        return {row["version"]: Checksum(row["checksum"]) for row in rows}

    def entries(self, repository_id: int, since: int, until: int, *, most_refs: int) -> list[LogEntry]:
        """The entries after `since` up to `until`, oldest first; without its refs where one has more than so many."""
        rows = self._read(
            """select p.version, p.push_id, p.actor, p.device, p.via, p.address, p.at, p.checksum, u.refs
                 from push p cross join lateral (
                      select case when count(*) <= %(most)s
                                  then json_agg(json_build_array(s.ref, s.old, s.new) order by s.ref) end as refs
                        from (select ref, old, new from push_ref
                               where repository_id = p.repository_id and version = p.version
                               limit %(most)s + 1) s) u
                where p.repository_id = %(id)s and p.version > %(since)s and p.version <= %(until)s
                order by p.version""",
            {"id": repository_id, "since": since, "until": until, "most": most_refs},
        )
        return [log_entry_of(row, tuple(RefUpdate(*ref) for ref in row["refs"] or ())) for row in rows]

    def restore(
        self,
        repository_id: int,
        base: Position,
        entries: Sequence[LogEntry],
        device: str,
        what: str,
        *,
        connection: Connection,
    ) -> None:
        """Put entries back that this database has lost, exactly as they were, and end the freeze: all or nothing.

        On the connection that holds the write lock. `base` is the newest version, and `entries` what follows it. An
        intent that is there is as old as the database: a later version shows that it was settled. What devices
        reported of their markers is taken back where it is among the entries. device, what: for the log. WriteConflict:
        the repository is not at `base` any more, or one of the pushes is in the log already.
        """
        newest = entries[-1]
        refs = [(entry.version, update) for entry in entries for update in entry.refs]
        try:
            with translated(), connection.transaction():
                for statement in _RESTORE:
                    done = connection.execute(
                        statement,
                        {
                            "id": repository_id,
                            "base": base.version,
                            "base_checksum": base.checksum.accumulator,
                            "newest": newest.version,
                            "newest_checksum": newest.checksum.accumulator,
                            "versions": [entry.version for entry in entries],
                            "checksums": [entry.checksum.accumulator for entry in entries],
                            "shown": [str(entry.checksum) for entry in entries],
                            "pushes": [entry.push_id for entry in entries],
                            "actors": [entry.actor for entry in entries],
                            "devices": [entry.device for entry in entries],
                            "vias": [entry.via for entry in entries],
                            "addresses": [entry.address for entry in entries],
                            "ats": [entry.at for entry in entries],
                            "ref_versions": [version for version, _ in refs],
                            "refs": [update.ref for _, update in refs],
                            "olds": [update.old for _, update in refs],
                            "news": [update.new for _, update in refs],
                            "device": device,
                            "what": what,
                        },
                    )
                    if statement is _RESTORE[0] and done.rowcount != 1:
                        raise WriteConflict(
                            "the repository changed meanwhile", hint="look again with --dry-run"
                        )
                notify(connection, str(repository_id))
        except psycopg.IntegrityError as error:
            raise WriteConflict(
                "what would be put back is in the log already", hint="look again with --dry-run"
            ) from error
        self.measures.happened(EventKind.RESTORE)


_RESTORE: tuple[LiteralString, ...] = (
    """update repository set version = %(newest)s, checksum = %(newest_checksum)s, frozen = null, frozen_at = null
        where id = %(id)s and name is not null and version = %(base)s and checksum = %(base_checksum)s""",
    """insert into push (repository_id, version, checksum, push_id, actor, device, via, address, at)
       select %(id)s, * from unnest(%(versions)s::bigint[], %(checksums)s::bytea[], %(pushes)s::uuid[],
              %(actors)s::text[], %(devices)s::text[], %(vias)s::text[], %(addresses)s::text[], %(ats)s::timestamptz[])
        order by 1""",
    """insert into push_ref (repository_id, version, ref, old, new)
       select %(id)s, *
         from unnest(%(ref_versions)s::bigint[], %(refs)s::text[], %(olds)s::text[], %(news)s::text[])""",
    """update replica set intent_token = null, intent_push = null, intent_actor = null, intent_via = null,
              intent_address = null, intent_at = null, intent_refs = null
        where repository_id = %(id)s and intent_token is not null""",
    """update replica r set marker_version = null, marker_checksum = null
         from unnest(%(versions)s::bigint[], %(shown)s::text[]) e (version, checksum)
        where r.repository_id = %(id)s and r.marker_version = e.version and r.marker_checksum = e.checksum
          and r.distrust is distinct from 'demoted'""",
    """insert into event (repository_id, version, kind, device, what)
       values (%(id)s, %(newest)s, 'restore', %(device)s, %(what)s)""",
)
"""What `restore` runs, in this order. The first is the compare-and-set; foreign keys admit only a log without a gap."""
