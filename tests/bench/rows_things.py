"""Rows of many things: the same question to a database with a million repositories (three million replicas, a hundred
thousand users) and to one with a thousand.

GIT_CLUSTER_BENCH_MANY says how many; filling a million takes a minute and 3 GB. The same few repositories are not as
they should be in both (things.py). A run asks several times, and counts the fastest.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress

from cluster import overview
from cluster.db import Database
from cluster.errors import NotFound
from cluster.http.pages import charts
from cluster.status import all_healthy, observe
from tests.bench import Bench
from tests.bench.explain import opened
from tests.bench.statements import ANN, DEVICE, NAME, token
from tests.bench.things import database

FEW = 1000
MANY = int(os.environ.get("GIT_CLUSTER_BENCH_MANY", "1000000"))
TARGET = 2.0


def in_sync(db: Database) -> None:
    assert db.snapshot(NAME, ANN).grants


def not_there(db: Database) -> None:
    with suppress(NotFound):
        db.snapshot("team/none", ANN)
        raise AssertionError


def shared_by_all(db: Database) -> None:
    """A repository on which every user has a grant and a rule."""
    assert db.snapshot("team5/app5", ANN).rules


def login_with_a_key(db: Database) -> None:
    assert db.identity("SHA256:u5")


def login_with_a_token(db: Database) -> None:
    assert token(db)


def sweep(db: Database) -> None:
    """What a device asks every 5 s, and every minute."""
    db.unfit(DEVICE)
    db.interrupted(DEVICE, 30.0)
    db.dropped(DEVICE)
    db.lease_webhooks(DEVICE, most=4, fresh=True, seconds=0.0)
    db.webhooks_due()
    db.behind(DEVICE)
    db.stuck(DEVICE)
    db.due_for_verification(DEVICE, 6e5)


def status(db: Database) -> None:
    assert len(observe(db, "things")["repositories"]) == FEW


def check(db: Database) -> None:
    assert not all_healthy(db, observe(db, "things"))


def first_screen(db: Database) -> None:
    """What the status page asks for at its first look, as a user who may see everything."""
    seen = overview.glance(db)
    assert seen.troubles
    db.grants_to("u1")
    db.lately(limit=48)
    charts.charts(db.pieces(hours=1, minutes=1), seen.at, "hour")


def metrics(db: Database) -> None:
    assert db.repository_states()["frozen"]
    db.behind()
    db.backlog()
    db.devices()


ASKED: tuple[tuple[str, Callable[[Database], None], int], ...] = (
    ("in-sync check", in_sync, 20),
    ("in-sync check, shared by all users", shared_by_all, 20),
    ("access to a repository that is not there", not_there, 20),
    ("login with a key", login_with_a_key, 50),
    ("login with a token", login_with_a_token, 50),
    ("sweep for what is behind", sweep, 5),
    ("git-cluster status", status, 1),
    ("git-cluster status --check", check, 1),
    ("status page, first screen", first_screen, 2),
    ("metrics", metrics, 5),
)


def many_things(bench: Bench) -> None:
    with ExitStack() as stack:
        few, many = (
            stack.enter_context(opened(database(bench.cluster.database, name, count)))
            for name, count in (("things-few", FEW), ("things-many", MANY))
        )
        for name, ask, times in ASKED:
            for _ in range(8):  # statements are prepared, and PostgreSQL has settled on a plan
                ask(few)
                ask(many)
            bench.compare(
                f"{name}, {MANY:,} repositories/{FEW:,}",
                TARGET,
                _run(ask, many, times),
                _run(ask, few, times),
            )


def _run(ask: Callable[[Database], None], db: Database, times: int) -> Callable[[], float]:
    def run() -> float:
        took = []
        for _ in range(times):
            begun = time.perf_counter()
            ask(db)
            took.append(time.perf_counter() - begun)
        return min(took)

    return run


ROWS = [many_things]
