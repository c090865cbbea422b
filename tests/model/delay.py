"""A distance between network namespaces, where the kernel has no sch_netem: a TUN device that holds packets back.

    python -m tests.model.delay NAME        creates the TUN device NAME in this namespace, and prints "ready"

Standard input takes lines "ADDRESS ADDRESS SECONDS": from now on what goes between the two, either way, is held back
for so long. What is routed into the device comes out of it again, whole and in order, so everything that distance does
to a connection is there: TCP's and SSH's handshakes, windows that open slowly. Nothing is lost, no link is narrow.
"""

from __future__ import annotations

import fcntl
import heapq
import os
import select
import struct
import sys
import time

_TUNSETIFF = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
MTU = 65535
IDLE = 60.0
"""Seconds between two looks when nothing is under way; a packet or a line wakes at once."""


def main() -> None:
    """Until standard input ends."""
    tun = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(tun, _TUNSETIFF, struct.pack("16sH", sys.argv[1].encode(), _IFF_TUN | _IFF_NO_PI))
    print("ready", flush=True)
    carry(tun, sys.stdin.fileno())


def carry(tun: int, orders: int) -> None:
    """Pass packets on, each when it is due, and take orders until there are none any more."""
    delays: dict[bytes, float] = {}
    under_way: list[tuple[float, int, bytes]] = []
    count, heard = 0, b""
    while True:
        now = time.monotonic()
        while under_way and under_way[0][0] <= now:
            os.write(tun, heapq.heappop(under_way)[2])
        wait = under_way[0][0] - now if under_way else IDLE
        ready, _, _ = select.select([tun, orders], [], [], wait)
        if tun in ready:
            now = time.monotonic()
            try:
                while packet := os.read(tun, MTU):
                    if packet[0] >> 4 != 4:
                        continue
                    count += 1
                    due = now + delays.get(packet[12:20], 0.0)
                    heapq.heappush(under_way, (due, count, packet))
            except BlockingIOError:
                pass
        if orders in ready:
            data = os.read(orders, 65536)
            if not data:
                return
            *lines, heard = (heard + data).split(b"\n")
            for line in lines:
                one, other, seconds = line.decode().split()
                delays[_packed(one) + _packed(other)] = delays[_packed(other) + _packed(one)] = float(seconds)


def _packed(address: str) -> bytes:
    return bytes(map(int, address.split(".")))


if __name__ == "__main__":
    main()
