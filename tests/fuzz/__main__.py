"""Fuzzing at length: `python -m tests.fuzz --inputs 1000000 --seconds 3600 --seed N`.

Each target gets its share of the inputs, on two processes. The first failure ends it: exit code 1, and the input is
printed and kept in a file, which `--replay FILE` tries again.
"""

from __future__ import annotations

import argparse
import multiprocessing
import random
import sys
import time
import traceback
from collections import Counter
from multiprocessing.queues import Queue
from pathlib import Path

from tests.fuzz.core import Target, made, nothing_starts
from tests.fuzz.targets import TARGETS

ROUND = 500
"""Inputs of one target in a row; then the next one's turn comes."""

SLOW = 5.0
"""Seconds of this thread's own time that one input may take."""

Found = tuple[str, bytes, str]
"""A target, the input that it failed on, and how."""


def main() -> int:
    """Exit code 1: a contract is broken."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="in all (default: a million)")
    parser.add_argument("--seconds", type=float, default=3600.0, help="at the most (default: an hour)")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument("--target", action="append", choices=sorted(TARGETS), help="only this (repeatable)")
    parser.add_argument("--jobs", type=int, default=2, help="processes (default 2)")
    parser.add_argument(
        "--keep", type=Path, default=Path(), metavar="DIR", help="where a failing input is put"
    )
    parser.add_argument("--replay", type=Path, metavar="FILE", help="try one input again, with one --target")
    options = parser.parse_args()
    names = options.target or list(TARGETS)
    if options.replay:
        with nothing_starts():
            TARGETS[names[0]].check(options.replay.read_bytes())
        return 0
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    print(f"seed {seed}: {options.inputs} inputs for {len(names)} targets", flush=True)
    began, counts = time.monotonic(), Counter[str]()
    results: Queue[tuple[Counter[str], Found | None]] = multiprocessing.Queue()
    workers = [
        multiprocessing.Process(
            target=_work,
            args=(f"{seed}/{number}", names, options.inputs // options.jobs, options.seconds, results),
        )
        for number in range(options.jobs)
    ]
    for worker in workers:
        worker.start()
    found: Found | None = None
    for _ in workers:
        done, failure = results.get()
        counts += done
        if failure and not found:
            found = failure
            for worker in workers:
                worker.terminate()
            break
    for worker in workers:
        worker.join()
    seconds = time.monotonic() - began
    for name in names:
        print(f"  {name:18} {counts[name]:>9}")
    if found:
        return _tell(found, options.keep)
    print(
        f"{counts.total()} inputs in {seconds:.0f} s, {counts.total() / seconds:.0f} a second: no contract broken"
    )
    return 0


def _work(
    seed: str,
    names: list[str],
    inputs: int,
    seconds: float,
    results: Queue[tuple[Counter[str], Found | None]],
) -> None:
    chance, counts, deadline = random.Random(seed), Counter[str](), time.monotonic() + seconds
    each, left = [TARGETS[name] for name in names], inputs
    with nothing_starts():
        while left > 0 and time.monotonic() < deadline:
            for target in each:
                for _ in range(min(ROUND, max(1, inputs // len(each)), left)):
                    data = made(chance, target)
                    if failure := attempt(target, data):
                        results.put((counts, failure))
                        return
                    counts[target.name] += 1
                    left -= 1
    results.put((counts, None))


def attempt(target: Target, data: bytes) -> Found | None:
    """Try one input; what is wrong, where something is."""
    before = time.thread_time()
    try:
        target.check(data)
    except BaseException:
        return target.name, data, traceback.format_exc()
    if (took := time.thread_time() - before) > SLOW:
        return target.name, data, f"it took {took:.1f} s"
    return None


def _tell(found: Found, keep: Path) -> int:
    name, data, how = found
    file = keep / f"fuzz-{name}.bin"
    file.write_bytes(data)
    print(how, f"\n{name} failed on {len(data)} bytes, kept in {file}:\n{data[:2000]!r}", sep="")
    return 1


if __name__ == "__main__":
    sys.exit(main())
