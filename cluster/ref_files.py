"""A few refs of a bare repository, read from Git's own files: a Git process costs some 3 ms, and more with many refs.

    <ref>          a file of its own wins
    packed-refs    the others, sorted by name: found by bisection

Whatever is not plain (a symbolic ref, a broken one, a name that is none, another format) is left to Git. Git writes a
ref into packed-refs before it removes the file, so whoever looks at the file first misses none.
"""

from __future__ import annotations

import mmap
import os
import re
from collections.abc import Iterable
from pathlib import Path

from dulwich.refs import Ref, check_ref_format

_VALUE = re.compile(rb"([0-9a-f]{40}|[0-9a-f]{64})\n?")
_SORTED = re.compile(rb"# pack-refs with:.* sorted( .*)?\n")


def values(repository: Path, names: Iterable[str]) -> dict[str, str] | None:
    """The object ids of those of `names` that exist. None: Git has to be asked."""
    found: dict[str, str] = {}
    packed: list[str] = []
    try:
        if not (repository / "refs").is_dir() or (repository / "reftable").exists():
            return None
        for name in names:
            raw = os.fsencode(name)
            if not raw.startswith(b"refs/") or not check_ref_format(Ref(raw)):
                return None
            content = _file(os.path.join(os.fsencode(repository), raw))
            if content is None:
                packed.append(name)
            elif value := _VALUE.fullmatch(content):
                found[name] = value[1].decode()
            else:
                return None
        if packed:
            known = _packed(repository / "packed-refs", packed)
            if known is None:
                return None
            found |= known
    except (OSError, ValueError):
        return None
    return found


def _file(path: bytes) -> bytes | None:
    """What a ref's own file holds. None: it has none. OSError."""
    try:
        with open(path, "rb", buffering=0) as file:
            return file.read(256)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None


def _packed(file: Path, names: Iterable[str]) -> dict[str, str] | None:
    """The same of packed-refs. None where it is not sorted. OSError, ValueError."""
    found: dict[str, str] = {}
    try:
        fd = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return found
    try:
        if not os.fstat(fd).st_size:
            return found
        with mmap.mmap(fd, 0, prot=mmap.PROT_READ) as lines:
            head = lines.readline()
            if not _SORTED.fullmatch(head):
                return None
            for name in names:
                value = _bisected(lines, len(head), os.fsencode(name))
                if value is not None:
                    found[name] = value
    finally:
        os.close(fd)
    return found


def _bisected(lines: mmap.mmap, low: int, name: bytes) -> str | None:
    """The value of `name` in sorted lines "<value> <name>", each perhaps followed by "^<value>", from `low` on."""
    high = len(lines)
    while low < high:
        begin = lines.rfind(b"\n", low, (low + high) // 2) + 1 or low
        if lines[begin : begin + 1] == b"^":  # belongs to the line before
            begin = lines.rfind(b"\n", low, begin - 1) + 1 or low
        end = lines.find(b"\n", begin, high)
        value, _, found = lines[begin : high if end < 0 else end].partition(b" ")
        if not found or not _VALUE.fullmatch(value):
            if value[:1] == b"^":  # a first line cut off by `low`
                low = high if end < 0 else end + 1
                continue
            raise ValueError("this is no line of packed-refs")
        if found == name:
            return value.decode()
        if found < name:
            low = high if end < 0 else end + 1
        else:
            high = begin
    return None
