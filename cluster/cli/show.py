"""How answers look: JSON for programs; for people a table, coloured in a terminal and plain anywhere else.

Plain means one row a line, columns two spaces apart, nothing cut or wrapped, so that grep and awk are of use.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from cluster.plain import cell as cell
from cluster.plain import moment as moment
from cluster.plain import plain_table as plain_table
from cluster.plain import printable as printable

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text

COLOURS = {
    "online": "green",
    "healthy": "green",
    "current": "green",
    "ok": "green",
    "writing": "cyan",
    "behind": "yellow",
    "absent": "yellow",
    "degraded": "yellow",
    "draining": "yellow",
    "disabled": "dim",
    "offline": "red",
    "frozen": "red",
    "unavailable": "red",
    "quarantined": "red",
    "failed": "red",
    "warning": "yellow",
    "problem": "red",
}
"""By the first word of a cell."""


def as_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], empty: str) -> None:
    """Rows for people; `empty` is said on stderr where there is none, so that nothing counts as a row."""
    if not rows:
        click.echo(empty, err=True)
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(rich_table(columns, rows))
    else:
        click.echo(plain_table(columns, rows))


def rich_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    from rich.table import Table

    made = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0), header_style="bold")
    for (
        column
    ) in columns:  # what does not fit goes on below, in the last column; the rest can be copied whole
        made.add_column(column, overflow="fold", no_wrap=column != columns[-1])
    for row in rows:
        made.add_row(*(coloured(cell(value)) for value in row))
    return made


def coloured(text: str) -> Text:
    from rich.text import Text

    return Text(text, style=COLOURS.get(text.partition(" ")[0].rstrip(","), ""))


def ago(at: str | datetime | None) -> str:
    """How long ago, roughly."""
    if at is None:
        return "never"
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    seconds = max(0, int((datetime.now(UTC) - at).total_seconds()))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds // size} {unit} ago"
    return f"{seconds} s ago"
