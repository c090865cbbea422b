"""A way into a cluster, as a hostile client has it, and what the daemon behind it shows of itself."""

from __future__ import annotations

import os
import re
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import paramiko  # type: ignore[import-untyped,unused-ignore]

from tests.cluster_fixture import Cluster
from tests.probes import PATIENCE, Login


@dataclass(frozen=True)
class Counts:
    """What a daemon holds: threads, descriptors that are not the database's, processes that it started (and theirs)."""

    threads: int
    descriptors: int
    children: int

    def within(self, other: Counts) -> bool:
        return (
            self.threads <= other.threads
            and self.descriptors <= other.descriptors
            and self.children <= other.children
        )


@dataclass(frozen=True)
class Endpoint:
    """kind: "built-in", or what else a device is reached by. device: whose daemon answers. user: a user's private key,
    of one who may do everything."""

    kind: str
    cluster: Cluster
    device: str
    host: str
    port: int
    host_key: str
    user: Path

    def socket(self) -> socket.socket:
        return socket.create_connection((self.host, self.port), PATIENCE)

    @contextmanager
    def login(self, key: Path | None = None, sock: Any = None) -> Iterator[Login]:
        """A connection by a private key (default: the user's). AuthenticationException where it is nobody's."""
        transport = paramiko.Transport(sock or self.socket())
        try:
            transport.start_client(timeout=PATIENCE)
            assert transport.get_remote_server_key().get_base64() in self.host_key
            transport.auth_publickey(
                self.cluster.devices[self.device].user, paramiko.PKey.from_path(key or self.user)
            )
            yield Login(transport)
        finally:
            transport.close()

    def log(self) -> str:
        """All that the daemon has logged so far."""
        return self.cluster.devices[self.device].log.read_text(errors="replace")

    def lines(self, pattern: str, since: int = 0) -> list[str]:
        """The lines of the log that match, from character `since` on."""
        return [line for line in self.log()[since:].splitlines() if re.search(pattern, line)]

    def counts(self) -> Counts:
        pid = self.cluster.devices[self.device].pid
        status = Path(f"/proc/{pid}/status").read_text()
        threads = re.search(r"^Threads:\s*(\d+)", status, re.MULTILINE)
        assert threads
        return Counts(int(threads[1]), len(_descriptors(pid or 0)), len(_descendants(pid or 0)))

    def seconds_to_list(self) -> float:
        """How long an ls-remote takes now."""
        begun = time.monotonic()
        assert self.cluster.refs(self.device)["HEAD"]
        return time.monotonic() - begun


def _descriptors(pid: int) -> list[str]:
    """What a daemon has open, but for its connections to the tests' PostgreSQL: that pool grows as it is needed."""
    local = {line.split()[6] for line in Path("/proc/net/unix").read_text().splitlines()[1:]}
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            target = os.readlink(descriptor)
            if target.removeprefix("socket:[").removesuffix("]") not in local:
                found.append(target)
    return found


def _descendants(pid: int) -> set[int]:
    parents: dict[int, int] = {}
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(process.name)] = int((process / "stat").read_text().rpartition(")")[2].split()[1])
    found, new = set[int](), {pid}
    while new:
        new = {child for child, parent in parents.items() if parent in new} - found
        found |= new
    return found
