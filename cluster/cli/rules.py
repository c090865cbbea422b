"""`git-cluster rule …` and `protect`: what a push may do to which refs."""

from __future__ import annotations

import click

from cluster import documents, names, ref_rules
from cluster.cli import show
from cluster.cli.app import App, command, group, json_option, pass_app
from cluster.documents import EVERYONE
from cluster.model import RefAction, RefRule

ACTOR = names.actor_name
PATTERN = names.pattern
REF = ref_rules.ref_pattern


@group("rule")
def rule() -> None:
    """What a push may do to which refs. ACTOR is a user, a @group or `everyone`; PATTERN is as in a grant.

    REF is a branch (main, release/*) or a full name (refs/tags/v*, refs/*). The most specific rule decides; where
    none matches, whoever may write may do anything.
    """


@rule.command("set")
@click.argument("actor", type=ACTOR)
@click.argument("pattern", type=PATTERN)
@click.argument("ref", type=REF)
@click.argument("actions", type=ref_rules.actions)
@pass_app
def set_(app: App, actor: str, pattern: str, ref: str, actions: frozenset[RefAction]) -> None:
    """Say what ACTOR may do to REF: ACTIONS (some of create,push,force,delete, or all, or none) and nothing else."""
    _set(app, actor, pattern, ref, actions)


@rule.command("list")
@json_option
@pass_app
def list_(app: App, as_json: bool) -> None:
    """All rules."""
    with app.database() as db:
        rules = db.rules()
    if as_json:
        show.as_json([documents.rule(found) for found in rules])
        return
    show.table(
        ["actor", "pattern", "ref", "may"],
        [
            [r.actor or EVERYONE, r.pattern, r.ref_pattern, ",".join(ref_rules.listed(r.may)) or "none"]
            for r in rules
        ],
        "no rules: whoever may write may do anything to any ref; see `git-cluster rule --help`",
    )


@rule.command("remove")
@click.argument("actor", type=ACTOR)
@click.argument("pattern", type=PATTERN)
@click.argument("ref", type=REF)
@pass_app
def remove(app: App, actor: str, pattern: str, ref: str) -> None:
    """Remove the rule for ACTOR on exactly PATTERN and REF."""
    with app.database() as db:
        db.remove_rule(None if actor == EVERYONE else actor, pattern, ref)
    click.echo(f"the rule for {actor} on {ref} of {pattern} is removed")


@command("protect")
@click.argument("pattern", type=PATTERN)
@click.argument("ref", type=REF)
@pass_app
def protect(app: App, pattern: str, ref: str) -> None:
    """Let nobody force-push or delete REF in PATTERN: short for `rule set everyone PATTERN REF create,push`."""
    _set(app, EVERYONE, pattern, ref, ref_rules.PROTECTED)


def _set(app: App, actor: str, pattern: str, ref: str, may: frozenset[RefAction]) -> None:
    to = None if actor == EVERYONE else actor
    with app.database() as db:
        db.set_rule(to, pattern, ref, may)
    click.echo(ref_rules.described(RefRule(to, pattern, ref, may)))
