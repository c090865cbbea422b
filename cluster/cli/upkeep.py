"""`git-cluster init`, `serve`, `sync`, `verify`, `freeze`, `thaw`: what keeps a cluster going."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import click

from cluster import names
from cluster.cli import show
from cluster.cli.app import DEVICE, REPOSITORY, App, command, find, json_option, open_database, pass_app
from cluster.errors import NotFound, UsageError

if TYPE_CHECKING:
    from cluster.db import Database
    from cluster.model import Device, Snapshot


@command("init")
@json_option
@pass_app
def init(app: App, as_json: bool) -> None:
    """Give the database git-cluster's schema, or upgrade it. Safe to repeat."""
    from cluster.db import SCHEMA_VERSION

    config = app.config()
    with open_database(config, any_schema=True) as db:
        outcome = db.init(config.cluster.name)
    if as_json:
        show.as_json({"cluster": config.cluster.name, "schema": SCHEMA_VERSION, "outcome": outcome})
    else:
        click.echo(f"cluster {config.cluster.name}: schema {SCHEMA_VERSION} {outcome}")


@command("serve")
@pass_app
def serve(app: App) -> int:
    """The daemon of this device: serve clients and peers until a signal."""
    from cluster.daemon import run

    return run(app.config())


def _targets(
    db: Database, repositories: tuple[str, ...], only: str | None
) -> Iterator[tuple[Snapshot, Device]]:
    """Each replica that a command is about: of the named repositories or of all, on one device or on all."""
    if only:
        db.device(only)
    snapshots = (
        [find(db, name) for name in dict.fromkeys(repositories)] if repositories else db.every_snapshot()
    )
    for snapshot in snapshots:
        replicas = [replica for replica in snapshot.replicas if only in (None, replica.device.name)]
        if repositories and not replicas:
            where = f"device {only}" if only else "any device"
            raise NotFound(
                f"{snapshot.repository.name} has no replica on {where}",
                hint="`git-cluster status` shows where it is",
            )
        for replica in replicas:
            yield snapshot, replica.device


def _on_replicas(app: App, verb: str, repositories: tuple[str, ...], only: str | None, as_json: bool) -> int:
    """Ask the device of each replica to do `verb` to it, one after another. 1 when any of them failed."""
    from cluster.operator import on_each, operator, words

    rows: list[dict[str, Any]] = []

    def say(line: str) -> None:
        click.echo(line, err=True)

    with app.database() as db:
        targets = list(_targets(db, repositories, only))
        width = max((len(f"{s.repository.name} on {d.name}") for s, d in targets), default=0)
        with operator(db) as asking:

            def ask(device: Device, verb: str, arguments: Mapping[str, object]) -> dict[str, Any]:
                return asking.ask(device, verb, arguments, say)

            for row in on_each(ask, verb, targets):
                rows.append(row)
                if not as_json:
                    where = f"{row['repository']} on {row['device']}"
                    click.echo(f"{where:<{width}}  {words(row)}")
    if as_json:
        show.as_json(rows)
    elif not rows:
        click.echo("there is nothing to do: no repositories here", err=True)
    failed = [row for row in rows if not row["ok"]]
    for hint in dict.fromkeys(row["hint"] for row in failed if row["hint"] and not as_json):
        click.echo(f"  {show.printable(hint)}", err=True)
    return 1 if failed else 0


@command("sync")
@click.argument("repositories", metavar="[REPO]...", nargs=-1, type=REPOSITORY)
@click.option("--device", metavar="D", type=DEVICE, help="Only the replicas on this device.")
@json_option
@pass_app
def sync(app: App, repositories: tuple[str, ...], device: str | None, as_json: bool) -> int:
    """Bring replicas to the newest version now, rather than soon."""
    return _on_replicas(app, "sync", repositories, device, as_json)


@command("verify")
@click.argument("repositories", metavar="[REPO]...", nargs=-1, type=REPOSITORY)
@click.option("--device", metavar="D", type=DEVICE, help="Only the replicas on this device.")
@json_option
@pass_app
def verify(app: App, repositories: tuple[str, ...], device: str | None, as_json: bool) -> int:
    """Hold what is on disk against the database now.

    A copy whose refs or objects are not what they should be is rebuilt from another device.
    """
    return _on_replicas(app, "verify", repositories, device, as_json)


@command("freeze")
@click.argument("repository", metavar="REPO", type=REPOSITORY)
@click.option("--reason", required=True, metavar="TEXT", help="Shown to everybody whose push is refused.")
@pass_app
def freeze(app: App, repository: str, reason: str) -> None:
    """Take no more writes to REPO, until `thaw`. Reads go on."""
    reason = names.reason(reason, "--reason")
    with app.database() as db:
        subject = find(db, repository).repository
        db.freeze(subject.id, reason)
    if subject.frozen:
        click.echo(f"it was frozen already: {subject.frozen}", err=True)
    click.echo(f"{repository} is frozen: {reason}\nend it with `git-cluster thaw {repository}`")


@command("thaw")
@click.argument("repository", metavar="REPO", type=REPOSITORY)
@click.option(
    "--demote", metavar="D", type=DEVICE, help="Give up what device D claims; it syncs from the others."
)
@click.option("--promote", metavar="D", type=DEVICE, help="Declare what device D holds the truth.")
@click.option("--dry-run", is_flag=True, help="Say what would happen and what would be lost, ref by ref.")
@click.option("--accept-loss", is_flag=True, help="Go on although acknowledged changes are given up.")
@json_option
@pass_app
def thaw(
    app: App,
    repository: str,
    demote: str | None,
    promote: str | None,
    dry_run: bool,
    accept_loss: bool,
    as_json: bool,
) -> None:
    """Resolve an interrupted write, end a freeze, or put back versions that the database lost.

    What is given up stays under refs/cluster/lost/.
    """
    from cluster import operator
    from cluster import thaw as thawing

    if demote and promote:
        raise UsageError("--demote and --promote exclude each other", hint="Try one with --dry-run first.")

    def say(line: str) -> None:
        click.echo(show.printable(line), err=True)

    with app.database() as db:

        def ask(device: Device, verb: str, arguments: Mapping[str, object]) -> dict[str, Any]:
            return operator.ask(db, device, verb, arguments, say)

        find(db, repository)
        result = thawing.thaw(
            db,
            repository,
            demote=demote,
            promote=promote,
            dry_run=dry_run,
            accept_loss=accept_loss,
            ask=ask,
            say=say,
        )
    if as_json:
        show.as_json(result.as_json())
        return
    for line in result.lines:
        click.echo(show.printable(line))
