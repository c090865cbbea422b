"""Private keys in files: read with an error that helps, made where there is none."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import paramiko  # type: ignore[import-untyped,unused-ignore]
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from cluster.errors import ConfigError


def load_key(path: Path, purpose: str) -> Any:
    """The private key in `path`, as a paramiko.PKey. ConfigError that says what to do where it cannot be used.

    purpose: what the key is for, as the error begins: "the key of this device".
    """
    make = f"Make one: ssh-keygen -t ed25519 -N '' -f {path}"
    try:
        return paramiko.PKey.from_path(path)
    except FileNotFoundError as error:
        raise ConfigError(f"{purpose}: there is no file {path}", hint=make) from error
    except OSError as error:
        what = f"{purpose}: {path} cannot be read: {error.strerror}"
        raise ConfigError(what, hint="It must belong to the user that runs git-cluster.") from error
    except (paramiko.PasswordRequiredException, TypeError) as error:
        what = f"{purpose}: {path} is encrypted with a passphrase, and nobody is here to type it"
        raise ConfigError(what, hint=f"Take it off: ssh-keygen -p -N '' -f {path}") from error
    except Exception as error:  # the parsers of paramiko and cryptography raise whatever they like
        raise ConfigError(f"{purpose}: {path} holds no private key that can be used", hint=make) from error


def generate_key() -> Any:
    """A new paramiko.Ed25519Key; paramiko itself can only load them."""
    return paramiko.Ed25519Key(file_obj=io.StringIO(_new_private_key()))


def _new_private_key() -> str:
    key = Ed25519PrivateKey.generate()
    return key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()).decode()


def write_keypair(path: Path, comment: str) -> str:
    """A new Ed25519 key in `path` (mode 0600) and `path`.pub. Returns the public line; never overwrites."""
    text = _new_private_key()
    key = paramiko.Ed25519Key(file_obj=io.StringIO(text))
    line = f"{key.get_name()} {key.get_base64()} {comment}".strip()
    try:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
            file.write(text)
    except FileExistsError as error:
        raise ConfigError(
            f"{path} is there already", hint="Name another file, or move that one away."
        ) from error
    path.with_name(path.name + ".pub").write_text(line + "\n")
    return line
