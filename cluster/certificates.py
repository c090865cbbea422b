"""User certificates of OpenSSH: whether one proves somebody, and whom it names. No database, no network.

Whoever signs with a key of `[login] trusted_ca` says which user a key belongs to, and until when; no key is registered
here. Everybody logs in as "git", so the certificate's principals name the user, not the account.

The format, and what each field means: OpenSSH's PROTOCOL.certkeys.
"""

from __future__ import annotations

import base64
import ipaddress
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    SSHCertificate,
    SSHCertificateType,
    load_ssh_public_identity,
    load_ssh_public_key,
)

from cluster import keys
from cluster.errors import ConfigError, Refused, UsageError
from cluster.names import shown

SUFFIX = "-cert-v01@openssh.com"
TYPES = tuple(f"{kind}{SUFFIX}" for kind in keys.TYPES)

MAX_BLOB = 256 * 1024
"""Base64 characters of a certificate: as many bytes as the endpoint reads in one packet."""

MAX_PRINCIPALS = 256
"""As OpenSSH's SSHKEY_CERT_MAX_PRINCIPALS."""

FOREVER = datetime(9999, 12, 31, tzinfo=UTC)
"""For a certificate that has no end."""

SIGNATURES = frozenset({*keys.TYPES, "rsa-sha2-256", "rsa-sha2-512"} - {"ssh-rsa"})
"""How a certificate may be signed: not with SHA-1, which can be forged (OpenSSH 8.2 gave it up)."""


@dataclass(frozen=True, slots=True)
class TrustedCAs:
    """Keys whose certificates count: canonical line → the line in the file, without its comment."""

    lines: Mapping[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.lines)


@dataclass(frozen=True, slots=True)
class Certified:
    """What a certificate says once it is known to be good.

    principals: the names that it proves its holder to be, one of which must be a user here.
    fingerprint: of the key that it is for, as `ssh-keygen -l` shows it.
    until: from when on it proves nothing. ca: the public key, type and base64, that signed it.
    """

    principals: tuple[str, ...]
    fingerprint: str
    until: datetime
    ca: str


def is_certificate(key_type: str) -> bool:
    return key_type.endswith(SUFFIX)


def load(path: Path | None) -> TrustedCAs:
    """The keys in `path`, one a line; empty lines and #-comments are passed over. ConfigError. None: no keys."""
    if path is None:
        return TrustedCAs()
    try:
        with path.open("rb") as file:
            text = file.read(keys.MAX_BYTES * 16).decode("utf-8", "replace")
    except OSError as error:
        raise ConfigError(
            f"[login] trusted_ca: {path} cannot be read: {error.strerror}",
            hint="Name a file with the public keys of the authorities, a line each.",
        ) from error
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.strip().startswith("#"):
            continue
        try:
            key = keys.parse(line)
        except UsageError as error:
            raise ConfigError(
                f"[login] trusted_ca: {path}, line {number}: {error.what}",
                hint="Each line is a public key, `<type> <base64> [comment]`, as in the authority's .pub file.",
            ) from error
        found[_canonical(load_ssh_public_key(key.line.encode()))] = key.line
    if not found:
        raise ConfigError(
            f"[login] trusted_ca: {path} holds no public key",
            hint="Put the authority's .pub file there, or take the setting out.",
        )
    return TrustedCAs(found)


def prove(
    trusted: TrustedCAs, key_type: str, blob_base64: str, address: str | None, now: datetime
) -> Certified:
    """What a certificate says, where it may be believed; that its holder has the key is for the caller to check.

    key_type, blob_base64: as in a -cert.pub file. address: the client's; None: the caller
    checks that. Refused, with a reason for the log: whoever
    offers a certificate is a stranger and is told nothing.

        refused where                                      because
        ────────────────────────────────────────────────   ──────────────────────────────────────────────────
        it is of no known type, or damaged                 nothing in it can be believed
        it is for a weak key                               as `key add` would
        it is signed by another key, or the signature is   nobody here trusts that key
        not its, or made with SHA-1
        it is a host's                                     it says who a machine is
        it is not valid yet, or no longer                  –
        it has no principals                               to OpenSSH it would be anybody's
        it has a critical option but source-address        force-command, and whatever is not known, must not be
                                                           passed over
        it is for other addresses than the client's        –
    """
    certificate = _read(key_type, blob_base64)
    public = certificate.public_key()
    if isinstance(public, RSAPublicKey) and public.key_size < keys.MIN_RSA_BITS:
        raise Refused(f"it is for an RSA key of {public.key_size} bits, which is too weak")
    ca = trusted.lines.get(_signer(certificate))
    if ca is None:
        raise Refused("it is signed by no authority of [login] trusted_ca")
    if _signature_type(key_type, blob_base64) not in SIGNATURES:
        raise Refused("it is signed with SHA-1 or in an unknown way")
    try:
        certificate.verify_cert_signature()
    except (InvalidSignature, ValueError) as error:
        raise Refused("its signature is false") from error
    # From here on its words are the authority's.
    if certificate.type is not SSHCertificateType.USER:
        raise Refused("it is a host's certificate")
    seconds = now.timestamp()
    if seconds < certificate.valid_after:
        raise Refused("it is not valid yet")
    if seconds >= certificate.valid_before:
        raise Refused("it has expired")
    _check_options(certificate.critical_options, address)
    principals = _principals(certificate.valid_principals)
    until = (
        FOREVER
        if certificate.valid_before >= FOREVER.timestamp()
        else datetime.fromtimestamp(certificate.valid_before, UTC)
    )
    fingerprint = keys.fingerprint(base64.b64decode(_canonical(public).split(" ")[1]))
    return Certified(principals, fingerprint, until, ca)


def signer(key_type: str, blob_base64: str) -> str:
    """The public key, type and base64, that signed a certificate. Refused."""
    return _signer(_read(key_type, blob_base64))


def _read(key_type: str, blob_base64: str) -> SSHCertificate:
    if key_type not in TYPES or len(blob_base64) > MAX_BLOB:
        raise Refused("it is of a type or size that is not taken")
    try:
        found = load_ssh_public_identity(f"{key_type} {blob_base64}".encode())
    except Exception as error:  # a stranger's bytes: the parser raises whatever they lead it to
        raise Refused("it is damaged, or of a kind that is not known") from error
    if not isinstance(found, SSHCertificate):
        raise Refused("it is no certificate")
    return found


def _signer(certificate: SSHCertificate) -> str:
    try:
        return _canonical(certificate.signature_key())
    except Exception as error:  # still a stranger's bytes
        raise Refused("it is signed by a key of a kind that is not taken") from error


def _canonical(key: object) -> str:
    """Type and base64, however the key was encoded where it came from."""
    line: bytes = key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH)  # type: ignore[attr-defined]
    return line.decode()


def _signature_type(key_type: str, blob_base64: str) -> str:
    """The algorithm of the signature, which is the last field of a certificate that has been read whole."""
    blob = base64.b64decode(blob_base64)
    of_the_key = 1 if key_type.startswith("ssh-ed25519") else 2
    at = 0
    for kind in ("s", "s", *"s" * of_the_key, "8", "4", "s", "s", "8", "8", "s", "s", "s", "s"):
        at += 4 + struct.unpack_from(">I", blob, at)[0] if kind == "s" else int(kind)
    (length,) = struct.unpack_from(">I", blob, at + 4)
    return blob[at + 8 : at + 8 + length].decode("ascii", "replace")


def _check_options(options: Mapping[bytes, bytes], address: str | None) -> None:
    for name, value in options.items():
        if name != b"source-address":
            raise Refused(f"it has the critical option {shown(name.decode('utf-8', 'replace'))}")
        if address is not None and not _is_from(value.decode("ascii", "replace"), address):
            raise Refused("it is for other addresses than the client's")


def _is_from(networks: str, address: str) -> bool:
    """Whether `address` is in a list of addresses and networks; nothing is in one that cannot be read."""
    try:
        client = ipaddress.ip_address(address.partition("%")[0])
        allowed = [ipaddress.ip_network(network) for network in networks.split(",")]
    except ValueError:
        return False
    return any(client in network for network in allowed)


def _principals(found: Iterable[bytes]) -> tuple[str, ...]:
    principals = tuple(dict.fromkeys(name.decode("utf-8", "replace") for name in found))
    if not principals:
        raise Refused("it names no principal")
    if len(principals) > MAX_PRINCIPALS:
        raise Refused(f"it names more than {MAX_PRINCIPALS} principals")
    return principals
