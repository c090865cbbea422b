"""What a push cost, read from outside: the steps' seconds from a device's figures, CPU from /proc, round trips to the
database from PostgreSQL's log of statements."""

from __future__ import annotations

import os
import re
import time
import urllib.request
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import psycopg

TICK = os.sysconf("SC_CLK_TCK")
_STEP = re.compile(
    r'^git_cluster_(push|read)_step_seconds_(sum|count)\{step="([\w-]+)"\} ([\d.e+-]+)', re.MULTILINE
)


@dataclass(frozen=True)
class Figures:
    """A device's counters at one moment: (push or read, step) → (seconds, times)."""

    steps: dict[tuple[str, str], tuple[float, float]]

    def since(self, before: Figures, kind: str) -> dict[str, float]:
        """Mean seconds in each step of what ended since."""
        means = {}
        for (of, step), (seconds, times) in self.steps.items():
            was = before.steps.get((of, step), (0.0, 0.0))
            if of == kind and times > was[1]:
                means[step] = (seconds - was[0]) / (times - was[1])
        return means

    def total(self, kind: str, steps: Iterable[str]) -> tuple[float, float]:
        """Seconds in these steps, and how often the last of them was left."""
        found = [self.steps.get((kind, step), (0.0, 0.0)) for step in steps]
        return sum(seconds for seconds, _ in found), found[-1][1]


def figures(http_url: str) -> Figures:
    """From a device's /-/metrics."""
    with urllib.request.urlopen(f"{http_url}/-/metrics", timeout=30) as answer:
        text = answer.read().decode()
    found: dict[tuple[str, str], list[float]] = {}
    for kind, part, step, value in _STEP.findall(text):
        found.setdefault((kind, step), [0.0, 0.0])[part == "count"] = float(value)
    return Figures({key: (values[0], values[1]) for key, values in found.items()})


# ------------------------------------------------------------------------------------------------------- CPU


@dataclass(frozen=True)
class Cpu:
    """CPU seconds of a process: its own, and those of its children that have ended."""

    own: float
    children: float

    def __sub__(self, other: Cpu) -> Cpu:
        return Cpu(self.own - other.own, self.children - other.children)

    def __add__(self, other: Cpu) -> Cpu:
        return Cpu(self.own + other.own, self.children + other.children)

    def __mul__(self, factor: float) -> Cpu:
        return Cpu(self.own * factor, self.children * factor)

    @property
    def all(self) -> float:
        return self.own + self.children


def cpu(pid: int) -> Cpu:
    """Of one process, in ticks of 10 ms: worth something over many pushes only."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system, child_user, child_system = (int(word) / TICK for word in words[11:15])
    return Cpu(user + system, child_user + child_system)


def cpu_of_postgres(directory: Path) -> float:
    """Of a server and all its sessions, those that have ended included."""
    postmaster = int((directory / "postmaster.pid").read_text().split()[0])
    total = cpu(postmaster).all
    for task in Path(f"/proc/{postmaster}/task").iterdir():
        for child in (task / "children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):
                total += cpu(int(child)).all
    return total


def cpu_of_machine() -> float:
    """Busy seconds of all cores, of whoever."""
    words = Path("/proc/stat").read_text().splitlines()[0].split()[1:]
    user, nice, system, _, _, irq, softirq, steal = (int(word) / TICK for word in words[:8])
    return user + nice + system + irq + softirq + steal


# -------------------------------------------------------------------------------------------------- statements


@dataclass(frozen=True)
class Statement:
    """One round trip to the database: which session, from which address, when PostgreSQL began it, the first words."""

    session: str
    address: str
    at: float
    text: str


_BACKGROUND = ("listen ", "select 1", "SELECT 1")
_PREFIX = "%n|%p|%h|"
_LINE = re.compile(r"^(\d+\.\d+)\|(\d+)\|([\d.]*)\|LOG:  (?:statement|execute [^:]*): (.*)$")


@contextmanager
def statements(url: str, directory: Path) -> Iterator[list[Statement]]:
    """A list that holds, on leaving, what was run inside."""
    log, found = directory / "log", list[Statement]()
    with psycopg.connect(url, autocommit=True) as connection:

        def logging(what: str) -> None:
            connection.execute(f"alter system set log_line_prefix = '{_PREFIX}'")
            connection.execute(f"alter system set log_statement = '{what}'")
            connection.execute("select pg_reload_conf()")
            time.sleep(0.2)  # every session reads it before its next statement

        logging("all")
        begun = log.stat().st_size
        try:
            yield found
        finally:
            time.sleep(0.1)
            data = log.read_bytes()[begun:].decode(errors="replace")
            logging("none")
    found += parsed(data)


def parsed(log: str) -> list[Statement]:
    """The statements of devices in PostgreSQL's log, in order, without what they ask for every few seconds."""
    found = []
    lines = log.splitlines()
    for number, line in enumerate(lines):
        if match := _LINE.match(line):
            at, session, address, text = match.groups()
            rest = number + 1
            while rest < len(lines) and lines[rest].startswith("\t"):
                text += " " + lines[rest].strip()
                rest += 1
            text = " ".join(text.split())
            if address and not text.startswith(_BACKGROUND):
                found.append(Statement(session, address, float(at), text))
    return found
