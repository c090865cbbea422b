"""`git-cluster-ping`: who a device is, which git-cluster it runs, and what its clock says. Doctors ask it.

The answer is one line of JSON: {"device": "a", "version": "0.1.0", "clock": seconds since 1970, UTC}.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass

from cluster import __version__
from cluster.client import Client
from cluster.errors import PeerFailed
from cluster.model import Device
from cluster.peer import Peers
from cluster.ssh_command import PingCommand

LINE = 4096
"""Bytes of an answer, at the most."""

TIMEOUT = 10.0
"""Seconds for an answer to come."""


@dataclass(frozen=True, slots=True)
class Pong:
    """What a device answered. clock: in seconds since 1970; taken: seconds from the question to the answer.

    version: None where it knows no such command: an older git-cluster.
    """

    device: str
    version: str | None
    clock: float
    taken: float


def answer(device: str, client: Client) -> int:
    """The device's side."""
    client.write(
        json.dumps({"device": device, "version": __version__, "clock": time.time()}).encode() + b"\n"
    )
    return 0


def ask(peers: Peers, device: Device) -> tuple[Pong, float]:
    """What `device` answers, and by how many seconds its clock is ahead of this machine's. PeerFailed.

    Asked twice: the first time makes the connection, the second tells how far away the device is.
    """
    _ask(peers, device)
    began = time.time()
    pong = _ask(peers, device)
    return pong, pong.clock - began - pong.taken / 2


def _ask(peers: Peers, device: Device) -> Pong:
    since, data = time.monotonic(), b""
    with peers.run(device, str(PingCommand())) as remote:
        while more := remote.receive(LINE, TIMEOUT):
            data += more
            if len(data) > LINE:
                raise _not_understood(device)
        taken = time.monotonic() - since
        code = remote.finish(TIMEOUT)
        if code == 2 and not data:  # wrong usage: it does not know the command
            return Pong(device.name, None, 0.0, taken)
        if code != 0:
            what, _, hint = remote.stderr.strip().partition("\n")
            what = _line(what).removeprefix("error: ") or f"exit code {code}"
            raise PeerFailed(
                f"device {device.name} answers, but: {what}",
                hint=_line(hint) or "run `git-cluster doctor` there, or read its log",
            )
    return _pong(device, data, taken)


def _pong(device: Device, data: bytes, taken: float) -> Pong:
    try:
        said = json.loads(data)
        name, version, clock = said["device"], said["version"], float(said["clock"])
    except (ValueError, KeyError, TypeError, RecursionError, OverflowError) as error:
        raise _not_understood(device) from error
    if not 0 < clock < 1e11:  # NaN is neither
        raise _not_understood(device)
    return Pong(_line(str(name))[:64], _line(str(version))[:64], clock, taken)


def _line(text: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in text)[:300]


def _not_understood(device: Device) -> PeerFailed:
    return PeerFailed(
        f"device {device.name} gave an answer that is not understood",
        hint="does it run the same version of git-cluster?",
    )
