"""Times, sizes and object ids as people read them. Pure."""

from __future__ import annotations

from datetime import datetime

from cluster.model import HEAD, RefUpdate


def ago(at: datetime | None, now: datetime) -> str:
    """How long ago, roughly: "4 s ago", "3 h ago"."""
    return f"{span((now - at).total_seconds())} ago" if at else "never"


def span(seconds: float) -> str:
    """A length of time in one unit."""
    whole = max(0, int(seconds))
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if whole >= 2 * size or (unit == "min" and whole >= size):
            return f"{whole // size} {unit}"
    return f"{whole} s"


def duration(seconds: float) -> str:
    """What something took: "38 ms", "1.2 s", "3 min"."""
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.1f} s" if seconds < 60 else span(seconds)


def size(count: int) -> str:
    """Bytes: "1.5 TiB"."""
    amount = float(count)
    units = ["B", "KiB", "MiB", "GiB", "TiB"]
    while amount >= 1024 and len(units) > 1:
        amount /= 1024
        del units[0]
    unit = units[0]
    return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"


def change(update: RefUpdate) -> tuple[str, str, str]:
    """What a push did to a ref: its short name, what was done, and from what to what."""
    if update.ref == HEAD:
        return HEAD, "set", f"to {update.new.removeprefix('ref: refs/heads/')}"
    ref = update.ref.removeprefix("refs/heads/").removeprefix("refs/")
    if update.creates:
        return ref, "new", update.new[:8]
    if update.deletes:
        return ref, "deleted", f"was {update.old[:8]}"
    return ref, "moved", f"{update.old[:8]} → {update.new[:8]}"
