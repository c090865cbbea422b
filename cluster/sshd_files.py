"""The files that sshd needs: copies of those in sshd_hooks/, with the values of one device put in."""

from __future__ import annotations

import os
import pwd
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from cluster.config import Config
from cluster.errors import ConfigError

HOOK = "git-cluster-hook"
KEYS = "git-cluster-keys"
"""What `HOOK keys` does, by a program that starts faster, where there is one to run it."""

PERL = "/usr/bin/perl"
"""As the first line of KEYS has it."""

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
    program, *arguments = _program()
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
    values["@KEYS@"] = str(directory / KEYS) if os.access(PERL, os.X_OK) else f"{hook} keys"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        run = str((config.device.data_dir / "run").absolute())
        baked = {
            "PROGRAM": program,
            "ARGUMENTS": tuple(arguments),
            "CONFIG": str(config.path),
            "RUN": run,
        }
        text = (folder() / HOOK).read_text()
        text = _baked(text, {name: f"{name} = {value!r}" for name, value in baked.items()})
        _write(hook, _first_line() + text.partition("\n")[2], 0o755)
        ours = {"my $HOOK": f"my $HOOK = {_perl(str(hook))};", "my $RUN": f"my $RUN = {_perl(run)};"}
        _write(directory / KEYS, _baked((folder() / KEYS).read_text(), ours), 0o755)
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
