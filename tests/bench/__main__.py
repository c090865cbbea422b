"""`make bench`: every row in turn, a table on the terminal, and the same as JSON.

    make bench                       every row
    make bench ONLY=clone            rows whose function's name contains a word
    make bench ARGS="--rounds 5 --json out.json --plot out.svg"

Both sides of a row do the same work with the same client on the same content, in turn, A B A B …, after one round
that does not count. Caches are warm where a row does not say "cold". The ratio is taken pair by pair. Exit code 1: a
run failed. A target that is not met is said, and no more.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import pkgutil
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import tests.bench as package
from cluster import embedded
from cluster.errors import ClusterError
from tests.bench import Bench, PlainGit, machine
from tests.bench.report import picture
from tests.bench.table import HEADER, Row
from tests.cluster_fixture import Cluster

ROOT = Path(__file__).parent.parent.parent


def rows() -> list[Callable[[Bench], None]]:
    """Of every module rows_*, in the order of their names, then of their ROWS."""
    names = sorted(m.name for m in pkgutil.iter_modules(package.__path__) if m.name.startswith("rows_"))
    modules = [importlib.import_module(f"{package.__name__}.{name}") for name in names]
    return [row for module in modules for row in module.ROWS]


def measure(
    directory: Path, only: str, rounds: int, keep: Callable[[dict[str, object]], None]
) -> tuple[dict[str, object], bool]:
    """Run the rows whose name contains `only`: the document for JSON, and whether no run failed.

    keep: called with the document as far as it is, after each row: whoever ends a long run has what there was.
    """
    chosen = [row for row in rows() if only in row.__name__]
    database = embedded.start(directory / "postgres")
    postmaster = int((directory / "postgres" / "postmaster.pid").read_text().split()[0])
    cluster = Cluster(directory / "cluster", database, {})
    plain = None
    try:
        cluster.set_up(["a", "b"])
        for name in "ab":
            cluster.start(name)
        plain = PlainGit(directory / "plain", cluster)
        bench = Bench(cluster, plain, rounds, postgres=lambda: [postmaster])
        facts = machine.facts(database)
        print(f"{facts['cpu']}, {facts['cores']} cores; ratios ours/theirs\n{HEADER}", flush=True)
        document: dict[str, object] = {"rows": []}
        for row in chosen:
            try:
                row(bench)
            except (AssertionError, ClusterError, subprocess.SubprocessError) as error:
                print(f"{row.__name__}: {error}", flush=True)
                bench.add(Row(f"{row.__name__}, what could not be prepared", None, (), (), failures=1))
            document = {
                "date": machine.today(),
                "commit": machine.commit(ROOT),
                "machine": facts,
                "rows": [each.document() for each in bench.rows],
            }
            keep(document)
        return document, not any(row.failures for row in bench.rows)
    finally:
        if plain is not None:
            plain.stop()
        cluster.close()
        embedded.stop(directory / "postgres")


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="make bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default=os.environ.get("ONLY", ""), help="rows whose function's name contains this word"
    )
    parser.add_argument("--rounds", type=int, default=15, help="how many of each row count (at most)")
    parser.add_argument("--json", type=Path, help="write machine, date, commit and all samples to this file")
    parser.add_argument("--plot", type=Path, help="draw the table (SVG)")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    directory = Path(tempfile.mkdtemp(prefix="git-cluster-bench-"))

    def keep(document: dict[str, object]) -> None:
        if options.json:
            options.json.write_text(json.dumps(document, indent=1) + "\n")

    try:
        document, well = measure(directory, options.only, options.rounds, keep)
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if options.plot:
        options.plot.write_text(picture(document))
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
