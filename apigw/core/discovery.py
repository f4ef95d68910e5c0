"""What a registry says, judged before anything is done with it: whom it may name, and when "nobody" is believed.

Whoever can write into a registry says where requests, with their users' names on them, go. So its entries are
input like a client's: an entry that is not plainly an instance is skipped and counted, by one of REASONS.

    nothing known  --a list-----------------------------> that list
    a list         --another list-----------------------> that list
    a list         --nobody, for less than empty_after_s-> the same list     (most often the registry's own failure)
    a list         --nobody, for empty_after_s-----------> nobody
"""

import ipaddress
import re
from collections.abc import Callable, Iterable
from socket import AF_INET, inet_ntop, inet_pton
from typing import Final

from attrs import frozen

MAX_INSTANCES: Final = 1000  # of one backend; more are cut off, in the same order on every gateway
MAX_WEIGHT: Final = 1000  # as in the configuration
MAX_CONSIDERED: Final = 20_000  # entries of one answer that are looked at: 3 us each

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address

REASONS: Final = {
    "bad_host": "the host is neither an IP address nor a DNS name",
    "bad_port": "the port is not a whole number from 1 to 65535",
    "bad_weight": "the weight is not a whole number from 1 to 1000",
    "forbidden_address": "no address of a backend: link-local, multicast, unspecified, or a cloud's metadata service",
    "loopback": "an address of this machine, which this registry may not name (allow_loopback)",
    "own_port": "a port on which the gateway itself listens",
    "outside_networks": "not within the networks of the configuration",
    "a_name": "a name instead of an address (allow_names)",
    "unusable": "an entry of another form than agreed, one without a port, or a name without an address",
    "too_many": "beyond the first 1000",
}

# Whoever reaches these gets the machine's credentials. 169.254.169.254 is link-local, these are not.
_METADATA = frozenset(ipaddress.ip_address(each) for each in ("100.100.100.200", "168.63.129.16", "fd00:ec2::254"))
_METADATA_PACKED = frozenset(address.packed for address in _METADATA)
_THIS_NETWORK = ipaddress.IPv4Network("0.0.0.0/8")
_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_NAME = re.compile(r"(?=.{1,253}\Z)(?:[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?\.)*[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")  # a last label with which resolvers take a name for an IPv4 address
_LOCAL_NAMES = ("localhost", "localhost.localdomain", "ip6-localhost", "ip6-loopback")


@frozen(order=True)
class Entry:
    """One instance as a registry names it, judged: a canonical host, a port, a weight."""

    host: str
    port: int
    weight: int = 1


@frozen
class RawEntry:
    """One instance as it came: anything may stand in it."""

    host: object
    port: object
    weight: object = 1


@frozen
class Boundary:
    """Where instances may be. own_ports: those that the gateway listens on, no instances on this machine; is_own says
    whether an address is one of this machine's, loopback aside."""

    allow_loopback: bool = False
    allow_names: bool = False
    networks: tuple[Network, ...] = ()
    own_ports: frozenset[int] = frozenset()
    is_own: Callable[[str], bool] = lambda address: False

    def host(self, given: object, port: int) -> str:
        """The canonical form of a host that may be used. Raises ValueError with one of REASONS."""
        if not isinstance(given, str) or not given or len(given) > 254:
            raise ValueError("bad_host")
        if not self.networks and port not in self.own_ports and _is_plain(given):
            return given
        try:
            address = ipaddress.ip_address(given)
        except ValueError:
            return self._name(given.lower().removesuffix("."))
        if getattr(address, "scope_id", None) is not None:
            raise ValueError("bad_host")
        self._judge(address, port)
        return str(address)

    def _judge(self, address: _Address, port: int) -> None:
        for each in (address, *_hidden_in(address)):
            if _is_forbidden(each):
                raise ValueError("forbidden_address")
            if each.is_loopback and not self.allow_loopback:
                raise ValueError("loopback")
            if port in self.own_ports and (each.is_loopback or self.is_own(str(each))):
                raise ValueError("own_port")
        if self.networks and not any(address.version == net.version and address in net for net in self.networks):
            raise ValueError("outside_networks")

    def _name(self, name: str) -> str:
        if not _NAME.fullmatch(name) or _NUMBER.fullmatch(name.rpartition(".")[2]):
            raise ValueError("bad_host")
        if not self.allow_names or self.networks:
            raise ValueError("a_name")
        if (name in _LOCAL_NAMES or name.endswith(".localhost")) and not self.allow_loopback:
            raise ValueError("loopback")
        return name


def _is_plain(host: str) -> bool:
    """Whether this is an IPv4 address that nothing speaks against; ten times as quick as ipaddress, which judges the
    others. A thousand entries must not hold the loop."""
    if not host[0].isdigit() or ":" in host:
        return False
    try:
        packed = inet_pton(AF_INET, host)
    except (OSError, ValueError):
        return False
    first = packed[0]
    if first in (0, 127) or first >= 224 or packed[:2] == b"\xa9\xfe":
        return False
    return packed not in _METADATA_PACKED and inet_ntop(AF_INET, packed) == host


def leads_astray(address: str) -> bool:
    """Whether a name that resolves to this address is not followed, whoever named it."""
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        return True
    return any(_is_forbidden(each) for each in (found, *_hidden_in(found)))


def _is_forbidden(address: _Address) -> bool:
    if address.is_link_local or address.is_multicast or address.is_unspecified or address in _METADATA:
        return True
    return address.version == 4 and (address.is_reserved or address in _THIS_NETWORK)


def _hidden_in(address: _Address) -> list[_Address]:
    """The IPv4 address that an IPv6 one stands for: the kernel or a NAT64 connects to that."""
    if address.version == 4:
        return []
    hidden = [address.ipv4_mapped, address.sixtofour]
    if address in _NAT64:
        hidden.append(ipaddress.IPv4Address(int(address) & 0xFFFF_FFFF))
    return [each for each in hidden if each is not None]


@frozen
class Sifted:
    """What an answer comes to. `entries` in order, each address once; `skipped`: reason -> how many."""

    entries: tuple[Entry, ...]
    skipped: dict[str, int]


def sift(answer: Iterable[RawEntry | None], boundary: Boundary) -> Sifted:
    """The usable entries of an answer; None is one that could not be read. Of two of one address the heavier counts."""
    good: dict[tuple[str, int], Entry] = {}
    skipped: dict[str, int] = {}
    for number, raw in enumerate(answer):
        if number >= MAX_CONSIDERED:
            skipped["too_many"] = skipped.get("too_many", 0) + 1
            continue
        try:
            if raw is None:
                raise ValueError("unusable")
            entry = _judged(raw, boundary)
        except ValueError as reason:
            word = str(reason)
            skipped[word] = skipped.get(word, 0) + 1
            continue
        key = entry.host, entry.port
        if key not in good or entry.weight > good[key].weight:
            good[key] = entry
    entries = [good[key] for key in sorted(good)]
    if len(entries) > MAX_INSTANCES:
        skipped["too_many"] = skipped.get("too_many", 0) + len(entries) - MAX_INSTANCES
    return Sifted(tuple(entries[:MAX_INSTANCES]), skipped)


def _judged(raw: RawEntry, boundary: Boundary) -> Entry:
    if isinstance(raw.port, bool) or not isinstance(raw.port, int) or not 1 <= raw.port <= 65_535:
        raise ValueError("bad_port")
    if isinstance(raw.weight, bool) or not isinstance(raw.weight, int) or not 1 <= raw.weight <= MAX_WEIGHT:
        raise ValueError("bad_weight")
    return Entry(boundary.host(raw.host, raw.port), raw.port, raw.weight)


def scaled(weights: Iterable[int]) -> list[int]:
    """Weights up to 65535 (SRV, Consul) as ours are, 1 to MAX_WEIGHT, in the same proportions as far as they go.

    0 is "hardly any" in both: 1 here; where all are 0 all are alike.
    """
    given = list(weights)
    most = max(given, default=0)
    if most <= MAX_WEIGHT:
        return [max(1, weight) for weight in given]
    return [max(1, round(weight * MAX_WEIGHT / most)) for weight in given]


class Belief:
    """The list in force; see the table at the top. Times are seconds of one monotonic clock."""

    __slots__ = ("entries", "empty_since_s", "_empty_after_s")

    def __init__(self, empty_after_s: float, entries: tuple[Entry, ...] = ()) -> None:
        self.entries = entries
        self.empty_since_s: float | None = None  # since when a registry in good health has named nobody
        self._empty_after_s = empty_after_s

    def take(self, entries: tuple[Entry, ...], now_s: float) -> bool:
        """A good answer. Whether the list in force is another one now."""
        if entries:
            self.empty_since_s = None
        elif self.entries:
            if self.empty_since_s is None:
                self.empty_since_s = now_s
            if self.doubted_for_s(now_s):
                return False
        changed = entries != self.entries
        self.entries = entries
        return changed

    def doubted_for_s(self, now_s: float) -> float | None:
        """How long an empty answer has still to last until it is believed; None when there is none in doubt."""
        if self.empty_since_s is None or not self.entries:
            return None
        return max(0.0, self.empty_since_s + self._empty_after_s - now_s)
