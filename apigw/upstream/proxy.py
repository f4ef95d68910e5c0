"""One request on its way: handed to an instance, its answer handed back, both as they come.

    body ready -> connection -> head and body sent -> head of the answer -> body -> end
One deadline follows: the route's timeout, until the answer's head, and then between its pieces, of which
there must be MIN_PROGRESS_BYTES in each timeout: a backend that drips its answer is cut. A client that takes or
sends slowly is not the backend's fault: edge/ has deadlines of its own for it, and slow_clients.py for a full pool.
The only request sent twice is a GET, HEAD or OPTIONS without a streamed body whose reused connection closed
before a byte of the answer came: the backend closed an idle connection as we took it (contract section 3).
"""

from typing import TYPE_CHECKING, Any

from apigw.constants import MIN_PROGRESS_BYTES
from apigw.core.headers import CORS_REPLY, reply_lines
from apigw.core.http1 import Head
from apigw.errors import GatewayError
from apigw.exchange import Exchange
from apigw.upstream.connection import RESET, UpstreamConnection
from apigw.upstream.failures import bad_gateway, no_connection, slow_client, upstream_timeout
from apigw.upstream.gate import CIRCUIT_OPEN
from apigw.upstream.member import Member
from apigw.upstream.outgoing import request_bytes

if TYPE_CHECKING:
    from apigw.upstream.leaf import Proxy

_REPLAYABLE = frozenset(("GET", "HEAD", "OPTIONS"))
_NOTHING: frozenset[bytes] = frozenset()
UPSTREAM_TIMEOUT = "upstream_timeout"
_HELD_UP_S = 1.0  # by a client; a backend that ends its answer or its request behind that may have had enough of it


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
        "timeout_s",
        "guarded",
        "_last_s",
        "_window_s",
        "_window_bytes",
        "_streaming",
        "_first_try",
        "_sent",
        "_producing",
        "_paused_s",
        "_held_up",
    )

    def __init__(self, proxy: "Proxy", request: Any) -> None:
        ex: Exchange = request.exchange
        route = ex.route
        assert route is not None and route.backend is not None
        self._proxy = proxy
        self._request = request
        self._exchange = ex
        self._backend: str = route.backend
        self._pool = proxy.pools[route.backend]
        self.timeout_s = route.timeout_s
        self.guarded = route.circuit_breaker
        self._connection: UpstreamConnection | None = None
        self._member: Member | None = None
        self._bucket: Any = None
        self._last_s = 0.0  # when the other side last made progress
        self._window_s = 0.0  # since when the bytes of the answer are counted, 0 before its first piece
        self._window_bytes = 0  # how many there were then
        self._streaming = False
        self._first_try = ""  # how the attempt ended that was made again
        self._sent = b""
        self._producing = False
        self._paused_s: float | None = None  # since when the client has not taken what comes of the answer
        self._held_up = False  # it did not for _HELD_UP_S

    def start(self) -> None:
        request = self._request
        request.on_gone = self._client_gone
        if request.body.complete:
            self._body_ready()
            return
        gate = self._proxy.gates.get(self._backend)
        if gate is not None and self.guarded and gate.shut():  # its body is not even asked for
            self._refuse(gate.circuit_refusal())
        elif not self._pool.refused(self):
            request.ready_body(self._proxy.hold_bytes, self._body_ready)

    def _refuse(self, refusal: GatewayError) -> None:
        self._end()
        self._request.fail(refusal)

    def _body_ready(self) -> None:
        """Stage 10 of the contract's section 3, then 11. A refused request touches no connection."""
        gate = self._proxy.gates.get(self._backend)
        if gate is not None:
            refusal = gate.refusal(self._exchange, self.guarded, self.timeout_s)
            if refusal is not None:
                self._refuse(refusal)
                return
        self._bucket = self._proxy.deadlines.add(self.timeout_s, self._over)
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
        data = request_bytes(ex, connection.member.label, held, self._streaming)
        if not self._streaming:
            self._sent = data if ex.request.method in _REPLAYABLE else b""
            connection.begin(self, ex.request.method == "HEAD", data, True)
            return
        connection.begin(self, ex.request.method == "HEAD", data, False)
        body.stream_to(self)
        self._pool.follow(self)
        connection.transport.registerProducer(self._request.channel, True)
        self._request.channel.body_wanted()

    def pool_failed(self, reason: str, detail: str, instance: str | None) -> None:
        self._exchange.instance = instance
        self._end()
        detail = self._told(detail)
        if reason == CIRCUIT_OPEN:
            error = self._proxy.gates[self._backend].circuit_refusal()
        else:
            error = no_connection(self._backend, reason, detail, self._pool.back_in_s())
        self._request.fail(error)

    def _told(self, detail: str) -> str:
        """What the log says of a failure: which attempt it was, and how the first one ended."""
        if self._first_try:
            return f"attempt 2 of 2: {detail}; attempt 1: {self._first_try}"
        return f"attempt 1 of 1: {detail}" if self._exchange.instance is not None else detail

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
        if head.status >= 500:
            self._spare_if_held_up()  # an application may call that a 500
        route = self._exchange.route
        fields = head.fields
        own = CORS_REPLY if route is not None and route.cors_origins else _NOTHING
        lines = reply_lines(head.headers, head.passing, fields.get(b"connection"), own)
        length = head.content_length
        if length == 0 and b"content-length" in fields:  # to HEAD, or 304: what a body would have had
            length = int(fields[b"content-length"])
        elif length == 0 and (head.status == 304 or self._exchange.request.method == "HEAD"):
            length = None
        self._request.reply_head(head.status, head.reason, lines, length, has_date=b"date" in fields)

    def reply_body(self, data: bytes) -> None:
        self._request.reply_body(data)

    def reply_flush(self) -> None:
        """More of the answer is to come: from now on the client's pace is ours."""
        self._last_s = self._proxy.clock.seconds()
        self._window_s = self._window_s or self._last_s
        self._request.flush()
        ex = self._exchange
        if not self._producing and self._connection is not None:
            transport = self._request.channel.transport
            if transport is not None:
                self._producing = True
                transport.registerProducer(self, True)
                if ex.gate is not None and ex.status < 500:
                    ex.gate.breaker.answering(ex.ticket)

    def reply_end(self) -> None:
        self._connection = None
        if self._first_try:
            self._exchange.error_message = f"attempt 2 of 2: answered; attempt 1: {self._first_try}"
        self._end()
        self._request.reply_end()

    def reply_failed(self, reason: str, detail: str) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._may_replay(connection, reason):
            self._first_try = f"{reason}: {detail}"
            self._proxy.on_replay(self._backend, reason)
            self._pool.acquire_fresh(connection.member, self)
            return
        self._spare_if_held_up()
        self._end()
        self._request.fail(bad_gateway(self._backend, reason, self._told(detail)))

    def _spare_if_held_up(self) -> None:
        """The backend fails this request: not for its own sake, where it had to wait for the client."""
        ex = self._exchange
        if ex.gate is not None and self._client_held_up():
            ex.gate.spared(ex)

    def _client_held_up(self) -> bool:
        """Whether the backend had to wait for the client for so long that its end says nothing of the backend."""
        long_ago_s = self._proxy.clock.seconds() - _HELD_UP_S
        if self._held_up or (self._paused_s is not None and self._paused_s < long_ago_s):
            return True
        if not self._streaming or self._request.body.complete or self._request.held_back:
            return False
        return bool(max(self._last_s, self._exchange.upstream_started_s or 0.0) < long_ago_s)

    def _may_replay(self, connection: UpstreamConnection, reason: str) -> bool:
        return (
            reason == RESET
            and bool(self._sent)
            and connection.reused
            and not connection.answered
            and not self._first_try
            and not self._request.finished
        )

    # -- the client's pace

    def pauseProducing(self) -> None:
        self._paused_s = self._proxy.clock.seconds()
        if self._connection is not None:
            self._connection.pause(True)
            self._pool.follow(self)

    def resumeProducing(self) -> None:
        self._held_up = self._client_held_up()
        self._paused_s = None
        self._last_s = self._proxy.clock.seconds()
        self._new_window()
        if self._connection is not None:
            self._connection.pause(False)

    def stopProducing(self) -> None:
        """The client's transport ends; the channel tells the request, and that tells us."""

    def client_holds(self) -> bool:
        return self._paused_s is not None or self._waits_for_body()

    def client_bytes(self) -> int:
        transport = self._request.channel.transport
        untaken = transport.untaken_bytes() if self._request.started and transport is not None else 0
        return int(self._request.body.received + self._exchange.response_bytes - untaken)

    def give_way(self, how_slow: str) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.kill()
        self._end()
        self._request.fail(slow_client(how_slow, self._request.started))

    # -- ends

    def _over(self) -> None:
        """The route's timeout, counted from the last progress; a client that reads or sends slowly does not count."""
        self._bucket = None
        left_s = self._left_s()
        if left_s > 0:
            self._bucket = self._proxy.deadlines.add(left_s, self._over)
            return
        connection, self._connection = self._connection, None
        limit_ms = f"{self.timeout_s * 1000:.0f} ms"
        if connection is None:
            reason, detail, instance = self._pool.abandon(self)
            self._exchange.instance = instance
            error = upstream_timeout(self._backend, reason, self._told(f"{detail} for {limit_ms}"))
        elif self._request.started:
            connection.kill()
            detail = f"its answer stopped, or came in less than {MIN_PROGRESS_BYTES} bytes a {limit_ms}"
            error = upstream_timeout(self._backend, UPSTREAM_TIMEOUT, self._told(detail))
        else:
            connection.detach()
            error = upstream_timeout(self._backend, UPSTREAM_TIMEOUT, self._told(f"no answer within {limit_ms}"))
        self._end()
        self._request.fail(error)

    def _left_s(self) -> float:
        """How long the backend may go on; 0 or less when its time is over."""
        now_s: float = self._proxy.clock.seconds()
        if self.client_holds():
            self._new_window()
            return self.timeout_s
        left_s = self._last_s + self.timeout_s - now_s
        if left_s <= 0 or not self._window_s:
            return left_s
        window_left_s = self._window_s + self.timeout_s - now_s
        if window_left_s > 0:
            return min(left_s, window_left_s)
        if self._exchange.response_bytes - self._window_bytes < MIN_PROGRESS_BYTES:
            return 0.0
        self._new_window()
        return left_s

    def _new_window(self) -> None:
        """From now on the bytes of the answer count anew."""
        if self._window_s:
            self._window_s = self._proxy.clock.seconds()
            self._window_bytes = self._exchange.response_bytes

    def _waits_for_body(self) -> bool:
        """The backend has taken all that came of the body: the next move is the client's, within the body timeout."""
        if not self._streaming or self._request.body.complete or self._request.started or self._connection is None:
            return False
        return not self._connection.transport.buffered_bytes()

    def _client_gone(self) -> None:
        if self._exchange.error_message is None:
            self._exchange.error_message = f"the client left {self._moment()}"
        connection, self._connection = self._connection, None
        if connection is None:
            self._pool.abandon(self)
        else:
            connection.detach()
        self._end()

    def _moment(self) -> str:
        """For the log: how far the request was."""
        if self._request.started:
            return "in the middle of its answer"
        if self._bucket is None or (self._streaming and not self._request.body.complete):
            return "in the middle of its body"
        return "before a connection was free or made" if self._member is None else "before its answer"

    def _end(self) -> None:
        ex = self._exchange
        if ex.upstream_started_s is not None and ex.upstream_ended_s is None:
            ex.upstream_ended_s = self._proxy.clock.seconds()
        if self._bucket is not None:
            self._bucket.pop(self._over, None)
            self._bucket = None
        self._request.on_gone = None
        if self._streaming or self._producing:
            self._pool.unfollow(self)
        if self._producing:
            self._producing = False
            transport = self._request.channel.transport
            if transport is not None:
                transport.unregisterProducer()
