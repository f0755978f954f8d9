"""Whose address it is: proxies that are trusted to say so, and what counts as one address. Pure."""

import re
from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

from gateway.addresses import Network

SHARED_PREFIX: Final = 64  # one household, school or server has a whole /64 of IPv6 to choose addresses from
MAX_HOPS: Final = 32  # proxies in a row that are believed
_OCTET: Final = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4: Final = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}")


class Proxies:
    """The networks whose X-Forwarded-For counts; none unless given."""

    def __init__(self, networks: Iterable[Network] = ()) -> None:
        self._networks: list[IPv4Network | IPv6Network] = [ip_network(network.text) for network in networks]

    def trusts(self, address: str) -> bool:
        """Whether the one at this address is a proxy of ours."""
        if not self._networks:
            return False
        try:
            found = ip_address(address)
        except ValueError:
            return False
        return any(found in network for network in self._networks)  # of the other family: not in it

    def client(self, peer: str, forwarded: Iterable[str]) -> str:
        """The address of the client: the last in X-Forwarded-For that is not a proxy of ours.

        Each proxy writes at the end whom it heard, so what stands before the first stranger, seen from there, is
        what that stranger claims. What is no address ends the search at the proxy that let it through.

        Args:
            peer: the other end of the TCP connection.
            forwarded: the values of the header, in order.
        """
        client = plain(peer) if peer else ""  # gone before it was asked for
        if not self.trusts(client):
            return client
        hops = [hop for value in forwarded for hop in value.split(",")][-MAX_HOPS:]
        for hop in reversed(hops):
            try:
                client = plain(_without_port(hop.strip()))
            except ValueError:
                break
            if not self.trusts(client):
                break
        return client


def plain(address: str) -> str:
    """An address in its one form: no zone, no IPv4 within IPv6. Raises ValueError."""
    if _IPV4.fullmatch(address):
        return address  # it has but one form
    found = ip_address(address.partition("%")[0])
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        found = found.ipv4_mapped
    return str(found)


def shared(address: str) -> str:
    """What limits of an address count: IPv4 addresses each for itself, those of IPv6 by their /64."""
    if ":" not in address:
        return address
    return str(IPv6Network((address, SHARED_PREFIX), strict=False).network_address)


def _without_port(hop: str) -> str:
    """`1.2.3.4:5678` and `[::1]:5678` as some proxies write them, or the address alone."""
    if hop.startswith("["):
        return hop[1:].partition("]")[0]
    return hop.partition(":")[0] if hop.count(":") == 1 else hop
