"""What a host name resolves to, for Twisted's own clients: one question for each name at a time.

Twisted asks getaddrinfo in a thread for each connection, also for what is an address already. While a name server is
silent, each question takes a thread for 10 to 30 s, and clients that give up and try again ask anew: the few threads of
the reactor are soon all taken, and reloads wait behind them. Here whoever asks for a name that is being asked for
already waits for that answer, and an address is its own answer.
"""

from collections.abc import Sequence
from ipaddress import ip_address
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IAddress, IHostnameResolver, IHostResolution, IResolutionReceiver
from zope.interface import implementer

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
    """Puts itself before another resolver: reactor.installNameResolver(Names(reactor.nameResolver))."""

    def __init__(self, resolver: Any) -> None:
        self._resolver = resolver
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
        answer: Any = _Answer(self._asking, name)
        self._resolver.resolveHostName(answer, hostName, portNumber, addressTypes, transportSemantics)
        return resolution  # type: ignore[no-any-return]


@implementer(IResolutionReceiver)
class _Answer:
    """Takes the addresses of one name, for all who wait for them."""

    def __init__(self, asking: dict[_Name, list[IResolutionReceiver]], name: _Name) -> None:
        self._asking = asking
        self._name = name
        self._addresses: list[IAddress] = []

    def resolutionBegan(self, resolutionInProgress: IHostResolution) -> None: ...

    def addressResolved(self, address: IAddress) -> None:
        self._addresses.append(address)

    def resolutionComplete(self) -> None:
        for receiver in self._asking.pop(self._name):
            for address in self._addresses:
                receiver.addressResolved(address)
            receiver.resolutionComplete()


def _own_address(host: str, port: int, semantics: str) -> Any:
    try:
        version = ip_address(host).version
    except ValueError:
        return None
    return (IPv4Address if version == 4 else IPv6Address)(semantics, host, port)  # type: ignore[arg-type]
