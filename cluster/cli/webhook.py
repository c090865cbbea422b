"""`git-cluster webhook`: URLs that hear of each change of a repository."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster import names
from cluster.cli import show
from cluster.cli.app import REPOSITORY, App, group, json_option, pass_app
from cluster.errors import Refused, UsageError

if TYPE_CHECKING:
    from cluster.db import Webhook

MOST_SECRET = 1000
"""Bytes of a file that holds a secret."""

NUMBER = click.IntRange(1, 2**62)


@group("webhook")
def webhook() -> None:
    """URLs that hear of each change of a repository: in order, signed, until each was taken (docs/events.md)."""


@webhook.command("add")
@click.argument("repository", metavar="REPO", type=REPOSITORY)
@click.argument("url")
@click.option("--secret-file", metavar="FILE", type=click.Path(path_type=Path),
              help="Sign with the secret in this file (whsec_ and base64), rather than with a new one.")  # fmt: skip
@json_option
@pass_app
def add(app: App, repository: str, url: str, secret_file: Path | None, as_json: bool) -> None:
    """Have URL hear of each change of REPO from now on. Prints the signing secret: this once, and alone on standard
    output."""
    from cluster import webhooks
    from cluster.delivery import check

    secret = webhooks.new_secret() if secret_file is None else webhooks.checked_secret(_read(secret_file))
    config = app.config()
    check(url, private=config.webhooks.private_addresses == "allow")
    with app.database() as db:
        number = db.add_webhook(repository, url, secret, created_by="-")
    if as_json:
        document = {"id": number, "repository": repository, "url": url}
        show.as_json(document if secret_file else document | {"secret": secret})
        return
    again = "signed with the secret of that file" if secret_file else "the secret is not shown again"
    if secret_file is None:
        click.echo(secret)
    click.echo(f"webhook {number} tells {url} of each change of {repository}; {again}", err=True)


def _read(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            return opened.read(MOST_SECRET).decode()
    except OSError as error:
        raise UsageError(f"{names.shown(str(file))}: {error.strerror}") from error
    except UnicodeDecodeError:
        return ""  # said in the words for what is no secret


@webhook.command("list")
@click.argument("repository", metavar="REPO", type=REPOSITORY, required=False)
@json_option
@pass_app
def list_(app: App, repository: str | None, as_json: bool) -> None:
    """The webhooks of REPO, or all: how far each has got, and why not further. Without their secrets."""
    from cluster.feed import listed

    with app.database() as db:
        if repository is not None:
            db.snapshot(repository)
        found = db.webhooks(repository)
    if as_json:
        show.as_json([listed(each) for each in found])
        return
    show.table(
        ["webhook", "repository", "url", "told", "of", "state"],
        [[each.id, each.repository, each.url, each.delivered, each.version, _state(each)] for each in found],
        "no webhooks yet; make one with `git-cluster webhook add REPO URL`",
    )


def _state(each: Webhook) -> str:
    failing = f"{each.attempts} tries failed: {each.last_error}" if each.attempts else ""
    if not each.enabled:
        return f"disabled; {failing}" if failing else "disabled"
    return f"failed: {failing}" if failing else "ok"


@webhook.command("remove")
@click.argument("number", metavar="WEBHOOK", type=NUMBER)
@pass_app
def remove(app: App, number: int) -> None:
    """Tell a URL nothing more, and forget how far it had got."""
    with app.database() as db:
        db.remove_webhook(number)
    click.echo(f"webhook {number} removed")


@webhook.command("enable")
@click.argument("number", metavar="WEBHOOK", type=NUMBER)
@pass_app
def enable(app: App, number: int) -> None:
    """Go on with what was not told yet, now. Also for one that waits for its next try."""
    with app.database() as db:
        db.enable_webhook(number)
    click.echo(f"webhook {number} goes on")


@webhook.command("disable")
@click.argument("number", metavar="WEBHOOK", type=NUMBER)
@pass_app
def disable(app: App, number: int) -> None:
    """Tell a URL nothing until it is enabled again; then it hears of everything that it missed."""
    with app.database() as db:
        db.disable_webhook(number)
    click.echo(
        f"webhook {number} is disabled; `git-cluster webhook enable {number}` goes on where it stopped"
    )


@webhook.command("test")
@click.argument("number", metavar="WEBHOOK", type=NUMBER)
@pass_app
def test(app: App, number: int) -> None:
    """Send a signed ping from this machine, and say what the receiver answers."""
    from cluster.delivery import ping

    private = app.config().webhooks.private_addresses == "allow"
    with app.database() as db:
        found, secret = db.webhook(number), db.webhook_secret(number)
    outcome = ping(found, secret, private=private)
    if outcome.error:
        raise Refused(
            f"the ping was not taken: {outcome.error}",
            hint="deliveries come from the devices; see what they are told with `git-cluster webhook list`",
        )
    click.echo(f"the ping was taken: it answered {outcome.status}")
