"""A client's side of one connection, in memory: what it sends, what it is answered, and when.

The parts under test are the real ones (Site, Channel, Request, the stages); the transport, the clock and the leaf
of the pipeline are in memory. Time moves by `advance()` alone.
"""

from typing import Any, Callable

from attrs import evolve
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.web.server import NOT_DONE_YET

from apigw.config.model import Limits, Route
from apigw.config.snapshot import Snapshot
from apigw.constants import WRITE_HIGH_WATER_BYTES, WRITE_LOW_WATER_BYTES
from apigw.core.trace import Randomness
from apigw.edge.channel import Channel
from apigw.edge.request import Request
from apigw.edge.site import Site
from apigw.exchange import ANONYMOUS, Exchange
from apigw.net.deadlines import Deadlines
from apigw.pipeline import compose
from apigw.stages.body_limit import BodyLimit
from apigw.stages.canonical_path import CanonicalPath
from apigw.stages.identity import RequestIdentity
from apigw.stages.routing import Routing
from apigw.testing import small_snapshot

METHODS = ("GET", "HEAD", "POST", "PUT")
LIMITS = Limits(header_timeout_s=10.0, body_timeout_s=30.0, keepalive_timeout_s=75.0, max_body_bytes=100_000)


class Anonymous:
    """Stands for authentication: everybody may."""

    name, needs, gives = "anonymous", frozenset(("route",)), "principal"

    def enter(self, ex: Exchange) -> object:
        return ANONYMOUS


class Leaf:
    """Keeps each request in `requests`. /now/* is answered at once; for others the test says what happens."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.body = b"hello"

    def render(self, request: Request) -> int:
        self.requests.append(request)
        if request.exchange.request.target.startswith(b"/now"):
            request.answer(200, (), self.body)
        elif request.exchange.request.target.startswith(b"/echo"):
            request.ready_body(65_536, lambda: request.answer(200, (), request.body.take()))
        return NOT_DONE_YET


class Generation:
    """A configuration of one route for everything below /, and its pipeline."""

    def __init__(self, limits: Limits, leaf: Any, **route: Any) -> None:
        config = small_snapshot().config
        self.snapshot = Snapshot(
            evolve(
                config,
                limits=limits,
                routes=(
                    Route("all", "/*", METHODS, "users", **route),
                    Route("small", "/small/*", METHODS, "users", max_body_bytes=10),
                ),
            )
        )
        stages = [
            RequestIdentity(Randomness()),
            CanonicalPath(),
            Routing(self.snapshot.trie, lambda ex: None),
            Anonymous(),
            BodyLimit(),
        ]
        self.root = compose(stages, leaf)


class Wire:
    """The transport: keeps to TCPTransport's rules. `room`: bytes the client takes before more waits."""

    def __init__(self, protocol: Any, clock: Clock) -> None:
        self.protocol = protocol
        self.clock = clock
        self.open = True
        self.reading = True
        self.ended = ""  # "closed" | "cut" | "gone"
        self.out = bytearray()
        self.waiting = bytearray()
        self.arriving: list[bytes] = []
        self.room: int | None = None
        self.sent_bytes = 0
        self.producer: Any = None
        self.producer_paused = False

    # the client's end

    def deliver(self, data: bytes) -> None:
        self.arriving.append(data)
        self._read()

    def _read(self) -> None:
        while self.arriving and self.reading and self.open:
            self.protocol.dataReceived(self.arriving.pop(0))

    def take(self, count: int) -> None:
        """The client reads so many of the waiting bytes."""
        self.out += self.waiting[:count]
        self.sent_bytes += len(self.waiting[:count])
        del self.waiting[:count]
        if self.producer_paused and len(self.waiting) <= WRITE_LOW_WATER_BYTES:
            self.producer_paused = False
            self.producer.resumeProducing()

    def leave(self) -> None:
        """The client is gone."""
        if self.open:
            self._lose("gone", ConnectionDone())

    # the gateway's end

    def write(self, data: bytes) -> None:
        if not self.open:
            return
        if self.room is None:
            self.out += data
            return
        now = max(0, self.room - len(self.out)) if not self.waiting else 0
        self.out += data[:now]
        self.waiting += data[now:]
        if self.producer is not None and not self.producer_paused and len(self.waiting) > WRITE_HIGH_WATER_BYTES:
            self.producer_paused = True
            self.producer.pauseProducing()

    def buffered_bytes(self) -> int:
        return len(self.waiting)

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        self.producer, self.producer_paused = producer, False
        if len(self.waiting) > WRITE_HIGH_WATER_BYTES:
            self.producer_paused = True
            producer.pauseProducing()

    def unregisterProducer(self) -> None:
        self.producer, self.producer_paused = None, False

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True
        self.clock.callLater(0, self._read)

    def loseConnection(self) -> None:
        if self.open:
            self.open = False
            self.ended = "closed"

    def abortConnection(self) -> None:
        self.ended = "cut"
        if self.protocol is not None:
            self._lose("cut", ConnectionLost())

    def lost(self) -> None:
        """The peer's FIN after our close."""
        if self.protocol is not None:
            self._lose(self.ended or "gone", ConnectionDone())

    def _lose(self, how: str, why: Exception) -> None:
        self.open = False
        self.ended = how
        self.waiting.clear()
        self.producer = None
        protocol, self.protocol = self.protocol, None
        protocol.connectionLost(Failure(why))


class Conversation:
    """One connection to a Site. `records` are the exchanges that ended; each must come exactly once."""

    def __init__(self, limits: Limits = LIMITS, site: Site | None = None, leaf: Any = None, **route: Any) -> None:
        self.leaf = leaf or Leaf()
        self.records: list[Exchange] = []
        if site is None:
            self.clock = Clock()
            deadlines = Deadlines(self.clock)
            generation = Generation(limits, self.leaf, **route)
            site = Site(self.clock, deadlines, lambda: 1738852200.0, generation, self.records.append)
        self.site = site
        self.clock = site.clock
        self.channel = Channel(site, "192.0.2.7", False)
        self.wire = Wire(self.channel, self.clock)
        site.accepted(self.channel)
        self.channel.makeConnection(self.wire)

    # what the client does

    def send(self, *pieces: bytes) -> bytes:
        """Send pieces, each in a segment of its own; what is answered to them at once."""
        before = len(self.wire.out)
        for piece in pieces:
            self.wire.deliver(piece)
        self.turn()
        return bytes(self.wire.out[before:])

    def advance(self, seconds: float) -> bytes:
        """Let time pass in steps of at most a second; what is answered meanwhile."""
        before = len(self.wire.out)
        whole = int(seconds)
        self.clock.pump([1.0] * whole + [seconds - whole])
        return bytes(self.wire.out[before:])

    def turn(self) -> None:
        """Let what waits for a turn of the loop happen; no time passes."""
        for _ in range(100):
            self.clock.advance(0)

    # what it sees

    @property
    def received(self) -> bytes:
        return bytes(self.wire.out)

    @property
    def ended(self) -> str:
        """How the gateway or the client ended the connection; "" while it is open."""
        return self.wire.ended

    @property
    def request(self) -> Request:
        """The last request that reached the leaf."""
        return self.leaf.requests[-1]

    @property
    def targets(self) -> list[bytes]:
        return [request.exchange.request.target for request in self.leaf.requests]

    def statuses(self) -> list[int]:
        """The final statuses of the answers so far, in order."""
        return [int(part[:3]) for part in self.received.split(b"HTTP/1.1 ")[1:] if part[:3] != b"100"]

    def settled(self) -> None:
        """Every exchange ended exactly once, and nothing is left behind. Closes the connection first."""
        self.wire.leave()
        self.wire.lost()
        assert self.site.in_flight == 0
        assert len({id(ex) for ex in self.records}) == len(self.records)
        assert not self.site.channels
        assert not [call for bucket in self.site.deadlines._buckets.values() for call in bucket]


def get(target: str = "/held", *lines: str, version: str = "1.1", method: str = "GET") -> bytes:
    """A request head without a body."""
    return "\r\n".join([f"{method} {target} HTTP/{version}", "Host: api.example.com", *lines, "", ""]).encode("ascii")


def post(target: str = "/echo", *lines: str, body: bytes | None = None) -> bytes:
    """A POST; with `body`, its Content-Length and all of it."""
    length = () if body is None else (f"Content-Length: {len(body)}",)
    return get(target, *lines, *length, method="POST") + (body or b"")


Script = Callable[[Conversation], None]
