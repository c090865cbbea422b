"""The cost of a push and of a sync follows what changed: counted in writes, processes, connections and bytes."""

from __future__ import annotations

import io
import itertools
import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from uuid import uuid4

import pytest
from dulwich.protocol import pkt_line

from cluster.disk import FileLock
from cluster.errors import ClientGone, ClusterError, NoSource, PeerFailed
from cluster.joining import Joined
from cluster.loopback import LoopbackDevice
from cluster.model import RefUpdate
from cluster.outbox import Outbox
from cluster.report import up_to_flush
from cluster.spread import Attempt, Spread
from cluster.versions import updated
from tests.cluster_fixture import Cluster, Project
from tests.many_refs import branch
from tests.proxy import CuttingProxy
from tests.test_metrics import Moved, figures, of

# ------------------------------------------------------------------------------------------- listings of many refs


def test_a_listing_is_passed_on_in_large_pieces_up_to_its_flush() -> None:
    lines = [f"{'1' * 40} {branch(number)}\n".encode() for number in range(10_000)]
    listing = b"".join(map(pkt_line, lines)) + b"0000"
    stream = io.BufferedReader(io.BytesIO(listing + b"and more"), 65536)
    pieces = list(up_to_flush(stream))
    assert b"".join(pieces) == listing
    assert len(pieces) < 20
    assert stream.read() == b"and more", "what comes behind the flush is nobody's yet"


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
def test_pieces_may_end_anywhere(size: int) -> None:
    listing = pkt_line(b"one") + pkt_line(b"") + b"0001" + pkt_line(b"three" * 10) + b"0000"
    stream = io.BufferedReader(io.BytesIO(listing + pkt_line(b"x")), size)
    assert b"".join(up_to_flush(stream)) == listing
    assert stream.read() == pkt_line(b"x")


@pytest.mark.parametrize("torn", [b"", b"00", b"0010abc", b"oops, no pkt-line"])
def test_a_listing_that_is_cut_off_ends(torn: bytes) -> None:
    stream = io.BufferedReader(io.BytesIO(pkt_line(b"one") + torn), 16)
    assert pkt_line(b"one") in b"".join(up_to_flush(stream))


class SlowClient:
    """Takes what it is sent once it is told to."""

    def __init__(self) -> None:
        self.go, self.got = Event(), list[bytes]()

    def write(self, data: bytes) -> None:
        self.go.wait()
        self.got.append(data)

    def write_error(self, data: bytes) -> None:
        self.write(b"error:" + data)

    def say(self, line: str) -> None:
        self.write(b"said:" + line.encode())


def test_what_waits_for_a_client_goes_out_together_and_in_its_order() -> None:
    client = SlowClient()
    outbox = Outbox(client)  # type: ignore[arg-type]
    for number in range(1000):
        outbox.write(b"%03d" % number)
    outbox.write_error(b"oh")
    outbox.say("hear")
    outbox.write(b"end")
    client.go.set()
    outbox.flush()
    outbox.close()
    listing = b"".join(b"%03d" % number for number in range(1000))
    assert b"".join(client.got) == listing + b"error:oh" + b"said:hear" + b"end"
    assert len(client.got) <= 6


# -------------------------------------------------------------------------------------------- many ask, one does it


def silent(line: str) -> None:
    pass


def never() -> bool:
    return False


class Work:
    """Something that lasts until it is told to end, and counts how often it was begun."""

    def __init__(self, error: ClusterError | None = None) -> None:
        self.begun, self.go, self.times, self.error = Event(), Event(), 0, error

    def __call__(self, tell: Callable[[str], None]) -> int:
        self.times += 1
        tell("at it")
        self.begun.set()
        assert self.go.wait(30)
        if self.error:
            raise self.error
        return self.times


def waiting(joined: Joined, count: int) -> None:
    """Until so many wait for the attempt that runs."""
    (attempt,) = joined._attempts.values()
    deadline = Event()
    for _ in range(3000):
        if len(attempt.change._waiters) >= count:  # type: ignore[attr-defined]
            return
        deadline.wait(0.01)
    raise AssertionError("they do not wait")


def test_twenty_who_ask_for_the_same_cost_one_attempt_and_hear_how_far_it_is() -> None:
    joined, work = Joined(quiet=0.0), Work()
    heard: list[str] = []
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(joined.run, 1, work, silent, never)
        assert work.begun.wait(30)
        others = [pool.submit(joined.run, 1, work, heard.append, never) for _ in range(19)]
        waiting(joined, 19)
        work.go.set()
        assert first.result(30) == 1
        assert [other.result(30) for other in others] == [None] * 19
    assert work.times == 1
    assert heard == ["at it"] * 19


def test_who_waits_for_a_moment_only_is_told_nothing() -> None:
    joined, work, heard = Joined(quiet=60.0), Work(), list[str]()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(joined.run, 1, work, silent, never)
        assert work.begun.wait(30)
        other = pool.submit(joined.run, 1, work, heard.append, never)
        waiting(joined, 1)
        work.go.set()
        assert first.result(30) == 1 and other.result(30) is None
    assert heard == []


def test_who_came_during_an_attempt_that_failed_sees_one_more_and_no_third() -> None:
    joined, work = Joined(), Work(NoSource("nobody has it", hint="wait"))
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(joined.run, 1, work, silent, never)
        assert work.begun.wait(30)
        others = [pool.submit(joined.run, 1, work, silent, never) for _ in range(10)]
        waiting(joined, 10)
        work.go.set()
        errors = [future.exception(30) for future in [first, *others]]
    assert [str(error) for error in errors] == ["nobody has it"] * 11
    assert all(isinstance(error, NoSource) and error.hint == "wait" for error in errors)
    assert work.times <= 11


def test_a_client_that_hangs_up_is_no_reason_for_those_who_waited_for_its_attempt() -> None:
    joined, gone, fine = Joined(), Work(ClientGone("hung up")), Work()
    fine.go.set()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(joined.run, 1, gone, silent, never)
        assert gone.begun.wait(30)
        other = pool.submit(joined.run, 1, fine, silent, never)
        waiting(joined, 1)
        gone.go.set()
        assert isinstance(first.exception(30), ClientGone)
        assert other.result(30) in (None, 1)


def test_who_hangs_up_while_waiting_waits_no_longer() -> None:
    joined, work, left = Joined(), Work(), Event()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(joined.run, 1, work, silent, never)
        assert work.begun.wait(30)
        other = pool.submit(joined.run, 1, work, silent, left.is_set)
        left.set()
        assert isinstance(other.exception(30), ClientGone)
        work.go.set()
        assert first.result(30) == 1


# ------------------------------------------------------------------------------------------------ copies side by side


def spread(
    attempt: Callable[[str, Attempt], None], candidates: str, needed: int
) -> tuple[list[str], list[str]]:
    late: list[str] = []
    made = Spread(attempt, failed=lambda who, error: None, late=late.append).run(list(candidates), needed)
    return made, late


def test_two_copies_are_made_side_by_side_not_one_after_the_other() -> None:
    both = threading.Barrier(2, timeout=30)

    def attempt(who: str, attempt: Attempt) -> None:
        both.wait()

    made, _ = spread(attempt, "bcd", 2)
    assert sorted(made) == ["b", "c"]


def test_no_more_devices_are_asked_than_copies_are_needed() -> None:
    asked: list[str] = []
    assert spread(lambda who, attempt: asked.append(who), "bcd", 1) == (["b"], [])
    assert asked == ["b"]


def test_the_next_device_is_asked_where_one_fails() -> None:
    def attempt(who: str, attempt: Attempt) -> None:
        if who in "bc":
            raise PeerFailed(f"{who} is away")

    assert spread(attempt, "bcd", 1) == (["d"], [])
    assert spread(attempt, "bc", 1) == ([], [])


def test_a_device_that_fell_silent_is_not_waited_for_while_another_can_do_it() -> None:
    abandoned, dropped = Event(), Event()

    def attempt(who: str, attempt: Attempt) -> None:
        if who == "b":
            attempt.begun(abandoned.set)
            assert abandoned.wait(60), "nobody called it off"
            raise PeerFailed("cut off")

    def late(who: str) -> None:
        assert who == "b"
        dropped.set()

    made = Spread(attempt, failed=lambda who, error: None, late=late).run(["b", "c"], 1)
    assert made == ["c"]
    assert dropped.wait(30), "what it may have kept all the same is dropped there"


def test_what_nobody_foresaw_ends_the_push() -> None:
    def attempt(who: str, attempt: Attempt) -> None:
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="full"):
        spread(attempt, "bc", 1)


# ------------------------------------------------------------------------------------------------------ real devices

ENDPOINTS = ("built-in", "http")
HTTP = True


@contextmanager
def held_up(project: Project, device: str) -> Iterator[Callable[[], None]]:
    """No sync of the project gets on with it on this device inside, until what this yields is called."""
    number = project.cluster.snapshot(project.name).repository.id
    lock = FileLock(project.cluster.devices[device].data_dir / "locks" / f"{number}.sync")
    assert lock.acquire(30)
    try:
        yield lock.release
    finally:
        lock.close()


def fetches(moved: Moved) -> float:
    """How often other devices fetched from this one: by Git's way, or by the shorter one (cluster/pulling.py)."""
    moved.look()
    return sum(
        moved.by("git_cluster_requests_total", endpoint="peer", service=service, outcome="ok")
        for service in ("upload-pack", "pack")
    )


def syncs(moved: Moved) -> float:
    moved.look()
    kinds = [(how, result) for how in ("log", "rebuild") for result in ("ok", "failed")]
    return sum(moved.by("git_cluster_sync_seconds_count", how=how, result=result) for how, result in kinds)


def connections(cluster: Cluster, device: str) -> float:
    """Of clients of any kind, now."""
    found = figures(cluster, device)
    return sum(of(found, "git_cluster_connections", endpoint=endpoint) for endpoint in ("ssh", "http"))


def test_twenty_readers_at_a_stale_replica_cost_one_sync(
    devices: Cluster, request: pytest.FixtureRequest
) -> None:
    app = Project.named(devices, request.node.name)
    app.pushed("a", "main")
    app.converge()
    with held_up(app, "b") as release, held_up(app, "c"):
        tip = app.commit("the newest")
        app.pushed("a", "main")
        leader, reader = Moved(devices, "a"), Moved(devices, "b")
        before = connections(devices, "b")
        with ThreadPoolExecutor(20) as pool:
            shown = [pool.submit(app.refs, "b") for _ in range(20)]
            devices.wait(lambda: connections(devices, "b") - before >= 20, "all of them wait")
            release()
            assert all(future.result(60)["refs/heads/main"] == tip for future in shown)
        assert syncs(reader) == 1
        assert fetches(leader) == 1


def test_twenty_readers_at_a_device_without_a_replica_cost_no_sync_but_the_one(
    devices: Cluster, endpoint: str
) -> None:
    name = f"team/elsewhere-{endpoint}"
    devices.create(name, devices="ab")
    app = Project(devices, name)
    app.pushed("a", "main")
    app.converge()
    with held_up(app, "b") as release:
        tip = app.commit("the newest")
        app.pushed("a", "main")
        leader, stale = Moved(devices, "a"), Moved(devices, "b")
        with ThreadPoolExecutor(20) as pool:
            shown = [pool.submit(app.refs, "c") for _ in range(20)]
            devices.wait(lambda: any(future.done() for future in shown) or syncs(stale), "they come in")
            release()
            assert all(future.result(60)["refs/heads/main"] == tip for future in shown)
        app.converge()
        assert syncs(stale) == 1
        assert syncs(leader) == 0


def test_what_was_staged_here_is_applied_without_asking_anybody(app: Project) -> None:
    app.pushed("a", "main")
    app.converge()
    before = {device: Moved(app.cluster, device) for device in "abc"}
    app.commit("the newest")
    app.pushed("a", "main")
    app.converge()
    assert sum(fetches(moved) for moved in before.values()) == 1, "of three copies one was pushed, one staged"
    assert [syncs(before[device]) for device in "abc"] == [0, 1, 1]


class Metered(Cluster):
    """A cluster whose devices reach one another through proxies that count."""

    def __init__(self, directory: Path, database: str) -> None:
        super().__init__(directory, database, {})
        self.ways: dict[str, CuttingProxy] = {}

    def peer_url(self, device: LoopbackDevice) -> str:
        if device.name not in self.ways:
            self.ways[device.name] = CuttingProxy((device.host, device.port))
        return f"ssh://git@127.0.0.1:{self.ways[device.name].port}"

    @property
    def accepted(self) -> int:
        return sum(way.accepted for way in self.ways.values())

    @property
    def carried(self) -> int:
        return sum(way.carried for way in self.ways.values())


@pytest.fixture
def metered(database_url: str, tmp_path: Path) -> Iterator[Metered]:
    cluster = Metered(tmp_path / "metered", database_url)
    cluster.set_up(list("abc"))
    for device in "abc":
        cluster.start(device)
    yield cluster
    cluster.close()
    for way in cluster.ways.values():
        way.close()


def test_connections_between_devices_are_reused_and_made_anew_once_after_a_restart(metered: Metered) -> None:
    app = Project.named(metered, "reused", min_copies=2)
    app.pushed("a", "main")
    app.converge()
    for number in range(50):
        app.commit(f"number {number}")
        app.pushed("ab"[number % 2], "main")
    app.converge()
    few = metered.accepted
    assert few <= 12, "at most two each way between three devices"
    metered.stop("b")
    metered.start("b")
    app.converge()
    for number in range(10):
        app.commit(f"again {number}")
        app.pushed("a", "main")
    app.converge()
    assert metered.accepted - few <= 8, "b's own, and those to b"


def test_a_small_push_into_a_large_repository_moves_the_small_push_alone(metered: Metered) -> None:
    app = Project.named(metered, "large", min_copies=2)
    (app.work / "large").write_bytes(os.urandom(40 << 20))
    app.commit("40 MB")
    app.pushed("a", "main")
    app.converge()
    before, size = metered.carried, 1 << 20
    (app.work / "small").write_bytes(os.urandom(size))
    app.commit("1 MB")
    app.pushed("a", "main")
    app.converge()
    assert metered.carried - before < 2 * size * 1.1 + 100_000, "once to the keeper, once to the third device"


def test_a_new_branch_off_another_than_the_default_one_moves_what_is_new(metered: Metered) -> None:
    """Only the default branch used to be said to be here already."""
    app = Project.named(metered, "branches")
    app.pushed("a", "main")
    app.git("checkout", "--quiet", "--orphan", "other")
    (app.work / "large").write_bytes(os.urandom(8 << 20))
    app.commit("8 MB with nothing in common")
    app.pushed("a", "other")
    app.converge()
    before = metered.carried
    app.git("checkout", "--quiet", "-b", "third")
    app.commit("small")
    app.pushed("a", "third")
    app.converge()
    assert metered.carried - before < 200_000


def test_a_replica_a_thousand_versions_behind_costs_one_fetch(make_cluster: Callable[..., Cluster]) -> None:
    cluster = make_cluster("ab")
    app = Project.named(cluster, "behind")
    app.pushed("a", "main")
    app.converge()
    cluster.stop("b")
    tips = [app.commit("first")]
    tree = app.git("rev-parse", "HEAD^{tree}")
    for number in range(1000):
        tips.append(app.git("commit-tree", "-p", tips[-1], "-m", str(number), tree))
    app.pushed("a", f"{tips[-1]}:refs/heads/all", f"{tips[0]}:refs/heads/main")
    position, number = (
        cluster.snapshot(app.name).repository.position,
        cluster.snapshot(app.name).repository.id,
    )
    with cluster.db.dedicated() as connection:
        for old, new in itertools.pairwise(tips):
            update = RefUpdate("refs/heads/main", old, new)
            position = cluster.db.commit_decree(
                number,
                position,
                updated(position.checksum, [update]),
                uuid4(),
                [update],
                actor="test",
                device="a",
                via="import",
                connection=connection,
            )
    cluster.wait(lambda: cluster.snapshot(app.name).of("a").position == position, "a has followed")  # type: ignore[union-attr]
    leader = Moved(cluster, "a")
    cluster.start("b")
    app.converge()
    assert app.version > 1000
    assert fetches(leader) == 1
    assert of(figures(cluster, "b"), "git_cluster_sync_seconds_count", how="log", result="ok") == 1
