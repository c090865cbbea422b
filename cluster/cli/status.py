"""`git-cluster status` and `git-cluster log`: how things stand, and how they came to stand so."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from datetime import datetime
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from cluster import documents
from cluster.cli import show
from cluster.cli.app import REPOSITORY, App, command, find, json_option, pass_app
from cluster.errors import DatabaseUnavailable, UsageError
from cluster.model import HEAD, RefUpdate

if TYPE_CHECKING:
    from rich.console import Group

    from cluster.db import Database

REFRESH = 1.0
"""Seconds between two looks of --watch."""

Table = tuple[list[str], list[list[object]]]


@command("status")
@click.argument("repository", metavar="[REPO]", type=REPOSITORY, required=False)
@click.option("--watch", is_flag=True, help="Look again every second, until Ctrl-C.")
@click.option("--check", is_flag=True, help="Exit 1 unless everything is healthy.")
@click.option("--all", "everything", is_flag=True, help="Every repository, by name, however many there are.")
@json_option
@pass_app
def status(
    app: App, repository: str | None, watch: bool, check: bool, everything: bool, as_json: bool
) -> int:
    """Devices, replicas, versions; what is frozen, and why.

    Of more than 1,000 repositories, 1,000: those that need attention first. --check looks at all of them.
    """
    from cluster.status import all_healthy, observe

    if watch and (as_json or check or everything):
        raise UsageError("--watch goes with neither --json, --check nor --all", hint="Leave one of them out.")
    if everything and repository:
        raise UsageError("--all is about every repository, not one", hint="Leave one of them out.")
    if watch and not sys.stdout.isatty():
        raise UsageError("--watch needs a terminal", hint="Use `status` in a loop, or `status --json`.")
    name = app.config().cluster.name
    with app.database() as db:
        if repository:
            find(db, repository)
        if watch:
            _watch(lambda: observe(db, name, repository), detailed=bool(repository))
            return 0
        document = observe(db, name, repository)
        if everything and document.get("truncated"):
            well = _stream(db, document, as_json=as_json)
        else:
            well = not check or all_healthy(db, document)
            if as_json:
                show.as_json(document)
            else:
                _print(document, detailed=bool(repository))
    return 1 if check and not well else 0


def _stream(db: Database, document: dict[str, Any], *, as_json: bool) -> bool:
    """Every repository, as they are read: in JSON a line each. Whether all is healthy."""
    from cluster.status import MOST, every_entry, healthy

    head = {"cluster": document["cluster"], "devices": document["devices"], "repositories": []}
    well = healthy(head)
    if as_json:
        click.echo(json.dumps(head, ensure_ascii=False).removesuffix("]}"), nl=False)
    else:
        _print(head, detailed=False)
    entries, between = every_entry(db), "\n"
    while page := list(islice(entries, MOST)):
        shown = {**head, "repositories": page}
        well = well and healthy(shown)
        if as_json:
            click.echo(between + ",\n".join(json.dumps(each, ensure_ascii=False) for each in page), nl=False)
            between = ",\n"
        else:
            rows = [show.plain_table(*_tables(shown, detailed=False)[1]), *_reasons(shown)]
            click.echo("\n" + "\n".join(rows))
    if as_json:
        click.echo("\n]}")
    return well


def _tables(document: dict[str, Any], *, detailed: bool) -> list[Table]:
    """What is shown of a document: the devices, then the repositories or the replicas of the one that was named."""
    devices: Table = (
        ["device", "state", "last seen"],
        [[d["name"], d["state"], show.ago(d["last_seen_at"])] for d in document["devices"]],
    )
    repositories: Table = (
        ["repository", "state", "version", "copies", "min", "replicas"],
        [
            [e["name"], e["state"], e["version"], e["copies"], e["min_copies"], _replicas(e)]
            for e in document["repositories"]
        ],
    )
    if not detailed:
        return [devices, repositories]
    replicas: Table = (
        ["replica", "state", "version", "behind", "checksum", "synced", "writer", "tries", "last error"],
        [
            [
                r["device"],
                r["state"],
                r["version"],
                r["behind"],
                (r["checksum"] or "")[:12],
                show.ago(r["last_synced_at"]),
                r["writer"],
                r["attempts"],
                r["reason"] or r["damage"] or r["last_error"],
            ]
            for r in document["repositories"][0]["replicas"]
        ],
    )
    return [devices, repositories, replicas]


def _replicas(entry: dict[str, Any]) -> str:
    """Every replica in a word: those that are current together, the rest each with what it is."""
    current = [r["device"] for r in entry["replicas"] if r["state"] == "current"]
    others = [
        f"{r['device']} {r['state']}" + (f" by {r['behind']}" if r["state"] == "behind" else "")
        for r in entry["replicas"]
        if r["state"] != "current"
    ]
    return ", ".join(([f"current on {' '.join(current)}"] if current else []) + others)


def _reasons(document: dict[str, Any]) -> list[str]:
    return [
        show.printable(
            f"{entry['name']} is "
            + ("" if entry["reason"].startswith(entry["state"]) else f"{entry['state']}: ")
            + entry["reason"]
        )
        for entry in document["repositories"]
        if entry["reason"]
    ]


def _more(document: dict[str, Any]) -> list[str]:
    """What is not shown, and how to see it."""
    if not document.get("truncated"):
        return []
    more = document["repositories_total"] - len(document["repositories"])
    return [
        f"and {more:,} more repositories: `git-cluster status REPO` shows one, `status --all` all of them"
    ]


def _print(document: dict[str, Any], *, detailed: bool) -> None:
    if sys.stdout.isatty():
        from rich.console import Console

        Console().print(_rich(document, detailed=detailed))
        return
    blocks = [f"cluster {document['cluster']}"]
    blocks += [show.plain_table(*shown) for shown in _tables(document, detailed=detailed) if shown[1]]
    blocks += ["\n".join(_reasons(document))] if _reasons(document) else []
    blocks += _more(document)
    click.echo("\n\n".join(blocks))


def _rich(document: dict[str, Any], *, detailed: bool) -> Group:
    from rich.console import Group
    from rich.text import Text

    parts: list[Any] = [Text(f"cluster {document['cluster']}", style="bold")]
    for columns, rows in _tables(document, detailed=detailed):
        parts += [
            Text(),
            show.rich_table(columns, rows) if rows else Text(f"no {columns[0]} yet", style="dim"),
        ]
    if reasons := _reasons(document):
        parts += [Text(), *(Text(reason, style="yellow") for reason in reasons)]
    for line in _more(document):
        parts += [Text(), Text(line, style="dim")]
    return Group(*parts)


def _watch(look: Callable[[], dict[str, Any]], *, detailed: bool) -> None:
    """Look again and again. A database that is away for a while is said, and waited for."""
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    shown = _rich(look(), detailed=detailed)
    with Live(shown, screen=True, auto_refresh=False, vertical_overflow="crop") as live:
        while True:
            live.refresh()
            time.sleep(REFRESH)
            try:
                shown = _rich(look(), detailed=detailed)
                live.update(shown)
            except DatabaseUnavailable as error:
                live.update(Group(shown, Text(), Text(f"{error.what}; trying again", style="red")))


@command("log")
@click.argument("repository", metavar="REPO", type=REPOSITORY)
@click.option("--limit", type=click.IntRange(min=1), default=50, show_default=True, help="How many versions.")
@click.option("--events", "only_events", is_flag=True, help="Only what happened between the pushes.")
@json_option
@pass_app
def log(app: App, repository: str, limit: int, only_events: bool, as_json: bool) -> None:
    """The push log of REPO, newest first.

    Who changed which refs, when, and by way of which device; and between the pushes what was healed, frozen, thawed or
    rebuilt, by which device ("-": an administrator).
    """
    with app.database() as db:
        subject = find(db, repository).repository
        if only_events:
            entries, events = [], db.events(subject.id, limit=limit)
        else:
            entries = db.log(subject.id, limit=limit)
            since = entries[-1].version if len(entries) == limit else 0
            events = db.events(subject.id, since=since)
    if as_json:
        if only_events:
            show.as_json([documents.event(event) for event in events])
        else:
            show.as_json([documents.log_entry(entry, events) for entry in entries])
        return
    rows: list[tuple[datetime, list[object]]] = []
    for e in entries:
        rows.append((e.at, [e.version, e.at, e.actor, e.device, e.via, _refs(e.refs)]))
    for event in events:
        rows.append((event.at, [None, event.at, None, event.device, event.kind.value, event.what]))
    show.table(
        ["version", "at", "actor", "device", "via", "refs"],
        [row for _, row in sorted(rows, key=lambda pair: pair[0], reverse=True)],
        f"nothing was pushed to {repository} yet",
    )


def _refs(refs: tuple[RefUpdate, ...], most: int = 4) -> str:
    shown = ", ".join(map(short, refs[:most]))
    return shown + (f" and {len(refs) - most} more" if len(refs) > most else "")


def short(update: RefUpdate) -> str:
    """One change in a few words: +new-branch 1a2b3c4, main 1a2b3c4..5d6e7f8, -gone."""
    ref = update.ref.removeprefix("refs/heads/").removeprefix("refs/")
    if update.ref == HEAD:
        return f"HEAD to {update.new.removeprefix('ref: refs/heads/')}"
    if update.creates:
        return f"+{ref} {update.new[:7]}"
    return f"-{ref}" if update.deletes else f"{ref} {update.old[:7]}..{update.new[:7]}"
