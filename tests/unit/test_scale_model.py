"""The model for scale (tests/model): what is known beforehand must come out of it."""

from __future__ import annotations

import statistics
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import simpy

from cluster.faults import Step
from tests.model import report
from tests.model.__main__ import _measured
from tests.model.constants import (
    CONNECT,
    FILE,
    PUSH_STEPS,
    READ_STEPS,
    Constants,
    Cost,
    Work,
    load,
)
from tests.model.instruments import Figures, parsed
from tests.model.parts import Cores, Outcome, Setting
from tests.model.scenarios import FIGURES, Scenario, predicted, scenarios
from tests.model.simulation import simulate

PUSH = {
    **{str(step): Cost(0.002) for step in PUSH_STEPS},
    CONNECT: Cost(0.03, database=1, clients=10),
    Step.AUTHORIZE: Cost(0.001, database=1),
    Step.RECEIVE: Cost(0.01, clients=1),
    Step.PROPOSE: Cost(0.002, database=2),
    Step.LOCK: Cost(0.001, database=1),
    Step.CLEAR: Cost(0.001, database=1),
    Step.SETTLE: Cost(0.001, database=1),
    Step.INTEND: Cost(0.001, database=1),
    Step.APPLY: Cost(0.008),
    Step.COMMIT: Cost(0.002, database=1),
    Step.MARK: Cost(0.001),
}
CHEAP = Constants(
    push={1: PUSH, 2: {**PUSH, Step.STAGE: Cost(0.015, database=2, peers=3)}},
    read={CONNECT: Cost(0.03, database=1, clients=10), **{str(step): Cost(0.002) for step in READ_STEPS}},
    kept=Cost(0.0, database=2),
    fetched=Cost(0.0, database=2),
    work_push=Work(0.01, 0.01),
    work_send=Work(),
    work_keep=Work(),
    work_kept=Work(),
    work_fetched=Work(),
    work_serve=Work(),
    work_notified=Work(),
    work_read=Work(0.005, 0.001),
    client=0.01,
    statement=0.0,
    flush=0.0,
    notified=0.0,
    wait_before=3,
    wait_after=1,
)
"""Small numbers in which nothing hides."""


def run(constants: Constants = CHEAP, /, **setting: Any) -> Outcome:
    return simulate(constants, Setting(**{"warm": 5.0, "seconds": 40.0, **setting}))


@pytest.mark.parametrize("milliseconds", [5, 20, 30])
def test_one_repositorys_throughput_is_one_over_the_time_that_its_lock_is_held(milliseconds: int) -> None:
    """Pushed to on three devices the lock is never free: the next one queues for it in the database."""
    outcome = run(
        pushers=18, spread=True, rtt_database=milliseconds / 1000, rtt_peers=milliseconds / 1000, cores=8
    )
    assert outcome.pushes == pytest.approx(1 / statistics.fmean(outcome.locked), rel=0.03)


@pytest.mark.parametrize("milliseconds", [0, 1, 20, 100])
def test_on_one_device_the_lock_is_handed_on_four_times_then_given_back(milliseconds: int) -> None:
    """Given back, the next one asks for it at once, at the same time as that is on its way."""
    rtt = milliseconds / 1000
    outcome = run(pushers=16, rtt_database=rtt, seconds=40 + 600 * rtt, cores=8, daemons=8)
    under_it = PUSH_STEPS[PUSH_STEPS.index(Step.CLEAR) : PUSH_STEPS.index(Step.COMMIT) + 1]
    cycle = sum(PUSH[step].seconds for step in under_it) + rtt * sum(
        PUSH[step].database for step in (Step.LOCK, *under_it)
    )
    assert outcome.pushes == pytest.approx(1 / cycle, rel=0.02)


def test_handed_on_within_a_device_it_takes_fewer_syncs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets it from another device has to sync first: each of them, or one of four."""
    slow = replace(CHEAP, fetched=Cost(0.2, database=2))
    four = run(slow, pushers=24, spread=True, cores=8, seconds=60)
    monkeypatch.setattr("tests.model.simulation.IN_A_ROW", 1)
    one = run(slow, pushers=24, spread=True, cores=8, seconds=60)
    assert four.pushes > 2 * one.pushes


def test_the_lock_is_held_for_half_of_its_trip_to_half_of_the_trip_that_gives_it_back() -> None:
    assert CHEAP.trips_held(1) == 5
    far, near = run(rtt_database=0.1, seconds=200), run()
    trips = (statistics.fmean(far.locked) - statistics.fmean(near.locked)) / 0.1
    assert trips == pytest.approx(CHEAP.trips_held(1), rel=0.01)


@pytest.mark.parametrize("copies", [1, 2])
def test_without_distance_and_without_others_a_push_takes_what_was_calibrated(copies: int) -> None:
    outcome = run(min_copies=copies)
    assert outcome.median == pytest.approx(
        sum(cost.seconds for cost in CHEAP.push[copies].values()), rel=0.02
    )


def test_a_third_copy_is_staged_after_the_second() -> None:
    two, three = run(min_copies=2, rtt_peers=0.05), run(min_copies=3, rtt_peers=0.05)
    one, more = PUSH[Step.STAGE], CHEAP.push[2][Step.STAGE]
    assert three.median - two.median == pytest.approx(
        more.seconds - one.seconds + 0.05 * more.peers, abs=0.002
    )


@pytest.mark.parametrize("count", [1, 1.5, 2, 3.2])
def test_cores_do_as_much_as_they_are(count: float) -> None:
    env = simpy.Environment()
    cores = Cores(env, count)
    for _ in range(24):
        env.process(cores.use(1.0))
    env.run()
    assert env.now == pytest.approx(24 / count, rel=0.02)


def test_distance_adds_trips_times_round_trips_and_nothing_else() -> None:
    near = run(min_copies=2).median
    where = {"database": "rtt_database", "peers": "rtt_peers", "clients": "rtt_clients"}
    for name, setting in where.items():
        trips = sum(getattr(cost, name) for cost in CHEAP.push[2].values())
        far = run(min_copies=2, **{setting: 0.1}).median
        assert far - near == pytest.approx(trips * 0.1, abs=0.002), name


def test_more_devices_never_reduce_the_throughput_of_many_repositories() -> None:
    rates = [
        run(devices=count, repositories=24, pushers=24, cores=1, warm=2, seconds=4).pushes
        for count in (1, 2, 3, 4, 6)
    ]
    assert all(after >= before * 0.99 for before, after in pairwise(rates)), rates
    assert rates[-1] > 3 * rates[0]


def test_the_database_is_the_limit_in_the_end() -> None:
    busy = replace(CHEAP, statement=0.002)
    trips = sum(cost.database for cost in PUSH.values())
    rate = run(busy, devices=12, repositories=48, pushers=96, database_cores=1, replicas=1, seconds=20).pushes
    assert rate == pytest.approx(1 / (trips * busy.statement), rel=0.05)


def test_commits_that_come_together_share_a_flush() -> None:
    slow = replace(CHEAP, flush=0.05)
    alone = run(slow, replicas=1)
    many = run(slow, devices=8, repositories=32, pushers=32, replicas=1, seconds=6)
    assert alone.median == pytest.approx(run(replicas=1).median + 0.05, abs=0.002)
    assert many.pushes > 1.5 / slow.flush


def test_reads_scale_with_devices() -> None:
    one, four = (
        run(devices=n, repositories=40, pushers=0, readers=40 * n, warm=2, seconds=2).reads for n in (1, 4)
    )
    assert four == pytest.approx(4 * one, rel=0.05)
    assert one == pytest.approx(1 / CHEAP.work_read.daemon, rel=0.05)


def test_what_every_device_does_for_every_push_costs_more_with_every_device() -> None:
    loud = replace(CHEAP, statement=0.001, notified=4)
    setting = {"devices": 24, "repositories": 96, "pushers": 192, "database_cores": 1, "seconds": 8}
    assert run(replace(loud, notified=0), **setting).pushes > 3 * run(loud, **setting).pushes


def test_a_read_elsewhere_right_after_a_push_waits_for_the_sync() -> None:
    slow = replace(CHEAP, fetched=Cost(1.0, database=2))
    plain = statistics.median(run(readers=1, pushers=0).read)
    after = statistics.median(run(slow, read_after_push=True).after)
    assert plain < 0.1 < 0.5 < after < 1.3


def test_two_runs_are_equal() -> None:
    setting = {"pushers": 8, "spread": True, "rtt_database": 0.02, "seconds": 10}
    assert run(**setting) == run(**setting)


# ------------------------------------------------------------------------------------------------ what was measured


def test_the_calibration_can_be_read() -> None:
    data = load()
    constants = Constants.of(data["constants"])
    for copies in (1, 2):
        assert set(constants.push[copies]) == {CONNECT, *PUSH_STEPS}
        assert sum(cost.seconds for cost in constants.push[copies].values()) > 0
        assert constants.trips_held(copies) >= 1
    assert set(constants.read) == {CONNECT, *READ_STEPS}
    assert constants.push[2][Step.STAGE].peers > constants.push[1][Step.STAGE].peers == 0
    assert data["calibrated"]["date"] and data["calibrated"]["machine"]["cores"]
    assert data["statements"]["1"] and FILE.name == "calibration.json"


def test_what_was_measured_can_be_simulated() -> None:
    data = load()
    kinds = {scenario.kind for scenario in scenarios()}
    assert {row["kind"] for row in data["measured"]} <= kinds
    row = next(row for row in data["measured"] if row["kind"] == "alone")
    found = report.compared([row], [predicted(Constants.of(data["constants"]), row)])
    assert {figure for _, figure, _, _ in found} == {"median", "held", "fresh", "after"} <= set(FIGURES)
    assert "| 1 |" in report.comparison(found)


def test_scenarios_are_told_apart() -> None:
    found = list(scenarios())
    assert len(set(found)) == len(found)
    assert Scenario("three devices", 2, 20, 5).setting(2.0) == Setting(
        pushers=8, spread=True, min_copies=2, rtt_database=0.02, rtt_peers=0.005, one_machine=2.0
    )


def test_figures_are_means_of_what_ended_between_two_looks() -> None:
    before = Figures({("push", "apply"): (1.0, 10), ("read", "serve"): (1.0, 1)})
    after = Figures({("push", "apply"): (1.5, 12), ("push", "commit"): (0.2, 2), ("read", "serve"): (1.0, 1)})
    assert after.since(before, "push") == {"apply": pytest.approx(0.25), "commit": pytest.approx(0.1)}
    assert after.since(before, "read") == {}


def test_statements_are_read_from_postgresqls_log() -> None:
    log = """1700000000.100|7|10.0.0.1|LOG:  statement: BEGIN
1700000000.200|7|10.0.0.1|LOG:  execute _pg3_3: select a
\t  from b
\t where c = $1
1700000000.200|7|10.0.0.1|DETAIL:  parameters: $1 = '1'
1700000000.300|8||LOG:  statement: select 'ours, by the socket'
1700000000.400|9|10.0.0.2|LOG:  statement: select 1
"""
    assert [(one.session, one.address, one.text) for one in parsed(log)] == [
        ("7", "10.0.0.1", "BEGIN"),
        ("7", "10.0.0.1", "select a from b where c = $1"),
    ]


def test_only_what_is_between_the_marks_is_rewritten(tmp_path: Path) -> None:
    file = tmp_path / "model.md"
    marks = "<!-- sums: made by python -m tests.model -->", "<!-- end of sums -->"
    file.write_text(f"before\n\n{marks[0]}\nold\n{marks[1]}\n\nafter\n")
    report.rewrite(file, {"sums": "new"})
    assert file.read_text() == f"before\n\n{marks[0]}\n\nnew\n\n{marks[1]}\n\nafter\n"
    with pytest.raises(ValueError, match="no marks for other"):
        report.rewrite(file, {"other": "new"})


def test_a_line_of_the_plot_goes_from_near_to_far_however_it_was_measured() -> None:
    def row(kind: str, apart: float) -> dict[str, Any]:
        figures = {"median": apart, "fresh": apart, "pushes": 1 / apart}
        return {"kind": kind, "min_copies": 1, "database": apart, "peers": apart, **figures}

    rows = [row(kind, apart) for apart in (20.0, 100.0, 1.0) for kind in ("alone", "one device")]
    for panel in _measured(rows, [dict(each) for each in rows]):
        for curve in [*panel.curves, *panel.marks]:
            assert list(curve.x) == sorted(curve.x)
