"""What the processes of one device share: figures that mean something for all of them together.

    the daemon    has them, and answers for them (cluster/crew.py)
    a worker      has a stand-in for each, which asks the daemon over the worker's Line

Where the daemon answers clients by itself it uses them as they are.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from typing import Any

from cluster.config import LimitsSection
from cluster.db.pool import Usage
from cluster.errors import ClusterError
from cluster.limits import MOST_ADDRESSES, WINDOW, Counts, FailedLogins, Key, Slowed, network
from cluster.tally import Tally


@dataclass(frozen=True, slots=True)
class Shared:
    """running: the commands that run. ssh_logins, http_logins: those that failed. tally: for the charts."""

    running: Counts
    ssh_logins: FailedLogins
    http_logins: FailedLogins
    tally: Tally

    @classmethod
    def own(cls, limits: LimitsSection, tally: Tally) -> Shared:
        """For the daemon."""
        most = limits.failed_logins
        return cls(Counts(), FailedLogins(most), FailedLogins(most), tally)

    @classmethod
    def far(cls, line: Line, limits: LimitsSection) -> Shared:
        """For a worker."""
        most = limits.failed_logins
        return cls(
            FarCounts(line),
            FarLogins(line, "ssh_logins", most),
            FarLogins(line, "http_logins", most),
            FarTally(line),
        )


@dataclass(frozen=True, slots=True)
class State:
    """What one process has open now: connections by endpoint, and of its pools to the database."""

    connections: Mapping[str, int] = field(default_factory=dict)
    pools: Mapping[str, Usage] = field(default_factory=dict)


class Line:
    """A worker's way to ask the daemon. Used from every thread. The daemon answers at once, and in any order.

    first: called with what comes before any answer. A line that breaks is the daemon's end, and this process's.
    """

    def __init__(self, connection: Connection, broken: Callable[[], None]) -> None:
        self._connection, self._broken = connection, broken
        self._sending = threading.Lock()
        self._numbers = itertools.count(1)
        self._waiting: dict[int, Future[Any]] = {}
        self.first = connection.recv()
        threading.Thread(target=self._hear, name="line", daemon=True).start()

    def ask(self, what: str, *arguments: object) -> Any:
        """What the daemon's answer is."""
        number = next(self._numbers)
        answer = self._waiting[number] = Future()
        self._send((number, what, arguments))
        return answer.result()

    def tell(self, what: str, *arguments: object) -> None:
        """The same where there is nothing to wait for."""
        self._send((0, what, arguments))

    def _send(self, message: object) -> None:
        try:
            with self._sending:
                self._connection.send(message)
        except OSError:
            self._broken()
            raise ClusterError("the daemon of this device has ended") from None

    def _hear(self) -> None:
        try:
            while True:
                number, answer = self._connection.recv()
                self._waiting.pop(number).set_result(answer)
        except (EOFError, OSError):
            self._broken()


class FarCounts(Counts):
    def __init__(self, line: Line) -> None:
        self._line = line

    def begin(self, keys: Sequence[Key], most: Mapping[str, int]) -> Key | None:
        full: Key | None = self._line.ask("begin", keys, most)
        return full

    def end(self, keys: Sequence[Key]) -> None:
        self._line.tell("end", keys)


class FarLogins(FailedLogins):
    """Whether an address is slowed is told from what this process has heard of it: it is asked for at every request."""

    def __init__(self, line: Line, which: str, most: int) -> None:
        super().__init__(most)
        self._line, self._which = line, which
        self._slow: OrderedDict[str, float] = OrderedDict()

    def failed(self, address: str) -> Slowed:
        slowed: Slowed = self._line.ask("failed", self._which, address)
        if slowed is not Slowed.NOT:
            with self._lock:
                self._slow[network(address)] = self._clock() + 2 * WINDOW
                self._slow.move_to_end(network(address))
                while len(self._slow) > MOST_ADDRESSES:
                    self._slow.popitem(last=False)
        return slowed

    def succeeded(self, address: str) -> None:
        with self._lock:
            self._slow.pop(network(address), None)
        self._line.tell("succeeded", self._which, address)

    def delay(self, address: str) -> float:
        seconds: float = self._line.ask("delay", self._which, address)
        return seconds

    def slowed(self, address: str) -> bool:
        with self._lock:
            return self._slow.get(network(address), 0.0) > self._clock()


class FarTally(Tally):
    def __init__(self, line: Line) -> None:
        super().__init__()
        self._line = line

    def pushed(self, seconds: float) -> None:
        self._line.tell("pushed", seconds)

    def read(self, seconds: float) -> None:
        self._line.tell("read", seconds)

    def failed(self) -> None:
        self._line.tell("failure")


def report(state: Callable[[], State], line: Line, every: float) -> None:
    """Tell the daemon every so many seconds what has changed; for ever."""
    told = State()
    while True:
        now = state()
        if now != told:
            line.tell("state", now)
            told = now
        time.sleep(every)
