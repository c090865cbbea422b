"""The numbers of changes: whoever reads them in order misses none, whatever the clocks and the commits do."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg
import pytest

from cluster.db import Database
from cluster.db import feed as feeding

ZEROS = b"\0" * 128


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url).open(any_schema=True) as db:
        db.init("feed")
        yield db


def create(db: Database, name: str) -> int:
    with psycopg.connect(db.url) as connection:
        row = connection.execute(
            "insert into repository (name, checksum, min_copies) values (%s, %s, 1) returning id",
            (name, ZEROS),
        ).fetchone()
        assert row
        connection.execute(_PUSH, (row[0], 0, ZEROS, "create", 0))
        return int(row[0])


_PUSH = """insert into push (repository_id, version, checksum, push_id, actor, device, via, at)
           values (%s, %s, %s, gen_random_uuid(), 'ann', 'a', %s, now() + make_interval(secs => %s))"""


def push(db: Database, repository: int, version: int, *, clock: float = 0) -> None:
    with psycopg.connect(db.url) as connection:
        connection.execute(_PUSH, (repository, version, ZEROS, "ssh", clock))


def told(db: Database, after: int = 0) -> list[tuple[str, int]]:
    return [(change.repository, change.entry.version) for change in db.feed(after, most=100_000)]


def test_a_version_never_comes_before_an_earlier_one(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's clock went back by a minute with each commit, and few are numbered at once."""
    monkeypatch.setattr(feeding, "CHUNK", 3)
    app, lib = create(db, "app"), create(db, "lib")
    for version in range(1, 11):
        push(db, app, version, clock=-60.0 * version)
        push(db, lib, version, clock=-61.0 * version)
    while db.number_changes():
        pass
    found = told(db)
    for name in ("app", "lib"):
        assert [version for each, version in found if each == name] == list(range(1, 11))
    newest, given = db.numbers()
    assert newest == given == 22


def test_in_the_order_of_the_commits(db: Database) -> None:
    app, lib = create(db, "app"), create(db, "lib")
    push(db, app, 1, clock=1)
    push(db, lib, 1, clock=2)
    push(db, app, 2, clock=3)
    assert db.number_changes() == 5
    assert told(db) == [("app", 1), ("lib", 1), ("app", 2)]
    assert db.number_changes() == 0


def test_who_follows_while_many_commit_and_many_number_misses_nothing(db: Database) -> None:
    names = [f"r{number}" for number in range(4)]
    ids = [create(db, name) for name in names]
    seen: list[tuple[int, str, int]] = []
    done = threading.Event()

    def write(repository: int) -> None:
        with psycopg.connect(db.url) as connection:
            for version in range(1, 60):
                connection.execute(_PUSH, (repository, version, ZEROS, "ssh", 0))
                connection.execute("select pg_sleep(random() / 200)")
                connection.commit()

    def number() -> None:
        while not done.is_set():
            db.number_changes()

    writers = [threading.Thread(target=write, args=(id,)) for id in ids]
    numberers = [threading.Thread(target=number) for _ in range(2)]
    for thread in writers + numberers:
        thread.start()
    position = 0
    while len(seen) < 4 * 59:
        assert any(thread.is_alive() for thread in writers + numberers)
        for change in db.feed(position, most=7):
            position = change.number
            seen.append((change.number, change.repository, change.entry.version))
    done.set()
    for thread in writers + numberers:
        thread.join()
    assert [number for number, _, _ in seen] == sorted({number for number, _, _ in seen})
    for name in names:
        assert [version for _, each, version in seen if each == name] == list(range(1, 60))


def test_numbers_that_were_told_are_not_given_again(db: Database) -> None:
    """The database came back older: what it had lost may come again, and has a new number."""
    app = create(db, "app")
    push(db, app, 1)
    db.number_changes()
    assert db.numbers() == (2, 2)
    push(db, app, 2)
    db.number_changes(known=500)
    assert [change.number for change in db.feed(500, most=10)] == [501]
    db.number_changes(known=400)
    push(db, app, 3)
    db.number_changes()
    assert [change.number for change in db.feed(501, most=10)] == [502]


def test_deleted_repositories_are_not_told(db: Database) -> None:
    app, lib = create(db, "app"), create(db, "lib")
    push(db, app, 1)
    push(db, lib, 1)
    db.number_changes()
    db.delete_repository("app")
    assert told(db) == [("lib", 1)]
    assert db.feed_of(app, 1) is None


def test_a_long_log_is_numbered_in_pieces(db: Database) -> None:
    app = create(db, "app")
    with psycopg.connect(db.url) as connection:
        connection.execute(
            """insert into push (repository_id, version, checksum, push_id, actor, device, via, at)
               select %s, n, %s, gen_random_uuid(), 'ann', 'a', 'ssh', now() from generate_series(1, 12000) n""",
            (app, ZEROS),
        )
    assert db.number_changes() >= feeding.CHUNK
    while db.number_changes():
        pass
    assert [version for _, version in told(db)] == list(range(1, 12001))
