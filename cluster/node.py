"""What a running device works with: its name, its settings, the database, its disk and its way to its peers."""

from __future__ import annotations

from dataclasses import dataclass, field

from cluster.config import WritesSection
from cluster.db import Database
from cluster.faults import Faults, Step
from cluster.locks import Turns
from cluster.peer import Peers
from cluster.store import Store


@dataclass(frozen=True, slots=True)
class Node:
    """One device at work. Made once by the daemon (or by a command that does the daemon's work itself)."""

    name: str
    writes: WritesSection
    db: Database
    store: Store
    peers: Peers
    faults: Faults = field(default_factory=Faults)
    turns: Turns = field(default_factory=Turns)

    def reach(self, step: Step) -> None:
        """A step of a push begins: where fault tests stop."""
        self.faults.reach(step, self.db.cut_connections)
