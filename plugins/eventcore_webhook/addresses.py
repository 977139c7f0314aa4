"""The guard against server-side request forgery: to which network addresses events may be posted.

Checks of the URL's text are useless (``getaddrinfo`` turns ``2130706433`` and ``0x7f.1`` into 127.0.0.1), and a name
may resolve differently the next time. So a name is resolved once, every address is judged, and the connection is made
to an address that was judged, not to the name.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Callable
from typing import Any

from eventcore_webhook.errors import AddressRefused

__all__ = ["Resolver", "is_public", "resolve"]

Resolver = Callable[..., list[Any]]
"""``socket.getaddrinfo``, or what answers like it."""

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_UNICAST_V6 = ipaddress.ip_network("2000::/3")
# Not to be reached across the Internet, although ``is_global`` says so on some Python versions.
_SPECIAL = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.0.0.0/24",  # IETF protocol assignments
        "192.88.99.0/24",  # 6to4 relays
        "3fff::/20",  # documentation
    )
)


def is_public(address: str) -> bool:
    """Whether a numeric address is a public unicast one; of addresses that carry an IPv4 address, that one counts."""
    parsed = ipaddress.ip_address(address)
    if isinstance(parsed, ipaddress.IPv6Address):
        inner = parsed.ipv4_mapped or parsed.sixtofour
        if inner is None and parsed in _NAT64:
            inner = ipaddress.IPv4Address(int(parsed) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(str(inner))
        if parsed not in _UNICAST_V6:
            return False
    return parsed.is_global and not parsed.is_multicast and not any(parsed in network for network in _SPECIAL)


def resolve(host: str, port: int, *, allow_private: bool, getaddrinfo: Resolver = socket.getaddrinfo) -> list[str]:
    """Return the numeric addresses of ``host``, in the resolver's order.

    Raises AddressRefused if any of them is not public and ``allow_private`` is not set, OSError (``socket.gaierror``)
    if there are none.
    """
    found = getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
    if not allow_private:
        for address in addresses:
            if not is_public(address):
                raise AddressRefused(
                    f"{host} leads to {address}, which is no public address; set allow_private = true if it is yours"
                )
    return addresses
