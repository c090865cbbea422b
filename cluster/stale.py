"""Reads while the database is away, where the configuration says `[reads] stale = "allow"`.

A device keeps in memory what the database said last: who is who, who may what, what it holds. While the database is
there nothing is decided by it. While it is away, whoever could read a repository then can go on reading what is on
this disk, and is told of what moment it is. Nobody can push, and a device is not served: it has the database itself,
or nothing to do.

What keeps that honest:

    who may        as the database said last; where it says no, or does not know, the answer is that it is away: the
                   same words for a repository that is not there and one that may not be read
    what is shown  only refs that a version has (G2, G6): those of the marker, which is written after a commit and
                   after nothing else, of a copy that was trusted (G7). `settle` has the table

How old that is shows in the line that everybody gets who is served this way.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Event

from cluster import access
from cluster.db import Copy, Database, Recollection
from cluster.errors import ClusterError, DatabaseUnavailable, Refused
from cluster.logs import fields
from cluster.marker import Marker
from cluster.model import Actor, ActorKind, Checksum, Level, Position, Request, Snapshot
from cluster.store import Store, created

_log = logging.getLogger(__name__)

EVERY = 5.0
"""Seconds between two looks at the database, where nothing that matters is heard of meanwhile."""

SHARE = 0.02
"""Of the time, at most, that is spent looking: a look takes milliseconds, and 2 s at 100,000 repositories."""

MOMENT = 2.0
"""Seconds that a commit or the last step of a sync may take before its refs count as not committed."""


@dataclass(frozen=True, slots=True)
class _Memory:
    what: Recollection
    at: datetime
    clock: float


class Memory:
    """What the database said last. `watch` keeps it new."""

    def __init__(self, db: Database, device: str) -> None:
        self._db, self._device = db, device
        self._memory: _Memory | None = None
        self._wake = Event()

    def actor(self, fingerprint: str) -> Actor | None:
        """Whom a key proved when the database was last seen; None: nobody, or that is not known."""
        return self._memory.what.actors.get(fingerprint) if self._memory else None

    def authenticate(self, fingerprint: str) -> Actor:
        """The same, for somebody who logs in. Refused: they may have another key that is known."""
        found = self.actor(fingerprint)
        if found is None:
            since = f" (since {self._memory.at:%H:%M:%S} UTC)" if self._memory else ""
            raise Refused(
                f"the database is away; only keys that were registered before{since} are known",
                hint="try again in a moment",
            )
        return found

    def token(self, digest: bytes) -> Actor:
        """The same for a token, by what is kept of it."""
        found = self._memory.what.tokens.get(digest) if self._memory else None
        if found is None:
            raise DatabaseUnavailable(
                "the database is away, and this token was not known when it was last seen",
                hint="try again in a moment",
            )
        return found

    def look(self) -> None:
        """Remember what the database says now. DatabaseUnavailable."""
        at, clock = datetime.now(UTC), time.monotonic()
        self._memory = _Memory(self._db.recall(self._device), at, clock)

    def look_soon(self) -> None:
        """Something that matters may have changed: somebody lost a key, for example."""
        self._wake.set()

    def watch(self, stop: Event) -> None:
        """Look again and again, until `stop`."""
        while not stop.is_set():
            begun = time.monotonic()
            try:
                self.look()
            except ClusterError:
                pass  # it is away: what is remembered counts
            except Exception:
                _log.exception("could not remember what the database says")
            took = time.monotonic() - begun
            stop.wait(took / SHARE)
            self._wake.wait(EVERY)
            self._wake.clear()

    def settle(self, request: Request, store: Store, say: Callable[[str], None]) -> Snapshot | None:
        """The repository as this disk holds it, after the client was told how old that is; None: not for this client.

        | the copy, when the database was last seen       | the refs on disk now | then                            |
        |--------------------------------------------------|----------------------|---------------------------------|
        | not trusted, absent, frozen as ahead of database | any                  | refuse                          |
        | trusted                                          | not the marker's     | refuse: perhaps not committed   |
        | trusted                                          | the marker's, older  | refuse: the disk was put back   |
        | trusted                                          | the marker's         | serve                           |

        DatabaseUnavailable says why it is refused to somebody who may read it.
        """
        memory = self._memory
        copy = memory.what.copies.get(request.repository) if memory else None
        if memory is None or copy is None or not memory.what.serves or not _may_read(memory.what, request):
            return None
        repository = copy.repository
        with store.holding(repository.id, "write", MOMENT) as still:
            disk = store.checksum(repository.id) if still else None
            marker = store.marker(repository.id)
        if disk is None or marker is None or not fit(copy, marker, disk):
            raise DatabaseUnavailable(
                f"the database is away, and device {self._device} cannot tell which refs of {repository.name} count",
                hint="try another device, or again when the database is back",
            )
        behind = repository.version - marker.version
        age = round(time.monotonic() - memory.clock)
        say(f"the database is away: {_as_of(memory.at, age, behind)}")
        _log.warning(
            "served while the database is away",
            extra=fields(
                repository=repository.name, actor=request.actor.name, version=marker.version, age=age
            ),
        )
        return Snapshot(replace(repository, position=Position(marker.version, disk)), ())


def fit(copy: Copy, marker: Marker, disk: Checksum) -> bool:
    """Whether the refs on disk may be shown: the table of `Memory.settle`."""
    repository = copy.repository
    if not copy.trusted or copy.version is None or marker.version < copy.version:
        return False
    if str(disk) != marker.checksum or marker.created not in (None, created(repository)):
        return False
    if marker.version == copy.version and marker.checksum != copy.checksum:
        return False
    return repository.frozen is None or marker.version <= repository.version


def _may_read(what: Recollection, request: Request) -> bool:
    actor = request.actor
    if request.service.writes or actor.kind not in (ActorKind.USER, ActorKind.ANONYMOUS):
        return False
    if actor.kind is ActorKind.USER and what.actors.get(actor.fingerprint) != actor:
        return False
    grants = what.grants.get(None, ()) + what.grants.get(actor.name, ())
    return access.decide(grants, actor, request.repository).allows(Level.READ)


def _as_of(at: datetime, age: int, behind: int) -> str:
    when = f"this is as of {at:%Y-%m-%d %H:%M:%S} UTC, {_ago(age)} ago"
    if behind <= 0:
        return f"{when}: newer pushes may be missing"
    versions = "1 version was" if behind == 1 else f"{behind} versions were"
    return f"{when}, when {versions} not here yet: newer pushes are missing"


def _ago(seconds: int) -> str:
    if seconds < 120:
        return f"{seconds} s"
    return f"{seconds // 60} min" if seconds < 7200 else f"{seconds // 3600} h"
