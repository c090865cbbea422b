"""Calibrate and measure: what the model is made of, and what it is held against.

    python -m tests.model.measure                     all of it, under ten minutes; rewrites calibration.json
    python -m tests.model.measure --only calibrate    the constants alone; what was measured stays
    python -m tests.model.measure --only measure      the other way round

Root on Linux: devices in network namespaces, with a delay between them. Then `python -m tests.model` draws it.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import signal
import statistics
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.model.calibrate import calibrate, machine
from tests.model.constants import FILE, HELD, load
from tests.model.instruments import Figures, cpu, cpu_of_machine, cpu_of_postgres, figures
from tests.model.scenarios import Scenario, row_of, scenarios
from tests.model.site import DEVICES, Site, site

PUSHES = 3
"""Of one client at each distance, after one that does not count."""

MOST = 540.0
"""Seconds after which no further scenario is begun."""


class Load:
    """What the machine does beside us, while something is measured."""

    def __init__(self, site: Site) -> None:
        self._site = site
        self._begun, self._was = time.monotonic(), self._now()

    def _now(self) -> tuple[float, float]:
        ours = cpu_of_postgres(self._site.distances.postgres)
        for device in self._site.cluster.devices.values():
            assert device.pid is not None
            ours += cpu(device.pid).all
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        return cpu_of_machine(), ours + used.ru_utime + used.ru_stime

    def cores_left(self) -> float:
        """Cores that were ours: all but what others, the delay and this program took; and half of the machine where
        others would have had all of it, for the kernel shares."""
        busy, ours = self._now()
        seconds = time.monotonic() - self._begun
        others = (busy - self._was[0]) - (ours - self._was[1])
        cores = os.cpu_count() or 1
        return max(cores / 2, cores - others / seconds)


def measure(site: Site, scenario: Scenario) -> dict[str, Any]:
    """One row."""
    names = [site.repository(min_copies=scenario.min_copies) for _ in range(scenario.repositories)]
    branches = [site.branch(PUSHES + 1 if scenario.pushers == 1 else 300) for _ in range(scenario.pushers)]
    site.distances.set(database=scenario.database / 1000, peers=scenario.peers / 1000)
    try:
        run = _alone if scenario.kind == "alone" else _many
        return {**row_of(scenario), **run(site, scenario, names, branches)}
    finally:
        site.distances.set()
        for name in names:
            site.settle(name)


def _alone(site: Site, scenario: Scenario, names: list[str], branches: list[Any]) -> dict[str, Any]:
    (name,), (branch,) = names, branches
    branch.push("a", name)
    site.settle(name)
    site.read("b", name)
    load, before = Load(site), _held(site)
    pushes: list[float] = []
    fresh: list[float] = []
    after: list[float] = []
    for _ in range(PUSHES):
        pushes.append(branch.push("a", name))
        after.append(site.read("b", name))
        fresh += site.synced_after(name).values()
    return {
        "count": PUSHES,
        "cores": round(load.cores_left(), 2),
        "pushes": None,
        "median": statistics.median(pushes),
        "held": _since(before, _held(site)),
        "fresh": statistics.fmean(fresh),
        "after": statistics.fmean(after),
    }


def _many(site: Site, scenario: Scenario, names: list[str], branches: list[Any]) -> dict[str, Any]:
    begun = time.monotonic()
    counting, until = begun + scenario.seconds / 3, begun + scenario.seconds

    def client(number: int) -> list[tuple[float, float]]:
        name = names[number % len(names)]
        place = number if scenario.repositories > 1 or scenario.spread else 0
        took = []
        while (now := time.monotonic()) < until:
            took.append((now, branches[number].push(DEVICES[place % len(DEVICES)], name)))
        return took

    with ThreadPoolExecutor(len(branches)) as pool:
        running = [pool.submit(client, number) for number in range(len(branches))]
        time.sleep(max(0.0, counting - time.monotonic()))
        load, before = Load(site), _held(site)
        time.sleep(max(0.0, until - time.monotonic()))
        cores, held = load.cores_left(), _since(before, _held(site))
        pushes = [push for client in running for push in client.result()]
    counted = [
        seconds for at, seconds in pushes if at >= counting
    ]  # those that end later, too: none is preferred
    ends = sorted(at + seconds for at, seconds in pushes if counting <= at + seconds <= until)
    if scenario.repositories == 1:  # they come one after another, so the gaps between them tell
        rate = (len(ends) - 1) / (ends[-1] - ends[0]) if len(ends) > 2 else float("nan")
    else:  # each client has one under way at all times
        rate = len(branches) / statistics.fmean(counted)
    return {
        "count": len(counted),
        "cores": round(cores, 2),
        "pushes": rate,
        "median": statistics.median(counted),
        "held": held,
        "fresh": None,
        "after": None,
    }


def _held(site: Site) -> list[Figures]:
    return [figures(str(device.http_url)) for device in site.cluster.devices.values()]


def _since(before: list[Figures], after: list[Figures]) -> float:
    """Mean seconds that a device held the write lock for a push, as it sees it."""
    seconds = times = 0.0
    for old, new in zip(before, after, strict=True):
        was, now = old.total("push", HELD), new.total("push", HELD)
        seconds, times = seconds + now[0] - was[0], times + now[1] - was[1]
    return seconds / times if times else float("nan")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model.measure", description=__doc__)
    parser.add_argument("--only", choices=("calibrate", "measure"))
    parser.add_argument(
        "--file", type=Path, default=FILE, help="default: the calibration.json beside the model"
    )
    options = parser.parse_args()
    if os.geteuid() != 0:
        print("network namespaces need root", file=sys.stderr)
        return 2
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    data = load(options.file) if options.file.exists() else {}
    begun = time.monotonic()

    def tell(line: str) -> None:
        print(f"{time.monotonic() - begun:5.0f} s  {line}", flush=True)

    where = {"date": f"{datetime.now(UTC):%Y-%m-%d}", "machine": machine()}
    with site() as here:
        if options.only != "measure":
            data |= {"calibrated": where, **calibrate(here, tell)}
        if options.only != "calibrate":
            data |= {"measured_at": where, "measured": []}
            for scenario in scenarios():
                if time.monotonic() - begun > MOST:
                    tell(f"left out, for lack of time: {scenario}")
                    continue
                row = measure(here, scenario)
                data["measured"].append(row)
                tell(_line(row))
        options.file.write_text(json.dumps(_rounded(data), indent=1) + "\n")
    return 0


def _line(row: dict[str, Any]) -> str:
    found = " ".join(f"{name} {row[name]:.3g}" for name in ("pushes", "median", "held", "fresh", "after", "cores")
                     if row[name] is not None)  # fmt: skip
    return f"{row['kind']}, min_copies {row['min_copies']}, {row['database']}/{row['peers']} ms: {found}"


def _rounded(value: Any) -> Any:
    """To four digits: more would be noise that changes with every run."""
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {name: _rounded(part) for name, part in value.items()}
    return [_rounded(part) for part in value] if isinstance(value, list) else value


if __name__ == "__main__":
    sys.exit(main())
