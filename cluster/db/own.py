"""What concerns one user: their groups, their grants, their own keys, the repositories that they may see."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from cluster.db.connections import Connections, notify, unique
from cluster.db.rows import Row
from cluster.db.schema import Connection
from cluster.db.who import STILL_PROVEN, key_gone, proof_of
from cluster.errors import NotFound, Refused
from cluster.model import Actor, Grant, Level

MAX_KEYS = 100
"""Public keys that users may register for themselves: more than anybody has machines. An administrator may add more."""


@dataclass(frozen=True, slots=True)
class OwnKey:
    """A public key of a user. counts: whether it proves them now."""

    fingerprint: str
    public_key: str
    comment: str
    created_at: datetime
    expires_at: datetime | None
    counts: bool


@dataclass(frozen=True, slots=True)
class Standing:
    """A user as the database knows them. groups: their names, without "@"."""

    disabled: bool
    groups: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Listed:
    """A repository in a listing. here: whether the device that was asked keeps it."""

    name: str
    version: int
    here: bool


class Own(Connections):
    """What concerns one user: their groups, their grants, their own keys, the repositories that they may see."""

    def standing(self, user: str) -> Standing | None:
        """None: there is no such user."""
        rows = self._read(
            """select a.disabled_at is not null as disabled,
                      array(select g.name from group_member m join actor_group g on g.id = m.group_id
                             where m.actor_id = a.id order by g.name) as groups
                 from actor a where a.name = %(user)s""",
            {"user": user},
        )
        return Standing(rows[0]["disabled"], tuple(rows[0]["groups"])) if rows else None

    def grants_to(self, user: str) -> list[Grant]:
        """The grants that concern a user: by name, by a group, or to everyone. By an index, however many there are."""
        rows = self._read(
            """select %(user)s::text as actor, g.pattern, g.level from access_grant g
                where g.actor_id = (select id from actor where name = %(user)s)
               union all
               select '@' || q.name, g.pattern, g.level
                 from group_member m join actor_group q on q.id = m.group_id
                 join access_grant g on g.actor_id is null and g.group_id = q.id
                where m.actor_id = (select id from actor where name = %(user)s)
               union all
               select null, g.pattern, g.level from access_grant g where g.actor_id is null and g.group_id is null""",
            {"user": user},
        )
        return [Grant(row["actor"], row["pattern"], Level(row["level"])) for row in rows]

    # Keys

    def own_keys(self, user: str) -> list[OwnKey]:
        return [_key_of(row) for row in self._read(_OWN_KEYS, {"user": user})]

    def add_own_key(
        self, actor: Actor, fingerprint: str, public_key: str, comment: str, expires_at: datetime | None
    ) -> datetime | None:
        """Until when it counts: never longer than what proved `actor`, or an expiry would bind nobody.

        Refused: what proved `actor` does so no more, or they have MAX_KEYS, or somebody has this key.
        """
        with (
            unique("this key is registered already", "a key belongs to one user or one device only"),
            self._transaction() as connection,
        ):
            keys = _held(connection, actor)
            if len(keys) >= MAX_KEYS:
                raise Refused(
                    f"you have {len(keys)} keys already", hint="remove one that you do not use first"
                )
            row = connection.execute(
                """insert into key (fingerprint, public_key, comment, expires_at, actor_id)
                   select %(fingerprint)s, %(public_key)s, %(comment)s,
                          least(%(expires_at)s::timestamptz, coalesce(%(certified_until)s::timestamptz,
                                (select expires_at from key where fingerprint = %(proof)s),
                                (select expires_at from token where id = %(token)s))), id
                     from actor where name = %(user)s returning expires_at""",
                {
                    "fingerprint": fingerprint,
                    "public_key": public_key,
                    "comment": comment,
                    "expires_at": expires_at,
                    "certified_until": actor.certified_until,
                    "proof": actor.fingerprint,
                    "token": proof_of(actor)["token"],
                    "user": actor.name,
                },
            ).fetchone()
            assert row is not None
            until: datetime | None = row["expires_at"]
            return until

    def remove_own_key(self, actor: Actor, fingerprint: str) -> None:
        """NotFound: it is not theirs. Refused: what proved `actor` does so no more, or it is the last that counts and
        they have neither certificate nor token."""
        with self._transaction() as connection:
            keys = _held(connection, actor)
            found = next((key for key in keys if key.fingerprint == fingerprint), None)
            if found is None:
                raise NotFound(
                    f"you have no key {fingerprint}", hint="`ssh git@host key list` shows those that you have"
                )
            others = [key for key in keys if key.counts and key is not found]
            locked_out = actor.certified_until is None and proof_of(actor)["token"] is None
            if found.counts and not others and locked_out:
                raise Refused("this is your only key", hint="add another first: ssh git@host key add <FILE")
            connection.execute("delete from key where fingerprint = %(f)s", {"f": fingerprint})
            notify(connection, "")

    # Repositories

    def page(
        self, beginning: str, after: str, limit: int, *, device: str | None, part: str = ""
    ) -> list[Listed]:
        """The next `limit` repositories by name, after `after`, whose names begin with `beginning` and hold `part`,
        whatever its case.

        device: whose copies `here` is about; None: nobody's. Where the database sorts text as C does, an index finds
        them; else it may have to look at every name.
        """
        rows = self._read(
            _LISTED
            + """where p.name > %(after)s and p.name like %(like)s and strpos(lower(p.name), lower(%(part)s)) > 0
                 order by p.name limit %(limit)s""",
            {"after": after, "like": like(beginning), "part": part, "limit": limit, "device": device},
        )
        return [Listed(row["name"], row["version"], row["here"]) for row in rows]

    def called(self, names: Sequence[str], *, device: str | None, part: str = "") -> list[Listed]:
        """Those of `names` that there are and that hold `part`, by name."""
        rows = self._read(
            _LISTED
            + "where p.name = any(%(names)s) and strpos(lower(p.name), lower(%(part)s)) > 0 order by p.name",
            {"names": list(names), "part": part, "device": device},
        )
        return [Listed(row["name"], row["version"], row["here"]) for row in rows]


# count, as PostgreSQL would answer `exists` by reading all replicas first, for every page.
_LISTED: LiteralString = """
    select p.name, p.version, %(device)s::text is not null
           and (select count(*) from replica r where r.repository_id = p.id
                 and r.device_id = (select id from device where name = %(device)s)) > 0 as here
      from repository p """

_OWN_KEYS: LiteralString = """
    select k.fingerprint, k.public_key, k.comment, k.created_at, k.expires_at,
           a.disabled_at is null and (k.expires_at is null or k.expires_at > now()) as counts
      from key k join actor a on a.id = k.actor_id where a.name = %(user)s order by k.created_at, k.fingerprint"""


def like(prefix: str) -> str:
    """The LIKE pattern of what begins with `prefix`."""
    return prefix.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_") + "%"


def _key_of(row: Row) -> OwnKey:
    return OwnKey(
        row["fingerprint"],
        row["public_key"],
        row["comment"],
        row["created_at"],
        row["expires_at"],
        row["counts"],
    )


def _held(connection: Connection, actor: Actor) -> list[OwnKey]:
    """The keys of a user who is still proven, with the user's row held: of two who remove the last two keys, or come
    with a key that was removed meanwhile, one comes too late."""
    connection.execute("select from actor where name = %(user)s for no key update", {"user": actor.name})
    row = connection.execute("select " + STILL_PROVEN + " as proven", proof_of(actor)).fetchone()
    if row is None or not row["proven"]:
        raise key_gone()
    return [_key_of(row) for row in connection.execute(_OWN_KEYS, {"user": actor.name}).fetchall()]
