"""The Git processes that run as children of ours, as the kernel lists them (Linux; elsewhere none are seen)."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

COMMANDS = (
    "upload-pack",
    "receive-pack",
    "upload-archive",
    "index-pack",
    "pack-objects",
    "fetch",
    "repack",
    "fsck",
)
"""The commands that are counted by name: a session's own, and those that may take long."""

OTHER = "other"


def git_running(parents: Iterable[int]) -> dict[str, int]:
    """How many of each of COMMANDS, and of all others, the processes `parents` have started and run now.

    A child is listed with the thread that started it. One that ends meanwhile may be missed, or be counted still.
    """
    found = Counter(dict.fromkeys((*COMMANDS, OTHER), 0))
    for task in (task for each in parents for task in Path(f"/proc/{each}/task").glob("*/children")):
        with suppress(OSError):
            for child in task.read_text().split():
                if command := _git_command(child):
                    found[command] += 1
    return dict(found)


def _git_command(process: str) -> str | None:
    """What Git is told to do there; None: it is not Git, or has ended."""
    try:
        words = Path("/proc", process, "cmdline").read_bytes().split(b"\0")
    except OSError:
        return None
    for place, word in enumerate(words):
        if os.path.basename(word) == b"git":  # behind nice and ionice, as long as those have not become it
            command = words[place + 1].decode(errors="replace") if place + 1 < len(words) else ""
            return command if command in COMMANDS else OTHER
    return None
