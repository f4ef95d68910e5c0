"""Instances in DNS: with `port` the addresses of a name, without it the SRV records of a name and their targets.

- A records; AAAA where there are none of A: a host that has both is one instance, not two.
- Of SRV records those of the best priority alone, with their weights. Others are for when none of these works, which
  health checks decide here and DNS cannot know.
- Asked again when the shortest TTL of an answer is over, not sooner than MIN_TTL_S (a TTL of 0, as Consul's DNS has it,
  means "always", and a query a second is that) and at latest after MAX_TTL_S (some zones say a day, and an instance
  that moved must be found).
- Truncated answers are asked for by TCP (twisted.names does). A target that cannot be looked up keeps its addresses.
- No such name, SERVFAIL, silence: a failure, the list stays. An answer without records is an empty list.

Asked are name servers, neither /etc/hosts nor search domains: write whole names.
"""

import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

from attrs import frozen
from twisted.internet.defer import Deferred, TimeoutError
from twisted.internet.error import ConnectError, ConnectionClosed
from twisted.names import dns
from twisted.names.client import Resolver
from twisted.names.error import DNSNameError, DNSQueryRefusedError, DNSServerError, ResolverError

from apigw.adapters.registry import RegistryPoller
from apigw.adapters.wanted_instances import Wanted
from apigw.config.addresses import nameserver_of
from apigw.config.reading import Unreadable, read_bounded
from apigw.core.discovery import MAX_INSTANCES, Entry, RawEntry, scaled
from apigw.net.poller import PollFailed
from apigw.ports import WallClock

MIN_TTL_S, MAX_TTL_S = 1.0, 300.0
_EMPTY_S = 5.0  # until it is asked again after an answer without records, which have no TTL
_TRIES_S = (1, 2)  # the waits for one name server: then the next is asked
_LONGEST_S = 30.0  # of all lookups of one poll
_MAX_ALIASES = 16  # one after another; a chain that is longer is a circle
_AT_ONCE = 20  # lookups of targets
RESOLV_CONF = Path("/etc/resolv.conf")

_SAID = {
    DNSNameError: "there is no such name (NXDOMAIN)",
    DNSServerError: "the name server failed (SERVFAIL)",
    DNSQueryRefusedError: "the name server refuses to answer (REFUSED)",
    TimeoutError: "no answer in time",
}


@frozen
class _Found:
    """Addresses of a name. until_s: the clock's seconds to which they are fresh."""

    addresses: tuple[str, ...]
    until_s: float


class DNSRegistry(RegistryPoller):
    """A Registry for one name."""

    def __init__(
        self,
        reactor: Any,
        wanted: Wanted,
        wall: WallClock,
        on_instances: Callable[[tuple[Entry, ...]], None],
        known: tuple[Entry, ...] = (),
        *,
        resolv_conf: Path = RESOLV_CONF,
        **times: Any,
    ) -> None:
        port = wanted.discovery.port
        self._name = wanted.discovery.service.lower().removesuffix(".")
        self._port = port if isinstance(port, int) else None
        self._resolv_conf = resolv_conf
        self._first_server = 0  # where the last good answer came from
        self._targets: dict[str, _Found] = {}
        self._fresh_until_s = 0.0
        super().__init__(
            reactor,
            wanted,
            wall,
            on_instances,
            known=known,
            where=f"dns {self._name} {'SRV' if self._port is None else f'port {self._port}'}",
            interval_s=_EMPTY_S,
            longest_s=_LONGEST_S,
            **times,
        )

    def good_delay_s(self) -> float:
        return min(MAX_TTL_S, max(MIN_TTL_S, self._fresh_until_s - self.clock.seconds(), self.rest_s()))

    async def inquire(self) -> None:
        """Look everything up whose time is over."""
        self._fresh_until_s = self.clock.seconds() + _EMPTY_S
        if self._port is not None:
            found = await self._addresses(self._name)
            if found.addresses:
                self._fresh_until_s = found.until_s
            self.heard([RawEntry(address, self._port) for address in found.addresses])
        else:
            self.heard(await self._services())

    # -- records

    async def _addresses(self, name: str) -> _Found:
        for kind in (dns.A, dns.AAAA):
            answers, _ = await self._query(name, kind)
            found = self._of(name, kind, _by_owner(answers))
            if found.addresses:
                return found
        return found

    def _of(self, name: str, kind: int, records: dict[str, list[Any]]) -> _Found:
        """The addresses of a name in some records, through its aliases; fresh as long as every link is."""
        ttl_s, family = MAX_TTL_S, socket.AF_INET if kind == dns.A else socket.AF_INET6
        for _ in range(_MAX_ALIASES):
            own = records.get(name, [])
            found = [each for each in own if each.type == kind]
            alias = next((each for each in own if each.type == dns.CNAME), None)
            ttl_s = min([ttl_s, *(each.ttl for each in found)])
            if found or alias is None:
                addresses = tuple(socket.inet_ntop(family, each.payload.address) for each in found)
                return _Found(addresses, self.clock.seconds() + ttl_s)
            name, ttl_s = _text(alias.payload.name), min(ttl_s, alias.ttl)
        return _Found((), self.clock.seconds())

    async def _services(self) -> list[RawEntry | None]:
        answers, additional = await self._query(self._name, dns.SRV)
        records = [
            each for each in answers if each.type == dns.SRV and _text(each.payload.target)
        ]  # "." is "none here"
        if not records:
            return []
        best = min(each.payload.priority for each in records)
        records = [each for each in records if each.payload.priority == best][: 2 * MAX_INSTANCES]
        now_s = self.clock.seconds()
        targets = {_text(each.payload.target) for each in records}
        await self._look_up(targets, additional)
        until_s = [now_s + min(each.ttl for each in records), *(self._targets[name].until_s for name in targets)]
        self._fresh_until_s = min(until_s)
        weights = scaled(each.payload.weight for each in records)
        entries: list[RawEntry | None] = []
        for each, weight in zip(records, weights, strict=True):
            addresses = self._targets[_text(each.payload.target)].addresses
            entries += [RawEntry(address, each.payload.port, weight) for address in addresses] or [None]
        return entries

    async def _look_up(self, targets: set[str], additional: list[Any]) -> None:
        """Fresh addresses of all targets into `_targets`: from the answer itself, or asked for, some at once."""
        self._targets = {name: found for name, found in self._targets.items() if name in targets}
        missing = []
        given = _by_owner(additional)
        for name in sorted(targets):
            four, six = self._of(name, dns.A, given), self._of(name, dns.AAAA, given)
            known = self._targets.get(name)
            if four.addresses or six.addresses:
                self._targets[name] = four if four.addresses else six
            elif known is None or known.until_s <= self.clock.seconds():
                missing.append(name)
        for start in range(0, len(missing), _AT_ONCE):
            asked = [Deferred.fromCoroutine(self._target(name)) for name in missing[start : start + _AT_ONCE]]
            try:
                for each in asked:
                    await each
            finally:
                for each in asked:
                    each.cancel()

    async def _target(self, name: str) -> None:
        """One target; what it had stays when it cannot be looked up."""
        now_s = self.clock.seconds()
        known = self._targets.get(name, _Found((), 0.0))
        try:
            found = await self._addresses(name)
        except PollFailed:
            self._targets[name] = _Found(known.addresses, now_s + _EMPTY_S)
        else:
            self._targets[name] = found if found.addresses else _Found(known.addresses, now_s + _EMPTY_S)

    # -- name servers

    async def _query(self, name: str, kind: int) -> tuple[list[Any], list[Any]]:
        """Answer and additional records, from the first name server that gives one. Raises PollFailed."""
        servers = self._servers()
        errors = []
        for turn in range(len(servers)):
            place = (self._first_server + turn) % len(servers)
            host, port = servers[place]
            resolver = Resolver(servers=[(host, port)], timeout=_TRIES_S, reactor=self._reactor)
            try:
                asked: Deferred[Any] = resolver.query(dns.Query(name.encode("ascii"), kind, dns.IN))
                answers, _, additional = await asked
                self._first_server = place
                return answers, additional
            except DNSNameError:  # a good answer, and the same everywhere
                raise PollFailed(f"{name}: {_SAID[DNSNameError]}") from None
            except (ResolverError, TimeoutError, ConnectError, ConnectionClosed, OSError, ValueError) as error:
                errors.append(f"{host}:{port}: {_SAID.get(type(error), type(error).__name__)}")
            finally:
                for connection in resolver.connections:
                    connection.transport.abortConnection()
        raise PollFailed(f"{name}: {'; '.join(errors)}")

    def _servers(self) -> list[tuple[str, int]]:
        """Those of the configuration, or of the system as its file says now (resolv.conf(5))."""
        given = self.wanted.discovery.nameservers
        found = [server for text in given if (server := nameserver_of(text))] or _of_system(self._resolv_conf)
        return found[:10]


def _of_system(path: Path) -> list[tuple[str, int]]:
    try:
        lines = read_bounded(path, 65_536).decode("utf-8", "replace").splitlines()
    except Unreadable:
        lines = []
    named = [line.split() for line in lines if line.startswith("nameserver")]
    found = [server for words in named if len(words) > 1 and (server := nameserver_of(words[1]))]
    return found or [("127.0.0.1", 53)]


def _by_owner(records: list[Any]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    for each in records:
        found.setdefault(_text(each.name), []).append(each)
    return found


def _text(name: Any) -> str:
    """A domain name as the rest of the house has it. What is no ASCII cannot be a host's."""
    raw: bytes = name.name
    return raw.decode("ascii", "replace").lower().removesuffix(".")
