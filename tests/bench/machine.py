"""What the figures were measured on: nothing that names the machine or a place on it."""

from __future__ import annotations

import os
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import psycopg


def facts(database: str) -> dict[str, str | int]:
    """The processor, the kernel, and the programs that take part. database: URL of the PostgreSQL in use."""
    with psycopg.connect(database) as connection:
        server = connection.info.server_version
    return {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "kernel": f"{platform.system()} {platform.release()} {platform.machine()}",
        "git": _said(["git", "version"]).removeprefix("git version "),
        "ssh": _said(["ssh", "-V"]).partition(",")[0],
        "postgres": f"{server // 10000}.{server % 10000}",
        "python": platform.python_version(),
    }


def commit(root: Path) -> str:
    """The commit that is checked out, with "+" where files differ from it; "" outside a checkout."""
    with suppress(OSError, subprocess.CalledProcessError):
        git = ["git", "-C", str(root)]
        head = subprocess.run([*git, "rev-parse", "--short=12", "HEAD"], check=True, capture_output=True)
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD"], capture_output=True).returncode
        return head.stdout.decode().strip() + ("+" if changed else "")
    return ""


def today() -> str:
    return datetime.now(UTC).date().isoformat()


def _cpu() -> str:
    with suppress(OSError):
        found = re.search(r"model name\s*: (.*)", Path("/proc/cpuinfo").read_text())
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()


def _said(command: Sequence[str]) -> str:
    """What a program says of its version, on either output."""
    done = subprocess.run(command, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip()
