"""Files that are not in the page cache: put out of it, and looked at whether they are."""

from __future__ import annotations

import ctypes
import mmap
import os
from pathlib import Path

LITTLE = 0.05
"""The share of a folder's pages that may stay for it to count as cold."""

_libc = ctypes.CDLL(None, use_errno=True)


def evict(folder: Path) -> float:
    """Have the kernel drop what it keeps of all files below `folder`; the share of pages that it kept."""
    kept = total = 0
    for path in (each for each in folder.rglob("*") if each.is_file()):
        fd = os.open(path, os.O_RDONLY)
        try:
            os.fdatasync(fd)  # what is not on the disk yet is not dropped
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(fd)
        here, pages = resident(path)
        kept, total = kept + here, total + pages
    return kept / total if total else 0.0


def resident(path: Path) -> tuple[int, int]:
    """How many pages of a file are in the page cache, and how many there are."""
    size = path.stat().st_size
    pages = -(-size // mmap.PAGESIZE)
    if not pages:
        return 0, 0
    found = (ctypes.c_ubyte * pages)()
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_COPY) as mapped:
        first = ctypes.c_char.from_buffer(mapped)
        failed = _libc.mincore(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(size), found)
        del first  # else the map cannot be closed
    if failed:
        raise OSError(ctypes.get_errno(), "mincore")
    return sum(each & 1 for each in found), pages
