"""Groups of users, and the rules on refs that may name them."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from cluster.db.connections import Connections, notify, unique
from cluster.db.rows import Row
from cluster.db.schema import Connection
from cluster.db.who import WHOM, no_user, nobody, whom
from cluster.errors import NotFound, Refused
from cluster.model import RefAction, RefRule


class Groups(Connections):
    """Groups of users, by their names without "@", and the rules on refs that may name them."""

    def add_group(self, name: str) -> None:
        with unique(f"there is a group @{name} already", "list them with `git-cluster group list`"):
            self._write("insert into actor_group (name) values (%(name)s)", {"name": name})

    def groups(self) -> list[Row]:
        """name, created_at and members (names, in order) of each group."""
        return self._read(
            """select g.name, g.created_at,
                      coalesce(array_agg(a.name order by a.name) filter (where a.id is not null), '{}') as members
                 from actor_group g left join group_member m on m.group_id = g.id left join actor a on a.id = m.actor_id
                group by g.id order by g.name"""
        )

    def remove_group(self, name: str) -> None:
        """With its grants and rules."""
        if not self._taken("delete from actor_group where name = %(name)s returning 1", {"name": name}):
            raise nobody(f"@{name}")

    def join(self, group: str, users: Sequence[str]) -> None:
        """Make all of `users` members, or none. Who is one already stays one."""
        with self._transaction() as connection:
            group_id, ids = _members(connection, group, users)
            connection.execute(
                """insert into group_member (group_id, actor_id) select %(group)s, unnest(%(ids)s::bigint[])
                   on conflict do nothing""",
                {"group": group_id, "ids": ids},
            )

    def leave(self, group: str, users: Sequence[str]) -> None:
        """Take all of `users` out, or none. Refused where one is no member."""
        with self._transaction() as connection:
            group_id, ids = _members(connection, group, users)
            left = connection.execute(
                "delete from group_member where group_id = %(group)s and actor_id = any(%(ids)s)",
                {"group": group_id, "ids": ids},
            ).rowcount
            if left < len(ids):
                raise Refused(
                    f"not all of these are in @{group}: {', '.join(users)}"
                    if len(ids) > 1
                    else f"{users[0]} is not in @{group}",
                    hint="`git-cluster group list` shows who is; nobody was taken out",
                )
            notify(connection, "")

    def set_rule(self, to: str | None, pattern: str, ref_pattern: str, may: Collection[RefAction]) -> None:
        """`to` as in `grant`. A second rule on the same patterns replaces the first."""
        if not self._write(
            """insert into ref_rule (actor_id, group_id, pattern, ref_pattern, may)
               select a.id, q.id, %(pattern)s, %(ref_pattern)s, %(may)s::ref_action[] """
            + WHOM
            + " on conflict on constraint ref_rule_once do update set may = excluded.may returning 1",
            {
                **whom(to),
                "pattern": pattern,
                "ref_pattern": ref_pattern,
                "may": [action.value for action in RefAction if action in may],
            },
        ):
            raise nobody(to)

    def remove_rule(self, to: str | None, pattern: str, ref_pattern: str) -> None:
        if not self._write(
            "delete from ref_rule g using (select a.id as actor_id, q.id as group_id "
            + WHOM
            + """) w where g.pattern = %(pattern)s and g.ref_pattern = %(ref_pattern)s
                   and g.actor_id is not distinct from w.actor_id
                   and g.group_id is not distinct from w.group_id returning 1""",
            {**whom(to), "pattern": pattern, "ref_pattern": ref_pattern},
        ):
            raise NotFound(
                f"{to or 'everyone'} has no rule on {ref_pattern} of {pattern}",
                hint="`git-cluster rule list` shows them",
            )

    def rules(self, user: str | None = None) -> list[RefRule]:
        """All rules, or those that concern one user: by name, by a group, or as everyone."""
        return [
            RefRule(row["actor"], row["pattern"], row["ref_pattern"], frozenset(map(RefAction, row["may"])))
            for row in self._read(
                """select coalesce(a.name, '@' || q.name) as actor, g.pattern, g.ref_pattern, g.may::text[] as may
                     from ref_rule g left join actor a on a.id = g.actor_id left join actor_group q on q.id = g.group_id
                    where %(user)s::text is null or num_nonnulls(g.actor_id, g.group_id) = 0 or a.name = %(user)s
                       or g.group_id in (select m.group_id from group_member m join actor u on u.id = m.actor_id
                                          where u.name = %(user)s)
                    order by g.pattern, g.ref_pattern, 1 nulls first""",
                {"user": user},
            )
        ]


def _members(connection: Connection, group: str, users: Sequence[str]) -> tuple[int, list[int]]:
    """The ids of a group and of users, none of which can go while the transaction lasts. NotFound."""
    found = connection.execute(
        "select id from actor_group where name = %(name)s for key share", {"name": group}
    ).fetchone()
    if found is None:
        raise nobody(f"@{group}")
    ids = {
        row["name"]: int(row["id"])
        for row in connection.execute(
            "select id, name from actor where name = any(%(names)s) order by id for key share",
            {"names": list(users)},
        )
    }
    for user in users:
        if user not in ids:
            raise no_user(user)
    return int(found["id"]), list(ids.values())
