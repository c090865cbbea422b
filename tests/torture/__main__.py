"""Torture at length: `python -m tests.torture --operations 2000 --clients 6 --devices 3 --seed N`."""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
import time
from pathlib import Path

from tests.torture.plan import make
from tests.torture.run import torture


def main() -> int:
    """Exit code 1: a violation."""
    parser = argparse.ArgumentParser(prog="python -m tests.torture", description=__doc__)
    parser.add_argument("--operations", type=int, default=2000)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--devices", type=int, default=3)
    parser.add_argument("--refs", type=int, default=4)
    parser.add_argument("--every", type=int, default=8, help="operations for one fault")
    parser.add_argument("--hands", type=int, default=2, help="faults at the same time")
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, which is printed")
    parser.add_argument(
        "--network", choices=["namespaces", "proxies"], default="", help="default: the best here"
    )
    parser.add_argument(
        "--keep", action="store_true", help="leave the cluster's files and the story, as after a violation"
    )
    options = parser.parse_args()
    seed = random.SystemRandom().randrange(1_000_000) if options.seed is None else options.seed
    plan = make(
        seed,
        operations=options.operations,
        clients=options.clients,
        devices="abcdefghi"[: options.devices],
        every=options.every,
        refs=options.refs,
    )
    began = time.monotonic()

    def say(line: str) -> None:
        print(f"{time.monotonic() - began:7.1f} s  {line}", flush=True)

    say(f"seed {seed}: {options.operations} operations, {len(plan.blows)} faults")
    directory, good = Path(tempfile.mkdtemp(prefix="torture-")), False
    try:
        result = torture(directory, plan, kind=options.network, hands=options.hands, say=say)
        (directory / "story.txt").write_text(f"{result.story()}\n")
        good = not result.violations and not result.thaws
    finally:
        if options.keep or not good:
            say(f"files: {directory}")
        else:
            shutil.rmtree(directory, ignore_errors=True)
    print(result.report())
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
