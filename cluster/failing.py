"""A disk that is full, cannot be written to, or has errors: told from an error's number, from Git's words, from itself.

Whoever pushes or fetches hears which device's disk it is, and that an administrator has to see to it.
"""

from __future__ import annotations

import errno
import os
import re
from contextlib import suppress
from pathlib import Path

from cluster.errors import DiskFailed

FULL = "is full; an administrator has to make room"
NOT_WRITABLE = "cannot be written to; an administrator has to look at it"
BROKEN = "has errors; an administrator has to look at it"

_ERRNO = {
    errno.ENOSPC: FULL,
    errno.EDQUOT: FULL,
    errno.EFBIG: FULL,
    errno.EROFS: NOT_WRITABLE,
    errno.EACCES: NOT_WRITABLE,
    errno.EPERM: NOT_WRITABLE,
    errno.EIO: BROKEN,
    errno.EUCLEAN: BROKEN,
}
_SAID = {os.strerror(number).encode(): how for number, how in _ERRNO.items()}
_SAID[b"insufficient permission for adding an object"] = NOT_WRITABLE

WORDS = re.compile(b"|".join(map(re.escape, _SAID)))
"""What Git, with LC_ALL=C, says of such a disk."""

ROOM = 1 << 16
"""Bytes; with less, a disk counts as full."""


def of_error(error: BaseException) -> DiskFailed | None:
    """None: it is about something else."""
    if isinstance(error, DiskFailed):
        return error
    how = _ERRNO.get(error.errno or 0) if isinstance(error, OSError) else None
    return DiskFailed(how) if how else None


def of_words(stderr: bytes) -> DiskFailed | None:
    """What a Git process says of this device's disk; what it passes on from another's does not count."""
    for line in stderr.splitlines():
        if not line.startswith(b"remote: ") and (said := WORDS.search(line)):
            return DiskFailed(_SAID[said[0]])
    return None


def of_folder(path: Path) -> DiskFailed | None:
    """What can be seen of the disk that a folder is on: of a ref that does not fit, Git says only that it failed."""
    with suppress(OSError):
        disk = os.statvfs(path)
        if disk.f_flag & os.ST_RDONLY or not os.access(path, os.W_OK):
            return DiskFailed(NOT_WRITABLE)
        if disk.f_bavail * disk.f_frsize < ROOM or (disk.f_files and not disk.f_favail):
            return DiskFailed(FULL)
    return None
