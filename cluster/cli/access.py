"""`git-cluster user`, `key`, `grant`, `revoke`, `access`: who there is, how they prove it, and what they may do."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cluster import documents, names, ref_rules
from cluster.cli import show
from cluster.cli.app import REPOSITORY, App, command, group, json_option, pass_app
from cluster.documents import EVERYONE
from cluster.errors import NotFound, UsageError
from cluster.model import Level

if TYPE_CHECKING:
    from cluster.db import UserKey

USER = names.user_name
ACTOR = names.actor_name
PATTERN = names.pattern


@group("user")
def user() -> None:
    """The people who clone and push."""


@user.command("add")
@click.argument("name", type=names.new_user_name)
@pass_app
def user_add(app: App, name: str) -> None:
    """Add a person, who then needs a key and a grant."""
    with app.database() as db:
        db.add_user(name)
    click.echo(f"user {name} added; next: `git-cluster key add {name} FILE`")


@user.command("list")
@json_option
@pass_app
def user_list(app: App, as_json: bool) -> None:
    """The users."""
    with app.database() as db:
        users = db.users()
    if as_json:
        show.as_json([documents.user(row) for row in users])
        return
    show.table(
        ["user", "state", "keys", "added"],
        [
            [row["name"], "disabled" if row["disabled_at"] else "enabled", row["keys"], row["created_at"]]
            for row in users
        ],
        "no users yet; add one with `git-cluster user add`",
    )


@user.command("disable")
@click.argument("name", type=USER)
@pass_app
def user_disable(app: App, name: str) -> None:
    """Let nothing prove this person: no key, no certificate, at once, also on connections that are open."""
    with app.database() as db:
        db.disable_user(name)
    click.echo(f"user {name} is disabled: no key and no certificate proves them; keys and grants stay")


@user.command("enable")
@click.argument("name", type=USER)
@pass_app
def user_enable(app: App, name: str) -> None:
    """End what `disable` did."""
    with app.database() as db:
        db.enable_user(name)
    click.echo(f"user {name} is enabled")


@user.command("remove")
@click.argument("name", type=USER)
@pass_app
def user_remove(app: App, name: str) -> None:
    """Remove a person, with all keys and grants. What they pushed stays in the log."""
    with app.database() as db:
        db.remove_user(name)
    click.echo(f"user {name} removed, with all keys and grants")


@group("key")
def key() -> None:
    """The public keys that prove who somebody is."""


@key.command("add")
@click.argument("user", type=USER)
@click.argument("file", type=click.Path(path_type=Path, allow_dash=True))
@click.option("--expires", metavar="WHEN",
              help="When it ends: 2027-01-31 (as that day begins, UTC), 2027-01-31T18:00:00Z, or in 90d.")  # fmt: skip
@pass_app
def key_add(app: App, user: str, file: Path, expires: str | None) -> None:
    """Register the OpenSSH public key in FILE (`-`: standard input) as one of USER's."""
    from cluster import keys

    until = None if expires is None else keys.expiry(expires, datetime.now(UTC))
    found = keys.read(sys.stdin.buffer if str(file) == "-" else file)
    with app.database() as db:
        db.add_key(user, found.fingerprint, found.line, found.comment, until)
    click.echo(
        f"key {found.fingerprint} added for {user}" + (f", until {show.moment(until)}" if until else "")
    )


@key.command("list")
@click.argument("user", type=USER, required=False)
@json_option
@pass_app
def key_list(app: App, user: str | None, as_json: bool) -> None:
    """The keys of all users, or of one."""
    with app.database() as db:
        found = db.keys(user)
    if as_json:
        show.as_json([documents.key(key) for key in found])
        return
    show.table(
        ["user", "fingerprint", "type", "added", "expires", "comment"],
        [
            [k.user, k.fingerprint, k.public_key.partition(" ")[0], k.created_at, _expires(k), k.comment]
            for k in found
        ],
        f"no keys{f' of {user}' if user else ''} yet; add one with `git-cluster key add`",
    )


def _expires(key: UserKey) -> str:
    if key.expires_at is None:
        return "never"
    ended = key.expires_at <= datetime.now(UTC)
    return show.moment(key.expires_at) + (" (ended)" if ended else "")


@key.command("remove")
@click.argument("fingerprint")
@pass_app
def key_remove(app: App, fingerprint: str) -> None:
    """Remove a user's key, by its fingerprint; sessions that it opened end at their next request."""
    if not fingerprint.startswith("SHA256:"):
        raise UsageError(
            f"{names.shown(fingerprint)} is not a fingerprint",
            hint="It begins with SHA256:; `git-cluster key list` and `ssh-keygen -lf FILE` show it.",
        )
    with app.database() as db:
        db.remove_key(fingerprint.rstrip("="))
    click.echo(f"key {fingerprint} removed")


@group("grant")
def grant() -> None:
    """Who may do what. ACTOR is a user, a @group, or `everyone` with a key here.

    PATTERN is a repository's name, or one with `*` in it: team/* is everything below team/, `*` everything.
    """


def _add_grant(level: Level, does: str) -> None:
    @grant.command(level.value, help=f"Let ACTOR {does} the repositories that PATTERN means.")
    @click.argument("actor", type=ACTOR)
    @click.argument("pattern", type=PATTERN)
    @pass_app
    def add(app: App, actor: str, pattern: str) -> None:
        with app.database() as db:
            db.grant(level, None if actor == EVERYONE else actor, pattern)
        click.echo(f"{actor} may {level.value} {pattern}")


_add_grant(Level.READ, "clone and fetch")
_add_grant(Level.WRITE, "push to")
_add_grant(Level.ADMIN, "administer")


@grant.command("list")
@click.argument("actor", type=ACTOR, required=False)
@json_option
@pass_app
def grant_list(app: App, actor: str | None, as_json: bool) -> None:
    """All grants, or those that concern one user; those to one @group."""
    from cluster.explaining import user_row

    with app.database() as db:
        if actor and actor.startswith("@"):
            if actor[1:] not in {row["name"] for row in db.groups()}:
                raise NotFound(f"there is no group {actor}", hint="`git-cluster group list` shows them")
            grants = [grant for grant in db.grants() if grant.actor == actor]
        else:
            if actor and actor != EVERYONE:
                user_row(db, actor)
            grants = db.grants(actor)
    if as_json:
        show.as_json([documents.grant(grant) for grant in grants])
        return
    show.table(
        ["actor", "level", "pattern"],
        [[g.actor or EVERYONE, g.level.value, g.pattern] for g in grants],
        "no grants yet: nobody may read anything; see `git-cluster grant --help`",
    )


@command("revoke")
@click.argument("actor", type=ACTOR)
@click.argument("pattern", type=PATTERN)
@pass_app
def revoke(app: App, actor: str, pattern: str) -> None:
    """Take back the grant to ACTOR on exactly PATTERN."""
    with app.database() as db:
        db.revoke(None if actor == EVERYONE else actor, pattern)
    click.echo(f"the grant to {actor} on {pattern} is revoked")


@command("access")
@click.argument("actor", type=USER)
@click.argument("repository", metavar="REPO", type=REPOSITORY)
@click.argument("ref", required=False, type=ref_rules.full_ref)
@json_option
@pass_app
def access(app: App, actor: str, repository: str, ref: str | None, as_json: bool) -> None:
    """What ACTOR, a user or `everyone`, may do to REPO, and which grant says so; with REF (main, refs/tags/v1), what a
    push of theirs may do to that, and which rule says so. REPO need not exist yet.
    """
    from cluster.explaining import explain

    with app.database() as db:
        told = explain(db, actor, repository, ref)
    if as_json:
        show.as_json(told.document)
        return
    for line in told.lines:
        click.echo(line)
