"""What tests need of the house, shipped with it: exchanges that have ended, connections and stores without a socket."""

from typing import Any, Callable

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.python.failure import Failure

from apigw.config.model import (
    AccessLog,
    AdminSection,
    Backend,
    CircuitBreaker,
    Config,
    ConfigSection,
    GatewaySection,
    Instance,
    Limits,
    LoadShedding,
    RateLimits,
    Route,
    Tracing,
)
from apigw.config.snapshot import Snapshot
from apigw.errors import StoreDown
from apigw.exchange import ClientRequest, Exchange, Identity, Principal, RateVerdict, Target
from apigw.net.connect import Wanting


def small_snapshot(access_log: AccessLog = AccessLog(), version: str = "v1") -> Snapshot:
    """One backend `users` and one route `route-users` on /users/*."""
    config = Config(
        gateway=GatewaySection(instance_name="gateway-1"),
        listeners=(),
        admin=AdminSection(),
        limits=Limits(),
        jwt=None,
        api_keys=None,
        redis=None,
        rate_limits=RateLimits(),
        load_shedding=LoadShedding(),
        circuit_breaker=CircuitBreaker(),
        access_log=access_log,
        tracing=Tracing(),
        config=ConfigSection(),
        backends=(Backend("users", (Instance("127.0.0.1", 9001),)),),
        routes=(Route("route-users", "/users/*", ("GET", "POST"), "users"),),
        version=version,
    )
    return Snapshot(config, lambda: 1738852200.0)


def ended_exchange(snapshot: Snapshot | None = None, *, method: str = "GET", **facts: Any) -> Exchange:
    """A proxied 200 to GET /users/me that took 42 ms, 38 of them upstream; `facts` override its slots."""
    fields = {b"user-agent": b"MyApp/2.1 iOS/17.2", b"host": b"api.example.com"}
    request = ClientRequest(method, b"/users/me?page=2", [], fields, peer_ip="203.0.113.42")
    snapshot = snapshot or small_snapshot()
    ex = Exchange(snapshot, request, 100.0, 1738852200.042)
    ex.identity = Identity("req-abc123", "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331", None, True, b"")
    ex.target = Target("/users/me", "page=2", "/users/me")
    ex.route = snapshot.routes["route-users"]
    ex.principal = Principal(user_id="user_789")
    ex.verdict = RateVerdict(100, 53, 1738852260)
    ex.status = 200
    ex.upstream_started_s, ex.upstream_ended_s = 100.002, 100.040
    ex.instance = "127.0.0.1:9001"
    ex.request_bytes, ex.response_bytes = 256, 1024
    ex.ended_s = 100.042
    for name, value in facts.items():
        setattr(ex, name, value)
    return ex


class MemoryTransport:
    """A connection to a backend without a socket: `arrive()` and `end()` are the backend's side.

    Keeps to what net.transport.TCPTransport promises; `unread` are bytes that lie in the kernel (see stale()).
    """

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.written = b""
        self.reading = False
        self.unread = b""
        self.ended_unseen = False
        self.dead = False
        self.sent_bytes = 0

    def start(self) -> None:
        self.protocol.makeConnection(self)
        self.reading = True

    def keep_alive(self, idle_s: float) -> None:
        """There is no socket."""

    def write(self, data: bytes) -> None:
        if not self.dead:
            self.written += data

    def buffered_bytes(self) -> int:
        return 0

    def stale(self) -> bool:
        return bool(self.unread) or self.ended_unseen

    def pauseProducing(self) -> None:
        self.reading = False

    def resumeProducing(self) -> None:
        self.reading = True

    def registerProducer(self, producer: Any, streaming: bool) -> None:
        """Nothing ever waits to be sent."""

    def unregisterProducer(self) -> None:
        """See registerProducer()."""

    def abortConnection(self) -> None:
        self._lose(ConnectionLost())

    def arrive(self, data: bytes) -> None:
        """Bytes from the backend, read at once while reading is on."""
        self.unread += data
        if self.reading and not self.dead:
            data, self.unread = self.unread, b""
            self.protocol.dataReceived(data)

    def end(self, clean: bool = True) -> None:
        """The backend's FIN, or its RST."""
        self._lose(ConnectionDone() if clean else ConnectionLost())

    def _lose(self, reason: Exception) -> None:
        if not self.dead:
            self.dead = True
            protocol, self.protocol = self.protocol, None
            protocol.connectionLost(Failure(reason))


class Attempt:
    """One connect() of a MemoryConnector; the test says how it ends."""

    def __init__(self, connector: "MemoryConnector", host: str, port: int, wanting: Wanting) -> None:
        self.host = host
        self.port = port
        self._connector = connector
        self._wanting = wanting

    def succeed(self) -> MemoryTransport:
        """The connection is made; its transport."""
        self._connector.attempts.remove(self)
        self._wanting.connect_done(None, None)  # type: ignore[arg-type]
        return self._connector.transports[-1]

    def fail(self, reason: str) -> None:
        self._connector.attempts.remove(self)
        self._wanting.connect_failed(reason, "as the test said")


class MemoryConnector:
    """net.connect.Connector without sockets. `attempts` are under way; `transports` are all that were ever made."""

    def __init__(self) -> None:
        self.attempts: list[Attempt] = []
        self.transports: list[MemoryTransport] = []

    def connect(self, host: str, port: int, timeout_s: float, wanting: Wanting) -> None:
        self.attempts.append(Attempt(self, host, port, wanting))

    def transport(self, sock: Any, peer: Any, protocol: Any) -> MemoryTransport:
        made = MemoryTransport(protocol)
        self.transports.append(made)
        return made


class MemoryStore:
    """A ports.SharedStore in this process that knows SET with PX, and GET. While `down` nothing is answered."""

    def __init__(self, now_s: Callable[[], float]) -> None:
        self.listening = False
        self.down = False
        self._now_s = now_s
        self._values: dict[str, tuple[bytes, float]] = {}  # with the end of each

    def command(self, key: str, *words: str | bytes | int) -> "Deferred[Any]":
        if self.down:
            return fail(StoreDown("as the test said"))
        value, end_s = self._values.get(key, (None, 0.0))
        match words:
            case ("GET", _):
                return succeed(value if self._now_s() < end_s else None)
            case ("SET", _, bytes() as value, "PX", int() as ttl_ms):
                self._values[key] = value, self._now_s() + ttl_ms / 1000
                return succeed(b"OK")
        return fail(StoreDown(f"unknown command {words[0]!r}"))

    def publish(self, channel: str, message: bytes) -> "Deferred[Any]":
        """Nobody listens."""
        return fail(StoreDown("as the test said")) if self.down else succeed(0)

    def listen(self, channel: str, on_message: Callable[[bytes], None], on_listening: Callable[[], None]) -> None:
        """Nothing is ever said."""
