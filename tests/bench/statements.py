"""What the database is asked, statement by statement, on a database that things.py filled.

Each is asked of two databases, one with few repositories and one with many, so all name what both have: repository 5 is
`team5/app5`, pushed to ten times, with a copy that is behind; user u5 may write to it.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from uuid import UUID, uuid4

from cluster import overview, status
from cluster.db import Database
from cluster.errors import NotFound
from cluster.model import Actor, ActorKind, Checksum, Intent, Position, RefUpdate

ID, NAME, USER, DEVICE = 30, "team30/app30", "u5", "d1"
ANN = Actor(ActorKind.USER, USER, "SHA256:u5")
ACCUMULATOR = Checksum(b"\x5a" * 128)
PUSH = UUID(int=7)

Ask = Callable[[Database], object]


@dataclass(frozen=True, slots=True)
class Statement:
    """Something that is asked. when: by whom or how often. grows: why more things may cost more here; "": they may not.
    hot: part of serving somebody, so that each plan must be one of index scans."""

    name: str
    when: str
    ask: Ask
    hot: bool = False
    grows: str = ""


def _push(db: Database) -> None:
    """An intent and its commit, which are taken back."""
    moved = (RefUpdate("refs/heads/x", "0" * 40, "1" * 40),)
    intent = Intent(uuid4(), uuid4(), USER, "ssh", "", datetime.now(UTC), moved)
    base = Position(10, ACCUMULATOR)
    holder = _holder(db)
    with suppress(_Undone), db.dedicated() as connection, connection.transaction():
        db.intend(connection, ID, holder, base, intent)
        db.commit(ID, holder, base, ACCUMULATOR, intent, moved, connection=connection)
        raise _Undone


class _Undone(Exception):
    pass


def _holder(db: Database) -> str:
    return min(replica.device.name for replica in db.snapshot_of(ID).replicas)


def _absent(db: Database) -> None:
    with suppress(NotFound):
        db.snapshot("team/none", ANN)


def token(db: Database) -> object:
    return db.whose_token(sha256(b"u5").digest(), "192.0.2.1")


def _certified(db: Database) -> object:
    return db.certified(["u5"], "x", datetime.now(UTC))


def _search(text: str) -> Ask:
    return lambda db: db.search_names(text, exact=(), beginning=("",), after="", limit=51)


def _unfit_names(db: Database) -> object:
    return db.unfit_names(_down(db), search="", after="", limit=51)


def _check(db: Database) -> object:
    return status.all_healthy(db, {"devices": [], "repositories": [], "truncated": True})


HOT = (
    Statement("snapshot", "every request", lambda db: db.snapshot(NAME, ANN), hot=True),
    Statement("snapshot of one that is not there", "", _absent, hot=True),
    Statement("snapshot, by id", "every push and sync", lambda db: db.snapshot_of(ID), hot=True),
    Statement("identity", "every login with a key", lambda db: db.identity("SHA256:u5"), hot=True),
    Statement(
        "whose_token",
        "every request with a token",
        lambda db: db.whose_token(sha256(b"u5").digest(), "192.0.2.1"),
        hot=True,
    ),
    Statement("whose_web_session", "every page", lambda db: db.whose_web_session(b"0" * 32), hot=True),
    Statement("proves", "every request of a connection", lambda db: db.proves(ANN), hot=True),
    Statement(
        "certified",
        "every login with a certificate",
        lambda db: db.certified(["u5"], "x", datetime.now(UTC)),
        hot=True,
    ),
    Statement("grants_to", "every page and listing", lambda db: db.grants_to(USER), hot=True),
    Statement("intend, commit", "every push", _push, hot=True),
    Statement(
        "committed", "a push whose commit was cut off; staging", lambda db: db.committed(ID, PUSH), hot=True
    ),
    Statement("position_at", "every sync", lambda db: db.position_at(ID, 10), hot=True),
    Statement("changes", "every sync", lambda db: db.changes(ID, 9, 10), hot=True),
    Statement("entries", "every commit and sync", lambda db: db.entries(ID, 5, 10, most_refs=100), hot=True),
    Statement(
        "last_change", "a push that came too late", lambda db: db.last_change(ID, "refs/heads/main"), hot=True
    ),
    Statement("write_lock_holder", "a push that waits", lambda db: db.write_lock_holder(ID), hot=True),
)

SWEEP = (
    Statement("unfit", "every device, every 5 s", lambda db: db.unfit(DEVICE), hot=True),
    Statement("interrupted", "every device, every 5 s", lambda db: db.interrupted(DEVICE, 30.0), hot=True),
    Statement("heartbeat", "every device, every 2 s", lambda db: db.heartbeat("spare"), hot=True),
    Statement("dropped", "every device, every minute", lambda db: db.dropped(DEVICE), hot=True),
    Statement(
        "held_page",
        "every device, again and again",
        lambda db: db.held_page(DEVICE, after=0, limit=100),
        hot=True,
    ),
    Statement("held_page, far on", "", lambda db: db.held_page(DEVICE, after=_half(db), limit=100), hot=True),
    Statement(
        "held_among",
        "every device, again and again",
        lambda db: db.held_among(DEVICE, range(1, 101)),
        hot=True,
    ),
    Statement("unknown", "every device, at a start", lambda db: db.unknown(range(1, 101)), hot=True),
    Statement(
        "due_for_verification",
        "every device, before each verification",
        lambda db: db.due_for_verification(DEVICE, 6e5),
        hot=True,
    ),
    Statement("lease_webhooks", "every device, after each push", lambda db: _lease(db), hot=True),
    Statement("webhooks_due", "every device, after each push", lambda db: db.webhooks_due(), hot=True),
    Statement("number_changes", "while somebody listens", lambda db: db.number_changes(), hot=True),
    Statement("numbers", "while somebody listens", lambda db: db.numbers(), hot=True),
    Statement("feed", "while somebody listens", lambda db: db.feed(db.numbers()[0] - 40, most=50), hot=True),
    Statement("still", "while somebody listens", lambda db: db.still([5]), hot=True),
    Statement("behind, of one device", "every device, every minute", lambda db: db.behind(DEVICE), hot=True),
    Statement(
        "look_at_copies, what happened",
        "one device, every minute",
        lambda db: db.look_at_copies("d1", datetime.now(UTC) - timedelta(seconds=60), ()),
        hot=True,
    ),
    Statement("stuck", "every device, for its health", lambda db: db.stuck(DEVICE), hot=True),
    Statement("presence", "every device, for its health", lambda db: db.presence(DEVICE), hot=True),
)

LOOKS = (
    Statement("devices", "every look", lambda db: db.devices()),
    Statement("how_many", "every look", lambda db: db.how_many()),
    Statement("loads", "repo create, repo place", lambda db: db.loads()),
    Statement("unfit_groups", "status page", lambda db: db.unfit_groups(_down(db))),
    Statement(
        "unfit_names",
        "status page, what needs attention",
        lambda db: db.unfit_names(_down(db), search="", after="", limit=51),
    ),
    Statement("worst_names", "git-cluster status", lambda db: db.worst_names(_down(db), limit=1000)),
    Statement("lags", "status page", lambda db: db.lags()),
    Statement("repository_states", "metrics, API", lambda db: db.repository_states()),
    Statement("behind", "metrics", lambda db: db.behind()),
    Statement("backlog", "metrics", lambda db: db.backlog()),
    Statement("lately", "status page", lambda db: db.lately(limit=48)),
    Statement("pieces, an hour", "status page", lambda db: db.pieces(hours=1, minutes=1)),
    Statement("snapshots, first page", "git-cluster status", lambda db: db.snapshots(limit=100)),
    Statement(
        "snapshots, deep page", "git-cluster status --all", lambda db: db.snapshots(after="team7", limit=100)
    ),
    Statement("page", "listings", lambda db: db.page("", "", 100, device=None)),
    Statement("page, deep", "listings", lambda db: db.page("", "team7", 100, device=DEVICE)),
    Statement("page of a beginning", "listings", lambda db: db.page("team77/app77", "", 100, device=None)),
    Statement("called", "listings", lambda db: db.called([NAME, "team31/app31"], device=DEVICE)),
    Statement(
        "search_names, all",
        "status page",
        _search(""),
    ),
    Statement("users, a page", "API", lambda db: db.users(after="u5", limit=101)),
    Statement("log", "git-cluster log", lambda db: db.log(ID, limit=50)),
    Statement("events", "git-cluster log", lambda db: db.events(ID, limit=50)),
    Statement("copies_over_time", "status page", lambda db: db.copies_over_time(ID, limit=300)),
    Statement("glance", "status page, first look", overview.glance),
    Statement("status", "git-cluster status", lambda db: status.observe(db, "things")),
    Statement(
        "status --check",
        "",
        _check,
    ),
)

GROWS = (
    Statement(
        "search_names, a rare part",
        "status page, search",
        _search("pp77"),
        grows="every name is looked at until a page is full",
    ),
    Statement(
        "search_names, no match",
        "status page, search",
        _search("nothing"),
        grows="every name is looked at",
    ),
    Statement(
        "look_at_copies, all",
        "one device, every 10 min",
        lambda db: db.look_at_copies("d1", None, ()),
        grows="all replicas; a page at a time",
    ),
    Statement("alike", "git-cluster doctor", lambda db: db.alike(), grows="all replicas"),
    Statement("keys", "git-cluster key list", lambda db: db.keys(), grows="all keys"),
    Statement("grants", "git-cluster grant list", lambda db: db.grants(), grows="all grants"),
    Statement(
        "groups", "git-cluster group list, API", lambda db: db.groups(), grows="all groups and members"
    ),
    Statement("rules", "git-cluster rule list, API", lambda db: db.rules(), grows="all rules"),
    Statement("tokens", "git-cluster token list", lambda db: db.tokens(), grows="all tokens"),
    Statement("webhooks", "git-cluster webhook list", lambda db: db.webhooks(), grows="all webhooks"),
    Statement(
        "held", "git-cluster device drain", lambda db: db.held(DEVICE), grows="all replicas of the device"
    ),
    Statement(
        "recall",
        "reads.stale = allow, a fiftieth of the time",
        lambda db: db.recall(DEVICE),
        grows="all that the device may serve",
    ),
)


def _down(db: Database) -> list[int]:
    return [device.id for device in db.devices() if not overview.serves(device)]


def _half(db: Database) -> int:
    return db.how_many() // 2


def _lease(db: Database) -> None:
    db.lease_webhooks(DEVICE, most=4, fresh=True, seconds=0.0)
