"""From where a request really comes, where it comes by way of proxies: X-Forwarded-For and -Proto. Pure.

Each proxy adds the address that it was reached from at the end. So the list is read from its end, for as long as what
is read was added by somebody trusted: the first address that is not a trusted proxy's is the client's. What stands
before that, anybody may have written.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

Ip = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_WITH_PORT = re.compile(r"\[([^\]]*)\](?::\d{1,5})?|([^:]*):\d{1,5}")


class Proxies:
    """Those that are believed, as networks."""

    def __init__(self, networks: Sequence[str]) -> None:
        self._networks: list[Network] = [ipaddress.ip_network(each) for each in networks]

    def trusts(self, peer: str) -> bool:
        """Whether `peer` is one of them."""
        ip = address(peer)
        return ip is not None and self._one_of_us(ip)

    def client(self, peer: str, forwarded_for: str) -> str:
        """The client's address, where `peer`, which is trusted, says that. What makes no sense is not the client's:
        then it is the last proxy that is known."""
        found = peer
        for word in reversed(forwarded_for.split(",")):
            ip = address(word)
            if ip is None:
                break
            found = str(ip)
            if not self._one_of_us(ip):
                break
        return found

    def _one_of_us(self, ip: Ip) -> bool:
        return any(ip in network for network in self._networks if network.version == ip.version)


def scheme(forwarded_proto: str) -> str | None:
    """What the last proxy was asked with; None: nothing that makes sense."""
    last = forwarded_proto.rpartition(",")[2].strip().lower()
    return last if last in ("http", "https") else None


def address(text: str) -> Ip | None:
    """An address, with or without a port. An IPv4 address in IPv6's clothes is an IPv4 address."""
    text = text.strip()
    if match := _WITH_PORT.fullmatch(text):
        text = match[1] or match[2] or ""
    try:
        ip = ipaddress.ip_address(text)
    except ValueError:
        return None
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.scope_id is not None:
            return None  # of that proxy's own network: it says nothing here
        return ip.ipv4_mapped or ip
    return ip
