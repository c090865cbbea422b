"""What is both simulated and measured: three devices, one to eight clients, from 1 to 200 ms apart."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from tests.model.constants import Constants
from tests.model.parts import Outcome, Setting
from tests.model.simulation import simulate


@dataclass(frozen=True)
class Scenario:
    """kind: "alone" (one client, and a read on another device after each push), "one device", "three devices" (eight
    clients, one repository) or "repositories" (eight clients, one each).

    database, peers: milliseconds of round trip."""

    kind: str
    min_copies: int
    database: int
    peers: int

    @property
    def pushers(self) -> int:
        return 1 if self.kind == "alone" else 8

    @property
    def repositories(self) -> int:
        return 8 if self.kind == "repositories" else 1

    @property
    def spread(self) -> bool:
        return self.kind == "three devices"

    @property
    def seconds(self) -> float:
        """For which eight clients push before that is over, and the first third of it does not count."""
        return 6.0 + 0.12 * max(self.database, self.peers)

    def setting(self, cores: float) -> Setting:
        """The same for the model; cores: of the one machine that all of this runs on."""
        return Setting(
            pushers=self.pushers,
            repositories=self.repositories,
            spread=self.spread,
            min_copies=self.min_copies,
            rtt_database=self.database / 1000,
            rtt_peers=self.peers / 1000,
            one_machine=cores,
            read_after_push=self.kind == "alone",
        )


DISTANCES = (1, 5, 20, 50, 100, 200)


def scenarios() -> Iterator[Scenario]:
    """All of them; where there is no time for all, the last are left out."""
    for copies in (1, 2):
        for distance in DISTANCES:
            yield Scenario("alone", copies, distance, distance)
    yield Scenario("alone", 2, 50, 1)
    yield Scenario("alone", 2, 1, 50)
    for distance in (20, 100, 1):
        for kind in ("one device", "three devices", "repositories"):
            for copies in (1, 2):
                yield Scenario(kind, copies, distance, distance)


FIGURES = {
    "pushes": "pushes a second",
    "median": "push, median",
    "held": "lock held",
    "fresh": "replicas have it after",
    "after": "read elsewhere right after",
}
"""What is compared."""


def predicted(constants: Constants, row: dict[str, Any]) -> dict[str, float]:
    """The model's figures for a measured row."""
    scenario = Scenario(**{name: row[name] for name in ("kind", "min_copies", "database", "peers")})
    outcome = simulate(constants, scenario.setting(row["cores"]))
    return figures_of(outcome)


def figures_of(outcome: Outcome) -> dict[str, float]:
    """Means and medians as they are measured."""
    return {
        "pushes": outcome.pushes,
        "median": outcome.median,
        "held": _mean(outcome.held),
        "fresh": _mean(outcome.fresh),
        "after": _mean(outcome.after),
    }


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def row_of(scenario: Scenario) -> dict[str, Any]:
    """The beginning of a measured row."""
    return asdict(scenario)
