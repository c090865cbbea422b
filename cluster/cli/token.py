"""`git-cluster token`: the secrets that prove users over HTTP."""

from __future__ import annotations

from datetime import UTC, datetime

import click

from cluster import documents, names, tokens
from cluster.cli import show
from cluster.cli.app import App, group, json_option, pass_app

USER = names.user_name


@group("token")
def token() -> None:
    """The secrets that prove users over HTTP: for Git as the password, for the API as a bearer."""


@token.command("add")
@click.argument("user", type=USER)
@click.option("--read-only", is_flag=True, help="It lets nobody push, or change anything else.")
@click.option("--expires", metavar="WHEN",
              help="When it ends: 2027-01-31 (as that day begins, UTC), 2027-01-31T18:00:00Z, or in 90d.")  # fmt: skip
@click.option("--comment", metavar="TEXT", type=tokens.comment, default="", help="What it is for.")
@json_option
@pass_app
def token_add(app: App, user: str, read_only: bool, expires: str | None, comment: str, as_json: bool) -> None:
    """Make a token for USER and print it: this once, and alone on standard output."""
    from cluster import keys
    from cluster.status import timestamp

    until = None if expires is None else keys.expiry(expires, datetime.now(UTC))
    secret = tokens.new()
    digest = tokens.digest(secret)
    assert digest is not None
    with app.database() as db:
        number = db.add_token(user, digest, read_only=read_only, expires_at=until, comment=comment)
    if as_json:
        show.as_json(
            {
                "id": number,
                "user": user,
                "token": secret,
                "read_only": read_only,
                "expires_at": timestamp(until),
                "comment": comment,
            }
        )
        return
    click.echo(secret)
    ends = f", until {show.moment(until)}" if until else ""
    may = "may read what" if read_only else "may do what"
    click.echo(f"token {number} {may} {user} may{ends}; it is not shown again", err=True)


@token.command("list")
@click.argument("user", type=USER, required=False)
@json_option
@pass_app
def token_list(app: App, user: str | None, as_json: bool) -> None:
    """The tokens, without their secrets."""
    with app.database() as db:
        found = db.tokens(user)
    if as_json:
        show.as_json([documents.token(each) for each in found])
        return
    show.table(
        ["token", "user", "may", "until", "last used", "from", "comment"],
        [
            [
                each.id,
                each.user,
                "read" if each.read_only else "everything",
                each.expires_at,
                each.last_used_at,
                each.last_used_from,
                each.comment,
            ]
            for each in found
        ],
        "no tokens yet; make one with `git-cluster token add USER`",
    )


@token.command("remove")
@click.argument("number", metavar="TOKEN", type=click.IntRange(1, 2**62))
@pass_app
def token_remove(app: App, number: int) -> None:
    """Have a token prove nobody any more, at once."""
    with app.database() as db:
        db.remove_token(number)
    click.echo(f"token {number} removed")
