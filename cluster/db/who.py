"""Users, their keys and grants, and whom a key proves."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, LiteralString

from cluster.db.connections import Connections, unique
from cluster.db.rows import Row
from cluster.errors import DatabaseUnavailable, NotFound, Refused
from cluster.model import (
    Actor,
    ActorKind,
    Grant,
    Level,
)


@dataclass(frozen=True, slots=True)
class UserKey:
    """A registered public key of a user. expires_at: from when on it proves nobody; None: never."""

    user: str
    fingerprint: str
    public_key: str
    comment: str
    created_at: datetime
    expires_at: datetime | None


KEY_COUNTS: LiteralString = """
    (k.expires_at is null or k.expires_at > now()) and d.mode is distinct from 'disabled' and a.disabled_at is null"""
"""Whether key `k` of user `a` or device `d` (the other is null) proves anybody now."""

TOKEN = "token:"  # noqa: S105 - a prefix
"""What an actor's fingerprint begins with whom a token proved; its number follows."""

COUNTS_AS_PROOF: LiteralString = """
    (t.expires_at is null or t.expires_at > now()) and a.disabled_at is null"""
"""Whether token `t` of user `a` proves them now."""

STILL_PROVEN: LiteralString = (
    """
    case when %(proof)s::text is null then true
         when %(token)s::bigint is not null then %(kind)s = 'user' and exists (
              select from token t join actor a on a.id = t.actor_id
               where t.id = %(token)s and a.name = %(who)s and t.read_only = %(read_only)s and """
    + COUNTS_AS_PROOF
    + """)
         when %(certified_until)s::timestamptz is not null then %(certified_until)s::timestamptz > now()
              and %(kind)s = 'user' and exists (select from actor where name = %(who)s and disabled_at is null)
         else exists (select from key k left join actor a on a.id = k.actor_id left join device d on d.id = k.device_id
                       where k.fingerprint = %(proof)s and coalesce(a.name, d.name, 'operator') = %(who)s
                         and case when a.id is not null then 'user' when d.id is not null then 'device'
                                  else 'operator' end = %(kind)s and """
    + KEY_COUNTS
    + ") end"
)
"""Whether the actor of `proof_of` is still proven; nobody in particular always is. A key proves one kind of actor only:
a device that acts for a user cannot name another device, or an operator, as if that were a user's name."""


def proof_of(actor: Actor | None) -> dict[str, Any]:
    """The parameters of STILL_PROVEN."""
    if actor and actor.kind is ActorKind.ANONYMOUS:
        actor = None
    token = actor.fingerprint.removeprefix(TOKEN) if actor and actor.fingerprint.startswith(TOKEN) else None
    return {
        "token": int(token) if token else None,
        "read_only": actor.read_only if actor else None,
        "proof": actor.fingerprint if actor else None,
        "who": actor.name if actor else None,
        "kind": actor.kind.value if actor else None,
        "certified_until": actor.certified_until if actor else None,
    }


class Who(Connections):
    """Users, their keys and grants, and whom a key proves."""

    def identity(self, fingerprint: str) -> Actor | None:
        """Whom a key proves, or None. Expired keys, disabled users and disabled devices prove nobody."""
        rows = self._read(
            """select a.name as user_name, d.name as device_name
                 from key k left join actor a on a.id = k.actor_id left join device d on d.id = k.device_id
                where k.fingerprint = %(fingerprint)s and """
            + KEY_COUNTS,
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

    def proves(self, actor: Actor) -> bool:
        """Whether what proved `actor` still does: a connection outlives its key."""
        return bool(self._read("select " + STILL_PROVEN + " as proven", proof_of(actor))[0]["proven"])

    def certified(self, principals: Sequence[str], fingerprint: str, until: datetime) -> list[Actor]:
        """The enabled users among the principals of a certificate that proves them `until` then."""
        rows = self._read(
            "select name from actor where name = any(%(names)s) and disabled_at is null order by name",
            {"names": list(principals)},
        )
        return [Actor(ActorKind.USER, row["name"], fingerprint, until) for row in rows]

    def add_user(self, name: str) -> None:
        with unique(f"there is a user {name} already", "list them with `git-cluster user list`"):
            self._write("insert into actor (name) values (%(name)s)", {"name": name})

    def users(self, *, only: str | None = None, after: str = "", limit: int | None = None) -> list[Row]:
        """name, created_at, disabled_at and number of keys of each user, by name: of one, or so many behind one."""
        return self._read(
            """select a.name, a.created_at, a.disabled_at,
                      (select count(*) from key k where k.actor_id = a.id) as keys
                 from actor a where a.name > %(after)s and (%(only)s::text is null or a.name = %(only)s)
                order by a.name limit %(limit)s""",
            {"only": only, "after": after, "limit": limit},
        )

    def disable_user(self, name: str) -> None:
        """From now on, until it is enabled, nothing proves this user. One that is disabled already stays so."""
        if not self._taken(
            "update actor set disabled_at = coalesce(disabled_at, now()) where name = %(name)s returning 1",
            {"name": name},
        ):
            raise no_user(name)

    def enable_user(self, name: str) -> None:
        if not self._write(
            "update actor set disabled_at = null where name = %(name)s returning 1", {"name": name}
        ):
            raise no_user(name)

    def remove_user(self, name: str) -> None:
        if not self._taken("delete from actor where name = %(name)s returning 1", {"name": name}):
            raise no_user(name)

    def add_key(
        self,
        user: str,
        fingerprint: str,
        public_key: str,
        comment: str,
        expires_at: datetime | None = None,
    ) -> None:
        with unique("this key is registered already", "a key belongs to one user or one device only"):
            if not self._write(
                """insert into key (fingerprint, public_key, comment, expires_at, actor_id)
                   select %(fingerprint)s, %(public_key)s, %(comment)s, %(expires_at)s, id
                     from actor where name = %(user)s returning 1""",
                {
                    "fingerprint": fingerprint,
                    "public_key": public_key,
                    "comment": comment,
                    "expires_at": expires_at,
                    "user": user,
                },
            ):
                raise no_user(user)

    def keys(self, user: str | None = None) -> list[UserKey]:
        return [
            UserKey(**row)
            for row in self._read(
                """select a.name as user, k.fingerprint, k.public_key, k.comment, k.created_at, k.expires_at
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
                    """delete from key where fingerprint = any(array(
                              select fingerprint from key
                               where actor_id is null and device_id is null and expires_at < now()
                              union all select %(fingerprint)s))""",
                    {"fingerprint": fingerprint},
                )

    def grant(self, level: Level, to: str | None, pattern: str) -> None:
        """`to` a user, "@" and a group, or (None) everyone with a key. A second grant on the same pattern replaces
        the first."""
        # One statement: a user removed between a look and the insert would turn the grant into one to everyone.
        if not self._write(
            """insert into access_grant (actor_id, group_id, pattern, level)
               select a.id, q.id, %(pattern)s, %(level)s::access_level """
            + WHOM
            + """ on conflict on constraint access_grant_once do update set level = excluded.level returning 1""",
            {**whom(to), "pattern": pattern, "level": level.value},
        ):
            raise nobody(to)

    def revoke(self, to: str | None, pattern: str) -> None:
        if not self._taken(
            """delete from access_grant g using (select a.id as actor_id, q.id as group_id """
            + WHOM
            + """) w where g.pattern = %(pattern)s and g.actor_id is not distinct from w.actor_id
                   and g.group_id is not distinct from w.group_id returning 1""",
            {**whom(to), "pattern": pattern},
        ):
            raise NotFound(
                f"{to or 'everyone'} has no grant on {pattern}", hint="`git-cluster grant list` shows them"
            )

    def grants(self, user: str | None = None) -> list[Grant]:
        """All grants, or those that concern one user: by name, by a group, or to everyone."""
        return [
            Grant(row["actor"], row["pattern"], Level(row["level"]))
            for row in self._read(
                """select coalesce(a.name, '@' || q.name) as actor, g.pattern, g.level
                     from access_grant g left join actor a on a.id = g.actor_id
                     left join actor_group q on q.id = g.group_id
                    where %(user)s::text is null or num_nonnulls(g.actor_id, g.group_id) = 0 or a.name = %(user)s
                       or g.group_id in (select m.group_id from group_member m join actor u on u.id = m.actor_id
                                          where u.name = %(user)s)
                    order by 1 nulls first, g.pattern""",
                {"user": user},
            )
        ]


WHOM: LiteralString = """
    from (select null) one left join actor a on a.name = %(user)s left join actor_group q on q.name = %(group)s
   where (%(user)s::text is null or a.id is not null) and (%(group)s::text is null or q.id is not null)"""
"""User `a` or group `q` of `whom`, or neither, for everyone: one row; none where there is no such user or group."""


def whom(to: str | None) -> dict[str, str | None]:
    """The parameters of WHOM."""
    group = to is not None and to.startswith("@")
    return {"user": None if group else to, "group": to[1:] if to and group else None}


def nobody(to: str | None) -> NotFound:
    """The error where `to` is neither a user nor a group that exists."""
    if to is not None and to.startswith("@"):
        return NotFound(f"there is no group {to}", hint="`git-cluster group list` shows them")
    return no_user(to or "")


def key_gone() -> Refused:
    """The one sentence for somebody whose proof has ended since they logged in."""
    return Refused("this key is not registered here any more", hint="ask an administrator")


def no_user(name: str) -> NotFound:
    return NotFound(f"there is no user {name}", hint="`git-cluster user list` shows them")
