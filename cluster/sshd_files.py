"""The files that sshd needs: copies of those in sshd_hooks/, with the values of one device put in."""

from __future__ import annotations

import os
import platform
import pwd
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.config import Config
from cluster.errors import ConfigError

HOOK = "git-cluster-hook"
"""The program; in Perl, which starts faster, or in Python where that cannot be."""

PERL = "/usr/bin/perl"
"""As the first line of the hook in Perl has it."""

SENDMSG = {"x86_64": 46, "aarch64": 211, "riscv64": 211}
"""The number that Linux has for sendmsg(2), by which a process hands over descriptors; by kind of processor."""

CONFIGS = ("sshd_config", "match_git.conf")
MOST_SHEBANG = 127
"""Bytes of a script's first line that every Linux reads."""


@dataclass(frozen=True, slots=True)
class Installed:
    """untrusted: a folder on the way that sshd will not accept, as somebody else than root may write there."""

    hook: Path
    configs: tuple[Path, ...]
    untrusted: Path | None


def folder() -> Path:
    """sshd_hooks/: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "sshd_hooks"
    return inside if inside.exists() else package.parent / "sshd_hooks"


def install(
    config: Config, directory: Path, *, port: int, user: str | None, host_key: Path | None
) -> Installed:
    """Write the hook and both examples of a configuration into `directory`. ConfigError."""
    if config.device is None:
        raise ConfigError(
            f"{config.path} has no [device] section",
            hint="the hooks belong to a device: name its configuration with --config",
        )
    directory = directory.absolute()
    user = user or _owner(config.device.data_dir)
    key = host_key or (config.ssh.host_key if config.ssh else None)
    hook = directory / HOOK
    values = {
        "@USER@": user,
        "@HOOK@": str(hook),
        "@DIRECTORY@": str(directory),
        "@PORT@": str(port),
        "@HOST_KEY@": str(key.absolute() if key else "/etc/ssh/ssh_host_ed25519_key"),
        "@SSHD@": shutil.which("sshd", path=f"{os.environ.get('PATH', '')}:/usr/sbin:/usr/local/sbin")
        or "/usr/sbin/sshd",
        "@PAM@": "yes" if Path("/etc/pam.d/sshd").exists() else "no",
        "@ROOT@": "forced-commands-only" if user == "root" else "no",
    }
    if bad := next((value for value in values.values() if set(value) & set("\"'\\ \t\n%")), None):
        raise ConfigError(
            f"{bad!r} has a space, a quote or a '%' in it, which sshd_config cannot hold here",
            hint="choose paths without them",
        )
    try:
        directory.mkdir(parents=True, exist_ok=True)
        run = str((config.device.data_dir / "run").absolute())
        _write(hook, in_perl(config.path, run) if perl_serves() else in_python(config.path, run), 0o755)
        written = []
        for name in CONFIGS:
            text = (folder() / name).read_text()
            for placeholder, value in values.items():
                text = text.replace(placeholder, value)
            _write(directory / name, text, 0o644)
            written.append(directory / name)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or directory} cannot be written: {error.strerror}",
            hint="choose a folder that you may write to; sshd wants one that only root may",
        ) from error
    return Installed(hook, tuple(written), _untrusted(hook))


def sshd_program() -> str:
    """Where sshd is; where it usually is, if this user's PATH does not say."""
    path = f"{os.environ.get('PATH', '')}:/usr/local/sbin:/usr/sbin:/sbin"
    return shutil.which("sshd", path=path) or "/usr/sbin/sshd"


def perl_serves() -> bool:
    """Whether the hook can be the one in Perl here: it has to lay out structures of the kernel by itself."""
    if platform.machine() not in SENDMSG:
        return False
    ask = [PERL, "-e", "print length pack 'P', 'x'"]
    try:
        done = subprocess.run(ask, stdin=subprocess.DEVNULL, capture_output=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return False
    return done.returncode == 0 and done.stdout == b"8"


def in_perl(config: Path, run: str) -> str:
    """The text of the hook for a configuration and the run directory of its device, where `perl_serves`."""
    values = {
        "@PROGRAM": f"({', '.join(map(_perl, _program()))})",
        "$CONFIG": _perl(str(config)),
        "$RUN": _perl(run),
        "$SENDMSG": str(SENDMSG[platform.machine()]),
    }
    lines = {f"my {name}": f"my {name} = {value};" for name, value in values.items()}
    return _baked((folder() / f"{HOOK}.pl").read_text(), lines)


def in_python(config: Path, run: str) -> str:
    """The same, for everywhere. ConfigError."""
    values = {"PROGRAM": tuple(_program()), "CONFIG": str(config), "RUN": run}
    lines = {name: f"{name} = {value!r}" for name, value in values.items()}
    return _first_line() + _baked((folder() / f"{HOOK}.py").read_text(), lines).partition("\n")[2]


def _baked(text: str, lines: Mapping[str, str]) -> str:
    """`text` with other lines for those that give these names a value."""
    return "".join(
        lines.get(line.partition(" = ")[0], line.rstrip("\n")) + "\n"
        for line in text.splitlines(keepends=True)
    )


def _perl(text: str) -> str:
    """A string as Perl reads it."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _write(path: Path, text: str, mode: int) -> None:
    """Whole or not at all: sshd may be running the older one."""
    new = path.with_name(f".{path.name}.new")
    new.write_text(text)
    new.chmod(mode)
    new.replace(path)


def _owner(data_dir: Path) -> str:
    """Whom data_dir belongs to: the user that the daemon runs as, and that sshd has to run the hook as."""
    try:
        return pwd.getpwuid(data_dir.stat().st_uid).pw_name
    except OSError as error:
        raise ConfigError(
            f"[device] data_dir cannot be looked at: {error.strerror}",
            hint="start git-cluster once on this device, or name the user with --user",
        ) from error
    except KeyError as error:
        raise ConfigError(
            "data_dir belongs to nobody known here", hint="name the user with --user"
        ) from error


def _program() -> list[str]:
    """git-cluster as it runs now, and nothing that happens to lie in the folder where sshd starts it."""
    return [sys.executable, "-P", "-m", "cluster"]


def _first_line() -> str:
    """The interpreter that starts fastest: the one behind a virtual environment, which needs nothing of it."""
    interpreter = os.path.realpath(sys.executable)
    line = f"#!{interpreter} -IS\n"
    if len(line) > MOST_SHEBANG or " " in interpreter:
        raise ConfigError(
            f"the path of the Python interpreter is too long for a script's first line, or has a space: {interpreter}",
            hint="install git-cluster with an interpreter in another place",
        )
    return line


def _untrusted(path: Path) -> Path | None:
    """The first of `path` and the folders above it that sshd refuses to run a program from (its safe_path)."""
    for each in (path, *path.parents):
        stat = each.stat()
        if stat.st_uid != 0 or stat.st_mode & 0o022:
            return each
    return None
