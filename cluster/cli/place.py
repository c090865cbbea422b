"""`git-cluster repo place` and `git-cluster placement …`: which devices hold which repositories."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from cluster import documents, names
from cluster.cli import show
from cluster.cli.app import DEVICE, REPOSITORY, App, Command, find, group, json_option, pass_app
from cluster.errors import StillNeeded, UsageError

if TYPE_CHECKING:
    from cluster.db import Database
    from cluster.model import Snapshot
    from cluster.placement import Change

COPIES = click.IntRange(1, 9)
PATTERN = names.pattern


@click.command("place", cls=Command)
@click.argument("name", type=REPOSITORY)
@click.option("--add", metavar="D", multiple=True, type=DEVICE, help="Hold it there, too.")
@click.option("--remove", metavar="D", multiple=True, type=DEVICE, help="Hold it there no more.")
@click.option("--copies", metavar="N", type=COPIES,
              help="Have it on N devices: the best are chosen for what --add and --remove leave open.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Wait until what is added is current, and only then remove.")
@click.option("--dry-run", is_flag=True, help="Only say what would be done.")
@json_option
@pass_app
def place(
    app: App,
    name: str,
    add: tuple[str, ...],
    remove: tuple[str, ...],
    copies: int | None,
    wait: bool,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Say on which devices a repository is.

    A device that is added fetches it as soon as it can; one that is removed moves its copy to its trash. The last
    device with the newest version is never removed. --wait may be interrupted, and the command be given again.
    """
    if not (add or remove or copies):
        raise UsageError("there is nothing to change", hint="see `git-cluster repo place --help`")
    with app.database() as db:
        snapshot = find(db, name)
        change = planned(db, snapshot, add, remove, copies)
        if dry_run:
            _show(name, change, as_json=as_json)
        else:
            _carry_out(db, snapshot, change, add, wait=wait, as_json=as_json)


def planned(
    db: Database, snapshot: Snapshot, add: Sequence[str], remove: Sequence[str], copies: int | None = None
) -> Change:
    """What is asked for, checked as far as it can be before anything changes."""
    from cluster import placement

    return placement.change(snapshot, db.devices(), db.loads(), add=add, remove=remove, copies=copies)


def _show(name: str, change: Change, *, as_json: bool) -> None:
    if as_json:
        show.as_json(
            documents.placed(name, change, change.add, change.remove, change.after) | {"dry_run": True}
        )
        return
    for device in change.add:
        click.echo(f"{device} would hold {name}")
    for device in change.remove:
        click.echo(f"{device} would no longer hold {name}")
    if not change.add and not change.remove:
        click.echo(f"nothing would change: {name} is on {', '.join(change.after)}")


def _carry_out(
    db: Database, snapshot: Snapshot, change: Change, named: Sequence[str], *, wait: bool, as_json: bool
) -> None:
    from cluster.moving import carry_out

    name, id = snapshot.repository.name, snapshot.repository.id
    done: dict[str, list[str]] = {"add": [], "remove": []}
    steps = carry_out(
        db, id, change, await_=named, say=(lambda line: click.echo(line, err=True)) if wait else None
    )
    try:
        for step, device in steps:
            done[step].append(device)
            if not as_json:
                say_step(step, device, name)
        if not as_json and not change.add and not change.remove:
            click.echo(f"nothing to change: {name} is on {', '.join(change.after)}")
    except StillNeeded as error:
        if not done["add"]:
            raise
        # The sentence is about a device that was added just now: it will be current soon.
        added = " and ".join(done["add"])
        raise StillNeeded(
            error.what,
            hint=f"wait until {added} is current, or have the command do that: "
            f"`git-cluster repo place {name} {' '.join(f'--remove {d}' for d in change.remove)} --wait`",
        ) from error
    finally:
        if as_json and (done["add"] or done["remove"] or not (change.add or change.remove)):
            after = sorted(({r.device.name for r in snapshot.replicas} | {*done["add"]}) - {*done["remove"]})
            show.as_json(
                documents.placed(name, change, done["add"], done["remove"], after) | {"dry_run": False}
            )


def say_step(step: str, device: str, name: str) -> None:
    """One line about what was done."""
    if step == "add":
        click.echo(f"{device} will hold {name}; `git-cluster status {name}` shows when it does")
    else:
        click.echo(f"{device} no longer holds {name}")


# ------------------------------------------------------------------------------------------ rules for new ones


@group("placement")
def placement() -> None:
    """Where new repositories go, by their names."""


@placement.command("set")
@click.argument("pattern", type=PATTERN)
@click.option("--copies", metavar="N", type=COPIES, required=True, help="Devices that hold it.")
@click.option("--min-copies", metavar="K", type=COPIES,
              help="Devices that must hold a push before it counts; default: 2, or 1 where N is 1.")  # fmt: skip
@pass_app
def set_(app: App, pattern: str, copies: int, min_copies: int | None) -> None:
    """Have new repositories whose names match PATTERN on N devices. The most specific pattern decides."""
    from cluster.model import PlacementRule

    if min_copies is not None and min_copies > copies:
        raise UsageError(
            f"--min-copies {min_copies} is more than --copies {copies}",
            hint="Ask for as many copies as a push has to be held by, or more.",
        )
    with app.database() as db:
        db.set_placement_rule(PlacementRule(pattern, copies, min_copies))
    click.echo(
        f"new repositories {pattern} get {copies} cop{'y' if copies == 1 else 'ies'}; "
        f"a push counts with {min_copies or min(2, copies)}"
    )


@placement.command("list")
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """The rules, the most specific first. Where none matches: on every enabled device."""
    with app.database() as db:
        rules = sorted(db.placement_rules(), key=lambda rule: names.specificity(rule.pattern), reverse=True)
    if as_json:
        show.as_json([documents.placement_rule(rule) for rule in rules])
        return
    show.table(
        ["pattern", "copies", "min copies"],
        [[rule.pattern, rule.copies, rule.min_copies or min(2, rule.copies)] for rule in rules],
        "no rules; new repositories go to every enabled device",
    )


@placement.command("remove")
@click.argument("pattern", type=PATTERN)
@pass_app
def remove(app: App, pattern: str) -> None:
    """Forget a rule. Repositories that are there already stay where they are."""
    with app.database() as db:
        db.remove_placement_rule(pattern)
    click.echo(f"the rule for {pattern} is gone")
