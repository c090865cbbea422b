"""`git-cluster device …`: the machines of the cluster."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import click

from cluster import names
from cluster.cli import show
from cluster.cli.app import DEVICE, App, group, json_option, pass_app
from cluster.errors import UsageError

KEY_FILE = click.Path(path_type=Path)


@group("device")
def device() -> None:
    """The machines that hold repositories."""


def _ssh_url(text: str) -> str:
    """As strict as the configuration's: it becomes an argument of ssh, and a line of known_hosts."""
    host = r"[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+(?:%[A-Za-z0-9]+)?\]"
    found = re.fullmatch(
        rf"ssh://[A-Za-z0-9_][A-Za-z0-9._-]*@(?:{host})(?::([0-9]{{1,5}}))?", text.rstrip("/")
    )
    if not found or not 0 < int(found[1] or 22) <= 65535:
        raise UsageError(
            f"{names.shown(text)} is not the SSH URL of a device",
            hint="Give ssh://user@host or ssh://user@host:port, without a password or a path.",
        )
    return text.rstrip("/")


def _http_url(text: str) -> str:
    if not re.fullmatch(r"https?://[^\s/@]+(/[^\s@?#]*)?", text):
        raise UsageError(
            f"{names.shown(text)} is not the HTTP URL of a device",
            hint="Give http://host:port or https://host.",
        )
    return text.rstrip("/")


@device.command("add")
@click.argument("name", type=DEVICE)
@click.option("--ssh", "ssh_url", required=True, metavar="URL", type=_ssh_url,
              help="Where clients and peers reach it: ssh://git@host:port.")  # fmt: skip
@click.option("--http", "http_url", metavar="URL", type=_http_url, help="The same by HTTP.")
@click.option("--key", "key_file", required=True, metavar="FILE", type=KEY_FILE,
              help="The device's public key, by which it logs in on its peers.")  # fmt: skip
@click.option("--host-key", "host_key_file", required=True, metavar="FILE", type=KEY_FILE,
              help="The public host key of its SSH endpoint.")  # fmt: skip
@pass_app
def add(app: App, name: str, ssh_url: str, http_url: str | None, key_file: Path, host_key_file: Path) -> None:
    """Register a machine. It holds repositories that are created from now on."""
    from cluster import keys

    key, host_key = keys.read(key_file), keys.read(host_key_file)
    with app.database() as db:
        db.add_device(
            name,
            ssh_url=ssh_url,
            http_url=http_url,
            fingerprint=key.fingerprint,
            public_key=key.line,
            host_key=host_key.line,
        )
    click.echo(f"device {name} added; start it there with `git-cluster serve`")


@device.command("list")
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """The devices, and when each was last seen."""
    from cluster.status import timestamp

    with app.database() as db:
        devices = db.devices()
        held = {found.name: sum(1 for name in db.held(found.name).values() if name) for found in devices}
    if as_json:
        rows: list[dict[str, Any]] = [
            {
                "name": found.name,
                "state": found.state,
                "mode": found.mode.value,
                "ssh": found.ssh_url,
                "http": found.http_url,
                "last_seen_at": timestamp(found.last_seen_at),
                "repositories": held[found.name],
                "key": found.public_key,
                "host_key": found.host_key,
            }
            for found in devices
        ]
        show.as_json(rows)
        return
    show.table(
        ["device", "state", "last seen", "repositories", "ssh", "http"],
        [[d.name, d.state, show.ago(d.last_seen_at), held[d.name], d.ssh_url, d.http_url] for d in devices],
        "no devices yet; add one with `git-cluster device add`",
    )


@device.command("drain")
@click.argument("name", type=DEVICE)
@pass_app
def drain(app: App, name: str) -> None:
    """Serve what it has, but give it nothing new: the step before `remove`."""
    from cluster.model import DeviceMode

    with app.database() as db:
        db.set_device_mode(name, DeviceMode.DRAINING)
        held = sorted(found for found in db.held(name).values() if found)
    click.echo(f"device {name} drains: no new repositories, and no copies of pushes")
    if held:
        some = ", ".join(held[:3]) + (", …" if len(held) > 3 else "")
        click.echo(
            f"it still holds {len(held)}: {some}\n"
            f"move each away: git-cluster repo set REPO --add-device OTHER, then --remove-device {name}"
        )


@device.command("enable")
@click.argument("name", type=DEVICE)
@pass_app
def enable(app: App, name: str) -> None:
    """Undo `drain`."""
    from cluster.model import DeviceMode

    with app.database() as db:
        db.set_device_mode(name, DeviceMode.ENABLED)
    click.echo(f"device {name} is enabled")


@device.command("remove")
@click.argument("name", type=DEVICE)
@pass_app
def remove(app: App, name: str) -> None:
    """Forget a device that holds no repository; its key is worth nothing from then on."""
    with app.database() as db:
        db.remove_device(name)
    click.echo(f"device {name} removed")
