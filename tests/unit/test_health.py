"""When a device is ready: the table."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cluster.db import Presence, Stuck
from cluster.http.health import AWAY, Condition, reasons, wrong_with
from cluster.model import DeviceMode
from cluster.opening import SERVE_LOCK

HERE = Presence(DeviceMode.ENABLED, stopped=False, silent_for=1.0)
FIT = Condition(presence=HERE)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        (FIT, []),
        (replace(FIT, stopping=True), ["this device stops"]),
        (replace(FIT, disk="the disk of this device is full"), ["the disk of this device is full"]),
        (Condition(away=AWAY), [AWAY]),
        (Condition(away=AWAY, disk="full", stopping=True), ["this device stops", "full", AWAY]),
        (Condition(), ["this device is not registered any more"]),
        (Condition(presence=replace(HERE, mode=DeviceMode.DRAINING)), ["this device is draining"]),
        (Condition(presence=replace(HERE, mode=DeviceMode.DISABLED)), ["this device is disabled"]),
        (Condition(presence=replace(HERE, silent_for=9.9)), []),
        (Condition(presence=replace(HERE, silent_for=10.0)), ["this device has no heartbeat"]),
        (Condition(presence=replace(HERE, silent_for=None)), ["this device has no heartbeat"]),
        (Condition(presence=replace(HERE, stopped=True)), ["this device has no heartbeat"]),
        (
            replace(FIT, stuck=Stuck(1000, 1, 1)),
            ["1 copy cannot be synced, and another device has the newest version"],
        ),
        (replace(FIT, stuck=Stuck(1000, 100, 0)), []),  # nobody has them: all devices would go
        (replace(FIT, stuck=Stuck(1000, 101, 0)), ["101 copies of 1000 cannot be synced"]),
        (replace(FIT, stuck=Stuck(1, 1, 0)), ["1 copy of 1 cannot be synced"]),
        (replace(FIT, stuck=Stuck(0, 0, 0)), []),
    ],
)
def test_the_table(seen: Condition, why: list[str]) -> None:
    assert reasons(seen) == why


def test_a_disk_that_is_another_one(tmp_path: Path) -> None:
    assert wrong_with(tmp_path) == "the disk of this device is not the one that it began with"
    (tmp_path / SERVE_LOCK).touch()
    (tmp_path / "run").mkdir()
    assert wrong_with(tmp_path) is None
    assert [path.name for path in (tmp_path / "run").iterdir()] == []
    (tmp_path / "repositories").touch()
    said = wrong_with(tmp_path)
    assert said is not None and str(tmp_path) not in said
