"""The two private keys of a device: whether they can be used, are kept to themselves, and are those registered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.doctor import judge
from cluster.doctor.finding import Finding, ok, problem, warning
from cluster.errors import ConfigError
from cluster.keyfiles import load_key


def load(path: Path, check: str, purpose: str) -> tuple[Any, list[Finding]]:
    """The key, or None; and what is wrong with the file. purpose: as in keyfiles.load_key."""
    try:
        key = load_key(path, purpose)
    except ConfigError as error:
        return None, [problem(check, error.what, error.hint)]
    exposed = judge.private_file(check, path.stat().st_mode, str(path))
    return key, [exposed] if exposed else []


def line(key: Any) -> str:
    """The public half in OpenSSH's one-line form."""
    return f"{key.get_name()} {key.get_base64()}"


def compare(check: str, key: Any, registered: str | None, option: str, path: Path) -> Finding:
    """registered: the public key in the database, None where that does not tell. option: as the file has it."""
    if registered is not None and registered.split()[:2] != line(key).split():
        return problem(
            check,
            f"{path} is another key than the one that is registered",
            f"name the file that was registered in {option}; `git-cluster device list --json` shows its public key",
        )
    return ok(check, f"{path}" + (", as registered" if registered is not None else ""))


def same(device_key: Any, host_key: Any) -> Finding | None:
    """One key for two purposes: who gets hold of it at one place has both."""
    if line(device_key) != line(host_key):
        return None
    return warning(
        "host key",
        "the host key is the device key, too",
        "make a host key of its own (ssh-keygen -t ed25519 -N '' -f FILE) and register the device with it",
    )
