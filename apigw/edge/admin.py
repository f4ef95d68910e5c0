"""The admin listener: /healthz /readyz /metrics /status /config. Never public.

Built on twisted.web, whose cost is nobody's concern here; its bounds are: 100 connections, 15 s and 64 KiB each,
one request a connection, HTTP/1.1 only.
"""

from functools import partial
from typing import Any, Callable, Final, Iterator, Mapping
from uuid import uuid4

import orjson
from attrs import frozen
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IAddress, IDelayedCall, IListeningPort, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.task import Cooperator, TaskStopped
from twisted.logger import Logger
from twisted.protocols.policies import ProtocolWrapper, WrappingFactory
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource, Resource
from twisted.web.server import NOT_DONE_YET, Site

MAX_CONNECTIONS: Final = 100
CONNECTION_S: Final = 15.0  # a connection's whole life: one request and its answer
MAX_REQUEST_BYTES: Final = 65_536  # head and body; nothing here takes a body
MAX_LOOP_LAG_S: Final = 0.05  # contract section 11
_TURN_S: Final = 0.0005  # of pages in parts, in one turn of the loop
_MAX_REGISTRIES: Final = 20  # that are down and named on /readyz; /status has all

_JSON: Final = b"application/json"
_TEXT: Final = b"text/plain; charset=utf-8"
_METRICS: Final = b"text/plain; version=0.0.4; charset=utf-8"

log = Logger()


@frozen
class Readiness:
    """Whether this instance should get traffic. `checks`: name -> what was found, for a person to read."""

    ok: bool
    checks: Mapping[str, object]

    def body(self) -> bytes:
        """The JSON of /readyz."""
        return orjson.dumps({"ready": self.ok, "checks": dict(self.checks)}, default=str)


def judge_readiness(
    *,
    config_version: str | None,
    backends: int,
    healthy_backends: int,
    draining: bool,
    loop_lag_s: float,
    keys_usable: bool | None = None,
    keys_seen: bool | None = None,
    redis_up: bool | None = None,
    registries: Mapping[str, str] | None = None,
    store_up: bool | None = None,
) -> Readiness:
    """The rule of /readyz. None for keys, Redis (redis: rate limits; store: all else) and registries: not configured.

    registries: backend -> what is wrong with its discovery. By itself that makes nothing unready: known instances
    serve without their registry. It says why a backend has no healthy instance.

    An instance that has never had a key to verify tokens with is not ready: another one may have some. Keys
    that went out of date and Redis are named and do not make it unready: all instances share them, and taking
    all of them out would turn the failure of some routes into that of all. A configuration without any backend
    (all routes answered by the gateway itself) needs none healthy.
    """
    healthy = healthy_backends > 0 or (config_version is not None and backends == 0)
    in_time = loop_lag_s <= MAX_LOOP_LAG_S
    checks: dict[str, object] = {
        "configuration": _check(config_version is not None, config_version or "none applied yet"),
        "backends": _check(healthy, f"{healthy_backends} of {backends} have a healthy instance"),
        "draining": _check(not draining, "draining" if draining else "accepting"),
        "loop": _check(in_time, f"lag {loop_lag_s * 1000.0:.1f} ms, at most {MAX_LOOP_LAG_S * 1000.0:.0f}"),
    }
    if keys_usable is not None:
        detail = "usable" if keys_usable else "none: JWT routes answer 503"
        checks["keys"] = _check(keys_usable, detail, not keys_seen)
    if redis_up is not None:
        checks["redis"] = _check(redis_up, "up" if redis_up else "down: routes follow their fail mode", False)
    if registries is not None:
        detail = "; ".join(f"{name}: {why}" for name, why in list(registries.items())[:_MAX_REGISTRIES])
        checks["registries"] = _check(not registries, detail or "all up", False)
    if store_up is not None:
        detail = "up" if store_up else "down: revocations and API keys as last known, or as the database says"
        checks["shared_store"] = _check(store_up, detail, False)
    keys_ready = keys_usable is None or keys_usable or bool(keys_seen)
    ok = config_version is not None and healthy and not draining and in_time and keys_ready
    return Readiness(ok, checks)


def _check(ok: bool, detail: str, decides: bool = True) -> dict[str, object]:
    return {"ok": ok, "detail": detail, "required": decides}


Answer = tuple[int, bytes, bytes]  # status, content type, body


class _Page(Resource):
    """One path. `make` gives the whole answer; what it raises is a logged 500."""

    isLeaf = True

    def __init__(self, make: "Callable[[], Answer | Deferred[Answer]]") -> None:
        super().__init__()
        self._make = make

    def render(self, request: Any) -> bytes | int:
        if request.postpath:  # /healthz/more
            return _error(request, 404, "route_not_found", "There is no such page.")
        if request.method not in (b"GET", b"HEAD"):
            request.setHeader(b"allow", b"GET, HEAD")
            return _error(request, 405, "method_not_allowed", "This page can only be read.")
        making: Deferred[Any] = maybeDeferred(self._make)
        request.notifyFinish().addErrback(lambda _: making.cancel())  # nobody waits for it any more
        making.addCallback(lambda answer: _answer(request, *answer))
        making.addErrback(_failed, request)
        making.addCallback(_send, request)
        return NOT_DONE_YET


def _failed(failure: Failure, request: Any) -> bytes | None:
    if failure.check(TaskStopped):  # as its client is gone
        return None
    request_id = str(uuid4())
    log.failure("admin {path} failed, request {id}", failure, path=request.path, id=request_id)
    return _error(request, 500, "internal_error", "This page could not be made; see the log.", request_id)


def _send(body: bytes | None, request: Any) -> None:
    if body is not None:
        request.write(body)
        request.finish()


def _turns(clock: IReactorTime) -> Cooperator:
    """Pages in parts take _TURN_S of a turn of the loop, however many are made at once."""
    return Cooperator(lambda: _until(clock, _TURN_S), lambda call: clock.callLater(0, call))


def _in_parts(turns: Cooperator, content_type: bytes, parts: Callable[[], Iterator[bytes]]) -> "Deferred[Answer]":
    """All parts, some of them in a turn. Cancelled: fails with TaskStopped, and no more are made."""
    made: list[bytes] = []

    def making() -> Iterator[None]:
        for part in parts():
            made.append(part)
            yield

    task = turns.cooperate(making())
    whole: Deferred[Answer] = Deferred(lambda _: task.stop())
    task.whenDone().addCallbacks(lambda _: whole.callback((200, content_type, b"".join(made))), whole.errback)
    return whole


def _until(clock: IReactorTime, seconds: float) -> Callable[[], bool]:
    end_s = clock.seconds() + seconds
    return lambda: clock.seconds() >= end_s


class _NoPage(Resource):
    """Every other path."""

    isLeaf = True

    def __init__(self) -> None:
        super().__init__()

    def render(self, request: Any) -> bytes:
        return _error(request, 404, "route_not_found", "There is no such page.")


class _Root(Resource):
    """The pages by name; twisted's own HTML for a missing child is not for this listener."""

    def __init__(self) -> None:
        super().__init__()
        self._no_page = _NoPage()

    def getChild(self, path: bytes, request: Any) -> IResource:
        return self._no_page


def _answer(request: Any, status: int, content_type: bytes, body: bytes) -> bytes:
    request.setResponseCode(status)
    request.setHeader(b"server", b"apigw")
    request.setHeader(b"content-type", content_type)
    request.setHeader(b"content-length", b"%d" % len(body))
    request.setHeader(b"cache-control", b"no-store")
    return b"" if request.method == b"HEAD" else body


def _error(request: Any, status: int, code: str, message: str, request_id: str | None = None) -> bytes:
    """The error shape of the contract, section 4."""
    body = {"error": code, "message": message, "request_id": request_id or str(uuid4())}
    return _answer(request, status, _JSON, orjson.dumps(body))


class _OneRequestChannel(HTTPChannel):
    """Closes after its answer, and says so: a connection here has an end."""

    def checkPersistence(self, request: Any, version: bytes) -> bool:
        request.responseHeaders.setRawHeaders(b"connection", [b"close"])
        return False


def make_admin_site(
    reactor: IReactorTime,
    *,
    ready: Callable[[], Readiness],
    metrics: Callable[[], Iterator[bytes]],
    status: Callable[[], Mapping[str, object]],
    config: Callable[[], Mapping[str, object]],
) -> Site:
    """The admin pages. The callables are run at each request; one that raises answers 500 and is logged.

    metrics() gives its page in parts, each of which takes a fraction of a millisecond. config() must be redacted
    already. AdminService adds the bounds on connections.
    """
    root = _Root()
    root.putChild(b"healthz", _Page(lambda: (200, _TEXT, b"alive\n")))
    root.putChild(b"readyz", _Page(lambda: _readiness_answer(ready())))
    root.putChild(b"metrics", _Page(partial(_in_parts, _turns(reactor), _METRICS, metrics)))
    root.putChild(b"status", _Page(lambda: (200, _JSON, _json(status()))))
    root.putChild(b"config", _Page(lambda: (200, _JSON, _json(config()))))
    site = Site(root, timeout=CONNECTION_S, reactor=reactor, parsePOSTFormSubmission=False)
    site.protocol = _OneRequestChannel  # type: ignore[assignment]  # the stock one would also speak HTTP/2
    site.displayTracebacks = False
    site.log = lambda request: None  # type: ignore[method-assign]  # scrapes and probes are no news
    return site


def _readiness_answer(readiness: Readiness) -> Answer:
    return (200 if readiness.ok else 503), _JSON, readiness.body()


def _json(value: Mapping[str, object]) -> bytes:
    return orjson.dumps(dict(value), default=str, option=orjson.OPT_NON_STR_KEYS | orjson.OPT_INDENT_2)


class _BoundedConnection(ProtocolWrapper):
    """One admin connection, with an end in time and in bytes."""

    _end: IDelayedCall | None = None
    _received_bytes = 0

    def makeConnection(self, transport: Any) -> None:
        super().makeConnection(transport)
        self._end = self.factory.reactor.callLater(CONNECTION_S, transport.abortConnection)

    def dataReceived(self, data: bytes) -> None:
        self._received_bytes += len(data)
        if self._received_bytes > MAX_REQUEST_BYTES:
            self.abortConnection()
            return
        super().dataReceived(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if self._end is not None and self._end.active():
            self._end.cancel()
        super().connectionLost(reason)


class _BoundedConnections(WrappingFactory):
    """The site behind bounds: above MAX_CONNECTIONS a new connection is closed at once."""

    noisy = False
    protocol = _BoundedConnection

    def __init__(self, site: Site, reactor: IReactorTime) -> None:
        super().__init__(site)
        self.reactor = reactor

    def buildProtocol(self, addr: IAddress | None) -> ProtocolWrapper | None:  # type: ignore[override]  # Factory's None
        return None if len(self.protocols) >= MAX_CONNECTIONS else super().buildProtocol(addr)


class AdminService(Service):
    """Listens with the admin site. `port` 0 takes a free one, see listening_port()."""

    name = "admin"

    def __init__(self, reactor: Any, address: str, port: int, site: Site) -> None:
        self._reactor = reactor  # IReactorTCP and IReactorTime
        self._address = address
        self._port = port
        self._connections = _BoundedConnections(site, reactor)
        self._listening: IListeningPort | None = None

    def startService(self) -> None:
        """Listen now. Raises CannotListenError when the port is taken: a gateway nobody can watch must not run."""
        self._listening = self._reactor.listenTCP(self._port, self._connections, interface=self._address)
        super().startService()

    def listening_port(self) -> int:
        """The port in use. Raises RuntimeError before the start."""
        if self._listening is None:
            raise RuntimeError("the admin listener is not started")
        return int(self._listening.getHost().port)  # type: ignore[attr-defined]

    def stopService(self) -> Any:
        """Stop listening and drop what is open; a Deferred that fires when the port is free."""
        super().stopService()
        listening, self._listening = self._listening, None
        for connection in list(self._connections.protocols):
            connection.abortConnection()
        return None if listening is None else listening.stopListening()
