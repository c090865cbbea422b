"""What the charts are drawn from: a row for each device and minute, and the copies that repositories had.

The statements are held against what the status document says of the same rows.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from threading import Event
from typing import Any

import psycopg
import pytest

from cluster import status
from cluster.db import Database, Minute
from cluster.db.measurements import MOST_COPIES
from cluster.recorder import MINUTE, Recorder
from cluster.tally import Tally
from tests.cluster_fixture import Cluster, Project
from tests.ssh_fixture import until

FILL = """
insert into device (name, ssh_url, host_key, last_seen_at, mode, stopped) values
    ('a', 'ssh://a', 'k', now() + interval '1 hour', 'enabled', false),
    ('b', 'ssh://b', 'k', now() + interval '1 hour', 'draining', false),
    ('c', 'ssh://c', 'k', now() - interval '1 hour', 'enabled', false),
    ('d', 'ssh://d', 'k', now() + interval '1 hour', 'disabled', false),
    ('e', 'ssh://e', 'k', now() + interval '1 hour', 'enabled', true);
insert into key (fingerprint, public_key, device_id) select 'SHA256:' || name, 'k', id from device;
-- Every combination: of a version, why it is frozen, min_copies, and two replicas in each of their states.
create temporary table shape as
    select row_number() over () as id, v, f, m, d1, s1, d2, s2
      from (values (0), (3)) version (v), (values (null), ('why')) frozen (f), (values (1), (2)) least (m),
           (values ('a'), ('c'), ('d')) one (d1), (values ('b'), ('e'), (null)) two (d2),
           (values ('now'), ('old'), ('none'), ('bad'), ('damaged'), ('intent'), ('ahead')) state1 (s1),
           (values ('now'), ('old'), ('none'), ('bad'), ('damaged'), ('ahead')) state2 (s2);
insert into repository (name, checksum, min_copies, version, frozen, frozen_at)
    select 'r' || id, decode(repeat('00', 128), 'hex'), m, v, f, case when f is not null then now() end
      from shape order by id;
insert into push (repository_id, version, checksum, push_id, actor, device, via, at)
    select id, v, checksum, gen_random_uuid(), 'x', 'a', 'ssh', now() - make_interval(hours => 4 - v)
      from repository, generate_series(0, 3) v where v <= version;
insert into replica (repository_id, device_id, version, checksum, quarantined, distrust, damage, marker_version,
                     marker_checksum, intent_token, intent_push, intent_actor, intent_via, intent_address, intent_at,
                     intent_refs)
    select s.id, d.id, x.version, case when x.version is not null then decode(repeat('00', 128), 'hex') end,
           case when each.state = 'bad' then 'bad' end, case when each.state = 'bad' then 'damaged' end::distrust,
           case when each.state = 'damaged' then 'broken' end,
           case when each.state = 'ahead' then 9 end, case when each.state = 'ahead' then 'x' end,
           i.token, i.token, i.name, i.name, i.name, i.at, i.refs
      from shape s
      join lateral (values (d1, s1), (d2, s2)) each (device, state) on each.device is not null
      join device d on d.name = each.device
      left join lateral (select case each.state when 'none' then null when 'old' then greatest(v - 1, 0)
                                else v end as version) x on true
      left join lateral (select gen_random_uuid() as token, 'x' as name, now() - interval '1 hour' as at,
                                '[]'::jsonb as refs where each.state = 'intent' and x.version is not null) i on true;
"""


@pytest.fixture
def db(database_url: str) -> Iterator[Database]:
    with Database(database_url).open(any_schema=True) as db:
        db.init("test")
        yield db


def sql(db: Database, query: str, *values: object) -> list[tuple[Any, ...]]:
    with psycopg.connect(db.url, autocommit=True) as connection:
        cursor = connection.execute(query, values)
        return cursor.fetchall() if cursor.description else []


def test_states_are_those_of_the_status_document(db: Database) -> None:
    sql(db, FILL)
    entries = list(status.every_entry(db))
    expected = Counter(entry["state"] for entry in entries)
    assert set(expected) == {"healthy", "degraded", "frozen", "unavailable"} and sum(expected.values()) > 2000
    assert db.repository_states() == dict(expected)
    down = [device.id for device in db.devices() if device.state not in ("online", "draining")]
    worst = db.worst_names(down, limit=5000)
    states = {entry["name"]: entry["state"] for entry in entries}
    found_there = [state for name in worst if (state := states[name]) != "healthy"]
    assert Counter(found_there) == {state: count for state, count in expected.items() if state != "healthy"}
    assert found_there == sorted(found_there, key=status.WORST_FIRST.index), "what needs attention first"
    behind = Counter(
        replica["device"]
        for entry in entries
        for replica in entry["replicas"]
        if replica["version"] != entry["version"]
    )
    found = {each.device: each for each in db.behind()}
    assert {name: each.count for name, each in found.items() if each.count} == dict(behind)
    lag = found["a"].lag
    assert lag is not None and 3500 < lag < 3800, "version 3 is an hour old"
    assert [each.device for each in db.behind("a")] == ["a"]


def test_an_intent_whose_lock_is_held_is_a_push_at_work(db: Database) -> None:
    sql(db, FILL)
    before = db.repository_states()
    (number,) = sql(
        db,
        """select r.repository_id from replica r join repository p on p.id = r.repository_id
            where intent_token is not null and p.frozen is null limit 1""",
    )[0]
    with db.dedicated() as connection:
        assert db.try_write_lock(connection, number, "git-cluster write a x")
        assert db.repository_states()["frozen"] == before["frozen"] - 1
    until(lambda: db.repository_states() == before, "the lock is given back")


# ------------------------------------------------------------------------------------------------- minutes


def device(db: Database, *names: str) -> None:
    for name in names:
        sql(
            db,
            """insert into device (name, ssh_url, host_key, last_seen_at)
               values (%s, 's', 'k', now() + interval '1 hour')""",
            name,
        )


def minutes(db: Database) -> list[tuple[Any, ...]]:
    return sql(
        db, "select extract(epoch from at)::bigint, pushes, reads, failures from measurement order by 1"
    )


def test_one_row_for_each_minute_whoever_races(db: Database) -> None:
    device(db, "a")
    at = int(time.time()) // MINUTE * MINUTE
    rows = [Minute(at - MINUTE, 5, 6, 7, push_p50=0.1), Minute(at, 1, 2, 3)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(4):
            pool.submit(db.add_minutes, "a", rows)
    db.add_minutes("a", [Minute(at, 3, 1, 3)])
    assert minutes(db) == [(at - MINUTE, 5, 6, 7), (at, 3, 2, 3)]
    db.add_minutes("a", [])
    db.add_minutes("gone", rows)
    assert len(minutes(db)) == 2


def test_what_is_too_old_is_dropped(db: Database) -> None:
    device(db, "a", "b")
    now = int(time.time()) // MINUTE * MINUTE
    old = now - 9 * 86400
    for name in "ab":
        db.add_minutes(name, [Minute(old, 1), Minute(now, 1)])
    db.forget_minutes("a")
    assert [at for at, *_ in minutes(db)] == [old, now, now]


def test_pieces(db: Database) -> None:
    """Of several minutes: sums, the mean of p50 by how much was done, the worst of p99 and lag."""
    device(db, "a", "b")
    hour = int(time.time()) // 3600 * 3600
    db.add_minutes(
        "a",
        [
            Minute(hour - 3600, 1, 0, 1, push_p50=1.0, push_p99=2.0, behind=1, lag=5.0),
            Minute(hour - 3540, 3, 4, 0, push_p50=2.0, push_p99=9.0, read_p50=0.5, read_p99=0.5, behind=7),
            Minute(hour - 10 * 3600, 100),
        ],
    )
    db.add_minutes("b", [Minute(hour - 3600)])
    found = {piece.device: piece for piece in db.pieces(hours=4, minutes=60)}
    a, b = found["a"], found["b"]
    assert a.at == datetime.fromtimestamp(hour - 3600, UTC)
    assert (a.pushes, a.reads, a.failures, a.push_p50, a.push_p99) == (4, 4, 1, 1.75, 9.0)
    assert (a.read_p50, a.read_p99, a.lag) == (0.5, 0.5, 5.0)
    assert (b.pushes, b.push_p50, b.lag) == (0, None, None)


def test_a_recorder_writes_a_row_when_a_minute_is_over(db: Database) -> None:
    device(db, "a")
    tally, stop = Tally(), Event()
    recorder = Recorder(db, "a", tally, stop)
    tally.pushed(0.25)
    recorder._minute = now = int(time.time()) // MINUTE * MINUTE - 3 * MINUTE  # some were skipped
    recorder.tick()
    recorder.tick()
    assert minutes(db) == [(now, 1, 0, 0)]
    recorder._minute = now  # the clock was put back
    tally.read(0.5)
    recorder.tick()
    assert minutes(db) == [(now, 1, 1, 0)]


def test_a_daemon_writes_its_minute_down_when_it_stops(devices: Cluster) -> None:
    app = Project.named(devices, "charts")
    app.pushed("c", "main")
    app.clone("c")
    devices.converge(app.name)
    devices.stop("c")
    try:
        row = sql(
            devices.db,
            """select sum(pushes), sum(reads), sum(failures), max(push_p99) > 0 from measurement m
                 join device d on d.id = m.device_id where d.name = 'c'""",
        )
        assert row == [(1, 1, 0, True)]
    finally:
        devices.start("c")


# -------------------------------------------------------------------------------------------------- copies


def repository(db: Database, name: str, version: int, **copies: int | None) -> int:
    (number,) = sql(
        db,
        """insert into repository (name, checksum, min_copies, version)
           values (%s, decode(repeat('00', 128), 'hex'), 1, 0) returning id""",
        name,
    )[0]
    sql(db, "delete from push where repository_id = %s", number)
    push(db, number, version)
    for device, at in copies.items():
        sql(
            db,
            """insert into replica (repository_id, device_id, version, checksum)
               select %s, id, %s, case when %s then decode(repeat('00', 128), 'hex') end from device where name = %s""",
            number,
            at,
            at is not None,
            device,
        )
    return int(number)


def push(db: Database, number: int, version: int) -> None:
    sql(
        db,
        """with entry as (insert into push (repository_id, version, checksum, push_id, actor, device, via)
               select %s, v, decode(repeat('00', 128), 'hex'), gen_random_uuid(), 'x', 'a', 'ssh'
                 from generate_series(0, %s) v
               on conflict (repository_id, version) do nothing)
           update repository set version = %s where id = %s""",
        number,
        version,
        version,
        number,
    )


@pytest.fixture
def copies(db: Database) -> Database:
    device(db, "a", "b")
    # Without the deferred key from repository to push, rows can be made in any order.
    sql(db, "alter table repository drop constraint repository_id_version_checksum_fkey")
    return db


def had(db: Database, number: int) -> list[tuple[int, int]]:
    return [(each.copies, each.wanted) for each in db.copies_over_time(number, limit=10_000)[::-1]]


def test_copies_are_noted_where_their_number_changes(copies: Database) -> None:
    db = copies
    one, two = repository(db, "one", 1, a=1, b=0), repository(db, "two", 1, a=1, b=1)
    look = db.look_at_copies("a", None, ())
    assert look is not None and look.short == (one,)
    assert (had(db, one), had(db, two)) == ([(1, 2)], [(2, 2)])
    sql(db, "update replica set version = 1 where repository_id = %s", one)
    look = db.look_at_copies("a", look.at, look.short)
    assert look is not None and look.short == ()
    assert had(db, one) == [(1, 2), (2, 2)]
    push(db, two, 2)
    sql(db, "update replica set version = 2 where repository_id = %s and device_id = 1", two)
    for _ in range(2):  # the second one finds nothing new
        look = db.look_at_copies("a", look.at, look.short)
        assert look is not None and look.short == (two,)
    assert had(db, two) == [(2, 2), (1, 2)]
    db.quarantine(one, "b", "a test")
    look = db.look_at_copies("a", look.at, look.short)
    assert look is not None and sorted(look.short) == [one, two]
    assert had(db, one)[-1] == (1, 2)


def test_only_one_device_looks(copies: Database) -> None:
    db = copies
    one = repository(db, "one", 1, a=1)
    assert db.look_at_copies("b", None, ()) is None
    sql(db, "update device set stopped = true where name = 'a'")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: db.look_at_copies("b", None, ()), range(8)))
    assert had(db, one) == [(1, 1)]


def test_copies_are_kept_for_a_while(copies: Database) -> None:
    db = copies
    one, still = repository(db, "one", 1, a=1), repository(db, "still", 1, a=1)
    for number, days, count in ((one, 100, 3), (still, 100, 1), (one, 1, MOST_COPIES + 20)):
        sql(
            db,
            """insert into copies select %s, now() - make_interval(days => %s, secs => n), 1 + n %% 2, 1
                 from generate_series(1, %s) n""",
            number,
            days,
            count,
        )
    sql(db, "update copies set copies = 1 where repository_id = %s", still)
    first = db.look_at_copies("a", datetime.now(UTC) - timedelta(minutes=1), ())
    assert first is not None
    kept = db.copies_over_time(one, limit=10_000)[::-1]
    assert len(kept) == MOST_COPIES and kept[-1].copies == 1
    db.look_at_copies("a", None, ())
    assert len(db.copies_over_time(still, limit=10_000)) == 1, "the newest row stays, however old"
