"""Connections to PostgreSQL: made, kept, and given up when nobody answers any more.

    Dialer   makes connections, to whichever host of the URL takes writes; notices when none of them answers
    Pool     keeps a few of them; whoever takes one gets it at once, or learns at once why there is none
    Link     one connection, which knows since when it has been waiting for an answer (link.py)

How long a request can hang when packets vanish (nothing is refused, nothing is reset):

    an answer does not come    PATIENCE, then one new connection is tried for PROBE. If that gets no answer either,
                               everything that waits is cut; if it is refused, what has waited for that long. TCP's
                               own time-outs are no help where a proxy, or the kernel of a stopped server, acknowledges
    a new connection           CONNECT (link.py) for each host. Once that has passed in vain, everybody is told at
                               once, until the thread that tries on has made a connection

Connections are made by whoever needs one, not by workers in the background: so a refusal is known in a millisecond.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from threading import Condition, Event, Lock, Thread
from typing import Any, LiteralString
from weakref import WeakSet

import psycopg

from cluster.db.link import Link, hosts, reason
from cluster.errors import DatabaseUnavailable

_log = logging.getLogger(__name__)

PATIENCE = 6.0
"""Seconds without an answer after which a new connection is tried. A listener waits for 5 s at a time."""

PROBE = 5.0
"""Seconds that this try may take."""

EVERY = 1.0
"""Seconds between two looks at what hangs."""

MAX_IDLE = 120.0
"""Seconds after which a connection that nobody took is closed."""

_Timeout = psycopg.errors.ConnectionTimeout


class Dialer:
    """Makes connections to the one server that takes writes."""

    def __init__(self, url: str, application_name: str) -> None:
        self._url, self._name = url, application_name
        self._mutex = Lock()
        self._hosts: list[dict[str, Any]] = []
        self._good = 0
        self._mute: set[int] = set()
        self._links: WeakSet[Link] = WeakSet()
        self._pools: list[Pool] = []
        self._closed = Event()
        self._watching = False
        self._away: float | None = None
        self._hanging = False
        self._known = False

    def add(self, pool: Pool) -> None:
        """Have a pool's idle connections closed when they are old, and when nobody answers."""
        self._pools.append(pool)

    def connect(self) -> Link:
        """A new connection. psycopg.OperationalError; where nobody answers, that comes at once."""
        self.check()
        return self._connect()

    def _connect(self) -> Link:
        with self._mutex:
            if not self._hosts:
                self._hosts = hosts(self._url, self._name)
            if not self._watching:
                self._watching = True
                Thread(target=self._watch, name="database", daemon=True).start()
        try:
            link = self._dial()
        except psycopg.OperationalError as error:
            with self._mutex:
                self._note_failure(reason(error), hanging=isinstance(error, _Timeout))
            raise
        with self._mutex:
            if self._away:
                _log.warning("the database is back, after %.1f s", time.monotonic() - self._away)
            self._away, self._hanging, self._known = None, False, True
        return link

    def check(self) -> None:
        """psycopg.OperationalError where nobody answers; a thread of our own finds out when that changes."""
        if self._hanging:
            raise psycopg.OperationalError("the database does not answer")

    def links(self) -> list[Link]:
        """Every connection that is open."""
        with self._mutex:
            return [link for link in self._links if not link.closed]

    def close(self) -> None:
        """End the thread that watches."""
        self._closed.set()

    def _note_failure(self, why: str, *, hanging: bool) -> None:
        if not self._away and self._known:
            _log.warning("the database is away: %s", why)
        self._away = self._away or time.monotonic()
        if hanging:
            self._hanging = True
            for pool in self._pools:
                pool.reap(0)  # these would hang, too

    def _dial(self) -> Link:
        """A connection to the first host that takes writes: the one that did so last comes first, and those that gave
        no answer at all come last."""
        errors: list[psycopg.OperationalError] = []
        count = len(self._hosts)
        for index in sorted(range(count), key=lambda i: (i in self._mute, (i - self._good) % count)):
            self._mute.discard(index)
            try:
                link = self._dial_host(self._hosts[index])
            except psycopg.OperationalError as error:
                errors.append(error)
                if isinstance(error, _Timeout):
                    self._mute.add(index)
            else:
                self._good = index
                return link
        if count == 1:
            raise errors[0]
        kind = _Timeout if self._mute else psycopg.OperationalError
        raise kind("\n".join(dict.fromkeys(map(reason, errors)))) from errors[0]

    def _dial_host(self, parameters: dict[str, Any]) -> Link:
        link = Link.to(parameters)
        try:
            with self._mutex:
                self._links.add(link)
            link.set_up()
        except BaseException:
            link.close()
            raise
        return link

    # Watching

    def _watch(self) -> None:
        tries: Thread | None = None
        while not self._closed.wait(EVERY):
            for pool in self._pools:
                pool.reap(MAX_IDLE)
            now = time.monotonic()
            if self._hanging:
                self._cut(now - PATIENCE)
                if tries is None or not tries.is_alive():
                    tries = Thread(target=self._try_on, name="database again", daemon=True)
                    tries.start()
            elif self._unanswered(now - PATIENCE) and (failure := self._probe()) is not None:
                hanging = isinstance(failure, _Timeout)
                with self._mutex:
                    self._note_failure(reason(failure), hanging=hanging)
                    if hanging:
                        self._mute.add(self._good)
                self._cut(time.monotonic() if hanging else now - PATIENCE)

    def _unanswered(self, before: float) -> list[Link]:
        """Connections that have been waiting for an answer since before that moment."""
        waiting = [(link, link.unanswered_since) for link in self.links()]
        return [link for link, since in waiting if since is not None and since < before]

    def _cut(self, before: float) -> None:
        for link in self._unanswered(before):
            link.cut()

    def _try_on(self) -> None:
        with suppress(psycopg.Error):
            self._pools[0].keep(self._connect())

    def _probe(self) -> psycopg.Error | None:
        """Whether a new connection is answered within PROBE seconds; else why not."""
        failures: list[psycopg.Error] = []
        done = Event()

        def ask() -> None:
            try:
                with self._dial_host(self._hosts[self._good]) as link:
                    link.execute("select 1", prepare=False)
            except psycopg.Error as error:
                failures.append(error)
            done.set()

        Thread(target=ask, name="database probe", daemon=True).start()
        if not done.wait(PROBE):
            return _Timeout("it does not answer")
        return failures[0] if failures else None


@dataclass(frozen=True, slots=True)
class Usage:
    """A pool now: connections that it may have, that are taken, that lie ready; and how often somebody had to wait for
    one to be given back."""

    most: int
    taken: int
    idle: int
    waits: int


class Pool:
    """Connections for one kind of use: at most `most`, of which the one given back last is taken first.

    patience: seconds to wait for one of them to be given back. parting: what PostgreSQL is told of one that is given
    back; nobody waits until it has done so but who takes that connection next.
    """

    def __init__(
        self,
        dialer: Dialer,
        most: int,
        *,
        patience: float,
        parting: LiteralString | None = None,
    ) -> None:
        self._dialer, self._most, self._patience, self._parting = dialer, most, patience, parting
        self._change = Condition()
        self._idle: deque[tuple[float, Link]] = deque()
        self._taken = self._waits = 0
        self._closed = False
        dialer.add(self)

    @contextmanager
    def connection(self) -> Iterator[Link]:
        """A connection that stands, for as long as the block lasts. psycopg.OperationalError, DatabaseUnavailable."""
        link = self.take()
        try:
            yield link
        except psycopg.errors.ReadOnlySqlTransaction:
            link.close()
            raise
        finally:
            self.give(link)

    def take(self) -> Link:
        """A connection that stands; `give` it back. psycopg.OperationalError, DatabaseUnavailable."""
        with self._change:
            self._waits += self._taken >= self._most
            if not self._change.wait_for(lambda: self._taken < self._most, self._patience):
                raise DatabaseUnavailable(
                    f"all {self._most} database connections of this device that may do this are in use",
                    hint="try again in a moment",
                )
            self._taken += 1
        try:
            self._dialer.check()
            while link := self._pop():
                if link.stands:
                    return link
                link.close()
            return self._dialer.connect()
        except BaseException:
            self._freed()
            raise

    def give(self, link: Link) -> None:
        """Give a connection back. One that is broken, or left in a transaction, is closed."""
        try:
            if link.info.transaction_status == psycopg.pq.TransactionStatus.IDLE and link.takes_writes:
                with suppress(psycopg.Error):
                    if self._parting is not None:
                        link.part_with(self._parting)
                    self.keep(link)
                    return
            link.close()
        finally:
            self._freed()

    def keep(self, link: Link) -> None:
        """Have a connection that nobody uses lie ready."""
        with self._change:
            if not self._closed:
                self._idle.append((time.monotonic(), link))
                return
        link.close()

    def reap(self, older_than: float) -> None:
        """Close what has been idle for more than so many seconds."""
        oldest = time.monotonic() - older_than
        old: list[Link] = []
        with self._change:
            while self._idle and self._idle[0][0] <= oldest:
                old.append(self._idle.popleft()[1])
        for link in old:
            link.close()

    def usage(self) -> Usage:
        with self._change:
            return Usage(self._most, self._taken, len(self._idle), self._waits)

    def close(self) -> None:
        """Close what is idle now, and the others when they are given back."""
        with self._change:
            self._closed = True
        self.reap(0)

    def _pop(self) -> Link | None:
        with self._change:
            return self._idle.pop()[1] if self._idle else None

    def _freed(self) -> None:
        with self._change:
            self._taken -= 1
            self._change.notify()
