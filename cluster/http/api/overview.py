"""How the cluster is, and who asks."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from cluster.db import STATES
from cluster.documents import device_summary
from cluster.errors import DatabaseUnavailable
from cluster.http.api import models
from cluster.http.api.asking import FOR_ANYBODY, Anybody, Asker
from cluster.http.site import Site
from cluster.looked import Looked, NoAnswer
from cluster.model import Device

router = APIRouter(tags=["cluster"])

PATIENCE = 10.0
"""Seconds for the cluster to be counted."""

Found = tuple[dict[str, int], list[Device]]


def counting(site: Site) -> Looked[Found]:
    """Repositories by state, and the devices. Where much is wrong that takes a while, so it is kept for one."""
    db = site.node.db
    return Looked(lambda: (db.repository_states(), db.devices()), least=1.0, rest=10.0)


@router.get("/status", response_model=models.Status, openapi_extra=FOR_ANYBODY)
async def status(request: Request, asker: Anybody) -> Any:
    """How the cluster is, in a few numbers, and its devices. It may be as of some seconds ago."""
    counted: Looked[Found] = request.app.state.counted
    return await asker.ask(lambda: _status(asker, counted))


def _status(asker: Asker, counted: Looked[Found]) -> dict[str, Any]:
    try:
        states, devices = counted.get(PATIENCE)
    except NoAnswer:
        raise DatabaseUnavailable(
            "the cluster is still being counted", hint="ask again in a moment"
        ) from None
    present = dict.fromkeys(("online", "offline", "draining", "disabled"), 0)
    for device in devices:
        present[device.state] += 1
    return {
        "cluster": asker.node.cluster,
        "healthy": not present["offline"]
        and not any(states[state] for state in STATES if state != "healthy"),
        "counts": {"devices": present, "repositories": states},
        "devices": None if asker.anonymous else [device_summary(device) for device in devices],
    }


@router.get("/whoami", response_model=models.Who, openapi_extra=FOR_ANYBODY)
async def whoami(asker: Anybody) -> Any:
    """Who you are to this cluster."""
    return await asker.ask(lambda: _whoami(asker))


def _whoami(asker: Asker) -> dict[str, Any]:
    if asker.anonymous:
        return {"user": None, "groups": [], "administers": False, "read_only": True}
    standing = asker.db.standing(asker.actor.name)
    return {
        "user": asker.actor.name,
        "groups": [f"@{group}" for group in standing.groups] if standing else [],
        "administers": asker.administers(),
        "read_only": asker.actor.read_only,
    }
