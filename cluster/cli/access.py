"""`git-cluster user`, `key`, `grant`, `revoke`, `access`: who there is, how they prove it, and what they may do."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from cluster import names
from cluster.cli import show
from cluster.cli.app import REPOSITORY, App, command, group, json_option, pass_app
from cluster.errors import NotFound, UsageError
from cluster.model import Actor, ActorKind, Level

EVERYONE = "everyone"
RESERVED = (EVERYONE, "operator")
"""Names that mean something else where an actor's name stands: in a grant, and in the push log."""


def _new_user_name(text: str) -> str:
    if text.lower() in RESERVED:
        raise UsageError(
            f"a user cannot be called {text}", hint=f"The names {' and '.join(RESERVED)} have a meaning."
        )
    return names.user_name(text)


USER = names.user_name
PATTERN = names.pattern


@group("user")
def user() -> None:
    """The people who clone and push."""


@user.command("add")
@click.argument("name", type=_new_user_name)
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
    from cluster.status import timestamp

    with app.database() as db:
        users = db.users()
    if as_json:
        show.as_json([{**row, "created_at": timestamp(row["created_at"])} for row in users])
        return
    show.table(
        ["user", "keys", "added"],
        [[row["name"], row["keys"], row["created_at"]] for row in users],
        "no users yet; add one with `git-cluster user add`",
    )


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
@pass_app
def key_add(app: App, user: str, file: Path) -> None:
    """Register the OpenSSH public key in FILE (`-`: standard input) as one of USER's."""
    from cluster import keys

    found = keys.read(sys.stdin.buffer if str(file) == "-" else file)
    with app.database() as db:
        db.add_key(user, found.fingerprint, found.line, found.comment)
    click.echo(f"key {found.fingerprint} added for {user}")


@key.command("list")
@click.argument("user", type=USER, required=False)
@json_option
@pass_app
def key_list(app: App, user: str | None, as_json: bool) -> None:
    """The keys of all users, or of one."""
    from cluster.status import timestamp

    with app.database() as db:
        found = db.keys(user)
    if as_json:
        rows = [
            {
                "user": key.user,
                "fingerprint": key.fingerprint,
                "public_key": key.public_key,
                "comment": key.comment,
                "created_at": timestamp(key.created_at),
            }
            for key in found
        ]
        show.as_json(rows)
        return
    show.table(
        ["user", "fingerprint", "type", "added", "comment"],
        [[k.user, k.fingerprint, k.public_key.partition(" ")[0], k.created_at, k.comment] for k in found],
        f"no keys{f' of {user}' if user else ''} yet; add one with `git-cluster key add`",
    )


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
    """Who may do what. ACTOR is a user, or `everyone` with a key here.

    PATTERN is a repository's name, or one with `*` in it: team/* is everything below team/, `*` everything.
    """


def _add_grant(level: Level, does: str) -> None:
    @grant.command(level.value, help=f"Let ACTOR {does} the repositories that PATTERN means.")
    @click.argument("actor", type=USER)
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
@click.argument("actor", type=USER, required=False)
@json_option
@pass_app
def grant_list(app: App, actor: str | None, as_json: bool) -> None:
    """All grants, or those that concern one user."""
    with app.database() as db:
        if actor and actor != EVERYONE:
            _must_exist(actor, {row["name"] for row in db.users()})
        grants = db.grants(actor)
    if as_json:
        rows = [{"actor": g.actor or EVERYONE, "level": g.level.value, "pattern": g.pattern} for g in grants]
        show.as_json(rows)
        return
    show.table(
        ["actor", "level", "pattern"],
        [[g.actor or EVERYONE, g.level.value, g.pattern] for g in grants],
        "no grants yet: nobody may read anything; see `git-cluster grant --help`",
    )


@command("revoke")
@click.argument("actor", type=USER)
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
@json_option
@pass_app
def access(app: App, actor: str, repository: str, as_json: bool) -> None:
    """What ACTOR may do to REPO, and which grant says so. REPO need not exist yet."""
    from cluster.access import decide

    with app.database() as db:
        if actor == EVERYONE:
            grants = [grant for grant in db.grants() if grant.actor is None]
        else:
            _must_exist(actor, {row["name"] for row in db.users()})
            grants = db.grants(actor)
        exists = True
        try:
            db.snapshot(repository)
        except NotFound:
            exists = False
        has_key = actor == EVERYONE or bool(db.keys(actor))
    decision = decide(grants, Actor(ActorKind.USER, actor, ""), repository)
    notes = [] if exists else [f"there is no repository {repository} yet"]
    notes += [] if has_key else [f"{actor} has no key yet: `git-cluster key add {actor} FILE`"]
    if as_json:
        show.as_json(
            {
                "actor": actor,
                "repository": repository,
                "exists": exists,
                "level": decision.level.value if decision.level else None,
                "because": decision.because,
                "pattern": decision.grant.pattern if decision.grant else None,
            }
        )
        return
    for line in (decision.because, *notes):
        click.echo(line)


def _must_exist(user: str, users: set[str]) -> None:
    if user not in users:
        raise NotFound(f"there is no user {user}", hint="`git-cluster user list` shows them")
