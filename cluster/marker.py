"""The marker: the file `cluster/position` in each replica. It says whose copy this is, and how new.

It tells a disk of another device or cluster from ours, the copy of a repository that had this number before (numbers
are given anew when a database comes back older), and a database that is older than the disk (guarantee G7).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

FILE = "position"

NEW = ".position-"
"""How a file of ours begins that is not whole yet."""


@dataclass(frozen=True, slots=True)
class Marker:
    """What the file says.

    checksum: as people see it, 40 hex digits.
    created, name: of the repository: when it was created, by the database's clock, and what it was called when this was
    written (for people: renames do not change it). None: written by a git-cluster that did not note them.
    """

    cluster: str
    repository: int
    device: str
    version: int
    checksum: str
    created: str | None = None
    name: str | None = None


def read(folder: Path) -> Marker | None:
    """What the replica with this `cluster` folder says of itself, or None where it says nothing legible."""
    try:
        values = json.loads((folder / FILE).read_text())
        return Marker(
            cluster=str(values["cluster"]),
            repository=int(values["repository"]),
            device=str(values["device"]),
            version=int(values["version"]),
            checksum=str(values["checksum"]),
            created=values.get("created"),
            name=values.get("name"),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def write(folder: Path, marker: Marker) -> None:
    """Write it: whole or not at all, and on the platter before this returns, as is every name in the folder."""
    new = folder / f"{NEW}{uuid4().hex}"
    try:
        with new.open("w") as file:
            file.write(json.dumps(asdict(marker)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        new.rename(folder / FILE)
    except OSError:
        with suppress(OSError):
            new.unlink()
        raise
    flush_directory(folder)


def flush_directory(path: Path) -> None:
    """Have the names in a folder on the platter."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
