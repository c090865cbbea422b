"""What a check found, in one line, and what to do about it, in another."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Verdict(StrEnum):
    """ok: nothing to do. warning: it works, and somebody should know. problem: it does not, or will lose data."""

    OK = "ok"
    WARNING = "warning"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """check: its name, as people and programs know it. hint: what to do; "" only where nothing is."""

    check: str
    verdict: Verdict
    what: str
    hint: str = ""


def ok(check: str, what: str) -> Finding:
    return Finding(check, Verdict.OK, what)


def warning(check: str, what: str, hint: str) -> Finding:
    return Finding(check, Verdict.WARNING, what, hint)


def problem(check: str, what: str, hint: str) -> Finding:
    return Finding(check, Verdict.PROBLEM, what, hint)


def some(names: Sequence[str], count: int, most: int = 3) -> str:
    """The first of `count` names, and how many more there are."""
    left = count - min(most, len(names))
    return ", ".join(names[:most]) + (f" and {left} more" if left > 0 else "")
