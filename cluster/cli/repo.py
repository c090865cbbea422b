"""`git-cluster repo …`: which repositories there are, and where."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from cluster import names
from cluster.cli import show
from cluster.cli.app import DEVICE, REPOSITORY, App, find, group, json_option, pass_app
from cluster.cli.place import COPIES, place, planned, say_step
from cluster.errors import NotFound, Refused, UsageError
from cluster.model import HEAD, WhenShort

if TYPE_CHECKING:
    from cluster.creating import Created
    from cluster.db import Database
    from cluster.model import Device, Snapshot
    from cluster.placement import Change

BRANCH = names.ref_name


@group("repo")
def repo() -> None:
    """The repositories."""


_devices_option = click.option(
    "--device", "devices", metavar="D", multiple=True, type=DEVICE,
    help="A device that is to hold it, as often as you like; default: what `placement list` says.",
)  # fmt: skip
_copies_option = click.option(
    "--copies", metavar="N", type=COPIES, help="On how many devices; the best are chosen."
)
_min_copies_option = click.option(
    "--min-copies", metavar="K", type=COPIES,
    help="Devices that must hold a push before it counts; default: 2, or 1 where there is one device.",
)  # fmt: skip


@repo.command("create")
@click.argument("name", type=REPOSITORY)
@_devices_option
@_copies_option
@_min_copies_option
@click.option("--default-branch", "branch", metavar="B", type=BRANCH, default="main", show_default=True)
@click.option("--object-format", type=click.Choice(["sha1", "sha256"]), default="sha1", show_default=True)
@json_option
@pass_app
def create(
    app: App,
    name: str,
    devices: tuple[str, ...],
    copies: int | None,
    min_copies: int | None,
    branch: str,
    object_format: str,
    as_json: bool,
) -> None:
    """Make an empty repository."""
    from cluster import creating

    with app.database() as db:
        made = creating.create(
            db,
            name,
            devices=devices,
            copies=copies,
            min_copies=min_copies,
            head=branch,
            object_format=object_format,
        )
    _warn(made)
    if as_json:
        show.as_json(creating.made_of(name, made))
        return
    where, least = ", ".join(device.name for device in made.devices), made.min_copies
    click.echo(
        f"repository {name} created on {where}; a push counts with {least} cop{'y' if least == 1 else 'ies'}"
    )
    click.echo(f"clone it with: git clone {made.devices[0].ssh_url}/{name}")


def _warn(made: Created) -> None:
    if made.note:
        click.echo(f"warning: {made.note}", err=True)


@repo.command("import")
@click.argument("name", type=REPOSITORY)
@click.argument("source", metavar="PATH-OR-URL")
@_devices_option
@_copies_option
@_min_copies_option
@json_option
@pass_app
def import_(
    app: App,
    name: str,
    source: str,
    devices: tuple[str, ...],
    copies: int | None,
    min_copies: int | None,
    as_json: bool,
) -> None:
    """Make a repository out of another, with all its refs and its default branch."""
    from cluster import creating
    from cluster.cli.importing import fetched, push

    with app.database() as db:
        creating.choose(
            db, name, devices=devices, copies=copies, min_copies=min_copies
        )  # it may be impossible
        _must_be_free(db, name)
        with fetched(source) as copy:
            made = creating.create(
                db,
                name,
                devices=devices,
                copies=copies,
                min_copies=min_copies,
                head=copy.head,
                object_format=copy.object_format,
            )
            device = push(db, made.id, name, copy)
        version = db.snapshot_of(made.id).repository.version
    _warn(made)
    document = creating.made_of(name, made)
    branch = copy.head.removeprefix("refs/heads/")
    document |= {"version": version, "refs": copy.refs, "default_branch": branch, "pushed_to": device}
    if as_json:
        show.as_json(document)
    elif device:
        refs = f"{copy.refs} ref{'' if copy.refs == 1 else 's'}"
        click.echo(f"repository {name} imported by way of device {device}: {refs}, default branch {branch}")
    else:
        click.echo(f"repository {name} created; {source} has no refs to import")


def _must_be_free(db: Database, name: str) -> None:
    """Before anything is fetched; the database itself makes sure when the repository is made."""
    try:
        find(db, name)
    except NotFound:
        return
    raise Refused(f"there is a repository {name} already", hint="`git-cluster repo list` shows them")


@repo.command("list")
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """The repositories, and where each is."""
    from cluster.status import observe

    with app.database() as db:
        entries = observe(db, app.config().cluster.name)["repositories"]
    rows = [
        {key: entry[key] for key in ("name", "version", "state", "min_copies", "copies")}
        | {"devices": [replica["device"] for replica in entry["replicas"]]}
        for entry in entries
    ]
    if as_json:
        show.as_json(rows)
        return
    show.table(
        ["repository", "state", "version", "copies", "min", "devices"],
        [
            [r["name"], r["state"], r["version"], r["copies"], r["min_copies"], " ".join(r["devices"])]
            for r in rows
        ],
        "no repositories yet; make one with `git-cluster repo create`",
    )


@repo.command("show")
@click.argument("name", type=REPOSITORY)
@json_option
@pass_app
def show_(app: App, name: str, as_json: bool) -> None:
    """One repository: its settings, its state, where to clone it."""
    from cluster.status import observe, timestamp

    with app.database() as db:
        snapshot = find(db, name)
        head = db.last_change(snapshot.repository.id, HEAD)
        entry = observe(db, app.config().cluster.name, name)["repositories"][0]
    found = snapshot.repository
    document = entry | {
        "object_format": found.object_format,
        "default_branch": head.refs[0].new.removeprefix("ref: refs/heads/") if head else None,
        "when_short": found.when_short.value,
        "frozen": found.frozen,
        "created_at": timestamp(found.created_at),
        "urls": [f"{replica.device.ssh_url}/{name}" for replica in snapshot.replicas],
    }
    if as_json:
        show.as_json(document)
        return
    lines = [
        ("repository", name),
        ("state", entry["state"] + (f": {entry['reason']}" if entry["reason"] else "")),
        ("version", entry["version"]),
        ("default branch", document["default_branch"]),
        ("object format", found.object_format),
        (
            "copies",
            f"{entry['copies']}, a push needs {entry['min_copies']}; {found.when_short.value} when short",
        ),
        ("created", show.moment(found.created_at)),
        *(
            ("replica", f"{r['device']} {r['state']}, version {show.cell(r['version'])}")
            for r in entry["replicas"]
        ),
        *(("clone", url) for url in document["urls"]),
    ]
    for key, value in lines:
        click.echo(f"{key + ':':<16}{show.cell(value)}")


repo.add_command(place)


@repo.command("rename")
@click.argument("name", type=REPOSITORY)
@click.argument("new_name", type=REPOSITORY)
@pass_app
def rename(app: App, name: str, new_name: str) -> None:
    """Give a repository another name. Nothing moves; the old name stops working at once."""
    with app.database() as db:
        find(db, name)
        db.rename_repository(name, new_name)
    click.echo(f"repository {name} is now {new_name}; grants on the old name are not")


@repo.command("delete")
@click.argument("name", type=REPOSITORY)
@click.option("--yes", is_flag=True, help="Do not ask.")
@pass_app
def delete(app: App, name: str, yes: bool) -> None:
    """Delete a repository, on every device. Asks first where somebody is at the terminal."""
    with app.database() as db:
        version = find(db, name).repository.version
        if not yes and sys.stdin.isatty():
            click.confirm(f"Delete {name}, at version {version}, on every device?", abort=True)
        db.delete_repository(name)
    click.echo(f"repository {name} deleted; its devices drop their copies when they notice")


@repo.command("set")
@click.argument("name", type=REPOSITORY)
@_min_copies_option
@click.option("--when-short", type=click.Choice([policy.value for policy in WhenShort]),
              help="What a push does that fewer devices than that can hold.")  # fmt: skip
@click.option(
    "--default-branch", "branch", metavar="B", type=BRANCH, help="HEAD's target; a version like any other."
)
@click.option("--add-device", "add", metavar="D", multiple=True, type=DEVICE, hidden=True)
@click.option("--remove-device", "remove", metavar="D", multiple=True, type=DEVICE, hidden=True)
@pass_app
def set_(
    app: App,
    name: str,
    min_copies: int | None,
    when_short: str | None,
    branch: str | None,
    add: tuple[str, ...],
    remove: tuple[str, ...],
) -> None:
    """Change how a repository is held. Where: `git-cluster repo place`."""
    from cluster.moving import carry_out

    if not (min_copies or when_short or branch or add or remove):
        raise UsageError("there is nothing to change", hint="see `git-cluster repo set --help`")
    with app.database() as db:
        snapshot = find(db, name)
        change = _planned(db, snapshot, min_copies, add, remove)
        for step in carry_out(db, snapshot.repository.id, replace(change, remove=())):
            say_step(*step, name)
        if min_copies or when_short:
            db.set_repository(
                name, min_copies=min_copies, when_short=WhenShort(when_short) if when_short else None
            )
            said = [f"a push needs {min_copies} cop{'y' if min_copies == 1 else 'ies'}"] if min_copies else []
            said += [f"when short: {when_short}"] if when_short else []
            click.echo(f"{name}: {', '.join(said)}")
        for step in carry_out(db, snapshot.repository.id, replace(change, add=())):
            say_step(*step, name)
        if branch:
            version = _set_head(db, snapshot, branch)
            click.echo(f"{name}: default branch {branch.removeprefix('refs/heads/')}, version {version}")


def _planned(
    db: Database, snapshot: Snapshot, min_copies: int | None, add: Sequence[str], remove: Sequence[str]
) -> Change:
    """Everything that can be known to be wrong, before anything is changed."""
    from cluster.placement import check_copies, refuse_removal

    subject = snapshot.repository
    for device in add:
        if snapshot.of(device):
            raise Refused(
                f"device {device} holds this repository already", hint="`git-cluster repo show` lists them"
            )
    least = min_copies or subject.min_copies
    then = replace(snapshot, repository=replace(subject, min_copies=least))
    change = planned(db, then, add, remove)
    if not add and snapshot.intent_owner is None:
        for device in remove:
            refuse_removal(then, device)
    if min_copies:
        check_copies(subject.name, min_copies, len(change.after))
    return change


def _set_head(db: Database, snapshot: Snapshot, branch: str) -> int | None:
    from cluster.acting import set_head
    from cluster.operator import operator

    with operator(db) as asking:

        def ask(device: Device, verb: str, arguments: Mapping[str, object]) -> dict[str, Any]:
            return asking.ask(device, verb, arguments, lambda line: click.echo(line, err=True))

        return set_head(snapshot, branch, ask)
