"""Which connections of the SSH endpoint may stay: how long without a login, how long without a command, how many.

Whoever connects gets a chance to log in, also while hundreds of others only sit there; and what that does to the log
is a few lines for an address, not one for each connection.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Protocol

from cluster.config import LimitsSection
from cluster.limits import FailedLogins, Slowed, duration, least_welcome, surplus

MAX_STRANGERS = 128
"""Connections that have not proven a key. Where one more comes, the least welcome of them leaves."""

TELL = 10.0
"""Seconds between two lines of the log about a flood of connections."""

_ROOM = "to make room for others"

log = logging.getLogger("cluster.ssh")  # to who reads the log it is one endpoint


class Guest(Protocol):
    """One connection, as this module sees it."""

    address: str
    since: float

    @property
    def stranger(self) -> bool:
        """Whether it has not proven a key that somebody owns."""

    @property
    def user(self) -> str:
        """The name of the user who has logged in; "": nobody has, or it is a device or an operator."""

    @property
    def progress(self) -> int:
        """How far it is with logging in: nothing said, a version, keys agreed on."""

    @property
    def idle_since(self) -> float | None:
        """Since when no command has run here. None: one runs, or it is a device's, which keeps its connections."""

    @property
    def leaving(self) -> bool:
        """Whether it was hung up on."""

    @property
    def failed(self) -> str | None:
        """Of one that has ended: why it did not log in. None: it did."""

    def hang_up(self, why: str = "") -> None: ...


class Room:
    """make_room and end_late are called by the accepting thread alone; the others by the connections'."""

    def __init__(self, limits: LimitsSection, failed_logins: FailedLogins | None = None) -> None:
        self.limits = limits
        self._failed_logins = FailedLogins(limits.failed_logins) if failed_logins is None else failed_logins
        self._made_room = 0
        self._told_at = float("-inf")

    def make_room(self, guests: Sequence[Guest]) -> None:
        """For one more, who has not logged in."""
        strangers = [each for each in guests if each.stranger and not each.leaving]
        if len(strangers) < MAX_STRANGERS:
            return
        leaves = least_welcome(strangers)
        leaves.hang_up(_ROOM)
        self._made_room += 1
        if time.monotonic() - self._told_at > TELL:
            what = "%d connections have not logged in yet: ended %d to make room for others, the last from %s"
            log.warning(what, len(strangers), self._made_room, leaves.address)
            self._made_room, self._told_at = 0, time.monotonic()

    def end_late(self, guests: Sequence[Guest]) -> None:
        """Those that do not log in; those that have, and ask for nothing, or are too many."""
        now, limits = time.monotonic(), self.limits
        staying = [each for each in guests if not each.leaving]
        for guest in staying:
            since = guest.idle_since
            if guest.stranger:
                if now - guest.since > limits.login_grace:
                    guest.hang_up(f"not logged in after {duration(limits.login_grace)}")
            elif since is not None and now - since > limits.idle_timeout:
                log.info("%s: hung up: no command in %s", guest.address, duration(limits.idle_timeout))
                guest.hang_up()
        for guest in surplus(
            [each for each in staying if each.user and not each.leaving],
            per_address=limits.sessions_per_address,
            per_user=limits.sessions_per_user,
        ):
            log.info("%s: hung up: %s has too many connections", guest.address, guest.user)
            guest.hang_up()

    def logged_in(self, address: str) -> None:
        """Somebody has, from there."""
        self._failed_logins.succeeded(address)

    def delay(self, address: str) -> float:
        """Seconds for which a client from there is to wait for the "no" to its key."""
        return self._failed_logins.delay(address)

    def ended(self, guest: Guest) -> None:
        """Count one that has not logged in."""
        why = guest.failed
        if why is None:
            return
        slowed = self._failed_logins.failed(guest.address)
        level = logging.DEBUG if slowed is Slowed.ALREADY or why == _ROOM else logging.INFO
        log.log(level, "%s: ended before logging in: %s", guest.address, why)
        if slowed is Slowed.FROM_NOW:
            most = self.limits.failed_logins
            log.warning("%s: more than %d failed logins in a minute: slowed down", guest.address, most)
