"""The leaf of the pipeline: hand the request to an instance, hand its answer back, both as they come.

    body ready -> connection -> head and body sent -> head of the answer -> body -> end
One deadline follows: the route's timeout, until the answer's head, and then between its pieces.
The only request sent twice is a GET, HEAD or OPTIONS without a streamed body whose reused connection closed
before a byte of the answer came: the backend closed an idle connection as we took it (contract section 3).
"""

from typing import Any, Mapping

from twisted.web.resource import IResource
from twisted.web.server import NOT_DONE_YET
from zope.interface import implementer

from apigw.core.headers import CORS_REPLY, reply_lines, request_lines
from apigw.core.http1 import Head
from apigw.errors import GatewayError
from apigw.exchange import Exchange
from apigw.net.connect import TIMED_OUT
from apigw.net.deadlines import Deadlines
from apigw.upstream.connection import RESET, UpstreamConnection
from apigw.upstream.pool import NO_INSTANCE, POOL_FULL, Member, Pool

_REPLAYABLE = frozenset(("GET", "HEAD", "OPTIONS"))
_NOTHING: frozenset[bytes] = frozenset()
UPSTREAM_TIMEOUT = "upstream_timeout"
_RETRY_AFTER_S = 5  # for a backend without a healthy instance: about half a health check interval


def bad_gateway(backend: str, reason: str, detail: str) -> GatewayError:
    return GatewayError(
        "The backend did not give a valid answer.",
        status=502,
        code="bad_gateway",
        reason=reason,
        detail=detail,
        extra={"backend": backend},
    )


def upstream_timeout(backend: str, reason: str, detail: str) -> GatewayError:
    return GatewayError(
        "The backend did not answer in time.",
        status=504,
        code="upstream_timeout",
        reason=reason,
        detail=detail,
        extra={"backend": backend},
    )


def unavailable(backend: str, reason: str, detail: str) -> GatewayError:
    return GatewayError(
        "The backend is not available.",
        status=503,
        code="service_unavailable",
        reason=reason,
        detail=detail,
        retry_after_s=_RETRY_AFTER_S,
        extra={"backend": backend},
    )


@implementer(IResource)
class Proxy:
    """Renders a request by its route's backend. `pools` has one for each backend of the snapshot."""

    isLeaf = True

    def __init__(self, clock: Any, deadlines: Deadlines, pools: Mapping[str, Pool], hold_bytes: int) -> None:
        self.clock = clock
        self.deadlines = deadlines
        self.pools = pools
        self.hold_bytes = hold_bytes

    def render(self, request: Any) -> int:
        Proxying(self, request).start()
        return NOT_DONE_YET

    def getChildWithDefault(self, name: bytes, request: Any) -> "Proxy":
        return self

    def putChild(self, path: bytes, child: Any) -> None:
        raise TypeError("the proxy has no children: a route is a row of the route table")


class Proxying:
    """One request on its way: the pool's waiter, the answer's sink, the body's consumer, the client's producer."""

    __slots__ = (
        "_proxy",
        "_request",
        "_exchange",
        "_backend",
        "_pool",
        "_connection",
        "_member",
        "_bucket",
        "_timeout_s",
        "_last_s",
        "_streaming",
        "_replayed",
        "_sent",
        "_producing",
        "_paused",
    )

    def __init__(self, proxy: Proxy, request: Any) -> None:
        ex: Exchange = request.exchange
        route = ex.route
        assert route is not None and route.backend is not None
        self._proxy = proxy
        self._request = request
        self._exchange = ex
        self._backend: str = route.backend
        self._pool = proxy.pools[route.backend]
        self._timeout_s = route.timeout_s
        self._connection: UpstreamConnection | None = None
        self._member: Member | None = None
        self._bucket: Any = None
        self._last_s = 0.0  # when the other side last made progress
        self._streaming = False
        self._replayed = False
        self._sent = b""
        self._producing = False
        self._paused = False

    def start(self) -> None:
        request = self._request
        request.on_gone = self._client_gone
        if request.body.complete:
            self._body_ready()
        else:
            request.ready_body(self._proxy.hold_bytes, self._body_ready)

    def _body_ready(self) -> None:
        self._bucket = self._proxy.deadlines.add(self._timeout_s, self._over)
        self._pool.acquire(self)

    # -- a connection

    def pool_ready(self, connection: UpstreamConnection) -> None:
        ex = self._exchange
        if ex.upstream_started_s is None:
            ex.upstream_started_s = self._proxy.clock.seconds()
        self._connection = connection
        self._member = connection.member
        ex.instance = connection.member.label
        if self._sent:
            connection.begin(self, ex.request.method == "HEAD", self._sent, True)
            return
        body = self._request.body
        held = body.take() if body.received else b""
        self._streaming = not body.complete
        data = self._head(connection.member.label, held)
        if not self._streaming:
            self._sent = data if ex.request.method in _REPLAYABLE else b""
            connection.begin(self, ex.request.method == "HEAD", data, True)
            return
        connection.begin(self, ex.request.method == "HEAD", data, False)
        body.stream_to(self)
        connection.transport.registerProducer(self._request.channel, True)
        self._request.channel.body_wanted()

    def pool_failed(self, reason: str, detail: str, instance: str | None) -> None:
        self._exchange.instance = instance
        self._end()
        if reason in (NO_INSTANCE, POOL_FULL):
            error = unavailable(self._backend, reason, detail)
        elif reason == TIMED_OUT:
            error = upstream_timeout(self._backend, reason, detail)
        else:
            error = bad_gateway(self._backend, reason, detail)
        self._request.fail(error)

    def _head(self, host: str, held: bytes) -> bytes:
        """The request as the backend gets it, with the body bytes at hand (contract section 5)."""
        ex = self._exchange
        client, route, target, identity = ex.request, ex.route, ex.target, ex.identity
        assert route is not None and target is not None and identity is not None
        path = target.wire[route.strip :] or "/"
        if target.query:
            path = f"{path}?{target.query}"
        lines = client.forwarded.get(route.forward_cookies)
        if lines is None:
            connection = client.fields.get(b"connection")
            lines = b"".join(request_lines(client.headers, connection, route.forward_cookies))
            client.forwarded[route.forward_cookies] = lines
        peer = client.peer_ip.encode("ascii")
        proto, host_seen = b"https" if client.secure else b"http", client.authority
        trusted = ex.snapshot.trusted_proxies
        if trusted is not None and trusted.trusts(client.peer_ip):
            fields = client.fields
            chain = fields.get(b"x-forwarded-for")
            if chain:
                peer = chain + b", " + peer
            if fields.get(b"x-forwarded-proto") in (b"http", b"https"):
                proto = fields[b"x-forwarded-proto"]
            host_seen = fields.get(b"x-forwarded-host", host_seen)
        framing = b""
        if self._streaming:
            if client.chunked:
                framing = b"Transfer-Encoding: chunked\r\n"
                held = b"%x\r\n%b\r\n" % (len(held), held) if held else b""
            else:
                framing = b"Content-Length: %d\r\n" % (client.content_length or 0)
        elif held or client.content_length is not None or client.chunked:
            framing = b"Content-Length: %d\r\n" % len(held)
        return (
            f"{client.method} {path} HTTP/1.1\r\nHost: {host}\r\n".encode("ascii")
            + lines
            + (ex.principal.headers if ex.principal is not None else b"")
            + b"X-Request-ID: %b\r\nX-Forwarded-For: %b\r\nX-Forwarded-Proto: %b\r\nX-Forwarded-Host: %b\r\n%b%b\r\n%b"
            % (identity.request_id.encode("ascii"), peer, proto, host_seen, identity.trace_headers, framing, held)
        )

    # -- the request's body, streamed

    def body_data(self, data: bytes) -> None:
        self._last_s = self._proxy.clock.seconds()
        if self._connection is not None:
            if self._exchange.request.chunked:
                data = b"%x\r\n%b\r\n" % (len(data), data)
            self._connection.more(data, False)

    def body_end(self) -> None:
        connection = self._connection
        if connection is not None and not connection.dead:
            self._last_s = self._proxy.clock.seconds()
            connection.transport.unregisterProducer()
            self._request.channel.resumeProducing()
            connection.more(b"0\r\n\r\n" if self._exchange.request.chunked else b"", True)

    def body_failed(self) -> None:
        """The client's body will not be whole: nor may it look so to the backend."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.kill()

    # -- the answer

    def reply_head(self, head: Head) -> None:
        self._last_s = self._proxy.clock.seconds()
        route = self._exchange.route
        fields = head.fields
        own = CORS_REPLY if route is not None and route.cors_origins else _NOTHING
        lines = b"".join(reply_lines(head.headers, fields.get(b"connection"), own))
        length = head.content_length
        if length == 0 and b"content-length" in fields:  # to HEAD, or 304: what a body would have had
            length = int(fields[b"content-length"])
        elif length == 0 and (head.status == 304 or self._exchange.request.method == "HEAD"):
            length = None
        self._request.reply_head(head.status, head.reason, lines, length, has_date=b"date" in fields)

    def reply_body(self, data: bytes) -> None:
        self._last_s = self._proxy.clock.seconds()
        self._request.reply_body(data)

    def reply_flush(self) -> None:
        """More of the answer is to come: from now on the client's pace is ours."""
        self._request.flush()
        if not self._producing and self._connection is not None:
            transport = self._request.channel.transport
            if transport is not None:
                self._producing = True
                transport.registerProducer(self, True)

    def reply_end(self) -> None:
        self._connection = None
        self._end()
        self._request.reply_end()

    def reply_failed(self, reason: str, detail: str) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._may_replay(connection, reason):
            self._replayed = True
            self._pool.acquire_fresh(connection.member, self)
            return
        self._end()
        self._request.fail(bad_gateway(self._backend, reason, detail))

    def _may_replay(self, connection: UpstreamConnection, reason: str) -> bool:
        return (
            reason == RESET
            and bool(self._sent)
            and connection.reused
            and not connection.answered
            and not self._replayed
            and not self._request.finished
        )

    # -- the client's pace

    def pauseProducing(self) -> None:
        self._paused = True
        if self._connection is not None:
            self._connection.pause(True)

    def resumeProducing(self) -> None:
        self._paused = False
        self._last_s = self._proxy.clock.seconds()
        if self._connection is not None:
            self._connection.pause(False)

    def stopProducing(self) -> None:
        """The client's transport ends; the channel tells the request, and that tells us."""

    # -- ends

    def _over(self) -> None:
        """The route's timeout, counted from the last progress; a client that reads or sends slowly does not count."""
        self._bucket = None
        left_s = self._last_s + self._timeout_s - self._proxy.clock.seconds()
        if left_s > 0 or self._paused or self._waits_for_body():
            self._bucket = self._proxy.deadlines.add(left_s if left_s > 0 else self._timeout_s, self._over)
            return
        connection, self._connection = self._connection, None
        if connection is None:
            self._pool.abandon(self)
        elif self._request.started:
            connection.kill()
        else:
            connection.detach()
        self._end()
        self._request.fail(
            upstream_timeout(self._backend, UPSTREAM_TIMEOUT, f"no answer within {self._timeout_s * 1000:.0f} ms")
        )

    def _waits_for_body(self) -> bool:
        """The backend has taken all that came of the body: the next move is the client's, within the body timeout."""
        if not self._streaming or self._request.body.complete or self._request.started or self._connection is None:
            return False
        return not self._connection.transport.buffered_bytes()

    def _client_gone(self) -> None:
        connection, self._connection = self._connection, None
        if connection is None:
            self._pool.abandon(self)
        else:
            connection.detach()
        self._end()

    def _end(self) -> None:
        ex = self._exchange
        if ex.upstream_started_s is not None and ex.upstream_ended_s is None:
            ex.upstream_ended_s = self._proxy.clock.seconds()
        if self._bucket is not None:
            self._bucket.pop(self._over, None)
            self._bucket = None
        self._request.on_gone = None
        if self._producing:
            self._producing = False
            transport = self._request.channel.transport
            if transport is not None:
                transport.unregisterProducer()
