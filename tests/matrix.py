"""The fault matrix: every step of a push × every fault, on a real cluster. docs/fault-matrix.md is its result.

    python -m tests.matrix                            the whole matrix
    python -m tests.matrix --step commit --fault pause --fault device
    python -m tests.matrix --markdown docs/fault-matrix.md

What a cell is: tests/matrix_cell.py. Rows are run two at a time, each on a cluster, a PostgreSQL and a network of its
own.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from threading import Event

from cluster.faults import Step
from tests.matrix_cell import BRIEF, FULL, LASTING, TITLES, Cell, Outage, Saw, Times, run
from tests.network import KINDS, Network, NetworkCluster, best, cluster_on, network

Which = tuple[Step, Outage]


@dataclass(frozen=True)
class Lane:
    """Cells that share a cluster, one after another, and the kind of network ("": the best) that it is on."""

    cells: Sequence[Which]
    network: str = ""


def run_all(
    folder: Path,
    lanes: Sequence[Lane],
    times: Times,
    *,
    jobs: int,
    tell: Callable[[Cell], None] = lambda cell: None,
    stop: Event | None = None,
) -> list[Cell]:
    """Run the cells of `jobs` lanes at a time; once `stop` is set, none is begun. What is made is made in `folder`."""
    cells: list[Cell] = []
    stop = stop or Event()

    def work(lane: Lane) -> None:
        for cell in _run_lane(lane, folder, times, stop):
            cells.append(cell)
            tell(cell)

    with ThreadPoolExecutor(jobs) as pool:
        for done in [pool.submit(work, lane) for lane in lanes]:
            done.result()
    return cells


def _run_lane(lane: Lane, folder: Path, times: Times, stop: Event) -> Iterator[Cell]:
    """Its cells, on one cluster as long as nothing goes wrong."""
    left = list(lane.cells)
    while left and not stop.is_set():
        with _site(lane.network, folder, times) as (place, cluster):
            while left and not stop.is_set():
                cell = run(place, cluster, *left.pop(0), times)
                yield cell
                if cell.wrong:
                    break


@contextmanager
def _site(kind: str, folder: Path, times: Times) -> Iterator[tuple[Network, NetworkCluster]]:
    """A network and a cluster on it, in a folder of their own."""
    with ExitStack() as stack:
        here = Path(tempfile.mkdtemp(dir=folder))
        stack.callback(shutil.rmtree, here, ignore_errors=True)
        place = stack.enter_context(network(kind, here))
        yield place, stack.enter_context(cluster_on(place, here / "cluster", times.writes))


@dataclass
class Part:
    """A table: steps down, faults across, and what came of the cells that were run."""

    title: str
    times: Times
    steps: Sequence[Step]
    outages: Sequence[Outage]
    cells: list[Cell] = field(default_factory=list)

    @property
    def rows(self) -> list[list[Which]]:
        return [[(step, outage) for outage in self.outages] for step in self.steps]


def main() -> int:
    """Run what was asked for; 1 where a cell failed."""
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description="The fault matrix.")
    parser.add_argument("--step", action="append", choices=list(Step), help="only this step (repeatable)")
    parser.add_argument("--fault", action="append", choices=list(Outage), help="only this fault (repeatable)")
    parser.add_argument("--last", choices=("long", "brief"), help="only faults that last so long")
    parser.add_argument("--network", choices=KINDS, default="", help="default: the best that works here")
    parser.add_argument("--jobs", type=int, default=2, help="rows at the same time (default 2)")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="put the tables into this document")
    arguments = parser.parse_args()
    stop = Event()
    for number in (signal.SIGTERM, signal.SIGINT):  # the cells that are being run come to their end
        signal.signal(number, lambda *_: stop.set())
    kind = arguments.network or best()
    steps = [Step(step) for step in arguments.step or Step]
    outages = [Outage(outage) for outage in arguments.fault or Outage]
    brief = [outage for outage in outages if outage in LASTING]
    parts = []
    if arguments.last != "brief":
        title = "The fault lasts until the others have done without the device"
        parts.append(Part(title, FULL, steps, outages))
    if arguments.last != "long" and brief:
        parts.append(Part(f"The fault lasts {BRIEF.brief:g} s", BRIEF, steps, brief))

    begun = time.monotonic()
    print(f"{sum(len(row) for part in parts for row in part.rows)} cells over {kind}", flush=True)
    with tempfile.TemporaryDirectory(prefix="git-cluster-matrix-") as folder:
        for part in parts:
            part.cells = run_all(
                Path(folder),
                [Lane(row, kind) for row in part.rows],
                part.times,
                jobs=arguments.jobs,
                tell=lambda cell: print(cell.line, flush=True),
                stop=stop,
            )
            part.cells.sort(key=lambda cell: (steps.index(cell.step), outages.index(cell.outage)))
    minutes = (time.monotonic() - begun) / 60
    cells = [cell for part in parts for cell in part.cells]
    numbers = reasons(cells)
    for part in parts:
        print(f"\n{part.title}\n\n{table(part, numbers)}")
    print(f"\n{figures(cells)}\n{minutes:.0f} min")
    if arguments.markdown:
        _rewrite(arguments.markdown, document(parts, kind, minutes))
    return int(stop.is_set() or any(cell.wrong for cell in cells))


# ------------------------------------------------------------------------------------------------------- the table


MARKS = ("<!-- made by: python -m tests.matrix --markdown -->", "<!-- end of what is made -->")


def reasons(cells: Iterable[Cell]) -> dict[str, int]:
    """A number for each reason that a client was given, in the order of their appearance."""
    found = dict.fromkeys(cell.told.why for cell in cells if cell.told and cell.told.why)
    return {why: number for number, why in enumerate(found, 1)}


def table(part: Part, numbers: Mapping[str, int], *, titles: bool = False) -> str:
    """What the client saw (and the number of the reason), and seconds until the next push succeeded."""
    found = {(cell.step, cell.outage): cell for cell in part.cells}
    lines = [["", *((TITLES[outage] if titles else str(outage)) for outage in part.outages)]]
    for step in part.steps:
        lines.append([str(step), *(_entry(found.get((step, outage)), numbers) for outage in part.outages)])
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        f"| {' | '.join(word.ljust(width) for word, width in zip(line, widths, strict=True))} |"
        for line in lines
    )


def _entry(cell: Cell | None, numbers: Mapping[str, int]) -> str:
    if cell is None:
        return "–"
    saw = str(cell.told.saw) if cell.told else "?"
    if cell.told and cell.told.saw in (Saw.HUNG_UP, Saw.NOTHING):
        saw += " (stands)" if cell.stands else " (gone)"
    number = f" [{numbers[cell.told.why]}]" if cell.told and cell.told.why else ""
    next = f"{cell.next:.1f} s" if cell.next is not None else "never"
    return f"{'FAILED: ' if cell.wrong else ''}{saw}{number}, {next}"


def figures(cells: Sequence[Cell]) -> str:
    """The figures of a run, one a line."""
    found = {
        "cells, a fault in each": len(cells),
        "cells that failed": sum(bool(cell.wrong) for cell in cells),
        "pushes acknowledged": sum(cell.acknowledged for cell in cells),
        "acknowledged pushes lost": sum(cell.lost for cell in cells),
        "manual thaws": sum(cell.thaws for cell in cells),
        "slowest next push": _slowest(cells, lambda cell: cell.next),
        "slowest to be equal again, from when the fault was lifted": _slowest(cells, lambda cell: cell.back),
    }
    return "\n".join(f"- {name}: {value}" for name, value in found.items())


def _slowest(cells: Iterable[Cell], seconds: Callable[[Cell], float | None]) -> str:
    timed = [(value, cell.name) for cell in cells if (value := seconds(cell)) is not None]
    return "{:.1f} s ({})".format(*max(timed)) if timed else "–"


def document(parts: Sequence[Part], kind: str, minutes: float) -> str:
    """What a run has to say in docs/: the figures, the tables, the reasons."""
    cells = [cell for part in parts for cell in part.cells]
    numbers = reasons(cells)
    pieces = [f"{datetime.now(UTC):%Y-%m-%d}, over {kind}, in {minutes:.0f} minutes:", figures(cells)]
    for part in parts:
        pieces += [f"### {part.title}", table(part, numbers, titles=True)]
    if numbers:
        pieces += ["### What clients were told", "\n".join(f"{n}. {why}" for why, n in numbers.items())]
    if failed := [f"- {cell.name}: {wrong}" for cell in cells for wrong in cell.wrong]:
        pieces += ["### What failed", "\n".join(failed)]
    return "\n\n".join(pieces)


def _rewrite(file: Path, made: str) -> None:
    """Put `made` between the marks of a file, which is made where it is not there."""
    text = file.read_text() if file.exists() else f"# The fault matrix\n\n{MARKS[0]}\n{MARKS[1]}\n"
    before, _, rest = text.partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    file.write_text(f"{before}{MARKS[0]}\n\n{made}\n\n{MARKS[1]}{after}")


if __name__ == "__main__":
    sys.exit(main())
