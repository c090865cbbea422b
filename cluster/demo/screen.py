"""What the demo says: headings, commands with their output, and claims that were checked."""

from __future__ import annotations

import io
import os
import re
import shutil
import textwrap
from typing import TextIO

_BOLD, _DIM, _RED, _GREEN, _CYAN = "1", "2", "31", "32", "36"

_TABLE = re.compile(r"\S+  +\S")

INDENT = 4
"""Columns before what a command prints."""


class Screen:
    """Lines on `stream`; coloured and fitted to the width on a terminal, plain and whole anywhere else."""

    def __init__(self, stream: TextIO) -> None:
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal without ✓ gets ?, not a traceback
        self._stream = stream
        self._terminal = stream.isatty()
        self._coloured = self._terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self.checks = 0

    def heading(self, text: str) -> None:
        self._print(f"\n{self._paint(text, _BOLD)}")

    def say(self, text: str = "", indent: int = 0) -> None:
        for line in self._fit(text, indent):
            self._print(line)

    def command(self, words: str) -> None:
        """A command that is run now, as a person would type it."""
        for number, line in enumerate(self._fit(f"$ {words}", 2)):
            self._print(self._paint(line if number == 0 else f"  {line}", _CYAN))

    def output(self, text: str) -> None:
        for raw in text.rstrip().splitlines():
            line = raw.expandtabs().rstrip()
            for number, fitted in enumerate(
                self._cut(line) if _TABLE.match(line) else self._fit(line, INDENT)
            ):
                self._print(self._paint(fitted if number == 0 else f"  {fitted}", _DIM))

    def good(self, claim: str) -> None:
        self.checks += 1
        self._mark("✓", claim, _GREEN)

    def bad(self, claim: str) -> None:
        self._mark("✗ not so:", claim, _RED)

    def verbatim(self, text: str) -> None:
        """To be copied: never wrapped."""
        self._print(text)

    def _mark(self, mark: str, claim: str, colour: str) -> None:
        first, *rest = self._fit(claim, 2 + len(mark) + 1)
        self._print(f"  {self._paint(mark, colour)} {first.lstrip()}")
        for line in rest:
            self._print(line)

    def _fit(self, text: str, indent: int) -> list[str]:
        """`text` behind `indent` blanks, wrapped where there is a width to keep."""
        width = shutil.get_terminal_size((80, 24)).columns - indent - 2
        if not text or not self._terminal or len(text) <= width or width < 20:
            return [(" " * indent + text).rstrip()]
        lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
        return [" " * indent + line for line in lines]

    def _cut(self, row: str) -> list[str]:
        """A row of a table, which is no longer one when it is wrapped: cut at the edge of a terminal."""
        width = shutil.get_terminal_size((80, 24)).columns - INDENT - 1
        if self._terminal and len(row) > width:
            row = row[: width - 1] + "…"
        return [" " * INDENT + row]

    def _paint(self, text: str, code: str) -> str:
        return f"\x1b[{code}m{text}\x1b[0m" if self._coloured and text else text

    def _print(self, line: str) -> None:
        print(line, file=self._stream, flush=True)
