"""Webhooks: which there are, whose turn it is, and how far each has got.

    due ──lease──▶ leased ──delivered──▶ leased … ──released──▶ idle, or due again after next_try_at
                     │
                     └─ the device died: due again when leased_until has passed

What is due is a query (enabled, the repository has versions after `delivered`: the column `due`, which a trigger keeps
true; no lease, no next_try_at ahead). Order
and "at least once" rest on `delivered`: it moves by one, by compare-and-set, and only for whoever holds the lease.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import LiteralString

from cluster.db.connections import CHANNEL, Connections, unique
from cluster.db.repositories import no_repository
from cluster.db.rows import Row
from cluster.errors import NotFound, Refused, WriteConflict

MOST = 20
"""Webhooks of one repository."""


@dataclass(frozen=True, slots=True)
class Webhook:
    """A webhook as it is listed: all but its secret. Times and states as in the table.

    version: the newest of the repository; what comes after `delivered` is still to be told.
    """

    id: int
    repository_id: int
    repository: str
    url: str
    enabled: bool
    delivered: int
    version: int
    created_at: datetime
    created_by: str
    delivered_at: datetime | None
    attempts: int
    last_error: str | None
    last_status: int | None
    next_try_at: datetime | None


@dataclass(frozen=True, slots=True)
class Lease:
    """A webhook that this device alone delivers for a while."""

    id: int
    repository_id: int
    url: str
    secret: str
    delivered: int
    attempts: int


class Webhooks(Connections):
    """Webhooks: which there are, whose turn it is, and how far each has got."""

    def add_webhook(self, repository: str, url: str, secret: str, *, created_by: str) -> int:
        """Its number. It tells of what is committed from now on. NotFound; Refused: it has this one, or MOST."""
        with (
            unique(
                f"{repository} has a webhook to this URL already",
                "`git-cluster webhook list` shows it; remove that one for another secret",
            ),
            self._transaction() as connection,
        ):
            row = connection.execute(
                """select p.id, p.version, (select count(*) from webhook w where w.repository_id = p.id) as count
                     from repository p where p.name = %(name)s for no key update of p""",
                {"name": repository},
            ).fetchone()
            if row is None:
                raise no_repository(repository)
            if row["count"] >= MOST:
                raise Refused(f"{repository} has {MOST} webhooks already", hint="remove one first")
            made = connection.execute(
                """insert into webhook (repository_id, url, secret, delivered, newest, created_by)
                   values (%(id)s, %(url)s, %(secret)s, %(version)s, %(version)s, %(by)s) returning id""",
                {"id": row["id"], "url": url, "secret": secret, "version": row["version"], "by": created_by},
            ).fetchone()
            assert made is not None
            return int(made["id"])

    def webhooks(self, repository: str | None = None) -> list[Webhook]:
        """Of one repository, or all."""
        return [
            Webhook(**row)
            for row in self._read(
                _LISTED + "where %(name)s::text is null or p.name = %(name)s order by p.name, w.id",
                {"name": repository},
            )
        ]

    def webhook(self, number: int) -> Webhook:
        """NotFound."""
        rows = self._read(_LISTED + "where w.id = %(id)s", {"id": number})
        if not rows:
            raise no_webhook(number)
        return Webhook(**rows[0])

    def webhook_secret(self, number: int) -> str:
        """For a delivery that somebody asked for. NotFound."""
        rows = self._read("select secret from webhook where id = %(id)s", {"id": number})
        if not rows:
            raise no_webhook(number)
        return str(rows[0]["secret"])

    def remove_webhook(self, number: int) -> None:
        """NotFound. A delivery that is under way may still arrive."""
        if not self._write("delete from webhook where id = %(id)s returning 1", {"id": number}):
            raise no_webhook(number)

    def enable_webhook(self, number: int) -> None:
        """Go on after what was delivered last, at once. One that is enabled already is tried at once, too. NotFound."""
        if not self._write(
            """with turned as (
                   update webhook set enabled = true, attempts = 0, next_try_at = null where id = %(id)s returning 1)
               select pg_notify(%(channel)s, '') from turned""",
            {"id": number, "channel": CHANNEL},
        ):
            raise no_webhook(number)

    def disable_webhook(self, number: int) -> None:
        """Nothing more is told until it is enabled. NotFound."""
        if not self._write(
            "update webhook set enabled = false, next_try_at = null where id = %(id)s returning 1",
            {"id": number},
        ):
            raise no_webhook(number)

    # Delivering

    def lease_webhooks(
        self, device: str, *, most: int, fresh: bool, seconds: float, but: Sequence[int] = ()
    ) -> list[Lease]:
        """Up to `most` webhooks whose turn it is, for this device alone for so many seconds. fresh: only those whose
        last delivery was taken, or that have had none. but: what this device is at already."""
        return [
            _lease(row)
            for row in self._write(
                """update webhook w set leased_by = %(device)s,
                          leased_until = now() + make_interval(secs => %(seconds)s)
                    where w.id in (
                          select w.id from webhook w join repository p on p.id = w.repository_id and p.name is not null
                           where w.due and (w.attempts = 0 or not %(fresh)s)
                             and (w.next_try_at is null or w.next_try_at <= now())
                             and (w.leased_until is null or w.leased_until < now()) and w.id <> all(%(but)s::bigint[])
                           order by w.attempts = 0 desc, w.next_try_at nulls first, w.id limit %(most)s
                             for update of w skip locked)
                returning w.id, w.repository_id, w.url, w.secret, w.delivered, w.attempts""",
                {"device": device, "most": most, "fresh": fresh, "seconds": seconds, "but": list(but)},
            )
        ]

    def renew_lease(self, lease: Lease, device: str, *, seconds: float) -> bool:
        """For so long from now; False: it has run out, or the webhook was disabled or removed."""
        return bool(
            self._write(
                """update webhook set leased_until = now() + make_interval(secs => %(seconds)s)
                    where id = %(id)s and enabled and delivered = %(delivered)s and leased_by = %(device)s
                      and leased_until > now() returning 1""",
                {"id": lease.id, "delivered": lease.delivered, "device": device, "seconds": seconds},
            )
        )

    def webhook_delivered(self, lease: Lease, device: str, status: int) -> Lease:
        """The version after lease.delivered was taken; the lease to go on with. WriteConflict: it is not ours."""
        rows = self._write(
            """update webhook set delivered = delivered + 1, delivered_at = now(), attempts = 0, last_error = null,
                      last_status = %(status)s, next_try_at = null
                where id = %(id)s and delivered = %(delivered)s and leased_by = %(device)s
            returning id, repository_id, url, secret, delivered, attempts""",
            {"id": lease.id, "delivered": lease.delivered, "device": device, "status": status},
        )
        if not rows:
            raise WriteConflict("another device delivers this webhook by now")
        return _lease(rows[0])

    def webhook_failed(
        self, lease: Lease, device: str, error: str, status: int | None, *, seconds: float, gone: bool = False
    ) -> None:
        """Try again in so many seconds; gone: disable it. The lease is given back. Nothing, where it is not ours."""
        self._write(
            """update webhook set attempts = attempts + 1, last_error = %(error)s, last_status = %(status)s,
                      next_try_at = now() + make_interval(secs => %(seconds)s), enabled = enabled and not %(gone)s,
                      leased_until = null, leased_by = null
                where id = %(id)s and delivered = %(delivered)s and leased_by = %(device)s""",
            {
                "id": lease.id,
                "delivered": lease.delivered,
                "device": device,
                "error": error[:500],
                "status": status,
                "seconds": seconds,
                "gone": gone,
            },
        )

    def release_webhook(self, lease: Lease, device: str) -> None:
        self._write(
            """update webhook set leased_until = null, leased_by = null
                where id = %(id)s and leased_by = %(device)s""",
            {"id": lease.id, "device": device},
        )

    def release_webhooks(self, device: str) -> None:
        """All that a former process of this device held. Only for a daemon that knows that it is the only one."""
        self._write(
            "update webhook set leased_until = null, leased_by = null where leased_by = %(device)s",
            {"device": device},
        )

    def webhooks_due(self) -> tuple[bool, float | None]:
        """Whether the turn of any has come; and seconds until the next try of one that failed, or the end of a lease
        (None: nothing is awaited)."""
        row = self._read(
            """select coalesce(bool_or(t.turn is null or t.turn <= now()), false) as due,
                      extract(epoch from min(t.turn) filter (where t.turn > now()) - now())::float as seconds
                 from webhook w join repository p on p.id = w.repository_id and p.name is not null,
                      lateral (select greatest(w.next_try_at, w.leased_until) as turn) t
                where w.due"""
        )[0]
        return row["due"], row["seconds"]


_LISTED: LiteralString = """
    select w.id, w.repository_id, p.name as repository, w.url, w.enabled, w.delivered, p.version, w.created_at,
           w.created_by, w.delivered_at, w.attempts, w.last_error, w.last_status, w.next_try_at
      from webhook w join repository p on p.id = w.repository_id and p.name is not null """


def no_webhook(number: int) -> NotFound:
    return NotFound(f"there is no webhook {number}", hint="`git-cluster webhook list` shows them")


def _lease(row: Row) -> Lease:
    return Lease(
        row["id"], row["repository_id"], row["url"], row["secret"], row["delivered"], row["attempts"]
    )
