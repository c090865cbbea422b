"""What a read and a push cost this device, counted: round trips to the database, and processes.

The tables in docs/performance.md and the steps in docs/write-protocol.md rest on these numbers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cluster_fixture import Cluster, Project
from tests.counting import Programs, Relay, Trip
from tests.http_fixture import HttpCluster
from tests.openssh_fixture import OpenSSHCluster
from tests.postgres_fixture import OwnPostgres

LOGIN, LOOK, LOOK_AGAIN = "whose key", "may they, and what is newest", "what is newest"
LOCK, INTEND, COMMIT, UNLOCK = "lock, and what is newest", "intend", "commit", "unlock"
LOOK_AND_CHANGES, CHANGES, CLAIM = "what is newest, and since when", "what has changed", "claim"
ASKED = {
    "select a.name as user_name": LOGIN,
    "select t.id": LOGIN,
    "select set_config('application_name'": LOCK,
    "update replica r set intent_token": INTEND,
    "with turned as": COMMIT,
    "select pg_advisory_unlock_all": UNLOCK,
    "select ref, (array_agg": CHANGES,
    "with old as": CLAIM,
}
KNOWN = {*ASKED.values(), LOOK, LOOK_AGAIN, LOOK_AND_CHANGES}

TIMES = 4
"""Requests of which none may ask anything else."""


@pytest.fixture
def postgres_of_its_own(tmp_path: Path) -> Iterator[OwnPostgres]:
    server = OwnPostgres(tmp_path / "postgres")
    yield server
    server.stop()


class Counted:
    """A cluster whose first device's round trips and processes are counted."""

    def __init__(self, cluster: Cluster, relay: Relay, programs: Programs) -> None:
        self.cluster, self.relay, self.programs = cluster, relay, programs
        self.others: Counter[str] = Counter()
        self.heard: list[Trip] = []
        self.database_of = cluster.database_of
        cluster.database_of = self.by_way_of  # type: ignore[method-assign]

    def by_way_of(self, name: str) -> str:
        url = self.database_of(name)
        return self.relay.url(url) if name == "a" else url

    def start(self, names: str) -> None:
        self.cluster.set_up(list(names))
        for name in names:
            with pytest.MonkeyPatch.context() as patch:
                if name == "a":
                    patch.setenv("PATH", self.programs.path)
                self.cluster.start(name)

    def forget(self, app: Project) -> None:
        """Count from now on. Of its own last commit this device has asked nothing: it has it."""
        self.cluster.wait(lambda: self.cluster.converged(app.name), "the replicas are equal")
        self.heard += self.relay.trips()
        asked = [kind(trip) for trip in self.heard]
        if COMMIT in asked:
            assert LOOK_AGAIN not in asked[len(asked) - asked[::-1].index(COMMIT) :]
        self.heard.clear()
        self.programs.started()

    def asked(self, *, up_to: str = "") -> list[str]:
        """What was asked since then, of what these tests know. The rest is in `others`: what a device asks by itself
        now and then, and what somebody made a request ask without saying so here."""
        trips = self.relay.trips()
        self.heard += trips
        kinds = [kind(trip) for trip in trips if not trip.by_itself]
        kinds = kinds[: kinds.index(up_to) + 1] if up_to else kinds
        self.others.update(set(kinds) - KNOWN)
        return [each for each in kinds if each in KNOWN]

    def asks_nothing_else(self) -> None:
        """To be said after TIMES requests."""
        assert not [what for what, times in self.others.items() if times >= TIMES]


def kind(trip: Trip) -> str:
    text = trip.statements[0]
    if text.startswith("select p.id as p_id"):
        if len(trip.statements) > 1:
            return LOOK_AND_CHANGES
        return LOOK if "json_agg" in text else LOOK_AGAIN
    return next((name for begin, name in ASKED.items() if text.startswith(begin)), text)


@pytest.fixture(params=[Cluster, OpenSSHCluster, HttpCluster], ids=["built-in", "openssh", "http"])
def counted(
    request: pytest.FixtureRequest,
    postgres_of_its_own: OwnPostgres,
    tmp_path: Path,
) -> Iterator[Counted]:
    relay = Relay(tmp_path / "relay", postgres_of_its_own.socket)
    cluster = request.param(tmp_path / "cluster", postgres_of_its_own.url, {})
    try:
        yield Counted(cluster, relay, Programs(tmp_path / "programs"))
    finally:
        cluster.close()
        relay.close()


WARM = 8
"""Requests after which every statement is prepared on the connection that the next one takes."""


def logins(counted: Counted) -> int:
    """Built-in: once. sshd asks for a key when it is offered and when it is proven. HTTP: each request brings its
    token, and protocol v2 makes two of a listing."""
    return 1 if type(counted.cluster) is Cluster else 2


def test_a_read_in_sync_is_one_round_trip_beside_the_login(counted: Counted, tmp_path: Path) -> None:
    counted.start("a")
    app = Project.named(counted.cluster, "app")
    app.pushed("a", "main")
    app.converge()
    app.clone("a")
    for _ in range(WARM):
        app.refs("a")
    counted.forget(app)
    requests = 3 if isinstance(counted.cluster, HttpCluster) else 1  # Git asks without its token first
    for _ in range(TIMES):
        app.refs("a")
        assert Counter(counted.asked()) == {LOGIN: logins(counted), LOOK: requests}
        assert counted.programs.started() == {"upload-pack": 1}
    counted.asks_nothing_else()

    counted.cluster.ok("fetch", "--quiet", cwd=tmp_path / "cluster" / f"{app.work.name[:-5]}-clone1")
    assert counted.asked().count(LOOK) == requests
    assert counted.programs.started() == {"upload-pack": 1}

    app.clone("a")
    assert counted.programs.started() == {"upload-pack": 2, "pack-objects": 1}


def test_a_push_is_six_round_trips_and_five_processes(counted: Counted) -> None:
    """Git's own (receive-pack, unpack-objects, the check that all is there), and two hooks without a child. (And
    `true`, which Git asks for other refs instead of another Git: not one of those that are counted here.)"""
    counted.start("a")
    app = Project.named(counted.cluster, "app")
    for number in range(WARM):
        app.commit(f"number {number}")
        app.pushed("a", "main")
    over_http = isinstance(counted.cluster, HttpCluster)
    for number in range(TIMES):
        app.commit(f"more {number}")
        counted.forget(app)
        app.pushed("a", "main")
        asked = counted.asked(up_to=COMMIT)
        assert [what for what in asked if what != LOGIN] == [
            *([LOOK, LOOK, LOOK] if over_http else [LOOK]),  # without a token, the look around, and authorize
            LOOK,  # propose: who may do what is asked anew
            LOCK,  # clear and settle look at what came with the lock
            INTEND,
            COMMIT,
        ]
        assert asked.count(LOGIN) == logins(counted)
        assert counted.programs.started() == {
            "receive-pack": 2 if over_http else 1,
            "unpack-objects": 1,
            "rev-list": 1,
            "hook pre-receive": 1,
            "hook post-receive": 1,
        }
    counted.asks_nothing_else()


def test_a_push_with_a_second_copy_looks_once_more_before_it_waits_for_its_turn(counted: Counted) -> None:
    counted.start("ab")
    app = Project.named(counted.cluster, "app", min_copies=2)
    for number in range(WARM):
        app.commit(f"number {number}")
        app.pushed("a", "main")
    app.commit()
    counted.forget(app)
    app.pushed("a", "main")
    asked = counted.asked(up_to=COMMIT)
    assert asked[-5:] == [LOOK, LOOK_AGAIN, LOCK, INTEND, COMMIT]


@pytest.mark.parametrize(("copies", "again"), [(1, [LOOK_AGAIN]), (2, [])], ids=["fetched", "staged"])
def test_a_sync_is_two_round_trips_and_one_more_after_a_fetch(
    counted: Counted, copies: int, again: list[str]
) -> None:
    counted.start("ab")
    app = Project.named(counted.cluster, "app", min_copies=copies)
    for number in range(WARM):
        app.commit(f"number {number}")
        app.pushed("b", "main")
        app.converge()
    for number in range(TIMES):
        app.commit(f"more {number}")
        counted.forget(app)
        app.pushed("b", "main")
        app.converge()
        asked = [what for what in counted.asked(up_to=CLAIM) if what != LOGIN]
        assert asked[-2 - len(again) :] == [LOOK_AND_CHANGES, *again, CLAIM]
