"""The fault matrix in a short form: its hardest cells. The whole of it is `python -m tests.matrix`."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.faults import Step
from cluster.model import Replica
from tests.cluster_fixture import Project
from tests.matrix import Lane, run_all
from tests.matrix_cell import SHORT, Outage
from tests.network import KINDS, best, cluster_on, network

LANES = [
    Lane([(Step.COMMIT, Outage.PAUSE), (Step.COMMIT, Outage.CUT_BOTH), (Step.COMMIT, Outage.POSTGRES)]),
    Lane(
        [(Step.COMMIT, Outage.CUT_PEERS), (Step.COMMIT, Outage.CUT_DATABASE), (Step.COMMIT, Outage.DROP_DB)]
    ),
    Lane([(Step.MARK, Outage.DEVICE), (Step.APPLY, Outage.CUT_BOTH)]),
    Lane([(Step.COMMIT, Outage.DEVICE), (Step.COMMIT, Outage.KILL)]),
    Lane([(Step.COMMIT, Outage.CUT_BOTH)], "proxies"),
]
"""commit: the refs have moved, the version is not there yet. apply: neither. mark: both, and nobody was told."""


@pytest.mark.timeout(300)
def test_the_hardest_cells(tmp_path: Path) -> None:
    """G2, G3, G6, G9: nothing acknowledged is lost, all devices end equal, and nobody types `thaw`."""
    cells = run_all(tmp_path, LANES, SHORT, jobs=len(LANES))
    assert not [cell for cell in cells if cell.wrong], "\n".join(["", *(cell.line for cell in cells)])
    assert len(cells) == sum(len(lane.cells) for lane in LANES)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_cut_is_cut(kind: str, tmp_path: Path) -> None:
    """Nobody else's way is: a network that cut too little or too much would prove nothing."""
    if kind != best() and kind == "namespaces":
        pytest.skip("network namespaces need root on Linux")
    with network(kind, tmp_path) as place, cluster_on(place, tmp_path / "c", SHORT.writes) as cluster:
        project = Project.named(cluster, "cut")

        def replica(device: str) -> Replica:
            found = cluster.snapshot(project.name).of(device)
            assert found is not None
            return found

        def silent(device: str) -> bool:
            return (cluster.db.device(device).silent_for or 0) > 4

        place.cut("a", peers=True)
        project.pushed("b", "main")
        cluster.wait(lambda: replica("c").version == 1, "c fetches from b")
        place.cut("b", database=True)
        cluster.wait(lambda: replica("a").attempts > 0, "a cannot")
        cluster.wait(lambda: silent("b"), "nothing is heard of b")
        assert replica("a").version == 0 and not silent("a") and not silent("c")
        place.lift("a")
        place.lift("b")
        cluster.wait(lambda: cluster.converged(project.name), "a can again")
        cluster.wait(lambda: not silent("b"), "b is heard of again")
