"""Simulate, draw, and rewrite what is made in docs/scale-model.md.

python -m tests.model             from calibration.json; two minutes
python -m tests.model --check     only hold the model against what was measured, and say so
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tests.model import curves, plot, report
from tests.model.constants import FILE, Constants, load
from tests.model.curves import Curve
from tests.model.plot import Panel
from tests.model.scenarios import predicted

DOCS = Path(__file__).parents[2] / "docs"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model", description=__doc__)
    parser.add_argument("--check", action="store_true", help="compare with what was measured; write nothing")
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    data = load(options.file)
    constants = Constants.of(data["constants"])
    rows = data["measured"]
    models = [predicted(constants, row) for row in rows]
    found = report.compared(rows, models)
    if options.check:
        print(report.comparison(found), report.errors(found), sep="\n\n")
        return 0
    parts = {
        "the costs": report.costs(constants),
        "the work": report.work(constants),
        "the comparison": f"{_where(data)}\n\n{report.comparison(found)}\n\n{report.errors(found)}",
    }
    plot.draw(DOCS / "scale-model-measured.svg", _measured(rows, models))
    parts |= _scale(constants)
    report.rewrite(DOCS / "scale-model.md", parts)
    return 0


def _where(data: dict[str, Any]) -> str:
    one, other = data["calibrated"], data["measured_at"]
    machine = other["machine"]
    return (
        f"Calibrated on {one['date']}, measured on {other['date']}: {machine['architecture']}, {machine['cores']} cores"
        f" for three devices, PostgreSQL and all clients; Git {machine['git']}, Python {machine['python']}."
        f" Load of others when it began: {one['machine']['load_before']} and {machine['load_before']}."
    )


def _measured(rows: list[dict[str, Any]], models: list[dict[str, float]]) -> list[Panel]:
    """Lines: the model. Dots: measured."""

    def pairs(kinds: list[tuple[str, str, int]], figure: str) -> tuple[list[Curve], list[Curve]]:
        lines, dots = [], []
        for name, kind, copies in kinds:
            chosen = [
                (row, model)
                for row, model in zip(rows, models, strict=True)
                if row["kind"] == kind and row["min_copies"] == copies and row["database"] == row["peers"]
            ]
            chosen.sort(key=lambda pair: pair[0]["database"])  # whatever was measured first
            x = [row["database"] for row, _ in chosen]
            lines.append(Curve(name, x, [model[figure] for _, model in chosen]))
            dots.append(Curve(name, x, [row[figure] for row, _ in chosen]))
        return lines, dots

    apart = "round trip between all machines, ms"
    alone = [("min_copies 1", "alone", 1), ("min_copies 2", "alone", 2)]
    many = [("one repository, one device", "one device", 1), ("one repository, three devices", "three devices", 1),
            ("eight repositories", "repositories", 1)]  # fmt: skip
    copied = [(name, kind, 2) for name, kind, _ in many]
    return [
        Panel("One push, s", apart, *pairs(alone, "median")),
        Panel("Replicas have it after, s", apart, *pairs(alone, "fresh")),
        Panel("8 clients, min_copies 1, pushes/s", apart, *pairs(many, "pushes")),
        Panel("8 clients, min_copies 2, pushes/s", apart, *pairs(copied, "pushes")),
    ]


def _scale(constants: Constants) -> dict[str, str]:
    """The plots of what is only simulated, and their numbers."""
    one, latency, fresh = (
        curves.one_repository(constants),
        curves.latencies(constants),
        curves.freshness(constants),
    )
    several, devices, reads = (
        curves.repositories(constants),
        curves.devices(constants),
        curves.reads(constants),
    )
    apart = "round trip, ms"
    plot.draw(
        DOCS / "scale-model-distance.svg",
        [
            Panel("One repository, pushes/s", apart, one),
            Panel("One push, s", apart, latency),
            Panel("After the acknowledgement, s", apart, fresh),
            Panel("Three devices, 64 clients, pushes/s", "repositories", several),
        ],
    )
    plot.draw(
        DOCS / "scale-model-devices.svg",
        [
            Panel("Pushes/s in all, a repository for each client", "devices", devices),
            Panel("Reads/s in all", "devices", reads),
        ],
    )
    return {
        "one repository": report.curves("ms apart", one, 2),
        "one push": report.curves("ms apart", latency, 2),
        "freshness": report.curves("ms apart", fresh, 2),
        "repositories": report.curves("repositories", several),
        "devices": report.curves("devices", [*devices, *reads], 0),
    }


if __name__ == "__main__":
    sys.exit(main())
