"""What one client may take of a device: commands at once, time, and tries to log in ([limits] in cluster/config.py).

    Sessions        how many commands a user, and an address, have running
        Counts      the figures of that, which all processes of a device share
    Watch           one thread that ends the commands that are silent, or have lasted, for too long
        Watched     a Client whose silence and age it knows
    FailedLogins    which addresses fail to log in again and again, and how long their next refusals take
    least_welcome   who leaves where too many connections have not logged in
    surplus         who leaves where too many have

Devices and operators are under none of the limits on commands: peers have ways of their own to tell that the other is
silent, and an administrator's command may have much to do.
"""

from __future__ import annotations

import ipaddress
import logging
import threading
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Protocol, TypeVar

from cluster.client import Client
from cluster.errors import ClientGone, Refused
from cluster.model import Actor, ActorKind

PIECE = 128 * 1024
"""Bytes that are sent at a time: a client that takes one of these within idle_timeout is not silent."""

WINDOW = 60.0
"""Seconds in which `failed_logins` are forgotten."""

DELAYS = (1.0, 2.0, 4.0, 8.0)
"""Seconds that the first, second, … refusal of a slowed address takes; the last from then on."""

MOST_ADDRESSES = 4096
"""Addresses whose failed logins are remembered; beyond them the one that failed longest ago is forgotten."""

_log = logging.getLogger(__name__)


@lru_cache(MOST_ADDRESSES)
def network(address: str) -> str:
    """Who is taken for one client: an IPv4 address, or an IPv6 /64, of which whoever has one address has all."""
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(ip, ipaddress.IPv4Address):
        return str(ip)
    if ip.ipv4_mapped:
        return str(ip.ipv4_mapped)
    return str(ipaddress.IPv6Network((ip, 64), strict=False))


def duration(seconds: float) -> str:
    """For a person: "30 minutes", "1 hour", "1.5 seconds"."""
    for size, unit in ((3600.0, "hour"), (60.0, "minute")):
        if seconds >= size and seconds % size == 0:
            return _count(seconds / size, unit)
    return _count(seconds, "second")


def size(number: int) -> str:
    """For a person: "10 GiB", "1500 bytes"."""
    for power, unit in ((40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")):
        if number >= 2**power and number % 2**power == 0:
            return f"{number >> power} {unit}"
    return _count(number, "byte")


def _count(number: float, unit: str) -> str:
    return f"{number:.12g} {unit}{'' if number == 1 else 's'}"


# Commands at once


Key = tuple[str, str]
"""Whose commands are counted: ("user", name) or ("address", network)."""


class Counts:
    """How many commands run, by whose they are."""

    def __init__(self) -> None:
        self._running: Counter[Key] = Counter()
        self._lock = threading.Lock()

    def begin(self, keys: Sequence[Key], most: Mapping[str, int]) -> Key | None:
        """Count one more for each of `keys`; or for none of them, and which has as many as `most` allows its kind."""
        with self._lock:
            full = next((key for key in keys if self._running[key] >= most[key[0]]), None)
            if full is None:
                self._running.update(keys)
            return full

    def end(self, keys: Sequence[Key]) -> None:
        """Count one less for each."""
        with self._lock:
            self._running.subtract(keys)
            for key in keys:
                if not self._running[key]:
                    del self._running[key]


class Sessions:
    """The commands that run on this device, whichever endpoint they came in by."""

    def __init__(self, *, per_address: int, per_user: int, counts: Counts | None = None) -> None:
        self._most = {"user": per_user, "address": per_address}
        self._counts = Counts() if counts is None else counts

    @contextmanager
    def one(self, actor: Actor, address: str) -> Iterator[None]:
        """Count a command while inside. Refused where its user or address has as many as are allowed.

        address: "" where it is not known, which is then nobody's.
        """
        if actor.kind not in (ActorKind.USER, ActorKind.ANONYMOUS):
            yield
            return
        keys = ([("user", actor.name)] if actor.kind is ActorKind.USER else []) + (
            [("address", network(address))] if address else []
        )
        full = self._counts.begin(keys, self._most)
        if full is not None:
            raise self._refused(full, actor, address)
        try:
            yield
        finally:
            self._counts.end(keys)

    def _refused(self, full: Key, actor: Actor, address: str) -> Refused:
        kind, most = full[0], self._most[full[0]]
        _log.warning("%s: refused %s: %s sessions of this %s are open", address, actor.name, most, kind)
        sessions = _count(most, "session")
        who, may = ("you have", "one user") if kind == "user" else (f"{full[1]} has", "one address")
        return Refused(
            f"{who} {sessions} open on this device, the most that {may} may have",
            hint="end some, or try again when they have ended",
        )


# Silence and age


def overdue(now: float, begun: float, stirred: float, *, idle: float, total: float) -> str | None:
    """Why a command is to be ended now; None: not yet. begun, stirred: when it began, when a byte last passed."""
    if now - stirred >= idle:
        return f"nothing was sent for {duration(idle)}"
    if now - begun >= total:
        return f"a session lasts at most {duration(total)}"
    return None


class Watched:
    """A Client that is given up by its Watch. Whoever moves its bytes in another way says so with `stir`."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.begun = self.stirred = time.monotonic()
        self.ended = False

    def stir(self) -> None:
        """A byte has passed, in either direction."""
        self.stirred = time.monotonic()

    def read(self, size: int) -> bytes:
        data = b"" if self.ended else self._client.read(size)
        if data:
            self.stir()
        return b"" if self.ended else data

    def write(self, data: bytes) -> None:
        for start in range(0, len(data), PIECE):
            if self.ended:
                raise ClientGone("the client was hung up on")
            self._client.write(data[start : start + PIECE] if len(data) > PIECE else data)
            self.stir()

    def write_error(self, data: bytes) -> None:
        if not self.ended:
            self._client.write_error(data)
            self.stir()

    def say(self, line: str) -> None:
        if not self.ended:
            self._client.say(line)
            self.stir()

    def send_from(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None:
        self._client.send_from(fd, self._both(stirred))

    def receive_into(self, fd: int, stirred: Callable[[], None] = lambda: None) -> None:
        self._client.receive_into(fd, self._both(stirred))

    def _both(self, stirred: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            self.stir()
            stirred()

        return both

    @property
    def gone(self) -> bool:
        return self.ended or self._client.gone

    def hang_up(self, why: str = "") -> None:
        self.ended = True
        self._client.hang_up(why)


class Watch:
    """Ends commands in which nothing passes for `idle` seconds, and those that last `total` seconds.

    To the session that is a client that hung up, which it meets at any step (docs/write-protocol.md).
    """

    def __init__(self, *, idle: float, total: float) -> None:
        self._idle, self._total = idle, total
        self._watched: dict[Watched, str] = {}
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    @contextmanager
    def over(self, client: Client, actor: Actor, address: str) -> Iterator[Client]:
        """The client to serve while inside."""
        if actor.kind not in (ActorKind.USER, ActorKind.ANONYMOUS):
            yield client
            return
        watched = Watched(client)
        with self._lock:
            self._watched[watched] = f"{address}: {actor.name}"
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="watch", daemon=True)
                self._thread.start()
        try:
            yield watched
        finally:
            with self._lock:
                del self._watched[watched]

    def _run(self) -> None:
        """Who comes while this sleeps is not due before it wakes."""
        while True:
            time.sleep(self._look())

    def _look(self) -> float:
        """End what is overdue; the seconds until anything else can be."""
        now = time.monotonic()
        with self._lock:
            watched = [(each, who) for each, who in self._watched.items() if not each.ended]
        wait = min(self._idle, self._total)
        for each, who in watched:
            why = overdue(now, each.begun, each.stirred, idle=self._idle, total=self._total)
            if why is None:
                wait = min(wait, each.stirred + self._idle - now, each.begun + self._total - now)
                continue
            _log.warning("%s: ended a session: %s", who, why)
            try:
                each.hang_up(why)
            except Exception:
                _log.exception("%s: cannot be hung up on", who)
        return max(wait, 0.02)


# Logins that fail


class Slowed(Enum):
    """What a failed login makes of its address."""

    NOT = "not slowed"
    FROM_NOW = "slowed from now on"
    ALREADY = "slowed as before"


@dataclass(slots=True)
class _Failures:
    level: float = 0.0
    at: float = 0.0
    slowed: bool = False
    refusals: int = 0


class FailedLogins:
    """Counts connections that end without a proven key, by address; says how long a refusal is to take.

    An address is slowed once more than `most` have failed in WINDOW seconds, until they are forgotten (at the rate of
    `most` in WINDOW) or somebody logs in from there: people behind one address are not kept out by one of them.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most, self._clock = most, clock
        self._of: OrderedDict[str, _Failures] = OrderedDict()
        self._lock = threading.Lock()

    def failed(self, address: str) -> Slowed:
        """Count one."""
        key = network(address)
        with self._lock:
            found = self._now(key) or _Failures(at=self._clock())
            found.level = min(found.level + 1, 2.0 * self._most)  # else a flood is remembered for hours
            self._of[key] = found
            self._of.move_to_end(key)
            while len(self._of) > MOST_ADDRESSES:
                self._of.popitem(last=False)
            if found.slowed:
                return Slowed.ALREADY
            found.slowed = found.level > self._most
            return Slowed.FROM_NOW if found.slowed else Slowed.NOT

    def succeeded(self, address: str) -> None:
        with self._lock:
            self._of.pop(network(address), None)

    def delay(self, address: str) -> float:
        """Seconds to wait before this address is told the next no."""
        with self._lock:
            found = self._now(network(address))
            if found is None or not found.slowed:
                return 0.0
            found.refusals += 1
            return DELAYS[min(found.refusals, len(DELAYS)) - 1]

    def slowed(self, address: str) -> bool:
        """Whether refusals to this address wait."""
        with self._lock:
            found = self._now(network(address))
            return found is not None and found.slowed

    def _now(self, key: str) -> _Failures | None:
        """What is remembered of an address, less what is forgotten since."""
        found = self._of.get(key)
        if found is None:
            return None
        now = self._clock()
        found.level = max(0.0, found.level - (now - found.at) * self._most / WINDOW)
        found.at = now
        if not found.level:
            del self._of[key]
            return None
        return found

    def __len__(self) -> int:
        return len(self._of)


# Connections that have not logged in


class Stranger(Protocol):
    """A connection without a proven key. since: when it came. progress: how far it is with logging in."""

    @property
    def address(self) -> str: ...
    @property
    def since(self) -> float: ...
    @property
    def progress(self) -> int: ...


S = TypeVar("S", bound=Stranger)


def least_welcome(strangers: Iterable[S]) -> S:
    """Who has to leave: of the address with the most, the one that has done least for the longest time.

    A real login takes well under a second, so it is one of those that only sit there.
    """
    found = [(network(each.address), each) for each in strangers]
    crowd = Counter(of for of, _ in found)
    return min(found, key=lambda pair: (-crowd[pair[0]], pair[1].progress, pair[1].since))[1]


# Connections that have


class Visitor(Protocol):
    """A user's connection. idle_since: since when no command has run there; None: one runs."""

    @property
    def user(self) -> str: ...
    @property
    def address(self) -> str: ...
    @property
    def idle_since(self) -> float | None: ...


V = TypeVar("V", bound=Visitor)


def surplus(visitors: Iterable[V], *, per_address: int, per_user: int) -> list[V]:
    """Who has to leave where a user, or an address, has more connections than it may have commands at once: those
    that have been idle for longest. None on which a command runs: it was counted when it began."""
    most, crowd, leave = {"user": per_user, "address": per_address}, Counter[tuple[str, str]](), []
    seen = [(each.idle_since, each) for each in visitors]
    for idle_since, each in sorted(seen, key=lambda pair: -pair[0] if pair[0] is not None else float("-inf")):
        keys = [("user", each.user), ("address", network(each.address))]
        if idle_since is not None and any(crowd[key] >= most[key[0]] for key in keys):
            leave.append(each)
        else:
            crowd.update(keys)
    return leave
