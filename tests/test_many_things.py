"""What follows from another row follows at once, and what is shown or gone through is bounded (docs/scale.md)."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from uuid import uuid4

import psycopg
import pytest

from cluster import creating, rounds, status
from cluster.db import Database
from cluster.keeper import AHEAD, Keeper
from cluster.model import Checksum, Intent, Position, RefUpdate
from tests.bench import things
from tests.cluster_fixture import Cluster
from tests.conftest import new_database
from tests.upkeep_fixture import node

ONE = RefUpdate("refs/heads/main", "0" * 40, "1" * 40)
START = Checksum(b"\0" * 128)


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url).open(any_schema=True) as db:
        db.init("test")
        with psycopg.connect(database_url, autocommit=True) as connection:
            connection.execute(
                """insert into device (name, ssh_url, host_key, last_seen_at)
                   select name, 's', 'k', now() + interval '1 hour' from unnest(array['a', 'b', 'c']) name"""
            )
        yield db


def create(db: Database, name: str, devices: str = "ab") -> int:
    return db.create_repository(
        name,
        checksum=START,
        head="ref: refs/heads/main",
        object_format="sha1",
        min_copies=1,
        devices=list(devices),
        actor="ann",
    )


def push(db: Database, id: int, device: str, base: int) -> None:
    intent = Intent(uuid4(), uuid4(), "ann", "ssh", "", datetime.now(UTC), (ONE,))
    with db.dedicated() as connection:
        db.intend(connection, id, device, Position(base, START), intent)
        db.commit(id, device, Position(base, START), START, intent, (ONE,), connection=connection)


def held(db: Database, id: int) -> dict[str, tuple[int | None, int, bool]]:
    """Of each replica: its version, the newest one as its row has it, whether it is unfit."""
    with psycopg.connect(db.url) as connection:
        rows = connection.execute(
            """select d.name, r.version, r.newest, r.unfit from replica r join device d on d.id = r.device_id
                where r.repository_id = %s""",
            (id,),
        ).fetchall()
    return {name: (version, newest, unfit) for name, version, newest, unfit in rows}


def test_a_commit_makes_the_other_replicas_behind(db: Database) -> None:
    id = create(db, "app")
    assert held(db, id) == {"a": (None, 0, True), "b": (None, 0, True)}
    for device in "ab":
        db.synced(id, device, None, Position(0, START))
    assert held(db, id) == {"a": (0, 0, False), "b": (0, 0, False)}
    assert db.unfit("b") == [] and db.repository_states()["healthy"] == 1
    push(db, id, "a", 0)
    assert held(db, id) == {"a": (1, 1, False), "b": (0, 1, True)}
    assert db.unfit("a") == [] and db.unfit("b") == [id]
    assert [each.count for each in db.behind()] == [0, 1, 0]
    db.synced(id, "b", Position(0, START), Position(1, START))
    assert db.unfit("b") == [] and db.repository_states()["healthy"] == 1


def test_a_replica_that_is_placed_while_a_push_is_committed_begins_behind_it(db: Database) -> None:
    """It waits for that commit: with the version before it, nothing would find it once it had synced to that."""
    id = create(db, "app")
    for device in "ab":
        db.synced(id, device, None, Position(0, START))
    intent = Intent(uuid4(), uuid4(), "ann", "ssh", "", datetime.now(UTC), (ONE,))
    with db.dedicated() as connection:
        db.intend(connection, id, "a", Position(0, START), intent)
        with connection.transaction():
            db.commit(id, "a", Position(0, START), START, intent, (ONE,), connection=connection)
            placing = threading.Thread(target=db.place, args=(id, "c"))
            placing.start()
            with psycopg.connect(db.url, autocommit=True) as watch:
                until = time.monotonic() + 20
                while not watch.execute("select from pg_locks where not granted").fetchall():
                    assert placing.is_alive() and time.monotonic() < until, "it does not wait"
        placing.join(20)
    assert held(db, id)["c"] == (None, 1, True)


def test_what_is_there_is_counted(db: Database) -> None:
    first, second = create(db, "first"), create(db, "second", "bc")
    assert db.how_many() == 2 and db.loads() == {"a": 1, "b": 2, "c": 1}
    db.place(first, "c")
    db.rename_repository("first", "other")
    assert db.how_many() == 2 and db.loads() == {"a": 1, "b": 2, "c": 2}
    for device in "abc":
        db.synced(first, device, None, Position(0, START))
    db.unplace(first, "a")
    assert db.loads() == {"a": 0, "b": 2, "c": 2}
    db.delete_repository("second")
    assert db.how_many() == 1 and db.loads() == {"a": 0, "b": 1, "c": 1}
    assert db.dropped("b") == [second]
    for device in "bc":
        db.forget_replica(second, device)
    assert db.how_many() == 1 and db.loads() == {"a": 0, "b": 1, "c": 1}
    with psycopg.connect(db.url, autocommit=True) as connection:
        connection.execute("delete from repository")
    assert db.how_many() == 0 and db.loads() == {"a": 0, "b": 0, "c": 0}


def test_counts_hold_where_many_create_at_once(db: Database) -> None:
    def work(number: int) -> None:
        for count in range(10):
            create(db, f"app{number}-{count}", "abc")
            if count % 2:
                db.delete_repository(f"app{number}-{count}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert db.how_many() == 30 and set(db.loads().values()) == {30}


def test_a_webhook_is_due_after_a_push(db: Database) -> None:
    id = create(db, "app")
    for device in "ab":
        db.synced(id, device, None, Position(0, START))
    number = db.add_webhook("app", "https://example.org/", "s", created_by="ann")
    assert db.lease_webhooks("a", most=5, fresh=True, seconds=0) == []
    push(db, id, "a", 0)
    assert db.backlog().versions == 1
    (lease,) = db.lease_webhooks("a", most=5, fresh=True, seconds=10)
    assert lease.id == number
    db.webhook_delivered(lease, "a", 200)
    assert db.backlog().webhooks == 0


# ------------------------------------------------------------------------------------------------------ status

MANY = 2500


@pytest.fixture(scope="module")
def many(postgres: str) -> Iterator[Database]:
    with new_database(postgres) as url:
        things.filled(url, MANY)
        with Database(url).open() as db:
            yield db


Admin = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def admin(many: Database, tmp_path: Path) -> Admin:
    config = tmp_path / "config.toml"
    config.write_text(f'[cluster]\ndatabase = "{many.url}"\nname = "example"\n')

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "cluster", "--config", str(config), *arguments],
            capture_output=True,
            text=True,
        )

    return run


def test_of_many_repositories_status_shows_the_worst_first(many: Database) -> None:
    document = status.observe(many, "example")
    shown = document["repositories"]
    assert document["repositories_total"] == MANY and document["truncated"] is True
    assert len(shown) == status.MOST == len({entry["name"] for entry in shown})
    states = [entry["state"] for entry in shown]
    assert states == sorted(states, key=status.WORST_FIRST.index)
    assert len([state for state in states if state != "healthy"]) == things.TROUBLED
    healthy = [entry["name"] for entry in shown if entry["state"] == "healthy"]
    assert healthy == sorted(healthy)


def test_status_says_how_many_more_there_are(admin: Admin, many: Database) -> None:
    assert (
        f"and {MANY - status.MOST:,} more repositories: `git-cluster status REPO`" in admin("status").stdout
    )
    assert len(json.loads(admin("status", "--json").stdout)["repositories"]) == status.MOST
    everything = json.loads(admin("status", "--all", "--json").stdout)
    assert set(everything) == {"cluster", "devices", "repositories"}
    names = [entry["name"] for entry in everything["repositories"]]
    assert len(names) == MANY and names == sorted(names)
    assert admin("status", "--all").stdout.count("current on") >= MANY - things.TROUBLED
    for wrong in (["--all", "--watch"], ["--all", "team5/app5"]):
        assert admin("status", *wrong).returncode == 2


def test_check_is_about_all_of_them(admin: Admin, many: Database) -> None:
    """The one that is not healthy is none of those that are shown first by name."""
    with psycopg.connect(many.url, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(
            """update replica set version = newest, quarantined = null, distrust = null, damage = null,
                      intent_token = null, intent_push = null, intent_actor = null, intent_via = null,
                      intent_address = null, intent_at = null, intent_refs = null where unfit"""
        )
        connection.execute("update repository set frozen = null, frozen_at = null where frozen is not null")
        connection.execute("update device set last_seen_at = now() + interval '1 day'")
    assert admin("status", "--check").returncode == 0
    assert admin("status", "--all", "--check").returncode == 0
    (last,) = status.observe(many, "x")["repositories"][-1:]
    beyond = next(s for s in many.snapshots(after=last["name"], limit=5))
    many.freeze(beyond.repository.id, "for a test")
    assert admin("status", "--check").returncode == 1
    assert admin("status", "--all", "--check").returncode == 1
    many.freeze(beyond.repository.id, None)
    with psycopg.connect(many.url, autocommit=True) as connection:
        connection.execute("set session_replication_role = replica")
        connection.execute(
            "update replica set quarantined = 'x', distrust = 'damaged' where repository_id = 2000"
        )
    assert admin("status", "--check").returncode == 1


# ------------------------------------------------------------------------------------------------------ rounds


def test_a_round_meets_every_replica_once(many: Database) -> None:
    pages = list(rounds.pages(many, "d1"))
    assert all(len(page) <= rounds.PAGE for page in pages)
    ids = [held.repository_id for page in pages for held in page]
    assert ids == sorted(many.held("d1")) and len(ids) == len(set(ids))


def test_a_round_ends_when_the_device_stops(many: Database) -> None:
    stop = threading.Event()
    going = rounds.paced(many, "d1", stop, rest=0.0)
    next(going)
    stop.set()
    assert list(going) == []


def test_a_start_looks_at_every_replica_and_queues_few(make_cluster: Callable[..., Cluster]) -> None:
    """What is behind comes first: it is never queued behind replicas that are only to be looked at."""
    cluster = make_cluster("a", start="")
    count = 60
    for number in range(count):
        creating.create(
            cluster.db,
            f"app{number:02}",
            devices=["a"],
            copies=None,
            min_copies=None,
            head="refs/heads/main",
            object_format="sha1",
            actor="ann",
        )
    subject = node(cluster, "a")
    stop = threading.Event()
    keeper = Keeper(subject, stop)
    most = 0
    keeper._everything.set()
    keeper._threads[2].start()
    try:
        until = time.monotonic() + 60
        while len(subject.store.copies()) < count:
            most = max(most, len(keeper._pending))
            assert time.monotonic() < until
        assert 0 < most <= AHEAD
    finally:
        stop.set()
        keeper._threads[2].join()
        keeper._workers.shutdown()
