"""The repositories of the whole cluster, by what the status document says of one of each kind."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cluster import status
from cluster.db import Alike, Database
from cluster.doctor.finding import Finding, ok, problem, some, warning
from cluster.errors import NotFound
from cluster.model import Device

MOST = 300
"""Groups of which one is looked at. Only many writes at the same moment make that many."""


@dataclass(frozen=True, slots=True)
class Group:
    """Repositories that are alike, and the entry of one of them in cluster/status.py's document."""

    alike: Alike
    entry: Mapping[str, Any]


def look(db: Database, devices: Sequence[Device]) -> list[Finding]:
    """devices: all of the cluster, for their zones."""
    alike = db.alike()
    groups = []
    for each in alike[:MOST]:
        with suppress(NotFound):  # deleted or renamed just now
            (entry,) = status.observe(db, "", each.names[0])["repositories"]
            groups.append(Group(each, entry))
    return judge(groups, devices, unseen=_count(alike[MOST:]))


def judge(groups: Sequence[Group], devices: Sequence[Device], *, unseen: int = 0) -> list[Finding]:
    """unseen: repositories in groups that were not looked at."""
    return [_states(groups, unseen), *_placement(groups, devices)]


def _states(groups: Sequence[Group], unseen: int) -> Finding:
    total = sum(group.alike.count for group in groups) + unseen
    count = f"{total} repositor{'y' if total == 1 else 'ies'}"
    found = {
        state: [group.alike for group in groups if group.entry["state"] == state]
        for state in ("unavailable", "frozen", "degraded")
    }
    told = [f"{_count(alike)} {state} ({_some(alike)})" for state, alike in found.items() if alike]
    if not told:
        healthy = f"{count}, all healthy" + (
            f" but for {unseen} at work, which were not looked at" if unseen else ""
        )
        return ok("copies", healthy if total else "no repositories yet")
    what, hint = f"of {count}: {'; '.join(told)}", "`git-cluster status` says why, and what to do"
    if found["unavailable"] or found["frozen"]:
        return problem("copies", what, hint)
    return warning("copies", what, hint)


def _placement(groups: Sequence[Group], devices: Sequence[Device]) -> list[Finding]:
    zones = {device.name: device.zone for device in devices}
    many = len({zone for zone in zones.values() if zone}) > 1
    too_few: list[Alike] = []
    together: list[Alike] = []
    for group in groups:
        places = [replica["device"] for replica in group.entry["replicas"]]
        if len(places) < group.entry["min_copies"]:
            too_few.append(group.alike)
        if many and len(places) > 1 and len({zones.get(place) for place in places}) == 1:
            together.append(group.alike)
    findings = []
    if too_few:
        findings.append(
            warning(
                "min_copies",
                f"{_subject(too_few)} on fewer devices than min_copies asks for: {_some(too_few)}",
                "`git-cluster repo set REPO --add-device D`, or a lower --min-copies",
            )
        )
    if together:
        findings.append(
            warning(
                "zones",
                f"{_subject(together)} with all copies in one zone: {_some(together)}",
                "`git-cluster repo set REPO --add-device D` with a device of another zone",
            )
        )
    return findings


def _count(alike: Iterable[Alike]) -> int:
    return sum(each.count for each in alike)


def _some(alike: Sequence[Alike]) -> str:
    return some(sorted(name for each in alike for name in each.names), _count(alike))


def _subject(alike: Sequence[Alike]) -> str:
    count = _count(alike)
    return f"{count} repositor{'y is' if count == 1 else 'ies are'}"
