"""The write lock within a device: handed on to who waits there, four times in a row at the most (cluster/locks.py)."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

import pytest

from cluster.db import Database, lock_label
from cluster.errors import ClientGone, LockTimeout
from cluster.locks import IN_A_ROW, Turns, write_lock
from cluster.versions import checksum_of
from tests.ssh_fixture import until


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url).open(any_schema=True) as db:
        db.init("test")
        yield db


@pytest.fixture
def number(db: Database) -> int:
    return db.create_repository(
        "app",
        checksum=checksum_of({"HEAD": "ref: refs/heads/main"}),
        head="ref: refs/heads/main",
        object_format="sha1",
        min_copies=1,
        devices=[],
        actor="test",
    )


def queued(db: Database) -> int:
    """How many wait in PostgreSQL's queue."""
    (row,) = db._read(
        """select count(*) as waiting from pg_locks where locktype = 'advisory' and not granted
              and database = (select oid from pg_database where datname = current_database())"""
    )
    return int(row["waiting"])


class Device:
    """Who waits on it, one behind the other."""

    def __init__(self, name: str, db: Database, number: int) -> None:
        self.name, self._db, self._number = name, db, number
        self.turns = Turns()
        self.order: list[tuple[str, int]] = []

    def write(
        self,
        actor: str,
        *,
        go: Event | None = None,
        entered: Event | None = None,
        gone: Callable[[], bool] = lambda: False,
        syncs: bool = False,
    ) -> int:
        """Hold the lock until `go`; the PostgreSQL session that held it. syncs: what lasted so long was a sync."""
        with write_lock(
            self.turns, self._db, self._number, device=self.name, actor=actor, timeout=60.0, gone=gone
        ) as held:
            holder = self._db.write_lock_holder(self._number)
            assert holder is not None and (holder.actor, holder.device) == (actor, self.name)
            assert held.seen.repository.id == self._number
            self.order.append((self.name, held.connection.info.backend_pid))
            if entered:
                entered.set()
            assert go is None or go.wait(60)
            if syncs:
                held.caught_up()
            return held.connection.info.backend_pid

    def waiting(self) -> int:
        return len(self.turns._queues.get(self._number, ()))


def test_it_goes_to_the_same_device_four_times_then_to_who_waits_elsewhere(db: Database, number: int) -> None:
    a, b = Device("a", db, number), Device("b", db, number)
    b.order = a.order
    go, entered = Event(), Event()
    with ThreadPoolExecutor(20) as pool:
        writes = [pool.submit(a.write, "first", go=go, entered=entered)]
        assert entered.wait(30)
        writes.append(pool.submit(b.write, "elsewhere"))
        until(lambda: queued(db) == 1, "b waits in the database")
        for each in range(6):
            writes.append(pool.submit(a.write, f"more{each}"))
            until(lambda each=each: a.waiting() == each + 2, "it waits")  # type: ignore[misc]
        go.set()
        for write in writes:
            write.result(60)
    assert [device for device, _ in a.order] == ["a"] * IN_A_ROW + ["b"] + ["a"] * 3
    assert len({session for _, session in a.order[:IN_A_ROW]}) == 1
    until(lambda: db.write_lock_holder(number) is None, "the lock is free")
    assert db.usage()["locks"].taken == 0


@pytest.mark.parametrize(("syncs", "order"), [(False, "aba"), (True, "aab")], ids=["a hook", "a sync"])
def test_after_a_write_that_took_long_it_goes_to_who_waits_elsewhere(
    db: Database, number: int, monkeypatch: pytest.MonkeyPatch, *, syncs: bool, order: str
) -> None:
    """Four pushes with slow hooks could take longer than others wait. A sync that took long serves several."""
    monkeypatch.setattr("cluster.locks.AT_MOST", 2.0)
    a, b = Device("a", db, number), Device("b", db, number)
    b.order = a.order
    go, entered = Event(), Event()
    with ThreadPoolExecutor(3) as pool:
        writes = [pool.submit(a.write, "first", go=go, entered=entered, syncs=syncs)]
        assert entered.wait(30)
        begun = time.monotonic()
        writes.append(pool.submit(b.write, "elsewhere"))
        until(lambda: queued(db) == 1, "b waits in the database")
        writes.append(pool.submit(a.write, "second"))
        until(lambda: a.waiting() == 2, "it waits")
        until(lambda: time.monotonic() > begun + 2.0, "that is AT_MOST")
        go.set()
        for write in writes:
            write.result(60)
    assert "".join(device for device, _ in a.order) == order


def test_a_lock_that_was_lost_is_taken_anew_by_the_next_one(db: Database, number: int) -> None:
    a = Device("a", db, number)
    go, entered = Event(), Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(a.write, "first", go=go, entered=entered)
        assert entered.wait(30)
        second = pool.submit(a.write, "second")
        until(lambda: a.waiting() == 2, "it waits")
        assert db.end_session(a.order[0][1])
        go.set()
        assert first.result(60) != second.result(60)
    until(lambda: db.write_lock_holder(number) is None, "the lock is free")


class Client:
    """Somebody who waits: how often it was looked whether they are still there."""

    def __init__(self) -> None:
        self.looks, self.left = 0, False

    def gone(self) -> bool:
        self.looks += 1
        return self.left


def test_who_looks_around_keeps_their_place(
    db: Database, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever waited for longer than a second used to go back to the end of the queue, again and again."""
    monkeypatch.setattr("cluster.locks.SLICE", 0.02)
    monkeypatch.setattr("cluster.locks.LATER", 0.02)
    a, b, c = (Device(name, db, number) for name in "abc")
    b.order = c.order = a.order
    go, entered, early = Event(), Event(), Client()
    with ThreadPoolExecutor(3) as pool:
        writes = [pool.submit(a.write, "first", go=go, entered=entered)]
        assert entered.wait(30)
        writes.append(pool.submit(b.write, "early", gone=early.gone))
        until(lambda: early.looks > 3, "b looks around")
        writes.append(pool.submit(c.write, "late"))
        until(lambda: queued(db) == 2, "c waits, too")
        looks = early.looks
        until(lambda: early.looks > looks + 3, "b looks around")
        go.set()
        for write in writes:
            write.result(60)
    assert [device for device, _ in a.order] == ["a", "b", "c"]


def test_who_hangs_up_leaves_the_queue(db: Database, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cluster.locks.SLICE", 0.02)
    a, b, c = (Device(name, db, number) for name in "abc")
    c.order = a.order
    go, entered, early = Event(), Event(), Client()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(a.write, "first", go=go, entered=entered)
        assert entered.wait(30)
        early.left = True
        with pytest.raises(ClientGone):
            pool.submit(b.write, "early", gone=early.gone).result(60)
        assert db.usage()["locks"].taken == 1
        late = pool.submit(c.write, "late")
        until(lambda: queued(db) == 1, "c waits")
        go.set()
        first.result(60)
        late.result(60)
    assert [device for device, _ in a.order] == ["a", "c"]
    until(lambda: db.write_lock_holder(number) is None, "the lock is free")


def test_who_hung_up_before_their_turn_does_not_write(db: Database, number: int) -> None:
    """Whether that was noticed while they waited, or not."""
    a, early = Device("a", db, number), Client()
    go, entered = Event(), Event()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(a.write, "first", go=go, entered=entered)
        assert entered.wait(30)
        left = pool.submit(a.write, "left", gone=early.gone)
        until(lambda: a.waiting() == 2, "it waits")
        last = pool.submit(a.write, "last")
        until(lambda: a.waiting() == 3, "it waits")
        early.left = True
        go.set()
        with pytest.raises(ClientGone):
            left.result(60)
        assert first.result(60) == last.result(60), "the lock went on to who is still there"
    until(lambda: db.write_lock_holder(number) is None, "the lock is free")


def test_who_gives_up_keeps_nobody_from_it(db: Database, number: int) -> None:
    """Even where it comes to them in the very moment in which they do."""
    turns, chance, mutex = Turns(), random.Random(5), Lock()
    inside, got, late = 0, 0, 0

    def one(timeout: float) -> None:
        nonlocal inside, got, late
        try:
            with write_lock(turns, db, number, device="a", actor="x", timeout=timeout):
                with mutex:
                    inside += 1
                    got += 1
                assert inside == 1
                with mutex:
                    inside -= 1
        except LockTimeout:
            late += 1

    with ThreadPoolExecutor(16) as pool:
        for done in [pool.submit(one, chance.choice((0.001, 0.01, 0.02, 60.0))) for _ in range(400)]:
            done.result(120)
    assert got and late and got + late == 400
    assert not turns._queues
    until(lambda: db.write_lock_holder(number) is None, "the lock is free")
    assert db.usage()["locks"].taken == 0


def test_it_is_given_back_without_an_answer_being_waited_for(db: Database, number: int) -> None:
    for turn in range(20):
        with db.dedicated() as connection:
            seen = db.try_write_lock(connection, number, lock_label("a", f"user{turn}"))
            assert seen is not None and seen.repository.id == number
            holder = db.write_lock_holder(number)
            assert holder is not None and holder.actor == f"user{turn}"
    with db.dedicated() as first:  # the one that was given back is taken again, its answer and all
        assert first.execute("select 1 as one").fetchone() == {"one": 1}
        with db.dedicated() as second:
            assert db.try_write_lock(first, number, lock_label("a", "anna")) is not None
            assert db.try_write_lock(second, number, lock_label("b", "bob")) is None
            assert db.wait_write_lock(second, number, 0.2) is None
    until(lambda: db.write_lock_holder(number) is None, "the lock is free")
    assert db.usage()["locks"].taken == 0
