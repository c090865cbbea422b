"""What is told to programs: committed changes, in the same words by the stream of events and by webhooks; and webhooks
as they are listed."""

from __future__ import annotations

from typing import Any

from cluster.db import Change, Webhook
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


def listed(webhook: Webhook) -> dict[str, Any]:
    """A webhook as programs see it: all but its secret.

    delivered: the newest version that was taken; version: that of the repository.
    """
    return {
        "id": webhook.id,
        "repository": webhook.repository,
        "url": webhook.url,
        "enabled": webhook.enabled,
        "delivered": webhook.delivered,
        "version": webhook.version,
        "created_at": timestamp(webhook.created_at),
        "created_by": webhook.created_by,
        "delivered_at": timestamp(webhook.delivered_at),
        "attempts": webhook.attempts,
        "last_error": webhook.last_error,
        "last_status": webhook.last_status,
        "next_try_at": timestamp(webhook.next_try_at),
    }
