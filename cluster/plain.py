"""Answers as plain text: one row a line, columns two spaces apart, nothing cut or wrapped. grep and awk like that."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime


def plain_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    lines = [
        [column.upper().replace(" ", "_") for column in columns],
        *([cell(c) for c in row] for row in rows),
    ]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


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
