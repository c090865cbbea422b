"""The marker: the file `cluster/position` in each replica. It says whose copy this is, and how new.

It tells a disk of another device or cluster from ours, the copy of a repository that had this number before (numbers
are given anew when a database comes back older), and a database that is older than the disk (guarantee G7).
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

from cluster.names import MAX_VERSION

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
        file = f"{folder}/{FILE}"
        stat = os.stat(file)
        return _read(file, (stat.st_dev, stat.st_ino, stat.st_ctime_ns, stat.st_size))
    except OSError:
        return None


@lru_cache(4096)
def _read(file: str, stamp: tuple[int, ...]) -> Marker | None:
    """The same while its stat data stand for its content, as they do of refs (refs.py): a request asks four times.
    Whoever replaces it makes another file. OSError."""
    try:
        with open(file, encoding="utf-8") as text:
            values = json.load(text)
        return Marker(
            cluster=text_of(values["cluster"]),
            repository=number_of(values["repository"]),
            device=text_of(values["device"]),
            version=number_of(values["version"]),
            checksum=text_of(values["checksum"]),
            created=None if values.get("created") is None else text_of(values["created"]),
            name=None if values.get("name") is None else text_of(values["name"]),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None


def number_of(value: object) -> int:
    """A version or an id, out of JSON. ValueError where it is none that PostgreSQL could hold."""
    if type(value) is not int or not 0 <= value <= MAX_VERSION:
        raise ValueError("not a version, nor an id")
    return value


def text_of(value: object, encoding_errors: str = "strict") -> str:
    """A text, out of JSON. ValueError where it is none that PostgreSQL could hold: with a NUL, or half a character.

    encoding_errors: "surrogateescape" for a ref's name, which may hold bytes that are not UTF-8.
    """
    if not isinstance(value, str) or "\0" in value:
        raise ValueError("not a text")
    value.encode("utf-8", encoding_errors)
    return value


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
