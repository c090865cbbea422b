"""A committed change as it is told to programs: by the stream of events and by webhooks, in the same words."""

from __future__ import annotations

from typing import Any

from cluster.db import Change
from cluster.status import timestamp

MOST_TEXT = 256 * 1024
"""Characters of refs and their values that are told of one change; the names of a thousand refs may be long."""


def document(change: Change) -> dict[str, Any]:
    """As an entry of `git-cluster log --json`, with its position and its repository.

    refs: as many as one change tells; refs_total: how many they are.
    """
    entry, refs, room = change.entry, [], MOST_TEXT
    for update in entry.refs:
        room -= len(update.ref) + len(update.old) + len(update.new)
        if room < 0:
            break
        refs.append({"ref": update.ref, "old": update.old, "new": update.new})
    return {
        "position": change.number,
        "repository": change.repository,
        "version": entry.version,
        "actor": entry.actor,
        "device": entry.device,
        "via": entry.via,
        "at": timestamp(entry.at),
        "refs": refs,
        "refs_total": change.refs_total,
    }
