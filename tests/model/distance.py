"""A cluster whose devices, database and clients are as far apart as a measurement wants them (root, Linux)."""

from __future__ import annotations

import subprocess
import sys
from itertools import combinations
from pathlib import Path

from tests.namespaces import Wires
from tests.network import Namespaces


class Distances(Namespaces):
    """Namespaces with a delay between them: everything but what is local to one goes through tests/model/delay.py."""

    def __init__(self, directory: Path, names: str) -> None:
        self._delayer: subprocess.Popen[bytes] | None = None
        super().__init__(directory, names)
        self._start()

    @property
    def wires(self) -> Wires:
        return self._wires

    @property
    def pid(self) -> int:
        """Of what holds the packets back."""
        assert self._delayer is not None
        return self._delayer.pid

    def _start(self) -> None:
        router = self._wires.router
        self._delayer = subprocess.Popen(
            ["ip", "netns", "exec", router, sys.executable, "-m", "tests.model.delay", "delay"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._delayer.stdout is not None
        assert self._delayer.stdout.readline() == b"ready\n", "the delaying device could not be made"
        for command in (
            "link set delay mtu 1500 up",
            "route add default dev delay table 100",
            "rule add pref 10 iif delay lookup main",
            "rule add pref 20 lookup 100",
        ):
            subprocess.run(["ip", "-n", router, *command.split()], check=True)

    def set(self, *, database: float = 0.0, peers: float = 0.0, clients: float = 0.0) -> None:
        """Round trips in seconds: device to database, device to device, client to device."""
        assert self._delayer is not None and self._delayer.stdin is not None
        wires = self._wires
        devices = [wires.address(name) for name in wires.names]
        pairs = [(one, other, peers) for one, other in combinations(devices, 2)]
        pairs += [(device, wires.database, database) for device in devices]
        pairs += [(device, wires.clients, clients) for device in devices]
        orders = "".join(f"{one} {other} {rtt / 2}\n" for one, other, rtt in pairs)
        self._delayer.stdin.write(orders.encode())
        self._delayer.stdin.flush()

    def close(self) -> None:
        if self._delayer is not None:
            assert self._delayer.stdin is not None
            self._delayer.stdin.close()
            self._delayer.wait()
        super().close()
