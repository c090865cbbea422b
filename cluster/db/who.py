"""Users, their keys and grants, and whom a key proves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from cluster.db.connections import CHANNEL, Connections, unique
from cluster.db.rows import Row
from cluster.errors import DatabaseUnavailable, NotFound
from cluster.model import (
    Actor,
    ActorKind,
    Grant,
    Level,
)


@dataclass(frozen=True, slots=True)
class UserKey:
    """A registered public key of a user."""

    user: str
    fingerprint: str
    public_key: str
    comment: str
    created_at: datetime


class Who(Connections):
    """Users, their keys and grants, and whom a key proves."""

    def identity(self, fingerprint: str) -> Actor | None:
        """Whom a key proves, or None. Expired keys and disabled devices prove nobody."""
        rows = self._read(
            """select a.name as user_name, d.name as device_name
                 from key k left join actor a on a.id = k.actor_id left join device d on d.id = k.device_id
                where k.fingerprint = %(fingerprint)s and (k.expires_at is null or k.expires_at > now())
                  and d.mode is distinct from 'disabled'""",
            {"fingerprint": fingerprint},
        )
        if not rows:
            return None
        row = rows[0]
        if row["device_name"]:
            return Actor(ActorKind.DEVICE, row["device_name"], fingerprint)
        if row["user_name"]:
            return Actor(ActorKind.USER, row["user_name"], fingerprint)
        return Actor(ActorKind.OPERATOR, "operator", fingerprint)

    def _taken(self, statement: LiteralString, params: Mapping[str, str | None]) -> bool:
        """Run a statement that takes something from somebody, and have the devices hear of it at once: those that
        serve reads while the database is away decide by what they heard last. Whether there was anything to take."""
        return bool(
            self._write(
                "with taken as (" + statement + ") select pg_notify(%(channel)s, '') from taken",
                {**params, "channel": CHANNEL},
            )
        )

    def add_user(self, name: str) -> None:
        with unique(f"there is a user {name} already", "list them with `git-cluster user list`"):
            self._write("insert into actor (name) values (%(name)s)", {"name": name})

    def users(self) -> list[Row]:
        """name, created_at and number of keys of each user."""
        return self._read(
            """select a.name, a.created_at, count(k.fingerprint) as keys
                 from actor a left join key k on k.actor_id = a.id group by a.id order by a.name"""
        )

    def remove_user(self, name: str) -> None:
        if not self._taken("delete from actor where name = %(name)s returning 1", {"name": name}):
            raise no_user(name)

    def add_key(self, user: str, fingerprint: str, public_key: str, comment: str) -> None:
        with unique("this key is registered already", "a key belongs to one user or one device only"):
            if not self._write(
                """insert into key (fingerprint, public_key, comment, actor_id)
                   select %(fingerprint)s, %(public_key)s, %(comment)s, id from actor where name = %(user)s
                   returning 1""",
                {"fingerprint": fingerprint, "public_key": public_key, "comment": comment, "user": user},
            ):
                raise no_user(user)

    def keys(self, user: str | None = None) -> list[UserKey]:
        return [
            UserKey(row["name"], row["fingerprint"], row["public_key"], row["comment"], row["created_at"])
            for row in self._read(
                """select a.name, k.fingerprint, k.public_key, k.comment, k.created_at
                     from key k join actor a on a.id = k.actor_id
                    where %(user)s::text is null or a.name = %(user)s order by a.name, k.created_at""",
                {"user": user},
            )
        ]

    def remove_key(self, fingerprint: str) -> None:
        if not self._taken(
            "delete from key where fingerprint = %(f)s and actor_id is not null returning 1",
            {"f": fingerprint},
        ):
            raise NotFound(f"no user has the key {fingerprint}", hint="`git-cluster key list` shows them")

    @contextmanager
    def operator_key(self, fingerprint: str, public_key: str, *, seconds: int) -> Iterator[None]:
        """While inside, `fingerprint` proves an operator, for `seconds` at most."""
        self._write(
            """insert into key (fingerprint, public_key, comment, expires_at)
               values (%(fingerprint)s, %(public_key)s, 'operator', now() + make_interval(secs => %(seconds)s))""",
            {"fingerprint": fingerprint, "public_key": public_key, "seconds": seconds},
        )
        try:
            yield
        finally:
            with suppress(DatabaseUnavailable):
                self._write(
                    """delete from key where fingerprint = %(fingerprint)s
                       or (num_nonnulls(actor_id, device_id) = 0 and expires_at < now())""",
                    {"fingerprint": fingerprint},
                )

    def grant(self, level: Level, user: str | None, pattern: str) -> None:
        """`user` None: everyone with a key. A second grant on the same pattern replaces the first."""
        # One statement: a user removed between a look and the insert would turn the grant into one to everyone.
        if not self._write(
            """insert into access_grant (actor_id, pattern, level)
               select a.id, %(pattern)s, %(level)s::access_level
                 from (select null) one left join actor a on a.name = %(user)s
                where %(user)s::text is null or a.id is not null
               on conflict (actor_id, pattern) do update set level = excluded.level returning 1""",
            {"user": user, "pattern": pattern, "level": level.value},
        ):
            raise no_user(user or "")

    def revoke(self, user: str | None, pattern: str) -> None:
        if not self._taken(
            """delete from access_grant g where pattern = %(pattern)s
               and g.actor_id is not distinct from (select id from actor where name = %(user)s)
               and (g.actor_id is null) = (%(user)s::text is null) returning 1""",
            {"user": user, "pattern": pattern},
        ):
            raise NotFound(
                f"{user or 'everyone'} has no grant on {pattern}", hint="`git-cluster grant list` shows them"
            )

    def grants(self, user: str | None = None) -> list[Grant]:
        """All grants, or those that concern one user."""
        return [
            Grant(row["name"], row["pattern"], Level(row["level"]))
            for row in self._read(
                """select a.name, g.pattern, g.level from access_grant g left join actor a on a.id = g.actor_id
                    where %(user)s::text is null or g.actor_id is null or a.name = %(user)s
                    order by a.name nulls first, g.pattern""",
                {"user": user},
            )
        ]


def no_user(name: str) -> NotFound:
    return NotFound(f"there is no user {name}", hint="`git-cluster user list` shows them")
