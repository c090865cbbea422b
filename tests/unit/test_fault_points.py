"""GIT_CLUSTER_FAULT, as it is written."""

from __future__ import annotations

import pytest

from cluster.errors import ConfigError
from cluster.faults import Fault, Faults, Step


@pytest.mark.parametrize(("text", "times"), [("commit:drop-db", 3), ("commit:drop-db:once", 1), ("", 0)])
def test_a_fault_acts_at_its_step_each_time_or_once(text: str, times: int) -> None:
    acted: list[Step] = []
    faults = Faults.parse(text)
    for _ in range(3):
        for step in Step:
            faults.reach(step, lambda: acted.append(Step.COMMIT))
    assert acted == [Step.COMMIT] * times


@pytest.mark.parametrize("text", ["commit", "lunch:kill", "commit:nap", "commit:kill:twice", ":once"])
def test_anything_else_is_an_error_that_names_what_there_is(text: str) -> None:
    with pytest.raises(ConfigError, match="GIT_CLUSTER_FAULT") as caught:
        Faults.parse(text)
    assert all(word in caught.value.hint for word in (*Step, *Fault))
