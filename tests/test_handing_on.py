"""The write lock within a device: handed on to who waits there, four times in a row at the most (cluster/locks.py)."""

from __future__ import annotations

import random
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Event, Lock

import pytest

from cluster.db import Database
from cluster.errors import LockTimeout
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


class Device:
    """Who waits on it, one behind the other."""

    def __init__(self, name: str, db: Database, number: int) -> None:
        self.name, self._db, self._number = name, db, number
        self.turns = Turns()
        self.order: list[tuple[str, int]] = []

    def write(self, actor: str, *, go: Event | None = None, entered: Event | None = None) -> int:
        """Hold the lock until `go`; the PostgreSQL session that held it."""
        with write_lock(
            self.turns, self._db, self._number, device=self.name, actor=actor, timeout=60.0
        ) as held:
            holder = self._db.write_lock_holder(self._number)
            assert holder is not None and (holder.actor, holder.device) == (actor, self.name)
            assert held.seen.repository.id == self._number
            self.order.append((self.name, held.connection.info.backend_pid))
            if entered:
                entered.set()
            assert go is None or go.wait(60)
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
        until(lambda: b.waiting() == 1 and db.usage()["locks"].taken == 2, "b waits in the database")
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
