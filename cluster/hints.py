"""What the database tells its listeners: a hint, never the truth. Nobody may hear it, and nothing is lost then.

    ""                 something has changed: look around
    "7"                something about repository 7
    "7 a,b"            a version of repository 7, of which a and b have replicas: nobody else has to look at it
    "7 a,b by:a"       the same, committed by a, whose replica has it already
    "7 a,b by:a w"     the same, and a webhook wants to hear of it

Without the devices' names each commit would have every device of the cluster ask the database about it: with 32 devices
that would be most of what the database does.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Hint:
    """repository_id: None: look around. devices: whom it concerns; None: all. webhooks: whether one may be due.
    by: who committed it; "": that is not said."""

    repository_id: int | None = None
    devices: frozenset[str] | None = None
    webhooks: bool = True
    by: str = ""

    @classmethod
    def of(cls, payload: str) -> Hint:
        """Whatever cannot be read, of a newer program, is a reason to look around."""
        number, *rest = payload.split(" ")
        if not number.isascii() or not number.isdigit():
            return cls()
        if not rest:
            return cls(int(number))
        by = next((word.removeprefix("by:") for word in rest[1:] if word.startswith("by:")), "")
        return cls(int(number), frozenset(rest[0].split(",")), "w" in rest[1:], by)

    def concerns(self, device: str) -> bool:
        """Whether `device` has something to do about the repository."""
        return self.devices is None or device in self.devices
