"""What everything behind the HTTP endpoint works with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Event
from typing import TypeVar

import anyio
import anyio.to_thread

from cluster.config import HttpSection
from cluster.http.figures import Figures
from cluster.http.who import Who
from cluster.limits import FailedLogins
from cluster.node import Node
from cluster.requests import Requests

T = TypeVar("T")

SESSIONS = 1000
"""Requests of Git's at once, each with a thread; [limits] ends those of one user or address long before."""

QUESTIONS = 16
"""Short questions to the database at once: pages, the API, who somebody is."""

DEEDS = 8
"""Syncs, verifications and thaws that are asked for over HTTP, at once; each may take hours."""


@dataclass(frozen=True, slots=True)
class Site:
    """stopping: set when the daemon begins to stop; whoever streams for ever ends then.

    figures: what all processes of this device say for /-/metrics; None: this is the only one.
    """

    node: Node
    requests: Requests
    section: HttpSection
    who: Who
    figures: Callable[[], Figures] | None = None
    stopping: Event = field(default_factory=Event)
    sessions: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(SESSIONS))
    questions: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(QUESTIONS))

    deeds: anyio.CapacityLimiter = field(default_factory=lambda: anyio.CapacityLimiter(DEEDS))

    async def ask(self, question: Callable[[], T]) -> T:
        """Something short that waits for the database or a disk, without making the endpoint wait."""
        return await anyio.to_thread.run_sync(question, limiter=self.questions)

    async def act(self, deed: Callable[[], T]) -> T:
        """Something that may take long (cluster/acting.py). It goes on to its end when its asker has gone."""
        return await anyio.to_thread.run_sync(deed, limiter=self.deeds)


def open_site(
    node: Node,
    requests: Requests,
    section: HttpSection,
    failed: FailedLogins | None = None,
    figures: Callable[[], Figures] | None = None,
) -> Site:
    """failed: the wrong tokens that came, where other processes of this device are told of some, too."""
    who = Who(
        node.db,
        anonymous=section.anonymous == "read",
        failed_logins=node.limits.failed_logins,
        memory=node.memory,
        failed=failed,
    )
    return Site(node, requests, section, who, figures)
