"""What the tests of registries share: one that is watched, what it found, and servers that say what a test wants."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from twisted.internet import reactor as installed_reactor
from twisted.internet.protocol import Factory, Protocol

from apigw.adapters.registry import RegistryPoller
from apigw.adapters.wanted_instances import Wanted
from apigw.config.model import Discovery
from apigw.core.discovery import Entry
from tests.servers import until

REACTOR: Any = installed_reactor
NOW_S = 1_800_000_000.0


class Watch:
    """A registry at work; `lists` are those that it called on_instances with."""

    def __init__(
        self,
        kind: Callable[..., RegistryPoller],
        discovery: Discovery,
        known: tuple[Entry, ...] = (),
        own_ports: frozenset[int] = frozenset(),
        **more: Any,
    ) -> None:
        self.lists: list[tuple[Entry, ...]] = []
        wanted = Wanted("orders", discovery, own_ports)
        self.registry = kind(REACTOR, wanted, lambda: NOW_S, self.lists.append, known, **more)

    @property
    def hosts(self) -> list[str]:
        """The list in force, as HOST:PORT*WEIGHT, sorted."""
        return sorted(f"{each.host}:{each.port}*{each.weight}" for each in self.registry.entries)

    async def until_hosts(self, *hosts: str, timeout_s: float = 10.0) -> float:
        """Until the list in force is this one; the seconds it took."""
        try:
            return await until(lambda: self.hosts == sorted(hosts), REACTOR, timeout_s)
        except AssertionError:
            raise AssertionError(f"{self.hosts} instead of {sorted(hosts)}; {self.registry.last_error}") from None

    async def until_up(self, timeout_s: float = 10.0) -> float:
        return await until(lambda: self.registry.up, REACTOR, timeout_s)

    async def until_down(self, timeout_s: float = 10.0) -> float:
        return await until(lambda: self.registry.up is False, REACTOR, timeout_s)


@contextmanager
def watching(kind: Callable[..., RegistryPoller], discovery: Discovery, **more: Any) -> Iterator[Watch]:
    """A Watch that runs for a block."""
    watch = Watch(kind, discovery, **more)
    watch.registry.startService()
    try:
        yield watch
    finally:
        watch.registry.stopService()


class _Wire(Protocol):
    def connectionMade(self) -> None:
        self.factory.connections.append(self)  # type: ignore[union-attr]
        self.received = b""
        self.closed = False
        self.answered = 0

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        heads = self.received.count(b"\r\n\r\n")
        while self.answered < heads:
            self.answered += 1
            self.factory.say(self)  # type: ignore[union-attr]

    def connectionLost(self, reason: Any = None) -> None:
        self.closed = True


class RawServer:
    """A TCP server of the loopback: `say(wire)` is called for each request head, wire.transport.write() answers."""

    def __init__(self, say: Callable[[Any], None], port: int = 0) -> None:
        self._factory: Any = Factory.forProtocol(_Wire)
        self._factory.connections = []
        self._factory.say = say
        self._port = REACTOR.listenTCP(port, self._factory, interface="127.0.0.1")
        self.port = int(self._port.getHost().port)
        self.url = f"http://127.0.0.1:{self.port}"

    @property
    def connections(self) -> list[Any]:
        return list(self._factory.connections)

    @property
    def requests(self) -> list[bytes]:
        return [wire.received for wire in self._factory.connections]

    async def close(self) -> None:
        """Stop listening, and cut what is open."""
        await self._port.stopListening()
        for wire in self._factory.connections:
            if not wire.closed:
                wire.transport.abortConnection()
        await until(lambda: all(wire.closed for wire in self._factory.connections), REACTOR)


def answer(body: bytes, status: bytes = b"200 OK", *headers: bytes) -> bytes:
    """One HTTP answer."""
    lines = [b"HTTP/1.1 " + status, b"Content-Length: %d" % len(body), *headers]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


class Flood:
    """Answers without an end, as fast as it is read: `begin`, then `piece` again and again."""

    def __init__(self, begin: bytes, piece: bytes) -> None:
        self.sent_bytes = 0
        self._begin = begin
        self._piece = piece
        self._wire: Any = None

    def say(self, wire: Any) -> None:
        self._wire = wire
        wire.transport.write(self._begin)
        wire.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        if self.sent_bytes < 200_000_000:
            self.sent_bytes += len(self._piece)
            self._wire.transport.write(self._piece)

    def stopProducing(self) -> None: ...
