"""What `--json` and the API say of each thing: values in, documents fit for JSON out. Pure.

A key that is there once stays: programs rely on it. Times are ISO 8601 in UTC.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from cluster import ref_rules
from cluster.model import Device, Event, Grant, LogEntry, PlacementRule, RefRule, RefUpdate, Repository
from cluster.placement import Change
from cluster.status import timestamp

if TYPE_CHECKING:
    from cluster.db import Token, UserKey

Document = dict[str, Any]

EVERYONE = "everyone"
"""Whoever has a key or token here, where an actor's name stands."""


def device_summary(found: Device) -> Document:
    """As in the status document."""
    return {"name": found.name, "state": found.state, "last_seen_at": timestamp(found.last_seen_at)}


def device(found: Device, held: int) -> Document:
    """held: how many repositories it holds."""
    return {
        "name": found.name,
        "state": found.state,
        "mode": found.mode.value,
        "zone": found.zone,
        "ssh": found.ssh_url,
        "http": found.http_url,
        "last_seen_at": timestamp(found.last_seen_at),
        "repositories": held,
        "key": found.public_key,
        "host_key": found.host_key,
    }


def settings(found: Repository, default_branch: str | None, urls: Iterable[str]) -> Document:
    """What `repo show` adds to a repository's entry in the status document."""
    return {
        "object_format": found.object_format,
        "default_branch": default_branch,
        "when_short": found.when_short.value,
        "frozen": found.frozen,
        "created_at": timestamp(found.created_at),
        "urls": list(urls),
    }


def user(row: Mapping[str, Any]) -> Document:
    """A row of Database.users."""
    return {
        **row,
        "created_at": timestamp(row["created_at"]),
        "disabled": row["disabled_at"] is not None,
        "disabled_at": timestamp(row["disabled_at"]),
    }


def key(found: UserKey) -> Document:
    return {
        "user": found.user,
        "fingerprint": found.fingerprint,
        "public_key": found.public_key,
        "comment": found.comment,
        "created_at": timestamp(found.created_at),
        "expires_at": timestamp(found.expires_at),
    }


def token(found: Token) -> Document:
    """All but its secret."""
    return {
        "id": found.id,
        "user": found.user,
        "comment": found.comment,
        "read_only": found.read_only,
        "created_at": timestamp(found.created_at),
        "expires_at": timestamp(found.expires_at),
        "last_used_at": timestamp(found.last_used_at),
        "last_used_from": found.last_used_from,
    }


def group(row: Mapping[str, Any]) -> Document:
    """A row of Database.groups."""
    return {
        "name": f"@{row['name']}",
        "members": row["members"],
        "created_at": timestamp(row["created_at"]),
    }


def grant(found: Grant) -> Document:
    return {"actor": found.actor or EVERYONE, "level": found.level.value, "pattern": found.pattern}


def rule(found: RefRule) -> Document:
    return {
        "actor": found.actor or EVERYONE,
        "pattern": found.pattern,
        "ref": found.ref_pattern,
        "may": ref_rules.listed(found.may),
    }


def placement_rule(found: PlacementRule) -> Document:
    return {"pattern": found.pattern, "copies": found.copies, "min_copies": found.min_copies}


def placed(
    name: str, change: Change, added: Iterable[str], removed: Iterable[str], after: Iterable[str]
) -> Document:
    """What became of a change of placement. waiting: what has to be asked for again, as its removal was refused or cut
    off."""
    gone = list(removed)
    return {
        "name": name,
        "added": list(added),
        "removed": gone,
        "waiting": [device for device in change.remove if device not in gone],
        "devices": list(after),
    }


def log_entry(entry: LogEntry, events: Iterable[Event]) -> Document:
    """One version; with it those of `events` that happened while it was the newest."""
    return {
        "version": entry.version,
        "actor": entry.actor,
        "device": entry.device,
        "via": entry.via,
        "at": timestamp(entry.at),
        "refs": updates(entry.refs),
        "events": [event(found) for found in events if found.version == entry.version],
    }


def event(found: Event) -> Document:
    return {
        "version": found.version,
        "kind": found.kind.value,
        "device": found.device,
        "at": timestamp(found.at),
        "what": found.what,
        "refs": updates(found.refs),
    }


def updates(refs: Iterable[RefUpdate]) -> list[dict[str, str]]:
    return [{"ref": update.ref, "old": update.old, "new": update.new} for update in refs]
