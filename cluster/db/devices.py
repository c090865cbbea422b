"""The machines that hold repositories."""

from __future__ import annotations

from typing import LiteralString

import psycopg

from cluster.db.connections import CHANNEL, Connections, unique
from cluster.db.rows import device_of
from cluster.errors import NotFound, StillNeeded
from cluster.model import (
    Device,
    DeviceMode,
)

MAY_FENCE: LiteralString = """
    (o.last_seen_at is null or o.last_seen_at < now() - make_interval(secs => %(silent)s))
    and me.last_seen_at > now() - interval '5 s' and me.up_since < now() - make_interval(secs => %(silent)s)"""
"""Whether device `me` may judge device `o` silent: it has not been seen for so many seconds, and `me`, who asks, had
heartbeats without a gap for as long."""


class Devices(Connections):
    """The machines that hold repositories."""

    def add_device(
        self,
        name: str,
        *,
        ssh_url: str,
        http_url: str | None,
        fingerprint: str,
        public_key: str,
        host_key: str,
        zone: str = "",
    ) -> None:
        with (
            unique(f"device {name} or its key is registered already", "`git-cluster device list` shows them"),
            self._transaction() as connection,
        ):
            connection.execute(
                """with added as (
                       insert into device (name, ssh_url, http_url, host_key, zone)
                       values (%(name)s, %(ssh_url)s, %(http_url)s, %(host_key)s, %(zone)s) returning id)
                   insert into key (fingerprint, public_key, comment, device_id)
                   select %(fingerprint)s, %(public_key)s, %(name)s, id from added""",
                {
                    "name": name,
                    "ssh_url": ssh_url,
                    "http_url": http_url,
                    "fingerprint": fingerprint,
                    "public_key": public_key,
                    "host_key": host_key,
                    "zone": zone,
                },
            )

    def devices(self) -> list[Device]:
        return [
            device_of(row, "")
            for row in self._read(
                """select d.*, k.public_key, extract(epoch from now() - d.last_seen_at)::float as silent_for
                     from device d join key k on k.device_id = d.id order by d.name"""
            )
        ]

    def device(self, name: str) -> Device:
        found = next((device for device in self.devices() if device.name == name), None)
        if found is None:
            raise NotFound(f"there is no device {name}", hint="`git-cluster device list` shows them")
        return found

    def set_device(
        self, name: str, *, ssh_url: str | None = None, http_url: str | None = None, zone: str | None = None
    ) -> None:
        """Change what is not None. "": no HTTP URL, or no zone."""
        if not self._write(
            """with turned as (
                   update device set ssh_url = coalesce(%(ssh_url)s, ssh_url),
                          http_url = nullif(coalesce(%(http_url)s, http_url), ''),
                          zone = coalesce(%(zone)s, zone) where name = %(name)s returning 1)
               select pg_notify(%(channel)s, '') from turned""",
            {"name": name, "ssh_url": ssh_url, "http_url": http_url, "zone": zone, "channel": CHANNEL},
        ):
            raise NotFound(f"there is no device {name}", hint="`git-cluster device list` shows them")

    def set_device_mode(self, name: str, mode: DeviceMode) -> None:
        """One that is enabled (again) keeps what was about to be moved away from it."""
        if not self._write(
            """with turned as (
                   update device set mode = %(mode)s::device_mode where name = %(name)s returning id, mode),
               kept as (
                   update replica r set moves_to = null from turned t
                    where r.device_id = t.id and t.mode = 'enabled' and r.moves_to is not null)
               select pg_notify(%(channel)s, '') from turned""",
            {"mode": mode.value, "name": name, "channel": CHANNEL},
        ):
            raise NotFound(f"there is no device {name}", hint="`git-cluster device list` shows them")

    def remove_device(self, name: str) -> None:
        """Forget a device that holds no replica but of deleted repositories, which it has not dropped yet."""
        try:
            with self._transaction() as connection:
                connection.execute(
                    """with gone as (
                           delete from replica r using device d, repository p
                            where d.name = %(name)s and r.device_id = d.id
                              and p.id = r.repository_id and p.name is null returning r.repository_id, r.device_id)
                       delete from repository p using gone g where p.id = g.repository_id and not exists (
                              select from replica o where o.repository_id = p.id and o.device_id <> g.device_id)""",
                    {"name": name},
                )
                removed = connection.execute(
                    "delete from device where name = %(name)s", {"name": name}
                ).rowcount
        except (psycopg.errors.ForeignKeyViolation, psycopg.errors.RestrictViolation) as error:
            raise StillNeeded(
                f"device {name} still holds replicas",
                hint=f"move them away first: `git-cluster device drain {name} --move`",
            ) from error
        if not removed:
            raise NotFound(f"there is no device {name}", hint="`git-cluster device list` shows them")

    def set_disk(self, device: str, total: int, free: int) -> None:
        """Bytes of the file system of its repositories."""
        self._write(
            """update device set disk_total = %(total)s, disk_free = %(free)s
                where name = %(device)s and (disk_total, disk_free) is distinct from (%(total)s, %(free)s)""",
            {"device": device, "total": total, "free": free},
        )

    def heartbeat(self, device: str, *, stopped: bool = False, gap: float = Device.OFFLINE_AFTER) -> None:
        """Say that a device is alive. After a gap of so many seconds it counts as up from now on: while it, or this
        database, was away, it could not see the others' heartbeats either, so it watches them anew before it fences."""
        self._write(
            """update device set last_seen_at = now(), stopped = %(stopped)s,
                      up_since = case when stopped or last_seen_at is null or up_since is null
                                        or last_seen_at < now() - make_interval(secs => %(gap)s)
                                      then now() else up_since end
                where name = %(device)s""",
            {"device": device, "stopped": stopped, "gap": gap},
        )
