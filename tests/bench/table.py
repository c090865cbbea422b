"""A row of the table, and how it is written. Pure."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

HEADER = (
    f"{'':48} {'min':>6} {'median':>6} {'max':>6}   {'target':15} {'ours':>10} {'theirs':>10}   server CPU"
)


@dataclass(frozen=True)
class Cpu:
    """CPU seconds of one run in the mean: of the server's processes, and of PostgreSQL."""

    server: float
    postgres: float = 0.0


@dataclass(frozen=True)
class Row:
    """One comparison, round by round: what ours took, and what theirs took in the same round.

    target: the ratio ours/theirs to reach in the median; None: it is only looked at. unit: of the samples ("s", "MB").
    caches: "warm", or "cold". failures: runs that failed; their rounds are not among the samples.
    notes: what else was seen, by what it is.
    """

    name: str
    target: float | None
    ours: tuple[float, ...]
    theirs: tuple[float, ...]
    failures: int = 0
    unit: str = "s"
    caches: str = "warm"
    cpu_ours: Cpu | None = None
    cpu_theirs: Cpu | None = None
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def ratios(self) -> list[float]:
        """Pair by pair."""
        return [a / b if b else math.inf for a, b in zip(self.ours, self.theirs, strict=True)]

    @property
    def least(self) -> float:
        return min(self.ratios, default=math.nan)

    @property
    def median(self) -> float:
        return statistics.median(self.ratios) if self.ours else math.nan

    @property
    def most(self) -> float:
        return max(self.ratios, default=math.nan)

    @property
    def met(self) -> bool | None:
        """None: there is no target. A row without a single sample is not met."""
        return None if self.target is None else self.median <= self.target

    @property
    def cores(self) -> list[float]:
        """How many processors each side's servers kept busy, PostgreSQL aside; nothing where that was not counted."""
        sides = (self.cpu_ours, self.ours), (self.cpu_theirs, self.theirs)
        return [cpu.server / statistics.fmean(seconds) for cpu, seconds in sides if cpu and seconds]

    @property
    def verdict(self) -> str:
        return {None: "", True: "met", False: "NOT met"}[self.met]

    def middle(self, samples: tuple[float, ...]) -> str:
        """The median of one side, with its unit."""
        if not samples:
            return "–"
        value = statistics.median(samples)
        return f"{value * 1000:.1f} ms" if self.unit == "s" else f"{value:.2f} {self.unit}"

    def line(self) -> str:
        """One line of the table on a terminal, and one for each note."""
        goal = "" if self.target is None else f"≤ {self.target:.2f} {self.verdict}"
        text = (
            f"{self.name + ('' if self.caches == 'warm' else f' ({self.caches})'):48}"
            f" {self.least:6.2f} {self.median:6.2f} {self.most:6.2f}   {goal:15}"
            f" {self.middle(self.ours):>10} {self.middle(self.theirs):>10}"
        )
        if self.cpu_ours and self.cpu_theirs:
            text += (
                f"   {self.cpu_ours.server * 1000:.0f} ms + PostgreSQL {self.cpu_ours.postgres * 1000:.0f} ms"
            )
            text += f" against {self.cpu_theirs.server * 1000:.0f} ms"
        if self.failures:
            text += f"   {self.failures} FAILED"
        return "\n".join([text, *(f"    {what}: {value}" for what, value in self.notes.items())])

    def document(self) -> dict[str, Any]:
        """For JSON. Ratios of a row without samples are null."""
        cpus = {"ours": self.cpu_ours, "theirs": self.cpu_theirs}
        return {
            "name": self.name,
            "target": self.target,
            "met": self.met,
            "ratio": {
                "min": _number(self.least),
                "median": _number(self.median),
                "max": _number(self.most),
            },
            "unit": self.unit,
            "caches": self.caches,
            "rounds": len(self.ours),
            "failures": self.failures,
            "ours": list(self.ours),
            "theirs": list(self.theirs),
            "cpu": {
                side: None if cpu is None else {"server": cpu.server, "postgres": cpu.postgres}
                for side, cpu in cpus.items()
            },
            "notes": self.notes,
        }

    @classmethod
    def of(cls, document: dict[str, Any]) -> Row:
        """What `document` made."""
        cpus = {side: None if cpu is None else Cpu(**cpu) for side, cpu in document["cpu"].items()}
        return cls(
            name=document["name"],
            target=document["target"],
            ours=tuple(document["ours"]),
            theirs=tuple(document["theirs"]),
            failures=document["failures"],
            unit=document["unit"],
            caches=document["caches"],
            cpu_ours=cpus["ours"],
            cpu_theirs=cpus["theirs"],
            notes=dict(document["notes"]),
        )


def percentile(values: Sequence[float], share: float) -> float:
    """The nearest rank, a value that is there; nan where there is none."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(share * len(ordered)) - 1)] if ordered else math.nan


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
