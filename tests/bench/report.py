"""`python -m tests.bench.report JSON`: the table of docs/performance.md and its picture, from what a run wrote.

Only what stands between the two markers of the page is replaced.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.bench.plot import draw
from tests.bench.table import Cpu, Row

BEGIN = "<!-- table: made by `python -m tests.bench.report`; what is written here by hand is lost -->"
END = "<!-- end of the table -->"

DOCS = Path(__file__).parent.parent.parent / "docs"

HEAD = (
    "| what | target | min | median | max | | ours | theirs | server CPU, ours | theirs | rounds |\n"
    "|---|--:|--:|--:|--:|---|--:|--:|--:|--:|--:|"
)


def rows_of(document: Mapping[str, Any]) -> list[Row]:
    return [Row.of(row) for row in document["rows"]]


def title(document: Mapping[str, Any]) -> str:
    """The machine, the date and the commit, in one line."""
    machine = document["machine"]
    return (
        f"{machine['cpu']}, {machine['cores']} cores, {machine['memory_gib']} GiB; {machine['kernel']};"
        f" {document['date']}{', commit ' + document['commit'] if document['commit'] else ''}"
    )


def markdown(document: Mapping[str, Any]) -> str:
    """The table, what it was measured on, and each row's notes."""
    machine, rows = document["machine"], rows_of(document)
    programs = f"git {machine['git']}, {machine['ssh']}, PostgreSQL {machine['postgres']}, Python {machine['python']}"
    parts = [f"Measured on {title(document)}; {programs}.", "\n".join([HEAD, *map(_line, rows)])]
    if notes := list(_notes(rows)):
        parts.append("\n".join(notes))
    return "\n\n".join(parts)


def _line(row: Row) -> str:
    """A row of the table. What was never measured is a dash."""
    ratios = [f"{ratio:.2f}" if row.ours else "–" for ratio in (row.least, row.median, row.most)]
    cells = [
        _cell(row.name) + ("" if row.caches == "warm" else f" ({row.caches})"),
        "–" if row.target is None else f"≤ {row.target:.2f}",
        ratios[0],
        f"**{ratios[1]}**",
        ratios[2],
        row.verdict + (f" {row.failures} failed" if row.failures else ""),
        row.middle(row.ours),
        row.middle(row.theirs),
        _cpu(row.cpu_ours),
        _cpu(row.cpu_theirs),
        str(len(row.ours)),
    ]
    return f"| {' | '.join(cells)} |"


def _cpu(cpu: Cpu | None) -> str:
    if cpu is None:
        return "–"
    return f"{cpu.server * 1000:.0f} ms" + (f" + {cpu.postgres * 1000:.0f}" if cpu.postgres else "")


def _notes(rows: Iterable[Row]) -> Iterable[str]:
    for row in rows:
        if row.notes:
            said = "; ".join(f"{_cell(what)}: {_cell(value)}" for what, value in row.notes.items())
            yield f"- {_cell(row.name)}: {said}."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def replaced(page: str, table: str) -> str:
    """The page with another table. ValueError where a marker is missing, or there are two."""
    if page.count(BEGIN) != 1 or page.count(END) != 1 or page.index(BEGIN) > page.index(END):
        raise ValueError("the page has not exactly one place for the table")
    before, _, rest = page.partition(BEGIN)
    return f"{before}{BEGIN}\n\n{table}\n\n{END}{rest.partition(END)[2]}"


def picture(document: Mapping[str, Any]) -> str:
    """SVG."""
    return draw(rows_of(document), title(document))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.bench.report", description=__doc__)
    parser.add_argument("json", type=Path, help="what `make bench` wrote with --json")
    parser.add_argument("--page", type=Path, default=DOCS / "performance.md")
    parser.add_argument("--plot", type=Path, default=DOCS / "performance.svg")
    options = parser.parse_args()
    document = json.loads(options.json.read_text())
    options.page.write_text(replaced(options.page.read_text(), markdown(document)))
    options.plot.write_text(picture(document))


if __name__ == "__main__":
    main()
