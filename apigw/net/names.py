"""What a host name resolves to, for Twisted's own clients: one question for each name at a time.

Twisted asks getaddrinfo in a thread for each connection, also for what is an address already. While a name server is
silent, each question takes a thread for 10 to 30 s, and clients that give up and try again ask anew: the few threads of
the reactor are soon all taken, and reloads wait behind them. Here whoever asks for a name that is being asked for
already waits for that answer, and an address is its own answer. Also where nobody can be asked there is an answer, no
address: Twisted's own resolver says nothing at all then, and all who wait for the name would wait for ever.
"""

import socket
from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any, Final

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution, IResolutionReceiver
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from apigw.net.threads import in_thread

log = Logger()

_FAMILIES: Final[dict[Any, int]] = {(IPv4Address,): socket.AF_INET, (IPv6Address,): socket.AF_INET6}  # else both
_KINDS: Final = {"TCP": socket.SOCK_STREAM, "UDP": socket.SOCK_DGRAM}
_Name = tuple[str, int, tuple[type[IAddress], ...], str]


@implementer(IHostResolution)
class _Resolution:
    """Of one question. Nobody can take it back: the thread has it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def cancel(self) -> None:
        """See above."""


@implementer(IHostnameResolver)
class Names:
    """In the place of Twisted's resolver: reactor.installNameResolver(Names(reactor))."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._asking: dict[_Name, list[IResolutionReceiver]] = {}

    def resolveHostName(
        self,
        resolutionReceiver: IResolutionReceiver,
        hostName: str,
        portNumber: int = 0,
        addressTypes: Sequence[type[IAddress]] | None = None,
        transportSemantics: str = "TCP",
    ) -> IHostResolution:
        """See IHostnameResolver. The receiver is told from inside this call when the host is an address."""
        resolution: Any = _Resolution(hostName)
        resolutionReceiver.resolutionBegan(resolution)
        own = _own_address(hostName, portNumber, transportSemantics)
        if own is not None:
            resolutionReceiver.addressResolved(own)
            resolutionReceiver.resolutionComplete()
            return resolution  # type: ignore[no-any-return]
        name = hostName, portNumber, tuple(addressTypes or ()), transportSemantics
        waiting = self._asking.get(name)
        if waiting is not None:
            waiting.append(resolutionReceiver)
            return resolution  # type: ignore[no-any-return]
        self._asking[name] = [resolutionReceiver]
        kind = _KINDS[transportSemantics]
        asking = in_thread(self._reactor, socket.getaddrinfo, hostName, portNumber, _FAMILIES.get(name[2], 0), kind)
        asking.addErrback(_nothing, hostName)
        asking.addCallback(self._answered, name)
        return resolution  # type: ignore[no-any-return]

    def _answered(self, found: Sequence[Any], name: _Name) -> None:
        addresses = [_address(family, name[3], sockaddr) for family, _, _, _, sockaddr in found]
        for receiver in self._asking.pop(name):
            for address in addresses:
                receiver.addressResolved(address)
            receiver.resolutionComplete()


def _nothing(failure: Failure, host: str) -> Sequence[Any]:
    """No address. What the resolver says is told by whoever asked; that it could not even be asked is not."""
    if not isinstance(failure.value, socket.gaierror):
        log.warn("the name {host!r} could not be asked for: {why}", host=host, why=failure.getErrorMessage())
    return ()


def _address(family: int, semantics: str, sockaddr: Any) -> Any:
    return (IPv4Address if family == socket.AF_INET else IPv6Address)(semantics, *sockaddr)  # type: ignore[arg-type]


def _own_address(host: str, port: int, semantics: str) -> Any:
    try:
        version = ip_address(host).version
    except ValueError:
        return None
    return (IPv4Address if version == 4 else IPv6Address)(semantics, host, port)  # type: ignore[arg-type]
