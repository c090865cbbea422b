"""The history checker at work: a short torture run, and builds with a check taken out that it has to catch.

At length: `python -m tests.torture` (`make torture`).
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest

from cluster.model import EventKind
from tests.breaking import hold, stopped
from tests.history import ABSENT, Operation, Outcome, Violation, check
from tests.torture.clients import Client, History, answer
from tests.torture.mutants import (
    COMPARE_AND_SET_IGNORED,
    CONTENT_NOT_COMPARED,
    INTENT_NOT_WRITTEN,
    NONE,
    READS_NOT_GATED,
    REPORT_NOT_HELD,
    Built,
    Mutant,
)
from tests.torture.plan import Action, Fault, Wish, make
from tests.torture.run import as_entry, torture

pytestmark = pytest.mark.timeout(300)  # of the run, under load: it waits for conditions, never for a time

SEEDS = [7, *([int(os.environ["TORTURE_SEED"])] if "TORTURE_SEED" in os.environ else [])]
SHORT = {"operations": 60, "clients": 4, "devices": "abc", "every": 5}
"""Twelve kinds of fault, each once."""
REF = "refs/heads/r0"


@pytest.mark.parametrize("seed", SEEDS)
def test_what_clients_are_told_while_everything_breaks(seed: int, tmp_path: Path) -> None:
    """G1, G2, G3: no acknowledged push is lost, no answer contradicts another one, and nobody types `thaw`."""
    result = torture(tmp_path, make(seed, **SHORT), hands=3)  # type: ignore[arg-type]
    print(result.figures())
    assert not result.violations, result.report()
    assert result.lost == result.thaws == 0
    assert len(result.struck) >= 6, "some wait for a push that may not come"


def test_the_same_seed_makes_the_same_plan() -> None:
    plan = make(1, operations=200, clients=3, devices="abc")
    assert plan == make(1, operations=200, clients=3, devices="abc")
    assert plan != make(2, operations=200, clients=3, devices="abc")
    assert sum(map(len, plan.clients)) == 200
    assert {blow.fault for blow in plan.blows} == set(Fault)


SAID = {
    " \t0:refs/heads/r0\t" + "a" * 40 + ".." + "b" * 40: (Outcome.OK, "a" * 40),
    "+\t0:refs/heads/r0\t" + "a" * 40 + "..." + "b" * 40 + " (forced update)": (Outcome.OK, "a" * 40),
    "*\t0:refs/heads/r0\t[new branch]": (Outcome.OK, ABSENT),
    "-\t:refs/heads/r0\t[deleted]": (Outcome.OK, None),
    "!\t0:refs/heads/r0\t[rejected] (fetch first)": (Outcome.REFUSED, None),
    "!\t0:refs/heads/r0\t[remote rejected] (team/app is frozen)": (Outcome.REFUSED, None),
    "!\t0:refs/heads/r0\t[remote rejected] (the database stayed away for 20 s)": (Outcome.UNKNOWN, None),
    "!\t0:refs/heads/r0\t[remote failure] (remote failed to report status)": (Outcome.UNKNOWN, None),
    "*\t0:refs/heads/r00\t[new branch]": (Outcome.UNKNOWN, None),
    "": (Outcome.UNKNOWN, None),
}


@pytest.mark.parametrize(("said", "meant"), SAID.items())
def test_what_git_says_of_a_push(said: str, meant: tuple[Outcome, str | None]) -> None:
    assert answer(f"To ssh://…\n{said}\nDone\n", REF) == meant


# --------------------------------------------------------------------------------- devices and clients to tell apart


class Site:
    """Devices a and b that run a mutant, two clients of theirs, and what those were told."""

    def __init__(self, cluster: Built) -> None:
        self.cluster = cluster
        self.history = History(cluster, (REF,))
        self.one, self.two = Client(self.history, "one"), Client(self.history, "two")

    def push(self, client: Client, device: str) -> bool:
        return client.carry_out(Wish(Action.FORCE_PUSH, device, (REF,)))

    def told(self, name: str) -> list[Operation]:
        return [operation for operation in self.history.operations if operation.client == name]

    def violations(self) -> list[Violation]:
        """Of what happened so far; the push log is what the database has of it now."""
        entries = self.cluster.db.log(self.cluster.snapshot().repository.id, limit=1000)[::-1]
        return check(self.history.operations, [as_entry(entry) for entry in entries])


@contextmanager
def site(tmp_path: Path, database_url: str, mutant: Mutant, copies: int) -> Iterator[Site]:
    """Both devices at version 1."""
    writes = {"heal": "auto", "fence_after": "3s", "lock_timeout": "20s", "commit_timeout": "6s"}
    cluster = Built(tmp_path / "cluster", database_url, writes, mutant)
    try:
        cluster.set_up(["a", "b"])
        for device in "ab":
            cluster.start(device)
        cluster.create("team/app", min_copies=copies)
        made = Site(cluster)
        # A mutant may not see to it itself.
        cluster.wait(cluster.converged, "the new repository is everywhere")
        assert made.push(made.one, "b")
        cluster.converge()
        yield made
        made.one.close()
        made.two.close()
    finally:
        cluster.close()


# -------------------------------------------------------------------------- builds with one safety check taken out


def overtaken(site: Site) -> None:
    """Device a stops in the middle of a push, is given up by b, which takes another push; then a goes on."""
    cluster = site.cluster
    cluster.stop("a")
    cluster.start("a", fault="commit:pause")
    pid = cluster.devices["a"].pid
    assert pid is not None
    with ThreadPoolExecutor() as threads:
        stuck = threads.submit(site.push, site.one, "a")
        cluster.wait(lambda: stopped(pid), "a stops before its commit")
        cluster.wait(lambda: site.push(site.two, "b"), "b takes a push")
        os.kill(pid, signal.SIGCONT)
        stuck.result()


def killed_before_its_commit(site: Site) -> None:
    """Device a dies when its refs have moved; when it is back, both devices are read."""
    cluster = site.cluster
    cluster.stop("a")
    cluster.start("a", fault="commit:kill")
    assert not site.push(site.one, "a")
    cluster.stop("a")
    cluster.start("a")
    cluster.wait(lambda: cluster.snapshot().intent_owner is None, "no interrupted write is left")
    for device in "ab":
        cluster.wait(lambda d=device: site.two.look(d), f"{device} can be read")  # type: ignore[misc]


def cut_off_before_its_commit(site: Site) -> None:
    """Device a loses the database when its refs move, does not get it back in time, and is given up by b."""
    cluster = site.cluster
    held = hold(cluster, "a")
    with ThreadPoolExecutor() as threads:
        pushing: Future[bool] = threads.submit(site.push, site.one, "a")
        cluster.wait(lambda: held.reached, "Git is about to move the ref")
        cluster.way_to_database["a"].cut()
        held.let_go()
        pushing.result()
    cluster.wait(lambda: site.push(site.two, "b"), "b takes a push")
    assert site.two.look("b")


def read_where_nothing_arrived(site: Site) -> None:
    """A push to a is acknowledged; b cannot fetch it, and is read."""
    site.cluster.way_to["a"].cut()
    assert site.push(site.one, "a")
    site.two.look("b")


@pytest.mark.parametrize(
    "mutant", [NONE, COMPARE_AND_SET_IGNORED], ids=["as it is", "compare-and-set ignored"]
)
def test_a_commit_that_compares_nothing_is_caught(mutant: Mutant, tmp_path: Path, database_url: str) -> None:
    with site(tmp_path, database_url, mutant, copies=1) as made:
        overtaken(made)
        late, other = made.told("one")[-1].parts[0], made.told("two")[-1].parts[0]
        assert other.outcome is Outcome.OK
        found = made.violations()
    if mutant is NONE:
        assert late.outcome is Outcome.REFUSED and not found
        return
    assert late.outcome is Outcome.OK
    first, *_ = [violation.describe(7) for violation in found]
    assert f"VIOLATION (seed 7): {REF}: two acknowledged pushes replaced the same value" in first
    assert late.value[:10] in first and other.value[:10] in first
    assert f"version 3 replaces a value that {REF} did not have" in [v.what for v in found]


@pytest.mark.parametrize(
    "mutant", [CONTENT_NOT_COMPARED, INTENT_NOT_WRITTEN], ids=["with it", "intent not written"]
)
def test_an_interruption_without_a_trace_is_caught(mutant: Mutant, tmp_path: Path, database_url: str) -> None:
    """The intent is what completes the push, or keeps it from being shown."""
    with site(tmp_path, database_url, mutant, copies=1) as made:
        killed_before_its_commit(made)
        found = made.violations()
    if mutant is CONTENT_NOT_COMPARED:
        assert not found
        return
    first, *_ = [violation.describe(7) for violation in found]
    assert f"VIOLATION (seed 7): {REF}: a later read shows an older value than an earlier one" in first
    assert "two on a: list" in first and "two on b: list" in first
    assert "a listing shows refs together as they were at no version" in [v.what for v in found]


@pytest.mark.parametrize("mutant", [NONE, REPORT_NOT_HELD], ids=["as it is", "report not held"])
def test_an_early_acknowledgement_is_caught(mutant: Mutant, tmp_path: Path, database_url: str) -> None:
    with site(tmp_path, database_url, mutant, copies=1) as made:
        cut_off_before_its_commit(made)
        given_up = made.told("one")[-1].parts[0]
        found = made.violations()
    if mutant is NONE:
        assert given_up.outcome is Outcome.UNKNOWN and not found
        return
    assert given_up.outcome is Outcome.OK
    said = [violation.describe(7) for violation in found]
    lost = f"VIOLATION (seed 7): {REF}: a push was acknowledged and is not in the push log"
    assert any(text.startswith(lost) and given_up.value[:10] in text for text in said)
    assert f"{REF}: two acknowledged pushes replaced the same value" in said[0]


@pytest.mark.parametrize("mutant", [NONE, READS_NOT_GATED], ids=["as it is", "reads not gated"])
def test_a_read_that_is_not_gated_is_caught(mutant: Mutant, tmp_path: Path, database_url: str) -> None:
    with site(tmp_path, database_url, mutant, copies=1) as made:
        read_where_nothing_arrived(made)
        found = made.violations()
    if mutant is NONE:
        assert not found
        return
    first, *_ = [violation.describe(7) for violation in found]
    what = "a read does not show a push that was acknowledged before it began"
    assert f"VIOLATION (seed 7): {REF}: {what}" in first
    assert "a listing shows version 1, and version 2 was known before it began" in [v.what for v in found]


# ------------------------------------------------------------------------------------ what the checker is good for


def test_a_commit_that_gets_through_late_is_no_refusal(tmp_path: Path, database_url: str) -> None:
    """G2: PostgreSQL is slow, the connection is cut while the commit is under way, and a second try overtakes it.

    The first one succeeds after all. So the second finds that its claim is void: by its own push.
    """
    with site(tmp_path, database_url, NONE, copies=1) as made:
        cluster = made.cluster
        held = hold(cluster, "a")
        with ThreadPoolExecutor() as threads, psycopg.connect(database_url) as slow:
            pushing = threads.submit(made.push, made.one, "a")
            cluster.wait(lambda: held.reached, "Git is about to move the ref")
            slow.execute("select from repository for update")
            held.let_go()
            cluster.wait(lambda: _commits(database_url) == 1, "the commit is under way")
            cluster.way_to_database["a"].cut()
            cluster.way_to_database["a"].heal()
            cluster.wait(lambda: _commits(database_url) == 2, "a second one is, too")
            slow.rollback()
            pushing.result()
        found = made.violations()
        assert not found, found[0].describe(0)
        assert made.told("one")[-1].parts[0].outcome is Outcome.OK


def test_an_intent_that_gets_through_late_freezes_nothing(tmp_path: Path, database_url: str) -> None:
    """G4: PostgreSQL is slow, the connection is cut while the intent is being written, and it is withdrawn before that.

    Nobody has to heal what was never begun: the session that still works at it is ended first.
    """
    with site(tmp_path, database_url, NONE, copies=1) as made:
        cluster = made.cluster
        with ThreadPoolExecutor() as threads, psycopg.connect(database_url) as slow:
            slow.execute("select from replica for update")
            pushing = threads.submit(made.push, made.one, "a")
            cluster.wait(
                lambda: _waiting(database_url, "set intent_token = $%") == 1, "the intent is being written"
            )
            cluster.way_to_database["a"].cut()
            cluster.way_to_database["a"].heal()
            cluster.wait(lambda: not _waiting(database_url, "set intent_token = $%"), "its session is ended")
            slow.rollback()
            assert not pushing.result()
        assert cluster.snapshot().intent_owner is None
        assert made.push(made.two, "b")
        events = cluster.db.events(cluster.snapshot().repository.id)
        assert not [event for event in events if event.kind is EventKind.HEAL]


def _commits(database_url: str) -> int:
    return _waiting(database_url, "%turned%")


def _waiting(database_url: str, query: str) -> int:
    """How many statements of this kind wait for a row that somebody holds."""
    with psycopg.connect(database_url, autocommit=True) as connection:
        (count,) = connection.execute(
            """select count(*) from pg_stat_activity
                where datname = current_database() and wait_event_type = 'Lock' and query like %s""",
            (f"%{query}",),
        ).fetchone() or (0,)
        return int(count)
