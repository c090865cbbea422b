"""New repositories: where they go by what was asked for and by the placement rules, and making them.

For the command line and for people who may create repositories over an endpoint alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cluster.db import Database
from cluster.errors import NotFound, Refused
from cluster.model import HEAD, Device
from cluster.placement import Where, rule_for, where
from cluster.versions import checksum_of

TRIES = 20
"""How often a place is chosen again, because a device was taken away while the repository was made."""


@dataclass(frozen=True, slots=True)
class Created:
    """A new repository. note: what whoever made it should know of where it is, or ""."""

    id: int
    devices: tuple[Device, ...]
    min_copies: int
    note: str = ""


def choose(
    db: Database,
    name: str,
    *,
    devices: Sequence[str] = (),
    copies: int | None = None,
    min_copies: int | None = None,
) -> Where:
    """Where a new repository would go now. Refused, NotFound, UsageError."""
    rules = db.placement_rules()
    chooses = copies is not None or (not devices and rule_for(rules, name) is not None)
    loads = db.loads() if chooses else {}  # they are counted, row by row
    return where(name, db.devices(), loads, rules, wanted=devices, copies=copies, min_copies=min_copies)


def create(
    db: Database,
    name: str,
    *,
    devices: Sequence[str] = (),
    copies: int | None = None,
    min_copies: int | None = None,
    head: str = "refs/heads/main",
    object_format: str = "sha1",
    actor: str = "operator",
) -> Created:
    """A new, empty repository. Refused, NotFound, UsageError; then nothing was made.

    name: in its checked form. devices: those that are to hold it; copies: how many, the best are chosen; neither: the
    placement rules decide. head: the ref that HEAD means. actor: who makes it, for the push log.
    """
    target = f"ref: {head}"
    for tries_left in reversed(range(TRIES)):
        chosen = choose(db, name, devices=devices, copies=copies, min_copies=min_copies)
        try:
            id = db.create_repository(
                name,
                checksum=checksum_of({HEAD: target}),
                head=target,
                object_format=object_format,
                min_copies=chosen.min_copies,
                devices=[device.name for device in chosen.devices],
                actor=actor,
            )
        except Refused:
            if not tries_left or _taken(db, name):
                raise
            continue
        return Created(id, chosen.devices, chosen.min_copies, _note(chosen))
    raise AssertionError("unreachable: the last round returns or raises")


def _taken(db: Database, name: str) -> bool:
    """Whether there is such a repository: then it was not for a device that nothing was made."""
    try:
        db.snapshot(name)
    except NotFound:
        return False
    return True


def _note(chosen: Where) -> str:
    if len(chosen.devices) >= chosen.asked:
        return ""
    count = len(chosen.devices)
    return (
        f"the placement rule for {chosen.by} asks for {chosen.asked} copies, "
        f"and only {count} device{' is' if count == 1 else 's are'} enabled"
    )


def made_of(name: str, created: Created) -> dict[str, object]:
    """What --json says of a new repository."""
    return {
        "name": name,
        "devices": [device.name for device in created.devices],
        "min_copies": created.min_copies,
        "urls": [f"{device.ssh_url}/{name}" for device in created.devices],
    }
