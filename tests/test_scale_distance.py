"""The distance that the model for scale is measured at (tests/model/distance.py): real packets, held back."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.model.distance import Distances
from tests.network import best

_CONNECT = """
import socket, sys, time
begun = time.monotonic()
socket.create_connection((sys.argv[1], int(sys.argv[2])), 10).close()
print(time.monotonic() - begun)
"""


@pytest.mark.skipif(best() != "namespaces", reason="network namespaces need root on Linux")
def test_packets_take_the_time_that_was_set_between_those_two_and_nobody_else(tmp_path: Path) -> None:
    distances = Distances(tmp_path, "ab")
    try:
        wires = distances.wires

        def seconds(device: str) -> float:
            """Of a connection from a device to PostgreSQL: one round trip, whatever else the machine does."""
            command = [sys.executable, "-c", _CONNECT, wires.database, str(Distances.PORT)]
            done = subprocess.run(
                ["ip", "netns", "exec", wires.namespace(device), *command], capture_output=True, text=True
            )
            assert done.returncode == 0, done.stderr
            return float(done.stdout)

        distances.set(database=2.0)
        assert 2.0 <= seconds("a") < 4.0  # a second attempt, after TCP's first second, would come no sooner
        distances.set(peers=30.0, clients=30.0)
        assert seconds("b") < 2.0
    finally:
        distances.close()
