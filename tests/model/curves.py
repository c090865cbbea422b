"""What is only simulated: machines of their own for devices, database and clients, and more of everything."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from tests.model.constants import Constants
from tests.model.parts import Outcome, Setting
from tests.model.simulation import simulate

DISTANCES = (1, 2, 5, 10, 20, 50, 100, 200)
DEVICES = (1, 2, 4, 8, 16, 32)
REPOSITORIES = (1, 2, 4, 8, 16, 32, 64)

APART = Setting(warm=3.0, seconds=20.0, cores=4, database_cores=8)
"""Devices of 4 cores, a PostgreSQL of 8, clients beside their devices."""


@dataclass(frozen=True)
class Curve:
    """One line: its name, the places on the x axis, and what came out."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


def _line(
    name: str, x: Sequence[float], of: Callable[[float], Outcome], figure: Callable[[Outcome], float]
) -> Curve:
    return Curve(name, x, [figure(of(place)) for place in x])


def _long(setting: Setting) -> Setting:
    """Long enough for a few pushes of everybody."""
    rtt = max(setting.rtt_database, setting.rtt_peers)
    return replace(setting, warm=3 + 60 * rtt, seconds=20 + 300 * rtt)


def one_repository(constants: Constants) -> list[Curve]:
    """Pushes a second to one repository, 16 clients, by milliseconds of distance."""

    def line(name: str, *, near: bool = False, spread: bool = False, copies: int = 1) -> Curve:
        def run(ms: float) -> Outcome:
            database = 0.001 if near else ms / 1000
            setting = replace(APART, pushers=16, spread=spread, min_copies=copies)
            return simulate(constants, _long(replace(setting, rtt_database=database, rtt_peers=ms / 1000)))

        return _line(name, DISTANCES, run, lambda outcome: outcome.pushes)

    return [
        line("one device takes them"),
        line("three devices take them", spread=True),
        line("one device, database 1 ms away", near=True),
        line("the same, min_copies 2", near=True, copies=2),
    ]


def latencies(constants: Constants) -> list[Curve]:
    """Seconds of one push, nobody else about, by milliseconds of distance."""

    def run(ms: float, copies: int, database: float | None = None) -> Outcome:
        rtt = ms / 1000
        setting = replace(
            APART, min_copies=copies, rtt_peers=rtt, rtt_database=rtt if database is None else database
        )
        return simulate(constants, _long(setting))

    median: Callable[[Outcome], float] = lambda outcome: outcome.median  # noqa: E731
    return [
        _line("min_copies 1", DISTANCES, lambda ms: run(ms, 1), median),
        _line("min_copies 2", DISTANCES, lambda ms: run(ms, 2), median),
        _line("min_copies 2, database 1 ms away", DISTANCES, lambda ms: run(ms, 2, 0.001), median),
    ]


def freshness(constants: Constants) -> list[Curve]:
    """Seconds from the acknowledgement until the replicas have it, and of a read elsewhere right then."""

    def run(ms: float, copies: int) -> Outcome:
        setting = replace(
            APART, min_copies=copies, rtt_peers=ms / 1000, rtt_database=ms / 1000, read_after_push=True
        )
        return simulate(constants, _long(setting))

    stale: Callable[[Outcome], float] = lambda outcome: max(0.0, _mean(outcome.stale))  # noqa: E731
    after: Callable[[Outcome], float] = lambda outcome: _mean(outcome.after)  # noqa: E731
    return [
        _line("replicas have it, min_copies 1", DISTANCES, lambda ms: run(ms, 1), stale),
        _line("replicas have it, min_copies 2", DISTANCES, lambda ms: run(ms, 2), stale),
        _line("a read elsewhere, min_copies 1", DISTANCES, lambda ms: run(ms, 1), after),
        _line("a read elsewhere, min_copies 2", DISTANCES, lambda ms: run(ms, 2), after),
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else 0.0


def _fleet(devices: float, copies: int, **changes: float) -> Setting:
    """12 clients a device, each with a repository of its own on three of the devices, all 1 ms apart."""
    count = int(devices)
    seconds = max(2.0, 16.0 / count)
    setting = replace(
        APART,
        devices=count,
        pushers=12 * count,
        repositories=12 * count,
        min_copies=copies,
        rtt_database=0.001,
        rtt_peers=0.001,
        warm=1.0,
        seconds=seconds,
    )
    return replace(setting, **changes)  # type: ignore[arg-type]


def devices(constants: Constants) -> list[Curve]:
    """Pushes a second in all, by the number of devices."""
    pushes: Callable[[Outcome], float] = lambda outcome: outcome.pushes  # noqa: E731
    return [
        _line("min_copies 1", DEVICES, lambda n: simulate(constants, _fleet(n, 1)), pushes),
        _line("min_copies 2", DEVICES, lambda n: simulate(constants, _fleet(n, 2)), pushes),
    ]


def reads(constants: Constants) -> list[Curve]:
    """Reads a second in all, by the number of devices: nobody pushes."""

    def run(n: float) -> Outcome:
        setting = replace(_fleet(n, 1), pushers=0, readers=12 * int(n))
        return simulate(constants, setting)

    return [_line("ls-remote", DEVICES, run, lambda outcome: outcome.reads)]


def repositories(constants: Constants) -> list[Curve]:
    """Pushes a second in all on three devices, 64 clients, by how many repositories they share."""

    def run(n: float, ms: float) -> Outcome:
        setting = replace(APART, pushers=64, repositories=int(n), min_copies=2)
        return simulate(constants, _long(replace(setting, rtt_database=ms / 1000, rtt_peers=ms / 1000)))

    pushes: Callable[[Outcome], float] = lambda outcome: outcome.pushes  # noqa: E731
    return [
        _line(f"{ms} ms apart", REPOSITORIES, lambda n, ms=ms: run(n, ms), pushes)  # type: ignore[misc]
        for ms in (1, 20, 100)
    ]
