"""What is done to a repository by somebody who may admin it: sync, verify, freeze, thaw. cluster/acting.py does it.

Each answers when it is done, which may take long. A client that goes away does not stop it.
"""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from cluster import acting
from cluster.acting import Outcome
from cluster.http.api import models
from cluster.http.api.asking import User

router = APIRouter(tags=["deeds"])


def _replicas(outcome: Outcome) -> dict[str, Any]:
    return {"ok": outcome.ok, "lines": outcome.lines, "replicas": outcome.result}


@router.post("/sync/{name:path}", response_model=models.Replicas)
async def sync(asker: User, name: models.Name, body: models.OnDevices) -> Any:
    """Bring replicas to the newest version now, rather than soon."""
    return _replicas(await asker.act(lambda: acting.sync(asker.node, asker.actor, name, body.devices)))


@router.post("/verify/{name:path}", response_model=models.Replicas)
async def verify(asker: User, name: models.Name, body: models.OnDevices) -> Any:
    """Hold what is on disk against the database now. A copy that is not what it should be is rebuilt."""
    return _replicas(await asker.act(lambda: acting.verify(asker.node, asker.actor, name, body.devices)))


@router.post("/freeze/{name:path}", response_model=models.Frozen)
async def freeze(asker: User, name: models.Name, body: models.Freeze) -> Any:
    """Take no more writes, until `thaw`. Reads go on. The reason is shown to everybody whose push is refused."""

    def do() -> Any:
        outcome = acting.freeze(asker.node, asker.actor, name, body.reason, expected=body.expected_version)
        return outcome.result | {"lines": outcome.lines}

    return await asker.ask(do)


@router.post("/thaw/{name:path}", response_model=models.Thawed)
async def thaw(asker: User, name: models.Name, body: models.Thaw) -> Any:
    """Resolve an interrupted write, end a freeze, or put back versions that the database lost. First with dry_run.

    409: not at expected_version, or acknowledged versions would be lost, which `lines` lists, without accept_loss.
    """

    def do() -> Any:
        return acting.thaw(
            asker.node,
            asker.actor,
            name,
            demote=body.demote,
            promote=body.promote,
            dry_run=body.dry_run,
            accept_loss=body.accept_loss,
            expected=body.expected_version,
        ).result

    return await asker.act(do)
