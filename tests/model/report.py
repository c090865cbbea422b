"""The tables of docs/scale-model.md, and putting them between its marks."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.model.constants import PUSH_STEPS, Constants
from tests.model.curves import Curve
from tests.model.scenarios import FIGURES

Row = Mapping[str, Any]


def compared(
    rows: Sequence[Row], models: Sequence[Mapping[str, float]]
) -> list[tuple[Row, str, float, float]]:
    """(row, figure, model, measured), where there are both."""
    return [
        (row, figure, model[figure], row[figure])
        for row, model in zip(rows, models, strict=True)
        for figure in FIGURES
        if row.get(figure) and not math.isnan(row[figure]) and not math.isnan(model[figure])
    ]


def off(model: float, measured: float) -> float:
    """The model's error as a part of what was measured."""
    return model / measured - 1


def comparison(found: Sequence[tuple[Row, str, float, float]]) -> str:
    """One line a scenario, "model / measured (error)" in each column."""
    head = ["clients", "copies", "ms to database / peers", *FIGURES.values()]
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row, figure, model, measured in found:
        key = (row["kind"], row["min_copies"], f"{row['database']} / {row['peers']}")
        shown = _per_second if figure == "pushes" else _seconds
        lines.setdefault(key, {})[figure] = (
            f"{shown(model)} / {shown(measured)} ({off(model, measured):+.0%})"
        )
    return table(
        head,
        [
            [KINDS[key[0]], str(key[1]), key[2], *(cells.get(f, "") for f in FIGURES)]
            for key, cells in lines.items()
        ],
    )


KINDS = {
    "alone": "1",
    "one device": "8, one repository, one device",
    "three devices": "8, one repository, three devices",
    "repositories": "8, eight repositories",
}


def errors(found: Sequence[tuple[Row, str, float, float]]) -> str:
    """How far off the model is, by figure."""
    lines = []
    for figure, title in FIGURES.items():
        errors = [abs(off(model, measured)) for _, name, model, measured in found if name == figure]
        if errors:
            within = sum(error <= 0.3 for error in errors)
            lines.append(
                [
                    title,
                    str(len(errors)),
                    f"{statistics.median(errors):.0%}",
                    f"{max(errors):.0%}",
                    f"{within}",
                ]
            )
    return table(["figure", "compared", "median error", "largest", "within 30 %"], lines)


def costs(constants: Constants) -> str:
    """What each step of a push costs: at no distance, and the trips that distance multiplies."""
    lines = []
    for step in ("connect", *PUSH_STEPS):
        one, two = constants.push[1][step], constants.push[2][step]
        lines.append(
            [
                step,
                f"{one.seconds * 1000:.1f}",
                f"{two.seconds * 1000:.1f}",
                _trips(one.database, two.database),
                _trips(one.peers, two.peers),
                _trips(one.clients, two.clients),
            ]
        )
    total = [sum(cost.seconds for cost in constants.push[copies].values()) * 1000 for copies in (1, 2)]
    sums = [
        _trips(*(sum(getattr(cost, where) for cost in constants.push[copies].values()) for copies in (1, 2)))
        for where in ("database", "peers", "clients")
    ]
    lines.append(["**all**", f"{total[0]:.0f}", f"{total[1]:.0f}", *sums])
    for name, cost in (("sync, staged before", constants.kept), ("sync, fetched", constants.fetched)):
        lines.append([name, f"{cost.seconds * 1000:.1f}", "", _trips(cost.database), _trips(cost.peers), ""])
    for name, cost in constants.read.items():
        lines.append(
            [f"read: {name}", f"{cost.seconds * 1000:.1f}", "", _trips(cost.database), _trips(cost.peers),
             _trips(cost.clients)]
        )  # fmt: skip
    head = [
        "step",
        "ms, min_copies 1",
        "ms, min_copies 2",
        "trips to the database",
        "to a peer",
        "to the client",
    ]
    return table(head, lines)


def work(constants: Constants) -> str:
    """CPU, and the rest of what the model is made of."""
    lines = [
        [title, f"{work.daemon * 1000:.1f}", f"{work.git * 1000:.1f}"]
        for title, work in (
            ("push, on the device that takes it", constants.work_push),
            ("and for a copy that is staged on a peer", constants.work_send),
            ("staging, on the peer", constants.work_keep),
            ("sync of what was staged", constants.work_kept),
            ("sync by fetching", constants.work_fetched),
            ("and on the device that is fetched from", constants.work_serve),
            ("on every device, for each push anywhere", constants.work_notified),
            ("read (`ls-remote`)", constants.work_read),
        )
    ]
    rest = [
        f"PostgreSQL spends {constants.statement * 1000:.2f} ms of CPU on a trip, and has a commit on its disk after"
        f" {constants.flush * 1000:.1f} ms.",
        f"For each push anywhere each device makes {constants.notified:g} trips, beside its syncs.",
        f"The write lock is held for {constants.trips_held(1):g} trips to the database.",
        f"Who finds it taken by another device makes {constants.wait_before} trips before it queues, and"
        f" {constants.wait_after} more while it holds it.",
    ]
    return table(["CPU, ms", "the daemon", "Git's processes"], lines) + "\n\n" + "\n".join(rest)


def curves(x: str, found: Sequence[Curve], digits: int = 1) -> str:
    """A plot's numbers."""
    places = found[0].x
    return table(
        [x, *(f"{place:g}" for place in places)],
        [[curve.name, *(f"{value:.{digits}f}" for value in curve.y)] for curve in found],
    )


def _trips(*counts: float) -> str:
    shown = [f"{count:g}" for count in counts]
    return shown[0] if len(set(shown)) == 1 else " / ".join(shown)


def _per_second(value: float) -> str:
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _seconds(value: float) -> str:
    return f"{value * 1000:.0f} ms" if value < 1 else f"{value:.2f} s"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Markdown."""
    rows = [list(head), ["---"] * len(head), *(list(line) for line in lines)]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def rewrite(file: Path, parts: Mapping[str, str]) -> None:
    """Put each part between its marks; the text around them is a person's."""
    text = file.read_text()
    for name, made in parts.items():
        begin, end = f"<!-- {name}: made by python -m tests.model -->", f"<!-- end of {name} -->"
        before, found, rest = text.partition(begin)
        _, ended, after = rest.partition(end)
        if not (found and ended):
            raise ValueError(f"{file} has no marks for {name}")
        text = f"{before}{begin}\n\n{made}\n\n{end}{after}"
    file.write_text(text)
