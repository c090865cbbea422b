"""Devices: the machines of the cluster."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Response

from cluster import documents, keys
from cluster.errors import Exists, Refused, UsageError
from cluster.http.api import models
from cluster.http.api.asking import Administrator, Asker, User
from cluster.model import DeviceMode
from cluster.moving import Moving

router = APIRouter(tags=["devices"])


@router.get("/devices", response_model=list[models.Device])
async def devices(asker: User) -> Any:
    """The devices, and when each was last seen."""
    return await asker.ask(lambda: _devices(asker))


@router.get("/devices/{device}", response_model=models.Device)
async def device(asker: User, device: models.DeviceName) -> Any:
    return await asker.ask(lambda: _device(asker, device))


@router.put("/devices/{device}", response_model=models.Device, responses={201: {"model": models.Device}})
async def add_device(
    asker: Administrator, device: models.DeviceName, body: models.NewDevice, response: Response
) -> Any:
    """Register a machine. 201: it is new; 200: it was registered like this already."""

    def add() -> Any:
        key, host_key = keys.parse(body.key), keys.parse(body.host_key)
        told = {
            "ssh": body.ssh,
            "http": body.http,
            "zone": body.zone,
            "key": key.line,
            "host_key": host_key.line,
        }
        try:
            asker.db.add_device(
                device,
                ssh_url=body.ssh,
                http_url=body.http,
                fingerprint=key.fingerprint,
                public_key=key.line,
                host_key=host_key.line,
                zone=body.zone,
            )
        except Exists:
            found = [each for each in _devices(asker) if each["name"] == device]
            if not found or told.items() - found[0].items():
                raise
            return found[0]
        response.status_code = 201
        return _device(asker, device)

    return await asker.ask(add)


@router.patch("/devices/{device}", response_model=models.Device)
async def set_device(asker: Administrator, device: models.DeviceName, body: models.DeviceChange) -> Any:
    """Change where a device is, or drain, disable or enable it."""

    def change() -> Any:
        if not body.model_fields_set:
            raise UsageError("there is nothing to change", hint="Give ssh, http, zone or mode.")
        asker.db.set_device(device, ssh_url=body.ssh, http_url=body.http, zone=body.zone)
        if body.mode is not None:
            asker.db.set_device_mode(device, DeviceMode(body.mode))
        return _device(asker, device)

    return await asker.ask(change)


@router.post("/devices/{device}/move", response_model=models.Done)
async def move_away(asker: Administrator, device: models.DeviceName) -> Any:
    """Move every repository away from a device that drains, and answer when that is done. Cut off, ask again."""

    def move() -> Any:
        found = asker.db.device(device)
        if found.mode is DeviceMode.ENABLED:
            raise Refused(f"device {device} is enabled, and would be given more", hint="drain it first")
        said: list[str] = []
        moving = Moving(asker.db, device, lambda line: None)
        said += [f"not moved: {line}" for line in moving.run()]
        return {"lines": [f"{moving.moved} repositories moved away from device {device}", *said]}

    return await asker.act(move)


@router.delete("/devices/{device}", status_code=204)
async def remove_device(asker: Administrator, device: models.DeviceName) -> None:
    """Forget a device that holds no repository; its key is worth nothing from then on."""
    await asker.ask(lambda: asker.db.remove_device(device))


def _devices(asker: Asker) -> list[dict[str, Any]]:
    held = asker.db.loads()
    return [documents.device(found, held.get(found.name, 0)) for found in asker.db.devices()]


def _device(asker: Asker, name: str) -> dict[str, Any]:
    found = asker.db.device(name)
    return documents.device(found, asker.db.loads().get(name, 0))
