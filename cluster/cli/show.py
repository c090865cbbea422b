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


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [
        [column.upper().replace(" ", "_") for column in columns],
        *([cell(c) for c in row] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


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


def cell(value: object) -> str:
    """A value in a table: "-" for nothing, and nothing that could move the cursor or break the line."""
    if value is None or value == "":
        return "-"
    if isinstance(value, datetime):
        return moment(value)
    return printable(str(value))


def printable(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)


def moment(at: datetime | str | None) -> str:
    """A time for people: UTC, to the second."""
    if at is None:
        return "-"
    if isinstance(at, str):
        at = datetime.fromisoformat(at)
    return f"{at.astimezone(UTC):%Y-%m-%d %H:%M:%S}Z"


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
