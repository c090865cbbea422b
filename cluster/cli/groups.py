"""`git-cluster group …`: sets of people that grants and rules can name."""

from __future__ import annotations

import click

from cluster import documents, names
from cluster.cli import show
from cluster.cli.app import App, group, json_option, pass_app

GROUP = names.group_name
USER = names.user_name


@group("group")
def group_() -> None:
    """Sets of people that grants and rules can name. A group is written @NAME; here NAME will do."""


@group_.command("add")
@click.argument("name", type=names.new_group_name)
@pass_app
def add(app: App, name: str) -> None:
    """Add a group, which then needs members and a grant."""
    with app.database() as db:
        db.add_group(name)
    click.echo(f"group @{name} added; next: `git-cluster group join {name} USER…`")


@group_.command("list")
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """The groups, and who is in them."""
    with app.database() as db:
        groups = db.groups()
    if as_json:
        show.as_json([documents.group(row) for row in groups])
        return
    show.table(
        ["group", "added", "members"],
        [[f"@{row['name']}", row["created_at"], ", ".join(row["members"])] for row in groups],
        "no groups yet; add one with `git-cluster group add`",
    )


@group_.command("remove")
@click.argument("name", type=GROUP)
@pass_app
def remove(app: App, name: str) -> None:
    """Remove a group, with its grants and its rules. The people stay."""
    with app.database() as db:
        db.remove_group(name)
    click.echo(f"group @{name} removed, with its grants and rules")


@group_.command("join")
@click.argument("name", type=GROUP)
@click.argument("users", metavar="USER…", type=USER, nargs=-1, required=True)
@pass_app
def join(app: App, name: str, users: tuple[str, ...]) -> None:
    """Make each USER a member of the group: all of them, or, where one does not exist, none."""
    with app.database() as db:
        db.join(name, users)
    click.echo(f"{', '.join(dict.fromkeys(users))} joined @{name}")


@group_.command("leave")
@click.argument("name", type=GROUP)
@click.argument("users", metavar="USER…", type=USER, nargs=-1, required=True)
@pass_app
def leave(app: App, name: str, users: tuple[str, ...]) -> None:
    """Take each USER out of the group: all of them, or, where one is not in it, none."""
    with app.database() as db:
        db.leave(name, users)
    click.echo(f"{', '.join(dict.fromkeys(users))} left @{name}")
