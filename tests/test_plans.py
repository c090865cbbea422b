"""How PostgreSQL goes about what it is asked: by an index, whatever there is besides (docs/scale.md).

The plans are those of a database with 20,000 repositories and 60,000 replicas, of which PostgreSQL has statistics.
"""

from __future__ import annotations

from collections.abc import Iterator
from uuid import uuid4

import psycopg
import pytest

from tests.bench import statements, things
from tests.bench.explain import SCAN, opened, plans

REPOSITORIES = 20_000

STATEMENTS = {
    each.name: each
    for each in (*statements.HOT, *statements.SWEEP, *statements.LOOKS)
    if each.name
    != "status"  # of so few repositories it shows so many that reading all of the replicas is right
}


@pytest.fixture(scope="module")
def full(postgres: str) -> Iterator[str]:
    name = f"plans_{uuid4().hex[:12]}"
    yield things.database(postgres, name, REPOSITORIES)
    with psycopg.connect(postgres, autocommit=True) as connection:
        connection.execute(f"drop database {name} with (force)")


@pytest.mark.parametrize("name", STATEMENTS)
def test_no_large_table_is_read_from_one_end_to_the_other(full: str, name: str) -> None:
    found = plans(full, STATEMENTS[name])
    assert found or name == "write_lock_holder"
    for query, plan in found:
        assert not SCAN.search(plan), f"{query}\n{plan}"


def test_what_the_filler_writes_is_what_triggers_would_keep(full: str) -> None:
    """Of the columns and counts that it writes with the triggers off."""
    with psycopg.connect(full) as connection:
        wrong = connection.execute(
            """select count(*) from replica r join repository p on p.id = r.repository_id
                where r.newest <> p.version
                   or p.replicas <> (select count(*) from replica where repository_id = p.id)"""
        ).fetchone()
        assert wrong == (0,)
    with opened(full) as db:
        loads = db.loads()
        assert sum(loads.values()) == 3 * REPOSITORIES
        assert all(len(db.held(device)) == count for device, count in loads.items())
        assert db.how_many() == REPOSITORIES
        states = db.repository_states()
    assert sum(states.values()) == REPOSITORIES
    assert sum(states.values()) - states["healthy"] == things.TROUBLED
