"""How the cluster is, and who asks."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from cluster.http.api import models
from cluster.http.api.asking import FOR_ANYBODY, Anybody, Asker
from cluster.overview import overview

router = APIRouter(tags=["cluster"])


@router.get("/status", response_model=models.Status, openapi_extra=FOR_ANYBODY)
async def status(asker: Anybody) -> Any:
    """How the cluster is, in a few numbers, and its devices. As of some seconds ago where many ask."""
    found = await asker.ask(lambda: overview(asker.db, asker.node.cluster))
    return found.document | ({"devices": None} if asker.anonymous else {})


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
