"""`git-cluster doctor`: is this machine fit to serve?"""

from __future__ import annotations

import sys
from collections import Counter
from contextlib import closing
from typing import TYPE_CHECKING

import click

from cluster.cli import show
from cluster.cli.app import App, command, json_option, pass_app

if TYPE_CHECKING:
    from cluster.doctor import Finding

NAMES = 13
"""Columns for the name of a check; a peer's may be longer."""


@command("doctor")
@json_option
@pass_app
def doctor(app: App, as_json: bool) -> int:
    """Is this machine fit to serve? What it found, and what to do about it.

    It looks at the configuration, the database, Git, the disk, the keys, this device's daemon, every other device, and
    the copies, and changes nothing. Exits with 1 if there is a problem; warnings alone are 0.
    """
    from cluster.doctor import Verdict, examine

    findings: list[Finding] = []
    with closing(examine(app.config())) as examination:
        for finding in examination:
            findings.append(finding)
            if not as_json:
                _print(finding)
    count = Counter(finding.verdict for finding in findings)
    fit = not count[Verdict.PROBLEM]
    if as_json:
        checks = [
            {"check": f.check, "verdict": f.verdict.value, "what": f.what, "hint": f.hint or None}
            for f in findings
        ]
        show.as_json({"ok": fit, "checks": checks})
    else:
        _print_counts(count[Verdict.OK], count[Verdict.WARNING], count[Verdict.PROBLEM])
    return 0 if fit else 1


def _print(finding: Finding) -> None:
    """One line; below it, what to do. In a terminal it is wrapped beside the names."""
    verdict, what, hint = finding.verdict.value, show.printable(finding.what), show.printable(finding.hint)
    if not sys.stdout.isatty():
        click.echo(f"{verdict:<8} {finding.check:<{NAMES}} {what}")
        if hint:
            click.echo(f"{'':<8} {'':<{NAMES}} {hint}")
        sys.stdout.flush()
        return
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(width=8)
    grid.add_column(width=max(NAMES, len(finding.check)))
    grid.add_column(overflow="fold")
    grid.add_row(show.coloured(verdict), Text(finding.check, style="bold" if hint else ""), Text(what))
    if hint:
        grid.add_row("", "", Text(hint, style="cyan"))
    Console().print(grid)


def _print_counts(fine: int, warnings: int, problems: int) -> None:
    words = [
        f"{fine} ok",
        f"{warnings} warning{'' if warnings == 1 else 's'}",
        f"{problems} problem{'' if problems == 1 else 's'}",
    ]
    colour = "red" if problems else "yellow" if warnings else "green"
    click.echo()
    click.secho(", ".join(words), fg=colour, bold=True)
