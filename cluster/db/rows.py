"""Rows as values: from what PostgreSQL returns to the words of cluster/model.py."""

from __future__ import annotations

from typing import Any

from cluster.model import (
    Checksum,
    Device,
    DeviceMode,
    Event,
    EventKind,
    Grant,
    Intent,
    Level,
    LogEntry,
    Position,
    RefAction,
    RefRule,
    RefUpdate,
    Replica,
    Repository,
    Snapshot,
    WhenShort,
)

Row = dict[str, Any]


def device_of(row: Row, prefix: str) -> Device:
    return Device(
        id=row[prefix + "id"],
        name=row[prefix + "name"],
        ssh_url=row[prefix + "ssh_url"],
        http_url=row[prefix + "http_url"],
        public_key=row.get(prefix + "public_key") or "",
        host_key=row[prefix + "host_key"],
        mode=DeviceMode(row[prefix + "mode"]),
        last_seen_at=row[prefix + "last_seen_at"],
        silent_for=row[prefix + "silent_for"],
        stopped=row[prefix + "stopped"],
        zone=row[prefix + "zone"],
        disk_total=row.get(prefix + "disk_total"),
        disk_free=row.get(prefix + "disk_free"),
    )


def replica_of(row: Row) -> Replica:
    intent = None
    if row["intent_token"]:
        intent = Intent(
            token=row["intent_token"],
            push_id=row["intent_push"],
            actor=row["intent_actor"],
            via=row["intent_via"],
            address=row["intent_address"],
            at=row["intent_at"],
            refs=tuple(RefUpdate(*ref) for ref in row["intent_refs"]),
        )
    position = None
    if row["version"] is not None:
        position = Position(row["version"], Checksum(row["checksum"]))
    return Replica(
        device=device_of(row, "d_"),
        position=position,
        quarantined=row["quarantined"],
        intent=intent,
        synced_at=row["synced_at"],
        attempts=row["attempts"],
        last_error=row["last_error"],
        next_try_at=row["next_try_at"],
        demoted=row["distrust"] == "demoted",
        verified_at=row["verified_at"],
        damage=row["damage"],
        marker=row["marker_version"],
        marker_checksum=row["marker_checksum"],
    )


def snapshot_from(rows: list[Row]) -> Snapshot:
    first = rows[0]
    return Snapshot(
        repository=Repository(
            id=first["p_id"],
            name=first["p_name"],
            object_format=first["object_format"],
            position=Position(first["p_version"], Checksum(first["p_checksum"])),
            min_copies=first["min_copies"],
            when_short=WhenShort(first["when_short"]),
            frozen=first["frozen"],
            frozen_at=first["frozen_at"],
            created_at=first["p_created_at"],
        ),
        replicas=tuple(replica_of(row) for row in rows if row["d_id"] is not None),
        grants=tuple(
            Grant(name, pattern, Level(level)) for name, pattern, level in first.get("grants") or ()
        ),
        rules=tuple(
            RefRule(name, pattern, ref_pattern, frozenset(map(RefAction, may)))
            for name, pattern, ref_pattern, may in first.get("rules") or ()
        ),
        actor_known=first.get("actor_known", True),
    )


def snapshots_from(rows: list[Row]) -> list[Snapshot]:
    """Of each repository that there are rows of, in their order."""
    grouped: dict[int, list[Row]] = {}
    for row in rows:
        grouped.setdefault(row["p_id"], []).append(row)
    return [snapshot_from(group) for group in grouped.values()]


def log_entry_of(row: Row, refs: tuple[RefUpdate, ...]) -> LogEntry:
    return LogEntry(
        version=row["version"],
        push_id=row["push_id"],
        actor=row["actor"],
        device=row["device"],
        via=row["via"],
        address=row["address"],
        at=row["at"],
        checksum=Checksum(row["checksum"]),
        refs=refs,
    )


def event_of(row: Row) -> Event:
    return Event(
        version=row["version"],
        kind=EventKind(row["kind"]),
        device=row["device"],
        at=row["at"],
        what=row["what"],
        refs=tuple(RefUpdate(*ref) for ref in row["refs"]),
    )
