"""Repositories; the snapshot that every decision is made from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import LiteralString

from cluster.db.connections import CHANNEL, Connections, notify, unique
from cluster.db.placing import lock_placement, place_on
from cluster.db.rows import Row, snapshot_from, snapshots_from
from cluster.db.who import STILL_PROVEN, key_gone, proof_of
from cluster.errors import NotFound
from cluster.model import (
    Actor,
    ActorKind,
    Checksum,
    EventKind,
    Snapshot,
    WhenShort,
)
from cluster.placement import check_copies, refuse_removal
from cluster.versions import refuse_other_version


class Repositories(Connections):
    """Repositories; the snapshot that every decision is made from."""

    def create_repository(
        self,
        name: str,
        *,
        checksum: Checksum,
        head: str,
        object_format: str,
        min_copies: int,
        devices: Sequence[str],
        actor: str,
        device: str = "",
    ) -> int:
        """A repository at version 0 whose only content is HEAD's target; its replicas are absent. Returns its id.

        NotFound, Refused: one of the devices is not there, or (any more) not enabled; then nothing was made.
        """
        with (
            unique(f"there is a repository {name} already", "`git-cluster repo list` shows them"),
            self._transaction() as connection,
        ):
            row = connection.execute(
                """insert into repository (name, object_format, checksum, min_copies)
                   values (%(name)s, %(object_format)s, %(checksum)s, %(min_copies)s) returning id""",
                {
                    "name": name,
                    "object_format": object_format,
                    "checksum": checksum.accumulator,
                    "min_copies": min_copies,
                },
            ).fetchone()
            assert row is not None
            connection.execute(
                """with entry as (
                       insert into push (repository_id, version, checksum, push_id, actor, device, via)
                       values (%(id)s, 0, %(checksum)s, gen_random_uuid(), %(actor)s, %(device)s, 'create')
                       returning repository_id, version)
                   insert into push_ref (repository_id, version, ref, old, new)
                   select repository_id, version, 'HEAD', '', %(head)s from entry""",
                {
                    "id": row["id"],
                    "checksum": checksum.accumulator,
                    "actor": actor,
                    "device": device,
                    "head": head,
                },
            )
            place_on(connection, row["id"], devices)
            notify(connection, "")
            return int(row["id"])

    def rename_repository(self, name: str, new_name: str) -> None:
        with unique(f"there is a repository {new_name} already", "choose another name"):
            if not self._write(
                """with renamed as (update repository set name = %(new)s where name = %(name)s returning 1)
                   select pg_notify(%(channel)s, '') from renamed""",
                {"name": name, "new": new_name, "channel": CHANNEL},
            ):
                raise no_repository(name)

    def delete_repository(self, name: str, *, expected: int | None = None) -> None:
        """Free the name; devices move their copies away when they notice. WriteConflict: it is not at version
        `expected`."""
        with self._transaction() as connection:
            row = connection.execute(
                "select id, version from repository where name = %(name)s for update", {"name": name}
            ).fetchone()
            if row is None:
                raise no_repository(name)
            refuse_other_version(name, row["version"], expected)
            connection.execute("update repository set name = null where id = %(id)s", {"id": row["id"]})
            notify(connection, "")

    def set_repository(
        self,
        name: str,
        *,
        min_copies: int | None = None,
        when_short: WhenShort | None = None,
        expected: int | None = None,
    ) -> None:
        """Refused: it has fewer devices than that. WriteConflict: it is not at version `expected`."""
        with self._transaction() as connection:
            # No device is taken away meanwhile: that locks the same row (placing.py).
            row = connection.execute(
                "select id, version from repository where name = %(name)s for no key update", {"name": name}
            ).fetchone()
            if row is None:
                raise no_repository(name)
            refuse_other_version(name, row["version"], expected)
            if min_copies is not None:
                held = connection.execute(
                    "select from replica where repository_id = %(id)s", {"id": row["id"]}
                ).rowcount
                check_copies(name, min_copies, held)
            connection.execute(
                """update repository set min_copies = coalesce(%(min_copies)s, min_copies),
                          when_short = coalesce(%(when_short)s::short_policy, when_short) where id = %(id)s""",
                {"id": row["id"], "min_copies": min_copies, "when_short": when_short and when_short.value},
            )

    def freeze(self, repository_id: int, reason: str | None, *, device: str = "-", by: str = "") -> None:
        """Freeze for a stated reason, or (None) end such a freeze; the log says who did it ("-": a person).

        by: the user who did it by way of `device`, where it was one.
        """
        noted = self._write(
            """with turned as (
                   update repository set frozen = %(reason)s::text,
                          frozen_at = case when %(reason)s::text is null then null else now() end
                    where id = %(id)s and frozen is distinct from %(reason)s::text returning id, version)
               insert into event (repository_id, version, kind, device, what)
               select id, version, case when %(reason)s::text is null then 'thaw' else 'freeze' end::event_kind,
                      %(device)s, coalesce(%(reason)s::text, 'the freeze is ended') || %(by)s from turned
               returning 1""",
            {"id": repository_id, "reason": reason, "device": device, "by": f" (by {by})" if by else ""},
        )
        if noted:
            self.measures.happened(EventKind.THAW if reason is None else EventKind.FREEZE)

    def snapshot(self, name: str, actor: Actor | None = None) -> Snapshot:
        """The repository, its replicas and the grants and rules that concern `actor`, in one round trip.

        NotFound, after the same work as where there is one; to an actor whose proof has ended, Refused: whether there
        is one is not theirs to know any more.
        """
        rows = self._read(
            _SNAPSHOT_WITH_GRANTS + " order by d.name",
            {
                "name": name,
                "user": actor.name if actor and actor.kind is ActorKind.USER else None,
                **proof_of(actor),
            },
        )
        if rows[0]["p_id"] is None:
            raise no_repository(name) if rows[0]["actor_known"] else key_gone()
        return snapshot_from(rows)

    def snapshot_of(self, repository_id: int) -> Snapshot:
        """The same by id, without grants. NotFound when it was deleted."""
        return the_one(self._read(SNAPSHOT_OF, {"id": repository_id}))

    def unplace(self, repository_id: int, device: str) -> None:
        """Forget a replica that nobody needs any more. StillNeeded, Refused, NotFound: placement.refuse_removal."""
        with self._transaction() as connection:
            lock_placement(connection, repository_id)
            rows = connection.execute(SNAPSHOT_OF, {"id": repository_id}).fetchall()
            refuse_removal(the_one(rows), device)
            connection.execute(
                """delete from replica r using device d
                    where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(device)s""",
                {"id": repository_id, "device": device},
            )
            notify(connection, str(repository_id))  # so that the device sets its copy aside
            notify(connection, "")

    def snapshots(self, *, after: str = "", limit: int | None = None) -> list[Snapshot]:
        """The next `limit` repositories by name, after `after`; all of them only where they are known to be few."""
        rows = self._read(
            "select "
            + _SNAPSHOT_COLUMNS
            + " from (select * from repository where name > %(after)s order by name limit %(limit)s) p"
            + _REPLICAS
            + " order by p.name, d.name",
            {"after": after, "limit": limit},
        )
        return snapshots_from(rows)

    def every_snapshot(self, *, page: int = 1000) -> Iterator[Snapshot]:
        """Every repository, by name, read a page at a time. No connection is held between two of them."""
        after: str | None = ""
        while after is not None:
            found = self.snapshots(after=after, limit=page)
            yield from found
            after = found[-1].repository.name if len(found) == page else None


_SNAPSHOT_COLUMNS: LiteralString = """
    p.id as p_id, p.name as p_name, p.object_format, p.version as p_version, p.checksum as p_checksum,
    p.min_copies, p.when_short, p.frozen, p.frozen_at, p.created_at as p_created_at,
    d.id as d_id, d.name as d_name, d.ssh_url as d_ssh_url, d.http_url as d_http_url, d.host_key as d_host_key,
    d.mode as d_mode, d.last_seen_at as d_last_seen_at, d.stopped as d_stopped, d.zone as d_zone,
    extract(epoch from now() - d.last_seen_at)::float as d_silent_for,
    r.version, r.checksum, r.quarantined, r.intent_token, r.intent_push, r.intent_actor, r.intent_via,
    r.intent_address, r.intent_at, r.intent_refs, r.synced_at, r.attempts, r.last_error, r.next_try_at,
    r.distrust::text, r.verified_at, r.damage, r.marker_version, r.marker_checksum"""

_REPLICAS: LiteralString = """
      left join replica r on r.repository_id = p.id left join device d on d.id = r.device_id"""

SNAPSHOT: LiteralString = "select " + _SNAPSHOT_COLUMNS + " from repository p" + _REPLICAS

SNAPSHOT_OF: LiteralString = SNAPSHOT + " where p.id = %(id)s and p.name is not null order by d.name"
"""Of one repository, by its id; its rows are for `the_one`."""

_ME: LiteralString = "(select id from actor where name = %(user)s)"
_MY_GROUPS: LiteralString = "array(select group_id from group_member where actor_id = " + _ME + ")"


def _concerning(table: LiteralString, columns: LiteralString) -> LiteralString:
    """Grants or rules that concern the user and may mean the repository, as a JSON list of [to whom, …columns].

    Each branch names actor, group and, where it is no wildcard, pattern exactly, so that each is a look-up in an index
    (of <table>_once, <table>_wildcard) however many others there are. With one `or` for all of them PostgreSQL may read
    every grant on a repository, or every wildcard. tests/test_plans.py holds it to that.
    """
    lists: LiteralString = ""
    for which in ("g.pattern = %(name)s", "g.wildcard"):
        lists += (
            (" union all " if lists else "")
            + "select json_build_array(null, "
            + columns
            + ") as found from "
            + table
            + " g where g.actor_id is null and g.group_id is null and "
            + which
            + " union all select json_build_array(%(user)s::text, "
            + columns
            + ") from "
            + table
            + " g where g.actor_id = "
            + _ME
            + " and g.group_id is null and "
            + which
            + " union all select json_build_array((select '@' || name from actor_group where id = g.group_id), "
            + columns
            + ") from "
            + table
            + " g where g.actor_id is null and g.group_id = any("
            + _MY_GROUPS
            + ") and "
            + which
        )
    return "(select json_agg(found) from (" + lists + ") each)"


# One row comes even where there is no such repository: with whether the actor is still proven.
_SNAPSHOT_WITH_GRANTS: LiteralString = (
    "select "
    + _SNAPSHOT_COLUMNS
    + ", "
    + _concerning("access_grant", "g.pattern, g.level")
    + " as grants, "
    + _concerning("ref_rule", "g.pattern, g.ref_pattern, g.may::text[]")
    + " as rules,"
    + STILL_PROVEN
    + " as actor_known from (select) one left join repository p on p.name = %(name)s"
    + _REPLICAS
)


def the_one(rows: list[Row]) -> Snapshot:
    """The snapshot in the rows of SNAPSHOT_OF. NotFound when the repository was deleted."""
    if not rows:
        raise NotFound("this repository was deleted")
    return snapshot_from(rows)


def no_repository(name: str) -> NotFound:
    """The one sentence for a repository that is not there, or that the asker may not know of."""
    return NotFound(
        f"there is no repository {name} here, or you may not read it",
        hint="check the name; an administrator can look with `git-cluster access`",
    )
