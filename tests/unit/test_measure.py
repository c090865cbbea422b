"""What is counted, as tables: outcomes, percentiles, answers that are kept for a while."""

from __future__ import annotations

import threading
import time

import pytest

from cluster.errors import (
    ClientGone,
    ClusterError,
    DatabaseUnavailable,
    Frozen,
    NotFound,
    Refused,
    UsageError,
    WriteConflict,
)
from cluster.faults import Step
from cluster.http.who import Unauthenticated
from cluster.looked import Looked, NoAnswer
from cluster.measure import Asked, Measures, Outcome, ReadStep, outcome_of
from cluster.meters import Meters
from cluster.model import ANONYMOUS, Actor, ActorKind, Exchange, Service
from cluster.receive import Hopeless
from cluster.tally import MOST, Counted, Tally, percentile

USER = Actor(ActorKind.USER, "ann", "SHA256:x")
DEVICE = Actor(ActorKind.DEVICE, "b", "SHA256:y")
PUSH = Asked.of_git(USER, Service.RECEIVE_PACK, Exchange.STREAM, via="ssh")
READ = Asked.of_git(USER, Service.UPLOAD_PACK, Exchange.STREAM, via="ssh")


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (ClientGone(""), Outcome.GONE),
        (Refused(""), Outcome.REFUSED),
        (NotFound(""), Outcome.REFUSED),
        (Unauthenticated(""), Outcome.REFUSED),
        (UsageError(""), Outcome.REFUSED),
        (Hopeless({}), Outcome.REFUSED),
        (Frozen(""), Outcome.FAILED),
        (WriteConflict(""), Outcome.FAILED),
        (DatabaseUnavailable(""), Outcome.FAILED),
        (ClusterError(""), Outcome.FAILED),
        (OSError(), Outcome.FAILED),
        (KeyError(), Outcome.FAILED),
    ],
)
def test_what_an_error_comes_to(error: Exception, outcome: Outcome) -> None:
    assert outcome_of(error) is outcome


@pytest.mark.parametrize(
    ("actor", "service", "exchange", "via", "through", "asked"),
    [
        (USER, Service.RECEIVE_PACK, Exchange.STREAM, "ssh", False, ("ssh", "receive-pack", True, True)),
        (USER, Service.RECEIVE_PACK, Exchange.STATELESS, "http", False, ("http", "receive-pack", True, True)),
        (USER, Service.RECEIVE_PACK, Exchange.ADVERTISEMENT, "http", False, ("http", "listing", False, True)),
        (
            ANONYMOUS,
            Service.UPLOAD_PACK,
            Exchange.STATELESS,
            "http",
            False,
            ("http", "upload-pack", False, True),
        ),
        (DEVICE, Service.UPLOAD_PACK, Exchange.STREAM, "ssh", False, ("peer", "upload-pack", False, False)),
        (DEVICE, Service.RECEIVE_PACK, Exchange.STREAM, "http", True, ("peer", "receive-pack", True, True)),
    ],
)
def test_what_is_counted_of_a_request(
    actor: Actor, service: Service, exchange: Exchange, via: str, through: bool, asked: tuple[object, ...]
) -> None:
    made = Asked.of_git(actor, service, exchange, via=via, through=through)
    assert (made.endpoint, made.service, made.writes, made.by_user) == asked


@pytest.mark.parametrize(
    ("values", "p50", "p99"),
    [
        ([], None, None),
        ([1.0], 1.0, 1.0),
        ([1.0, 2.0], 1.0, 2.0),
        ([1.0, 2.0, 3.0], 2.0, 3.0),
        ([float(n) for n in range(1, 101)], 50.0, 99.0),
    ],
)
def test_percentiles(values: list[float], p50: float | None, p99: float | None) -> None:
    assert (percentile(values, 0.5), percentile(values, 0.99)) == (p50, p99)


def test_a_tally_is_taken_once_and_is_bounded() -> None:
    tally = Tally()
    for number in range(MOST + 10):
        tally.read(float(number))
    tally.pushed(2.0)
    tally.failed()
    taken = tally.take()
    assert (taken.pushes, taken.reads, taken.failures) == (1, MOST + 10, 1)
    assert taken.push_p50 == taken.push_p99 == 2.0
    assert taken.read_p50 is not None and 0.4 < taken.read_p50 / MOST < 0.6
    assert tally.take() == Counted()


def test_which_requests_are_tallied() -> None:
    def run(meters: Meters, asked: Asked, *steps: Step | ReadStep, code: int = 0, gone: bool = False) -> None:
        with meters.request(asked) as answer:
            for step in steps:
                meters.step(step)
            answer.ended(code, gone=gone)

    meters = Meters()
    run(meters, PUSH, Step.AUTHORIZE, Step.ACKNOWLEDGE, Step.DONE)
    run(meters, PUSH, Step.AUTHORIZE, Step.RECEIVE, Step.DONE)  # nothing was to be pushed
    run(meters, PUSH, Step.AUTHORIZE, ReadStep.PASS_ON)  # by another device, which counts it
    run(meters, READ, ReadStep.AUTHORIZE, ReadStep.SERVE)
    run(meters, READ, ReadStep.AUTHORIZE, ReadStep.SERVE, code=128, gone=True)
    run(meters, READ, ReadStep.AUTHORIZE, ReadStep.SERVE, code=128)
    run(meters, Asked.of_git(DEVICE, Service.UPLOAD_PACK, Exchange.STREAM, via="ssh"), ReadStep.SERVE)
    with pytest.raises(Refused), meters.request(READ):
        raise Refused("no")
    taken = meters.tally.take()
    assert (taken.pushes, taken.reads, taken.failures) == (1, 1, 1)


def test_an_error_that_is_told_counts_though_the_request_ends_well() -> None:
    meters = Meters()
    with meters.request(PUSH) as answer:
        meters.step(Step.PROPOSE)
        try:
            with meters.told():
                raise Frozen("x is frozen")
        except Frozen:
            pass
        answer.ended(0, gone=False)
    count = meters.registry.get_sample_value(
        "git_cluster_requests_total", {"endpoint": "ssh", "service": "receive-pack", "outcome": "failed"}
    )
    assert count == 1 and meters.tally.take().failures == 1


def test_what_happens_outside_of_a_request_is_no_step() -> None:
    meters = Meters()
    for measures in (meters, Measures()):
        measures.step(Step.COMMIT)
        with measures.told(), measures.request(READ) as answer:
            assert answer.ended(3, gone=False) == 3
        measures.step(Step.MARK)
    names = {s.name for metric in meters.registry.collect() for s in metric.samples if s.value}
    assert names == {"git_cluster_requests_total"}


def test_however_many_ask_it_is_asked_once() -> None:
    asked, go = 0, threading.Event()

    def look() -> int:
        nonlocal asked
        asked += 1
        go.wait(20)
        return asked

    looked, answers = Looked(look, least=60), []
    threads = [threading.Thread(target=lambda: answers.append(looked.get(20))) for _ in range(20)]
    for thread in threads:
        thread.start()
    with pytest.raises(NoAnswer):
        looked.get(0.01)
    go.set()
    for thread in threads:
        thread.join(20)
    assert answers == [1] * 20 and looked.get(0) == 1


def test_an_older_answer_while_the_next_one_takes_long() -> None:
    go, count = threading.Event(), 0

    def look() -> int:
        nonlocal count
        count += 1
        if count > 1:
            go.wait(20)
        return count

    looked = Looked(look, least=0, bygone=60)
    assert looked.get(20) == 1
    assert looked.get(0.01) == 1
    go.set()
    deadline = time.monotonic() + 20
    while looked.get(20) == 1:
        assert time.monotonic() < deadline


def test_an_error_is_kept_like_an_answer() -> None:
    asked = 0

    def look() -> int:
        nonlocal asked
        asked += 1
        raise DatabaseUnavailable("away")

    looked = Looked(look, least=60)
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            looked.get(20)
    assert asked == 1
