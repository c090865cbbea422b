"""The certificate of the HTTP endpoint: whether it can be used, and a renewed one in the place of the old.

Each new connection takes the context that is current when its client says hello, so a renewal is all or nothing, and
ends no connection.
"""

from __future__ import annotations

import logging
import os
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cluster.errors import ConfigError

LOOK = 60.0
"""Seconds between two looks at whether the files have changed."""

_HINT = "certificate: the server's and those that signed it; key: its own, without a passphrase; both PEM"
_log = logging.getLogger("cluster.http")


class Certificate:
    """A pair of files. ConfigError where they cannot be used. `look` and `renew` may be called from any thread."""

    def __init__(self, certificate: Path, key: Path) -> None:
        self._certificate, self._key = certificate, key
        self._seen = self._stamp()
        self._current = _context(certificate, key)
        self.context = _context(certificate, key)
        """To listen with: it hands every connection to the current one."""
        self.context.sni_callback = self._chosen

    def _chosen(self, connection: ssl.SSLObject, name: str, listening: ssl.SSLContext) -> None:
        connection.context = self._current

    def look(self) -> None:
        """Take the files anew where they have changed since."""
        if self._stamp() != self._seen:
            self.renew()

    def renew(self) -> None:
        """Take the files anew; where they cannot be used, a line in the log, and what there was stays."""
        self._seen = self._stamp()
        try:
            self._current = _context(self._certificate, self._key)
        except ConfigError as error:
            _log.error("%s; the old certificate stays in use. %s", error.what, error.hint)
        else:
            _log.info("[http] certificate %s is in use now", self._certificate)

    def _stamp(self) -> tuple[object, ...]:
        return tuple(_stamp(path) for path in (self._certificate, self._key))


def _stamp(path: Path) -> object:
    try:
        stat = os.stat(path)
    except OSError as error:
        return error.errno
    return stat.st_ino, stat.st_mtime_ns, stat.st_size


def _context(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    _check(certificate, key)
    try:
        context.load_cert_chain(certificate, key, password=lambda: "")
    except (OSError, ValueError) as error:
        why = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ConfigError(f"[http] certificate {certificate} cannot be used: {why}", hint=_HINT) from error
    return context


def _check(certificate: Path, key: Path) -> None:
    """What OpenSSL says of these would name neither file."""
    try:
        leaf = x509.load_pem_x509_certificates(_read("certificate", certificate))[0]
        public = leaf.public_key()
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"[http] certificate {certificate} is no certificate in PEM", hint=_HINT) from error
    try:
        private = load_pem_private_key(_read("key", key), None)
    except TypeError as error:
        raise ConfigError(f"[http] key {key} has a passphrase", hint=_HINT) from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"[http] key {key} is no private key in PEM", hint=_HINT) from error
    if private.public_key() != public:
        raise ConfigError(f"[http] key {key} does not belong to certificate {certificate}", hint=_HINT)
    if leaf.not_valid_after_utc < datetime.now(UTC):
        _log.warning("[http] certificate %s ended on %s", certificate, f"{leaf.not_valid_after_utc:%Y-%m-%d}")


def _read(what: str, path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"[http] {what} {path} cannot be read: {error.strerror}", hint=_HINT) from error
