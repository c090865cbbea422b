"""What a device has to remember to go on serving reads while the database is away."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cluster.db.connections import Connections
from cluster.db.tokens import proven_by_token
from cluster.db.who import COUNTS_AS_PROOF, KEY_COUNTS
from cluster.model import Actor, ActorKind, Checksum, Grant, Level, Position, Repository, WhenShort


@dataclass(frozen=True, slots=True)
class Copy:
    """This device's replica of a repository, as its row was.

    version, checksum: its position (the checksum as people see it), or None while it held nothing yet.
    """

    repository: Repository
    version: int | None
    checksum: str | None
    trusted: bool


@dataclass(frozen=True, slots=True)
class Recollection:
    """What the database said at one moment, about everything that a device is asked for.

    actors: whom each fingerprint proves: users and devices. tokens: whom each digest of one does.
    grants: by user, those to their groups too; None: to everyone. copies: by name.
    serves: whether the device was not disabled.
    """

    actors: Mapping[str, Actor]
    grants: Mapping[str | None, tuple[Grant, ...]]
    copies: Mapping[str, Copy]
    serves: bool
    tokens: Mapping[bytes, Actor]


class Recall(Connections):
    """What a device has to remember to go on serving reads while the database is away."""

    def recall(self, device: str) -> Recollection:
        """All of it as it was at one moment."""
        with self._transaction() as connection:
            connection.execute("set transaction isolation level repeatable read, read only")
            keys = connection.execute(
                """select k.fingerprint, a.name as user_name, d.name as device_name
                     from key k left join actor a on a.id = k.actor_id left join device d on d.id = k.device_id
                    where num_nonnulls(k.actor_id, k.device_id) = 1 and """
                + KEY_COUNTS
            ).fetchall()
            tokens = connection.execute(
                """select t.id, t.digest, t.read_only, a.name from token t join actor a on a.id = t.actor_id where """
                + COUNTS_AS_PROOF
            ).fetchall()
            grants = connection.execute(
                """select coalesce(a.name, m.name) as name, coalesce(a.name, '@' || q.name) as actor, g.pattern, g.level
                     from access_grant g left join actor a on a.id = g.actor_id
                     left join actor_group q on q.id = g.group_id left join group_member i on i.group_id = g.group_id
                     left join actor m on m.id = i.actor_id
                    where g.group_id is null or m.id is not null"""
            ).fetchall()
            # The 128 bytes of an accumulator would be most of what is sent; this is str(Checksum).
            copies = connection.execute(
                """select p.id, p.name, p.object_format, p.version, p.checksum, p.min_copies, p.when_short, p.frozen,
                          p.frozen_at, p.created_at, r.version as held,
                          left(encode(sha256(r.checksum), 'hex'), 40) as held_checksum, r.quarantined is null as trusted
                     from replica r join device d on d.id = r.device_id join repository p on p.id = r.repository_id
                    where d.name = %(device)s and p.name is not null""",
                {"device": device},
            ).fetchall()
            mine = connection.execute(
                "select mode <> 'disabled' as serves from device where name = %(device)s", {"device": device}
            ).fetchone()
        by_user: dict[str | None, list[Grant]] = {}
        for row in grants:
            by_user.setdefault(row["name"], []).append(
                Grant(row["actor"], row["pattern"], Level(row["level"]))
            )
        by_token = {row["digest"]: proven_by_token(row) for row in tokens}
        return Recollection(
            tokens=by_token,
            actors={actor.fingerprint: actor for actor in by_token.values()}
            | {
                row["fingerprint"]: Actor(
                    ActorKind.DEVICE if row["device_name"] else ActorKind.USER,
                    row["device_name"] or row["user_name"],
                    row["fingerprint"],
                )
                for row in keys
            },
            grants={user: tuple(theirs) for user, theirs in by_user.items()},
            copies={
                row["name"]: Copy(
                    Repository(
                        id=row["id"],
                        name=row["name"],
                        object_format=row["object_format"],
                        position=Position(row["version"], Checksum(row["checksum"])),
                        min_copies=row["min_copies"],
                        when_short=WhenShort(row["when_short"]),
                        frozen=row["frozen"],
                        frozen_at=row["frozen_at"],
                        created_at=row["created_at"],
                    ),
                    row["held"],
                    row["held_checksum"],
                    row["trusted"],
                )
                for row in copies
            },
            serves=bool(mine and mine["serves"]),
        )
