"""Which device holds which repository, and the rules for new ones.

Whoever takes a replica away first locks the repository's row, as an intent and a commit do. So of two removals at once
the second sees what the first has left, and no push loses a device between its intent and its commit. "no key update":
rows that only refer to the repository are inserted meanwhile.
"""

from __future__ import annotations

from collections.abc import Sequence

from cluster.db.connections import Connections, notify, unique
from cluster.db.rows import Row
from cluster.db.schema import Connection
from cluster.errors import NotFound, Refused
from cluster.model import DeviceMode, PlacementRule


def place_on(connection: Connection, repository_id: int, devices: Sequence[str]) -> None:
    """New, absent replicas of a repository, within the caller's transaction.

    NotFound, Refused: not every device is there and enabled. One that is drained or removed at the same time waits for
    the transaction, or is seen here: the rows of the devices are locked.
    """
    rows: list[Row] = connection.execute(
        """select id, name, mode from device where name = any(%(devices)s) order by id for share""",
        {"devices": list(devices)},
    ).fetchall()
    known = {row["name"]: row for row in rows}
    for name in devices:
        if name not in known:
            raise NotFound(f"there is no device {name}", hint="`git-cluster device list` shows them")
        if known[name]["mode"] != DeviceMode.ENABLED.value:
            raise Refused(
                f"device {name} is {known[name]['mode']} and takes no new repositories",
                hint=f"`git-cluster device enable {name}`, or choose another",
            )
    connection.execute(
        "insert into replica (repository_id, device_id) select %(id)s, unnest(%(devices)s::bigint[])",
        {"id": repository_id, "devices": [row["id"] for row in rows]},
    )


def lock_placement(connection: Connection, repository_id: int) -> None:
    """Have nobody else take a replica of this repository away, nor write an intent, until the transaction ends."""
    connection.execute("select from repository where id = %(id)s for no key update", {"id": repository_id})


class Placing(Connections):
    """Which device holds which repository, and the rules for new ones."""

    def place(self, repository_id: int, device: str, *, instead_of: str | None = None) -> None:
        """Have a device hold a repository, which it fetches as soon as it can. NotFound, Refused.

        instead_of: the device whose replica is to go once this one is current (`moving` says so until then).
        """
        with (
            unique(f"device {device} holds this repository already", "`git-cluster repo show` lists them"),
            self._transaction() as connection,
        ):
            found = connection.execute(
                "select from repository where id = %(id)s and name is not null for key share",
                {"id": repository_id},
            ).rowcount
            if not found:
                raise NotFound("this repository was deleted")
            place_on(connection, repository_id, [device])
            if instead_of is not None:
                connection.execute(
                    """update replica r set moves_to = (select id from device where name = %(device)s) from device d
                        where r.repository_id = %(id)s and d.id = r.device_id and d.name = %(old)s""",
                    {"id": repository_id, "device": device, "old": instead_of},
                )
            notify(connection, str(repository_id))

    def moving(self, device: str) -> dict[int, str]:
        """Ids of the repositories that are being moved away from `device`, with the device that each moves to."""
        rows = self._read(
            """select r.repository_id, m.name from replica r join device m on m.id = r.moves_to
                 join device d on d.id = r.device_id where d.name = %(device)s""",
            {"device": device},
        )
        return {row["repository_id"]: row["name"] for row in rows}

    def loads(self) -> dict[str, int]:
        """How many repositories each device holds; deleted ones, whose copies are on their way out, do not count."""
        rows = self._read(
            """select d.name, coalesce(sum(c.count), 0)::bigint as held
                 from device d left join counted c on c.device_id = d.id group by d.name"""
        )
        return {row["name"]: row["held"] for row in rows}

    # --------------------------------------------------------------------------------- the rules for new ones

    def placement_rules(self) -> list[PlacementRule]:
        """By pattern."""
        rows = self._read("select pattern, copies, min_copies from placement_rule order by pattern")
        return [PlacementRule(row["pattern"], row["copies"], row["min_copies"]) for row in rows]

    def set_placement_rule(self, rule: PlacementRule) -> None:
        """Add a rule, or replace the one with its pattern."""
        self._write(
            """insert into placement_rule (pattern, copies, min_copies)
               values (%(pattern)s, %(copies)s, %(min_copies)s)
               on conflict (pattern) do update set copies = excluded.copies, min_copies = excluded.min_copies""",
            {"pattern": rule.pattern, "copies": rule.copies, "min_copies": rule.min_copies},
        )

    def remove_placement_rule(self, pattern: str) -> None:
        if not self._write(
            "delete from placement_rule where pattern = %(pattern)s returning 1", {"pattern": pattern}
        ):
            raise NotFound(
                f"there is no placement rule for {pattern}", hint="`git-cluster placement list` shows them"
            )
