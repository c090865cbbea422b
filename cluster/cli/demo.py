"""`git-cluster demo`: a whole cluster on this machine, to look at."""

from __future__ import annotations

from pathlib import Path

import click

from cluster.cli.app import command


@command("demo")
@click.option("--dir", "directory", metavar="DIR", type=click.Path(path_type=Path, file_okay=False),
              help="Where it lives, and stays afterwards; default: a temporary directory.")  # fmt: skip
@click.option("--devices", metavar="N", type=click.IntRange(1, 9), default=3, show_default=True,
              help="How many devices.")  # fmt: skip
@click.option(
    "--import", "source", metavar="PATH-OR-URL", help="The repository to show; default: this project's own."
)
@click.option("--serve", is_flag=True, help="Keep it up until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON first: where everything is.")
def demo(directory: Path | None, devices: int, source: str | None, serve: bool, as_json: bool) -> int:
    """A cluster on this machine, and a tour of it.

    Everything is real: PostgreSQL, the devices on loopback ports, a repository, and the git that clones it.
    """
    from cluster.demo import run_demo

    return run_demo(directory, devices, source, serve, as_json)
