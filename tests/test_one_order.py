"""G3, one order: the database itself refuses a second successor, a gap and a claim that the log does not have.

No device runs here and no lock is held: what is left is what the constraints keep.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from threading import Thread
from uuid import uuid4

import psycopg
import pytest

from cluster.db import Database
from cluster.errors import WriteConflict
from cluster.model import Intent, Position, RefUpdate, Snapshot
from cluster.versions import updated
from tests.cluster_fixture import Cluster
from tests.ssh_fixture import until

ZERO, ONE, TWO = "0" * 40, "1" * 40, "2" * 40
Make = Callable[..., Cluster]


@pytest.fixture
def claims(make_cluster: Make) -> tuple[Database, int, Position]:
    """The database of a repository with replicas on a and b at version 0; no device runs, no lock is held."""
    cluster = make_cluster("ab", start="")
    id = cluster.create("team/app")
    base = cluster.snapshot().repository.position
    for device in "ab":
        cluster.db.synced(id, device, None, base)
    return cluster.db, id, base


def intent(new: str = ONE, ref: str = "refs/heads/main") -> Intent:
    return Intent(uuid4(), uuid4(), "demo", "ssh", "", datetime.now(UTC), (RefUpdate(ref, ZERO, new),))


def intend(db: Database, id: int, device: str, base: Position, claim: Intent) -> None:
    with db.dedicated() as connection:
        db.intend(connection, id, device, base, claim)


def commit(db: Database, id: int, device: str, base: Position, claim: Intent) -> Position:
    return db.commit(id, device, base, updated(base.checksum, claim.refs), claim, claim.refs).position


def test_g3_there_is_one_intent_at_a_time(claims: tuple[Database, int, Position]) -> None:
    db, id, base = claims
    intend(db, id, "a", base, intent())
    for device in "ab":
        with pytest.raises(WriteConflict):
            intend(db, id, device, base, intent(TWO))
    with pytest.raises(psycopg.errors.UniqueViolation), psycopg.connect(db.url) as connection:
        connection.execute(
            """update replica r set (intent_token, intent_push, intent_actor, intent_via, intent_address, intent_at,
                      intent_refs) = (select gen_random_uuid(), gen_random_uuid(), 'x', 'ssh', '', now(), '[]'::jsonb)
                where r.intent_token is null"""
        )


def test_g3_two_claims_to_one_version_end_in_one_commit(claims: tuple[Database, int, Position]) -> None:
    """As if every lock were lost: b is let in between a's intent and a's commit."""
    db, id, base = claims
    mine, theirs = intent(ONE), intent(TWO)
    intend(db, id, "a", base, mine)
    db.clear_intent(id, mine.token)
    intend(db, id, "b", base, theirs)
    for claim in (mine, intent(TWO)):
        for device in "ab":
            with pytest.raises(WriteConflict):
                commit(db, id, device, base, claim)
    assert commit(db, id, "b", base, theirs).version == 1
    with pytest.raises(WriteConflict):
        commit(db, id, "b", base, theirs)
    with pytest.raises(WriteConflict):
        intend(db, id, "a", base, intent())  # a is behind now
    assert [(e.version, e.device, e.refs) for e in db.log(id)] == [(1, "b", theirs.refs)]


def test_g3_an_intent_at_a_version_that_is_over_cannot_be_committed(
    claims: tuple[Database, int, Position],
) -> None:
    """Even where the token is right: the compare-and-set looks at the repository's version as well."""
    db, id, base = claims
    mine = intent(ONE)
    intend(db, id, "a", base, mine)
    other = updated(base.checksum, intent(TWO).refs)
    with psycopg.connect(db.url) as connection:  # a commit that went round the intent
        connection.execute(
            "insert into push (repository_id, version, checksum, push_id, actor, device, via) "
            "values (%s, 1, %s, gen_random_uuid(), 'x', 'b', 'ssh')",
            (id, other.accumulator),
        )
        connection.execute("update repository set version = 1, checksum = %s", (other.accumulator,))
    with pytest.raises(WriteConflict):
        commit(db, id, "a", base, mine)


def test_g3_the_log_has_one_row_a_version_no_gap_and_no_position_beside_it(
    claims: tuple[Database, int, Position],
) -> None:
    db, id, base = claims
    mine = intent()
    intend(db, id, "a", base, mine)
    position = commit(db, id, "a", base, mine)
    entry = (
        "insert into push (repository_id, version, checksum, push_id, actor, device, via) "
        f"values ({id}, {{}}, '\\x{position.checksum.accumulator.hex()}'::bytea, gen_random_uuid(), 'x', 'a', 'ssh')"
    )
    set_replica = f"update replica set version = {{}}, checksum = '\\x{{}}'::bytea where repository_id = {id}"
    set_repository = f"update repository set version = {{}}, checksum = '\\x{{}}'::bytea where id = {id}"
    good, bad = position.checksum.accumulator.hex(), base.checksum.accumulator.hex()
    foreign, unique = psycopg.errors.ForeignKeyViolation, psycopg.errors.UniqueViolation
    for statement, error in (
        (entry.format(1), unique),
        (entry.format(3), foreign),
        (set_replica.format(2, good), foreign),
        (set_replica.format(1, bad), foreign),
        (set_replica.format(0, good), foreign),
        (set_repository.format(2, good), foreign),
        (set_repository.format(1, bad), foreign),
        (f"delete from push where repository_id = {id} and version = 1", foreign),
        (
            f"insert into push_ref values ({id}, 1, 'refs/heads/x', '{ONE}', '{ONE}')",
            psycopg.errors.CheckViolation,
        ),
        (f"insert into push_ref values ({id}, 1, 'refs/heads/main', '{ONE}', '{TWO}')", unique),
        (f"update replica set version = null where repository_id = {id}", psycopg.errors.CheckViolation),
    ):
        with pytest.raises(error), psycopg.connect(db.url) as connection:
            connection.execute(statement.encode())
    assert db.snapshot_of(id).repository.position == position


def test_g3_races_of_direct_commits_leave_a_log_without_gaps(claims: tuple[Database, int, Position]) -> None:
    """Two writers without any lock, each trying for every version."""
    db, id, _ = claims
    won: list[int] = []

    def write(device: str) -> None:
        for number in range(30):
            here = db.snapshot_of(id)
            mine, claim = here.of(device), intent(ONE, f"refs/heads/{device}{number}")
            assert mine is not None
            try:
                if mine.position != here.repository.position:
                    db.synced(id, device, mine.position, here.repository.position)
                intend(db, id, device, here.repository.position, claim)
                won.append(commit(db, id, device, here.repository.position, claim).version)
            except WriteConflict:
                db.clear_intent(id, claim.token)

    writers = [Thread(target=write, args=(device,)) for device in "ab"]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert (
        sorted(won)
        == [entry.version for entry in db.log(id, limit=100)][::-1]
        == list(range(1, len(won) + 1))
    )
    assert len(won) > 10


def test_g3_a_claim_that_was_committed_meanwhile_is_not_given_up(
    claims: tuple[Database, int, Position],
) -> None:
    """A fence, or a person, decided on an intent; its owner came back at the last moment, and was faster."""
    db, id, base = claims
    claim = intent()
    intend(db, id, "a", base, claim)
    commit(db, id, "a", base, claim)
    with db.dedicated() as connection, pytest.raises(WriteConflict):
        db.demote(id, "a", "it fell silent", claim, connection=connection)
    mine = db.snapshot_of(id).of("a")
    assert mine is not None and mine.version == 1 and not mine.quarantined


def test_g3_a_claim_that_was_given_up_is_not_committed(claims: tuple[Database, int, Position]) -> None:
    db, id, base = claims
    claim = intent()
    intend(db, id, "a", base, claim)
    with db.dedicated() as connection:
        db.demote(id, "a", "it fell silent", claim, connection=connection)
    with pytest.raises(WriteConflict):
        commit(db, id, "a", base, claim)
    mine = db.snapshot_of(id).of("a")
    assert mine is not None and mine.version == 0 and mine.demoted


def test_after_an_outage_nobody_is_silent_yet(claims: tuple[Database, int, Position]) -> None:
    """The database was away for 40 s, so nobody's heartbeat came: b fences nobody before it has watched them anew."""
    db, id, base = claims
    intend(db, id, "a", base, intent())
    with psycopg.connect(db.url) as connection:
        connection.execute(
            """update device set stopped = false, last_seen_at = now() - interval '40 s',
                      up_since = now() - interval '1 h'"""
        )
    assert db.interrupted("b", 30.0) == ([], [])
    db.heartbeat("b")
    assert db.interrupted("b", 30.0) == ([], [])
    with psycopg.connect(db.url) as connection:
        connection.execute("update device set up_since = now() - interval '31 s' where name = 'b'")
    assert db.interrupted("b", 30.0) == ([], [id])


def test_g3_with_the_lock_comes_what_there_is_then_however_the_database_is_set(
    claims: tuple[Database, int, Position],
) -> None:
    """What waits for the lock and what then looks is one transaction: it must not look as of its beginning."""
    name = claims[0].url.partition("?")[0].rpartition("/")[2]
    with psycopg.connect(claims[0].url, autocommit=True) as connection:
        connection.execute(f"alter database {name} set default_transaction_isolation = 'serializable'")
    seen: list[Snapshot | None] = []
    with Database(claims[0].url).open() as db, db.dedicated() as holder, db.dedicated() as waiter:
        id = claims[1]
        assert db.try_write_lock(holder, id, "first") is not None
        assert db.try_write_lock(waiter, id, "second") is None
        thread = Thread(target=lambda: seen.append(db.wait_write_lock(waiter, id, 30.0)))
        thread.start()
        waiting = "select from pg_locks where locktype = 'advisory' and not granted"
        with psycopg.connect(db.url, autocommit=True) as connection:
            until(lambda: connection.execute(waiting).rowcount == 1, "the second one waits")
        db.freeze(id, "meanwhile")
        holder.execute("select pg_advisory_unlock_all()")
        thread.join()
    assert seen[0] is not None and seen[0].repository.frozen == "meanwhile"
