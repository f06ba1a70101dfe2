"""Who a request comes from, for limits: an address, or the network that one customer has in IPv6."""

from __future__ import annotations

import ipaddress
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable

CUSTOMER_BITS = 64  # of an IPv6 address: the rest the customer chooses


def group_address(text: str) -> str:
    """Return the address to count by, or "" for what is not one."""
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, CUSTOMER_BITS), strict=False))
    return str(address)


class Proxies:
    """The proxies that are trusted: addresses and networks."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(text, strict=False) for text in networks]

    def __contains__(self, text: str) -> bool:
        try:
            address = ipaddress.ip_network(text, strict=False)
        except ValueError:
            return False
        return any(
            address.version == network.version and address.subnet_of(network)  # type: ignore[arg-type]
            for network in self._networks
        )
