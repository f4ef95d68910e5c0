"""Who the client is when proxies stand before us, and what an address counts as.

Only what a trusted proxy wrote is believed: each proxy appends the address it saw, so the chain is read from
the right, and the first address that is not itself a trusted proxy is the client. Whatever stands further
left was written by the client and may be a lie.
"""

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network
from typing import Final

_MAX_HOPS: Final = 32  # a longer chain of trusted proxies is a loop or an attack
_MAX_REMEMBERED: Final = 1024  # peers whose trust is known; proxies are few, and a stranger costs only his own look-up
_MAPPED: Final = IPv6Network("::ffff:0:0/96")  # IPv4 as IPv6 sees it


class TrustedProxies:
    """`gateway: trusted_proxies`, made ready once a configuration."""

    def __init__(self, networks: Iterable[IPv4Network | IPv6Network] = ()) -> None:
        self._networks = tuple(client_network(network) for network in networks)
        self._known: dict[str, bool] = {}

    def client_ip(self, peer_ip: str, forwarded_for: bytes | None) -> str:
        """The client's address in canonical spelling.

        `forwarded_for`: the X-Forwarded-For lines joined by commas, or None. An untrusted peer is the client.
        A chain that is no list of addresses, or has trusted proxies without end, says nothing: the peer again.
        """
        if peer_ip[:7] == "::ffff:":
            peer_ip = str(_parse(peer_ip) or peer_ip)
        if not self._networks or not forwarded_for or not self.trusts(peer_ip):
            return peer_ip
        hops = forwarded_for.rsplit(b",", _MAX_HOPS)
        for hop in reversed(hops[-_MAX_HOPS:]):
            address = _parse_hop(hop)
            if address is None:
                return peer_ip
            if not self._contains(address):
                return str(address)
        return str(address) if len(hops) <= _MAX_HOPS else peer_ip  # all ours: the leftmost began it

    def trusts(self, peer_ip: str) -> bool:
        """Whether this TCP peer's X-Forwarded-* is believed."""
        known = self._known.get(peer_ip)
        if known is None:
            address = _parse(peer_ip)
            known = address is not None and self._contains(address)
            if len(self._known) >= _MAX_REMEMBERED:
                self._known.clear()
            self._known[peer_ip] = known
        return known

    def _contains(self, address: IPv4Address | IPv6Address) -> bool:
        return any(address in network for network in self._networks)


def client_network(given: str | IPv4Network | IPv6Network, *, strict: bool = True) -> IPv4Network | IPv6Network:
    """A network that clients' addresses may be in: one of IPv4-mapped addresses is its IPv4 network, as they are IPv4.

    strict: host bits are refused. Raises ValueError, for a zone too: it names an interface of one machine.
    """
    network = ip_network(given, strict=strict)
    if isinstance(network, IPv4Network):
        return network
    if network.network_address.scope_id is not None:
        raise ValueError("a network has no zone")
    if not network.subnet_of(_MAPPED):
        return network
    return IPv4Network((network.network_address.packed[-4:], network.prefixlen - _MAPPED.prefixlen))


def counting_address(ip: str) -> str:
    """What a client's address counts as, safe in a counter's key.

    IPv4 as it is. IPv6 by its /64, since a single host owns that many: `2001:db8::7` -> `2001-db8-0-0`.
    """
    return _network_64(ip) if ":" in ip else ip or "unknown"


def network_of(ip: str) -> str:
    """A client's IPv4 /24 or IPv6 /48: `203.0.113.7` -> `203.0.113`, `2001:db8:1:2::3` -> `2001-db8-1`."""
    if ":" not in ip:
        return ip.rpartition(".")[0] or "unknown"
    address = _network_64(ip)
    return address.rpartition("-" if "-" in address else ".")[0] or "unknown"


@lru_cache(maxsize=4096)
def _network_64(ip: str) -> str:
    address = _parse(ip.partition("%")[0])
    if not isinstance(address, IPv6Address):
        return str(address or "unknown")
    prefix = int(address) >> 64
    return "-".join(f"{(prefix >> shift) & 0xFFFF:x}" for shift in (48, 32, 16, 0))


def _parse(text: str) -> IPv4Address | IPv6Address | None:
    """An address without a zone; an IPv4-mapped one as IPv4. None when it is none."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address):
        if address.scope_id is not None:
            return None
        return address.ipv4_mapped or address
    return address


def _parse_hop(hop: bytes) -> IPv4Address | IPv6Address | None:
    """One element of X-Forwarded-For: an address, or with a port as some proxies write it (1.2.3.4:80, [::1]:80)."""
    text = hop.strip(b" \t").decode("latin-1")
    if text[:1] == "[":
        text, bracket, port = text[1:].partition("]")
        if not bracket or ":" not in text or (port and not _is_port(port[1:] if port[0] == ":" else "")):
            return None
    elif text.count(":") == 1:
        text, _, port = text.partition(":")
        if not _is_port(port):
            return None
    return _parse(text)


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5
