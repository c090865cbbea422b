"""`git-cluster device …`: the machines of the cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster import documents, names
from cluster.cli import show
from cluster.cli.app import DEVICE, App, group, json_option, pass_app
from cluster.errors import Refused, UsageError

if TYPE_CHECKING:
    from cluster.db import Database

KEY_FILE = click.Path(path_type=Path)


@group("device")
def device() -> None:
    """The machines that hold repositories."""


_zone_option = click.option(
    "--zone", metavar="Z", type=names.zone_name, help="What fails together with it: a rack, a site."
)


@device.command("add")
@click.argument("name", type=DEVICE)
@click.option("--ssh", "ssh_url", required=True, metavar="URL", type=names.ssh_url,
              help="Where clients and peers reach it: ssh://git@host:port.")  # fmt: skip
@click.option("--http", "http_url", metavar="URL", type=names.http_url, help="The same by HTTP.")
@_zone_option
@click.option("--key", "key_file", required=True, metavar="FILE", type=KEY_FILE,
              help="The device's public key, by which it logs in on its peers.")  # fmt: skip
@click.option("--host-key", "host_key_file", required=True, metavar="FILE", type=KEY_FILE,
              help="The public host key of its SSH endpoint.")  # fmt: skip
@pass_app
def add(
    app: App,
    name: str,
    ssh_url: str,
    http_url: str | None,
    zone: str | None,
    key_file: Path,
    host_key_file: Path,
) -> None:
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
            zone=zone or "",
        )
    click.echo(f"device {name} added; start it there with `git-cluster serve`")


@device.command("list")
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """The devices, and when each was last seen."""
    with app.database() as db:
        devices = db.devices()
        held = db.loads()
    if as_json:
        show.as_json([documents.device(found, held.get(found.name, 0)) for found in devices])
        return
    show.table(
        ["device", "state", "last seen", "zone", "repositories", "ssh", "http"],
        [
            [d.name, d.state, show.ago(d.last_seen_at), d.zone, held.get(d.name, 0), d.ssh_url, d.http_url]
            for d in devices
        ],
        "no devices yet; add one with `git-cluster device add`",
    )


@device.command("set")
@click.argument("name", type=DEVICE)
@click.option("--ssh", "ssh_url", metavar="URL", type=names.ssh_url, help="Where clients and peers reach it.")
@click.option("--http", "http_url", metavar="URL", type=lambda url: url and names.http_url(url),
              help='The same by HTTP; "": not at all.')  # fmt: skip
@_zone_option
@pass_app
def set_(app: App, name: str, ssh_url: str | None, http_url: str | None, zone: str | None) -> None:
    """Change where a device is. Its peers use the new address at once."""
    told = {"SSH at": ssh_url, "HTTP at": http_url, "zone": zone}
    said = [
        f"{key} {value}" if value else f"no {key.split()[0]}"
        for key, value in told.items()
        if value is not None
    ]
    if not said:
        raise UsageError("there is nothing to change", hint="see `git-cluster device set --help`")
    with app.database() as db:
        db.set_device(name, ssh_url=ssh_url, http_url=http_url, zone=zone)
    click.echo(f"device {name}: {', '.join(said)}")


@device.command("drain")
@click.argument("name", type=DEVICE)
@click.option("--move", is_flag=True, help="Move every repository elsewhere, and wait until that is done.")
@pass_app
def drain(app: App, name: str, move: bool) -> None:
    """Serve what it has, but give it nothing new: the step before `remove`.

    --move may be interrupted: given again, it goes on where it was.
    """
    from cluster.model import DeviceMode

    with app.database() as db:
        if db.device(name).mode is not DeviceMode.DISABLED or not move:
            db.set_device_mode(name, DeviceMode.DRAINING)
            click.echo(f"device {name} drains: no new repositories, and no copies of pushes")
        if move:
            _move(db, name)
            return
        held = sorted(found for found in db.held(name).values() if found)
    if held:
        some = ", ".join(held[:3]) + (", …" if len(held) > 3 else "")
        click.echo(
            f"it still holds {len(held)}: {some}\nmove them away: `git-cluster device drain {name} --move`"
        )


def _move(db: Database, name: str) -> None:
    from cluster.moving import Moving

    moving = Moving(db, name, lambda line: click.echo(line, err=True))
    failed = moving.run()
    click.echo(f"{moving.moved} repositor{'y' if moving.moved == 1 else 'ies'} moved away from device {name}")
    for line in failed[:20]:
        click.echo(f"not moved: {line}", err=True)
    if failed:
        raise Refused(
            f"{len(failed)} repositor{'y' if len(failed) == 1 else 'ies'} could not be moved away from device {name}",
            hint=f"add or enable a device, or lower min_copies, then again: `git-cluster device drain {name} --move`",
        )
    click.echo(f"it holds nothing any more: `git-cluster device remove {name}` forgets it")


@device.command("disable")
@click.argument("name", type=DEVICE)
@pass_app
def disable(app: App, name: str) -> None:
    """Have it serve nothing: nobody reads from it, pushes to it or syncs from it. Nothing is moved."""
    from cluster.model import DeviceMode

    with app.database() as db:
        db.set_device_mode(name, DeviceMode.DISABLED)
        alone = [
            snapshot.repository.name
            for snapshot in db.every_snapshot()
            if snapshot.of(name) in snapshot.leaders
            and not any(r.device.name != name for r in snapshot.leaders)
        ]
    click.echo(f"device {name} is disabled: it serves nothing until `git-cluster device enable {name}`")
    if alone:
        some = ", ".join(alone[:3]) + (", …" if len(alone) > 3 else "")
        click.echo(f"warning: it alone holds the newest version of {len(alone)}: {some}", err=True)


@device.command("enable")
@click.argument("name", type=DEVICE)
@pass_app
def enable(app: App, name: str) -> None:
    """Undo `drain` or `disable`."""
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
