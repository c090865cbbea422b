"""One look at the cluster for all who ask at about the same time: a room full of screens costs no more than one.

Where a look takes long, because there are very many repositories, nobody waits for it who can be shown one that is
hardly older: the next one is made meanwhile.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress

from cluster.errors import DatabaseUnavailable
from cluster.http.site import Site
from cluster.overview import Glance, glance

KEPT = 1.5
"""Seconds for which a look serves all who ask."""

REST, MOST = 5.0, 8.0
"""And so many times what it took, so that at most a sixth of one database connection is looked away; but no longer than
so many seconds."""

LONG = 0.1
"""Seconds that somebody waits for a look rather than be shown the one before."""

OLD = 8.0
"""Seconds after that for which a look that took long is still shown, while the next one is made."""


class Lookout:
    """The latest look. Used in the server's loop alone."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._looking = asyncio.Lock()
        self._latest: Glance | None = None
        self._until = -OLD
        self._meanwhile: asyncio.Task[None] | None = None

    async def look(self) -> Glance:
        """DatabaseUnavailable."""
        now, latest = time.monotonic(), self._latest
        if latest is not None and now < self._until:
            return latest
        if latest is not None and latest.took > LONG and now < self._until + OLD:
            if self._meanwhile is None or self._meanwhile.done():
                self._meanwhile = asyncio.create_task(self._look_meanwhile())
            return latest
        return await self._look()

    async def _look_meanwhile(self) -> None:
        with suppress(DatabaseUnavailable):  # who comes when this look is old hears of it
            await self._look()

    async def _look(self) -> Glance:
        async with self._looking:
            if self._latest is None or time.monotonic() >= self._until:
                found = await self._site.ask(lambda: glance(self._site.node.db))
                self._latest = found
                self._until = time.monotonic() + max(KEPT, min(REST * found.took, MOST))
            return self._latest

    def forget(self) -> None:
        """Somebody has just changed what is seen."""
        self._until = -OLD
