"""`git-cluster demo`: a whole cluster on this machine, and a tour of it in which every claim is checked.

run        set up or bring up again, import, then the tour, then (--serve) wait for a signal
tour       the chapters of the tour
place      the demo's directory; nothing that runs out of it outlives the demo
signals    SIGINT, SIGTERM and SIGHUP as an exception
screen     how it looks
"""

from __future__ import annotations

from pathlib import Path


def run_demo(directory: Path | None, devices: int, source: str | None, serve: bool, as_json: bool) -> int:
    """Show a cluster of `devices` devices; the exit code. ClusterError where it cannot be set up.

    directory: where it lives and stays; None: a temporary one. source: the repository to import; None: this
    project's own. serve: keep it up until a signal. as_json: one line of JSON first, for programs.
    """
    from cluster.demo.run import run  # the guard (place.py) needs none of what this imports

    return run(directory, devices, source, serve=serve, as_json=as_json)
