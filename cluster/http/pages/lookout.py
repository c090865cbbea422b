"""One look at the cluster for all who ask at about the same time: a room full of screens costs no more than one."""

from __future__ import annotations

import asyncio
import time

from cluster.http.site import Site
from cluster.overview import Glance, glance

KEPT = 1.5
"""Seconds for which a look serves all who ask."""

REST = 10.0
"""And so many times what it took: at most a tenth of one database connection is looked away."""


class Lookout:
    """The latest look. Used in the server's loop alone."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._looking = asyncio.Lock()
        self._latest: Glance | None = None
        self._until = 0.0

    async def look(self) -> Glance:
        """DatabaseUnavailable."""
        async with self._looking:
            if self._latest is None or time.monotonic() >= self._until:
                found = await self._site.ask(lambda: glance(self._site.node.db))
                self._latest = found
                self._until = time.monotonic() + max(KEPT, REST * found.took)
            return self._latest

    def forget(self) -> None:
        """Somebody has just changed what is seen."""
        self._until = 0.0
