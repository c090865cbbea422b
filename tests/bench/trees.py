"""What trees of processes use: CPU seconds, children that have ended included, and memory. From /proc."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

TICK = 1 / os.sysconf("SC_CLK_TCK")

Roots = Callable[[], Sequence[int]]


@dataclass(frozen=True, slots=True)
class Process:
    """ticks: of itself and of those children that it has waited for, and they for theirs."""

    pid: int
    parent: int
    ticks: int


def parse(stat: str) -> Process:
    """A line of /proc/<pid>/stat. The name, in brackets, may hold anything, brackets and blanks included."""
    pid = int(stat.split(" ", 1)[0])
    words = stat.rpartition(")")[2].split()  # from the third field of proc(5) on
    return Process(pid, int(words[1]), sum(int(word) for word in words[11:15]))


def processes() -> list[Process]:
    """All of this machine, read in one go."""
    found = []
    for entry in os.scandir("/proc"):
        if entry.name.isdigit():
            with suppress(OSError):  # it has ended
                found.append(parse(Path(entry.path, "stat").read_text(errors="replace")))
    return found


def family(roots: Iterable[int], table: Iterable[Process]) -> list[Process]:
    """The processes `roots` with all that descend from them."""
    children: dict[int, list[Process]] = {}
    known = {process.pid: process for process in table}
    for process in known.values():
        children.setdefault(process.parent, []).append(process)
    found = [known[pid] for pid in dict.fromkeys(roots) if pid in known]
    for process in found:
        found += [child for child in children.get(process.pid, ()) if child not in found]
    return found


@dataclass(frozen=True, slots=True)
class Load:
    """Of a tree: CPU seconds so far (to 10 ms), and how many processes it has."""

    seconds: float
    count: int


def load(roots: Iterable[int], table: Iterable[Process]) -> Load:
    tree = family(roots, table)
    return Load(sum(process.ticks for process in tree) * TICK, len(tree))


def memory(roots: Iterable[int]) -> int:
    """Bytes of a tree's memory: what processes share is counted once, in shares (PSS)."""
    total = 0
    for process in family(roots, processes()):
        with suppress(OSError):  # it has ended
            for line in Path(f"/proc/{process.pid}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += int(line.split()[1]) * 1024
    return total
