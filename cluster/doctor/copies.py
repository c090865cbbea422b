"""What the status document says of all repositories together, as findings. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from cluster.doctor.finding import Finding, ok, problem, some, warning
from cluster.model import Device

Entry = Mapping[str, Any]


def judge(document: Mapping[str, Any], devices: Sequence[Device]) -> list[Finding]:
    """document: cluster/status.py's. devices: all of the cluster, for their zones."""
    entries: list[Entry] = document["repositories"]
    return [_states(entries), *_placement(entries, devices)]


def _states(entries: Sequence[Entry]) -> Finding:
    count = f"{len(entries)} repositor{'y' if len(entries) == 1 else 'ies'}"
    by_state: dict[str, list[str]] = {}
    for entry in entries:
        by_state.setdefault(entry["state"], []).append(entry["name"])
    found = [
        f"{len(by_state[state])} {state} ({some(by_state[state])})"
        for state in ("unavailable", "frozen", "degraded")
        if state in by_state
    ]
    if not found:
        return ok("copies", f"{count}, all healthy" if entries else "no repositories yet")
    what, hint = f"of {count}: {'; '.join(found)}", "`git-cluster status` says why, and what to do"
    if "unavailable" in by_state or "frozen" in by_state:
        return problem("copies", what, hint)
    return warning("copies", what, hint)


def _placement(entries: Sequence[Entry], devices: Sequence[Device]) -> list[Finding]:
    zones = {device.name: device.zone for device in devices}
    many = len({zone for zone in zones.values() if zone}) > 1
    too_few: list[str] = []
    together: list[str] = []
    for entry in entries:
        places = [replica["device"] for replica in entry["replicas"]]
        if len(places) < entry["min_copies"]:
            too_few.append(entry["name"])
        if many and len(places) > 1 and len({zones.get(place) for place in places}) == 1:
            together.append(entry["name"])
    findings = []
    if too_few:
        findings.append(
            warning(
                "min_copies",
                f"{len(too_few)} repositor{_ies(too_few)} on fewer devices than min_copies asks for: {some(too_few)}",
                "`git-cluster repo set REPO --add-device D`, or a lower --min-copies",
            )
        )
    if together:
        findings.append(
            warning(
                "zones",
                f"{len(together)} repositor{_ies(together)} with all copies in one zone: {some(together)}",
                "`git-cluster repo set REPO --add-device D` with a device of another zone",
            )
        )
    return findings


def _ies(names: Sequence[str]) -> str:
    return "y is" if len(names) == 1 else "ies are"
