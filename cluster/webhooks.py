"""Webhooks, the decisions: what a URL may be, to which addresses it may lead, how a delivery is signed, and when it is
tried again.

Signatures are those of the Standard Webhooks specification (https://www.standardwebhooks.com), so receivers check them
with a library that they have already.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import ipaddress
import re
import secrets
from dataclasses import dataclass
from urllib.parse import urlsplit

from cluster.errors import Refused, UsageError
from cluster.names import shown

PREFIX = "whsec_"
"""What a secret begins with; the rest is base64 of 24 to 64 bytes, as the specification has it."""

FIRST, LONGEST = 1.0, 3600.0
"""Seconds until the second try, and at the most between two."""

DEADLINE = 12.0
"""Seconds for a whole delivery, whatever the receiver does."""

MOST_URL = 2000

_URL = re.compile(r"[!-\[\]-~]+")  # printable ASCII without the backslash, which browsers read as a slash
_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+")
_PORTS = {"http": 80, "https": 443}

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Target:
    """A URL in its parts, as read once: what is checked is what is connected to. path: with the query."""

    scheme: str
    host: str
    port: int
    path: str

    @property
    def authority(self) -> str:
        """The Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == _PORTS[self.scheme] else f"{host}:{self.port}"


def target(url: str) -> Target:
    """UsageError, without the URL where it may hold a secret."""
    if len(url) > MOST_URL:
        raise UsageError(f"the URL of a webhook has at most {MOST_URL} characters")
    if not _URL.fullmatch(url):
        raise UsageError(
            "the URL of a webhook is written in printable ASCII, without spaces and backslashes",
            hint="write other characters of the host as xn--…, and those of the path as %XX",
        )
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        raise UsageError(f"{shown(url)} is no URL", hint=EXAMPLE) from None
    if parts.scheme not in _PORTS:
        raise UsageError(f"{shown(parts.scheme or url)} is not http or https", hint=EXAMPLE)
    if "@" in parts.netloc:
        raise UsageError(
            "the URL of a webhook holds no user and no password",
            hint="deliveries are signed: that is how the receiver knows who they are from",
        )
    if parts.fragment or "#" in url:
        raise UsageError("the URL of a webhook has no #part", hint=EXAMPLE)
    if not _HOST.fullmatch(host) or port == 0:
        raise UsageError(f"{shown(parts.netloc)} is not a host", hint=EXAMPLE)
    path = parts.path or "/"
    return Target(
        parts.scheme, host, port or _PORTS[parts.scheme], f"{path}?{parts.query}" if parts.query else path
    )


EXAMPLE = "such as https://ci.example/hooks/git"


def refuse_private(host: str, addresses: list[str]) -> None:
    """Refused where one of a host's addresses is not one of the public internet."""
    if not all(is_public(address) for address in addresses):
        raise Refused(
            f"{host} is in a private network, or on this machine",
            hint='webhooks go there only with private_addresses = "allow" below [webhooks] in the configuration',
        )


def is_public(text: str) -> bool:
    """Whether an address is one of the public internet, and so are those that it stands for."""
    try:
        address = ipaddress.ip_address(text)
    except ValueError:  # with a zone, as fe80::1%eth0
        return False
    if isinstance(address, ipaddress.IPv6Address):
        if meant := _embedded(address):
            return is_public(str(meant))
        if address.is_site_local:
            return False
    return address.is_global and not (address.is_multicast or address.is_reserved or address.is_unspecified)


def _embedded(address: ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address to which some network leads an IPv6 address on."""
    for network in _TRANSLATED:
        if address in network:
            return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return address.ipv4_mapped or address.sixtofour or (address.teredo[1] if address.teredo else None)


_TRANSLATED = tuple(
    ipaddress.IPv6Network(network) for network in ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96")
)


# Signing


def new_secret() -> str:
    return PREFIX + base64.b64encode(secrets.token_bytes(32)).decode()


def checked_secret(text: str) -> str:
    """One that somebody brings along. UsageError, which does not repeat it."""
    secret = text.strip()
    try:
        key = base64.b64decode(secret.removeprefix(PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.startswith(PREFIX) or not 24 <= len(key) <= 64:
        raise UsageError(
            f"a signing secret is {PREFIX} and base64 of 24 to 64 random bytes",
            hint="make one: printf 'whsec_%s' \"$(openssl rand -base64 32)\"; or leave it out, and one is made",
        )
    return secret


def headers(secret: str, message: str, at: int, body: bytes) -> dict[str, str]:
    """What goes with a delivery. message: its id, the same at every try; at: seconds since 1970."""
    key = base64.b64decode(secret.removeprefix(PREFIX))
    signed = hmac.new(key, f"{message}.{at}.".encode() + body, hashlib.sha256).digest()
    return {
        "Content-Type": "application/json",
        "User-Agent": "git-cluster",
        "webhook-id": message,
        "webhook-timestamp": str(at),
        "webhook-signature": f"v1,{base64.b64encode(signed).decode()}",
    }


def pause(attempts: int, chance: float) -> float:
    """Seconds until the next try after so many that failed (at least 1): twice as long each time, up to an hour.

    chance: from 0 to 1. It takes up to a quarter away, so that a receiver that came back is not met by all at once.
    """
    longest = min(FIRST * 2.0 ** min(attempts - 1, 30), LONGEST)
    return longest * (1 - 0.25 * chance)
