"""Public keys as people hand them in: one OpenSSH line, checked before it may prove anybody.

What is refused, and why: a private key (it must not leave its owner's machine), options in front of the key (sshd's
authorized_keys has them, here they would silently mean nothing), DSA and short RSA (they can be broken), certificates,
security tokens and unknown types (the built-in SSH server could not check them).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from dataclasses import dataclass
from datetime import MAXYEAR, UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from cluster.errors import UsageError
from cluster.names import shown

MIN_RSA_BITS = 3072
"""NIST SP 800-57 part 1: 112 bits of security (RSA 2048) are not for use beyond 2030."""

TYPES = (
    "ssh-ed25519",
    "ecdsa-sha2-nistp256",
    "ecdsa-sha2-nistp384",
    "ecdsa-sha2-nistp521",
    "ssh-rsa",
)

MAX_BYTES = 64 * 1024
"""More than any public key; whoever names a disk image by mistake does not wait for it to be read."""

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])", re.ASCII)
_DAY = re.compile(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", re.ASCII)
_TIME = re.compile(
    rf"{_DAY.pattern}[Tt ][0-9]{{2}}:[0-9]{{2}}:[0-9]{{2}}(\.[0-9]+)?([Zz]|[+-][0-9]{{2}}:[0-9]{{2}})"
)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}

_MAKE = "Make one with `ssh-keygen -t ed25519` and give its .pub file."
_ONE_LINE = "A public key is one line, `<type> <base64> [comment]`, as ssh-keygen writes it to a .pub file."


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A key that was checked. `line` is type and base64 alone; `fingerprint` is what `ssh-keygen -l` shows."""

    type: str
    line: str
    comment: str
    fingerprint: str


def read(file: BinaryIO | Path) -> PublicKey:
    """The one public key in a file. UsageError for anything else; the message never repeats what was in it."""
    try:
        if isinstance(file, Path):
            with file.open("rb") as opened:
                data = opened.read(MAX_BYTES + 1)
        else:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{file} cannot be read: {error.strerror or error}", hint=_MAKE) from error
    if len(data) > MAX_BYTES:
        raise UsageError("the file is far too long for a public key", hint=_ONE_LINE)
    return parse(data.decode("utf-8", "replace"))


def parse(text: str) -> PublicKey:
    """The one public key in `text`; empty lines and #-comments are passed over. UsageError."""
    if "PRIVATE KEY" in text or text.lstrip().startswith("PuTTY-User-Key-File"):
        raise UsageError(
            "this is a private key, which must stay with its owner",
            hint="Give the public half: the file of the same name that ends in .pub.",
        )
    if re.search(r"BEGIN (SSH2 |RSA )?PUBLIC KEY", text):
        raise UsageError(
            "this public key is not in OpenSSH's form",
            hint="Convert it: `ssh-keygen -i -m RFC4716 -f FILE` (or -m PKCS8, -m PEM).",
        )
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.strip().startswith("#")]
    if not lines:
        raise UsageError("there is no public key: the file is empty", hint=_MAKE)
    if len(lines) > 1:
        raise UsageError(
            f"there are {len(lines)} lines where one public key belongs", hint="Give one at a time."
        )
    return _parse_line(lines[0])


def _parse_line(line: str) -> PublicKey:
    kind, _, rest = line.partition(" ")
    if kind not in TYPES:
        raise _bad_type(kind, line)
    encoded, _, comment = rest.strip().partition(" ")
    try:
        blob = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError) as error:
        raise UsageError("the base64 of this public key is damaged", hint=_ONE_LINE) from error
    bits = _strength(kind, encoded)
    if kind == "ssh-rsa" and bits < MIN_RSA_BITS:
        raise UsageError(f"an RSA key of {bits} bits is too weak; {MIN_RSA_BITS} is the least", hint=_MAKE)
    canonical = base64.b64encode(blob).decode()
    comment = "".join(c if c.isprintable() else "?" for c in comment.strip())[:200]
    return PublicKey(kind, f"{kind} {canonical}", comment, fingerprint(blob))


def fingerprint(blob: bytes) -> str:
    """SHA256:… of a key's bytes, base64 without padding: what OpenSSH shows, and what the database is keyed by."""
    return "SHA256:" + base64.b64encode(hashlib.sha256(blob).digest()).decode().rstrip("=")


def expiry(text: str, now: datetime) -> datetime:
    """When a key ends, as people write it: a day (as it begins, UTC), an RFC 3339 time, or how long from `now`.

    UsageError for anything else, and for what is not after `now`.
    """
    hint = (
        "Give a day (2027-01-31), a time with its zone (2027-01-31T18:00:00Z) or a duration (12h, 90d, 52w)."
    )
    bad = UsageError(f"{shown(text)} is not a time at which a key can end", hint=hint)
    try:
        if found := _DURATION.fullmatch(text):
            at = now + timedelta(seconds=int(found[1]) * _SECONDS[found[2]])
        elif _DAY.fullmatch(text):
            at = datetime.fromisoformat(text).replace(tzinfo=UTC)
        elif _TIME.fullmatch(text):
            at = datetime.fromisoformat(text.upper()).astimezone(UTC)
        else:
            raise bad
    except (ValueError, OverflowError) as error:
        raise bad from error
    if at.year >= MAXYEAR:  # in another time zone it may have five digits
        raise UsageError(f"the year {at.year} is too far away", hint="A key without an end needs none.")
    if at <= now:
        raise UsageError(f"{shown(text)} is in the past", hint=hint)
    return at


def _bad_type(kind: str, line: str) -> UsageError:
    if any(re.search(rf"(^|[\s]){re.escape(known)} [A-Za-z0-9+/]", line) for known in TYPES):
        return UsageError(
            "there is something in front of the key (options of authorized_keys?), which would mean nothing here",
            hint="Give the line from the type on: `ssh-ed25519 AAAA…`.",
        )
    if kind in ("ssh-dss", "ssh-dss-cert-v01@openssh.com"):
        return UsageError("DSA keys are too weak, and OpenSSH itself has given them up", hint=_MAKE)
    if kind.endswith("-cert-v01@openssh.com"):
        return UsageError(
            "this is a certificate; git-cluster takes plain keys", hint="Give the key's own .pub file."
        )
    if kind.startswith("sk-"):
        return UsageError("keys that live in a security token are not supported yet", hint=_MAKE)
    return UsageError("this is not an OpenSSH public key of a known type", hint=f"Known: {', '.join(TYPES)}.")


def _strength(kind: str, encoded: str) -> int:
    """The key's length in bits, once it is certain that it is a whole and valid key of its type."""
    from cryptography.exceptions import UnsupportedAlgorithm  # 20 ms, for the one command that needs it
    from cryptography.hazmat.primitives.serialization import load_ssh_public_key

    try:
        key = load_ssh_public_key(f"{kind} {encoded}".encode())
    except (ValueError, UnsupportedAlgorithm, NotImplementedError) as error:
        raise UsageError("this public key is damaged, or was cut off", hint=_ONE_LINE) from error
    return getattr(key, "key_size", 256)
