"""What a running device works with: its name, its settings, the database, its disk and its way to its peers."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from cluster.background import Background
from cluster.bell import Bell
from cluster.certificates import TrustedCAs
from cluster.config import LimitsSection, ProxySection, UpkeepSection, WebhooksSection, WritesSection
from cluster.db import Database
from cluster.faults import Faults, Step
from cluster.joining import Joined
from cluster.locks import Held, Turns, write_lock
from cluster.measure import Measures
from cluster.peer import Peers
from cluster.stale import Memory
from cluster.store import Store


@dataclass(frozen=True, slots=True)
class Node:
    """One device at work. Made once by the daemon (or by a command that does the daemon's work itself).

    alone: whether this process serves one request where no daemon is (cluster/alone.py), which hears of nothing.
    memory: of what the database said last, where reads are served while it is away.
    trusted: whose certificates prove users.
    cluster: the name that people know the cluster by.
    advertised: what Git says first of a copy, while it stays as it is (cluster/upload.py).
    bell: rung when the database has told of a change. webhooks_bell: when a webhook may be due.
    syncs: those that are at work, by repository.
    measures: what is counted of this device's work.
    """

    name: str
    writes: WritesSection
    db: Database
    store: Store
    peers: Peers
    faults: Faults = field(default_factory=Faults)
    turns: Turns = field(default_factory=Turns)
    memory: Memory | None = None
    alone: bool = False
    upkeep: UpkeepSection = field(default_factory=UpkeepSection)
    proxy: ProxySection = field(default_factory=ProxySection)
    limits: LimitsSection = field(default_factory=LimitsSection)
    trusted: TrustedCAs = field(default_factory=TrustedCAs)
    cluster: str = "cluster"
    advertised: dict[tuple[Path, bool], tuple[object, bytes]] = field(default_factory=dict)
    background: Background = field(default_factory=Background)
    bell: Bell = field(default_factory=Bell)
    webhooks_bell: Bell = field(default_factory=Bell)
    webhooks: WebhooksSection = field(default_factory=WebhooksSection)
    syncs: Joined = field(default_factory=Joined)
    measures: Measures = field(default_factory=Measures)

    def reach(self, step: Step) -> None:
        """A step of a push begins: where fault tests stop."""
        self.measures.step(step)
        self.faults.reach(step, self.db.cut_connections)

    @property
    def heals(self) -> bool:
        """Whether interrupted writes are resolved without a person."""
        return self.writes.heal == "auto"

    def write_lock(
        self,
        repository_id: int,
        *,
        actor: str,
        timeout: float,
        say: Callable[[str], None] = lambda line: None,
        gone: Callable[[], bool] = lambda: False,
    ) -> AbstractContextManager[Held]:
        """cluster.locks.write_lock, as this device takes it: a silent device's lock is broken where healing is on."""
        return write_lock(
            self.turns,
            self.db,
            repository_id,
            device=self.name,
            actor=actor,
            timeout=timeout,
            break_after=self.writes.fence_after if self.heals else None,
            say=say,
            gone=gone,
            measures=self.measures,
        )
