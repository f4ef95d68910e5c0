"""One client connection: strict HTTP/1.1, one request in work at a time, answers in order.

    state      input is                              deadline                      at the deadline
    WAITING    nothing yet                           keep-alive (first: header)    close, silently
    HEAD       part of a request head                header, from its first byte   408, close
    BODY       the rest of a request's body          body, while it makes progress 408, close
    BUSY       held for the next request (bounded)   none: upstream has its own    -
    (edge/pace.py says when nothing is read; _settle() decides, never from inside the parsing of earlier bytes)
    CLOSING    dropped                               body, while bytes flow        RST

Whatever happens after a refusal, no byte that arrives later is looked at: `closing` is final (13.2).

Note [One deadline for many pauses]
  The keep-alive deadline is not set and taken back around each request, which costs more than a stage: one stands
  while the connection lives, and when it is due it is set again for what is left of the pause that lasts by then.
"""

from typing import TYPE_CHECKING, Any, Callable

from apigw.constants import MAX_PIPELINED_BYTES, MIN_PROGRESS_BYTES, WRITE_HIGH_WATER_BYTES
from apigw.core.http1 import MalformedMessage, impossible
from apigw.edge.body import EMPTY_BODY, RequestBody, TooLarge
from apigw.edge.heads import HeadReader, unparsed
from apigw.edge.pace import ANSWERS, BACKEND, CHUNKS, NO_TAKER, PIPELINE, TURN, AnswersTaken, Pace, WriteWatch
from apigw.edge.request import Request
from apigw.errors import BadRequest, GatewayError
from apigw.exchange import ClientRequest

if TYPE_CHECKING:
    from apigw.edge.site import Site

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_REQUESTS_PER_TURN = 16  # of one connection, when all are answered at once; then the others get their turn


def _timed_out(what: str) -> GatewayError:
    return GatewayError("The request took too long to arrive.", status=408, code="request_timeout", detail=what)


class Channel:
    """A Twisted protocol by duck type. `site` is shared by all channels; `peer_ip` and `secure` by the listener."""

    __slots__ = (
        "site",
        "transport",
        "peer_ip",
        "secure",
        "closing",
        "_input",
        "_request",
        "_reading_head",
        "_parsing",
        "_bucket",
        "_timeout",
        "_progress",
        "_writing",
        "_buffered",
        "_blocked",
        "_heads",
        "pace",
        "_seen",
        "_idle",
        "_idle_since_s",
    )

    def __init__(self, site: "Site", peer_ip: str, secure: bool) -> None:
        self.site = site
        self.peer_ip = peer_ip
        self.secure = secure
        self.transport: Any = None
        self.closing = False
        self._input = b""
        self._request: Request | None = None
        self._reading_head = False
        self._parsing = False
        self._bucket: Any = None
        self._timeout: Callable[[], None] | None = None
        self._progress = 0
        self._writing: WriteWatch | None = None
        self._seen = 0  # bytes of the input in which no head's end was found
        self._idle: Any = None  # see Note [One deadline for many pauses]
        self._idle_since_s = 0.0

    # -- Twisted's protocol interface

    def makeConnection(self, transport: Any) -> None:
        if self.closing:  # drained during its TLS handshake
            transport.abortConnection()
            return
        self.transport = transport
        self._heads = HeadReader()
        self.pace = Pace(transport)
        self._buffered: Callable[[], int] = getattr(transport, "buffered_bytes", _nothing)
        self._blocked: Callable[[], int] = getattr(transport, "blocked_bytes", self._buffered)
        transport.on_blocked = self._not_taken
        self._deadline(self.site.limits.header_timeout_s, self._unused)

    def dataReceived(self, data: bytes) -> None:
        if self.closing:
            return
        request = self._request
        if request is not None and not request.body.complete and not self._parsing:
            self._body(request, data)
            return
        self._input = self._input + data if self._input else data
        if request is None:
            self._parse()
        elif len(self._input) > MAX_PIPELINED_BYTES:
            self.pace.hold(PIPELINE)

    def connectionLost(self, reason: Any) -> None:
        self.closing = True
        self._deadline(0, None)
        if self._idle is not None:
            self._idle.pop(self.idle_over, None)
            self._idle = None
        if self._writing is not None:
            self._writing.stop()
            self._writing = None
        self.transport = None
        self._input = b""
        request, self._request = self._request, None
        if request is not None:
            request.gone()
        self.site.closed(self)

    def handshakeFailed(self, reason: Any) -> None:
        """TLS never came to be; there was no request."""
        self.closing = True
        self.site.closed(self)

    # -- deadlines

    def _deadline(self, delay_s: float, call: "Callable[[], None] | None") -> None:
        if self._timeout is not None:
            self._bucket.pop(self._timeout, None)
        self._timeout = call
        if call is not None:
            self._bucket = self.site.deadlines.add(delay_s, call)

    def _unused(self) -> None:
        self._timeout = None
        self.close()

    def idle_over(self) -> None:
        """See Note [One deadline for many pauses]. Also when the keep-alive time becomes another."""
        if self._idle is not None:
            self._idle.pop(self.idle_over, None)
        self._idle = None
        if self._request is None and self._timeout is None and not self.pace.reasons and not self.closing:
            left_s = self._idle_since_s + self.site.keepalive_s() - self.site.clock.seconds()
            if left_s > 0:
                self._idle = self.site.deadlines.add(left_s, self.idle_over)
            else:
                self.close()

    def _head_over(self) -> None:
        self._timeout = None
        self._refuse(_timed_out("header timeout"))

    def _body_over(self) -> None:
        self._timeout = None
        request = self._request
        if request is None or request.body.complete:
            return
        if self.pace.paused or request.body.received - self._progress >= MIN_PROGRESS_BYTES:
            self._progress = request.body.received
            self._deadline(self.site.limits.body_timeout_s, self._body_over)
            return
        self._fail(request, _timed_out("body timeout"))

    # -- heads

    def _parse(self) -> None:
        """Take requests off the input while none is in work."""
        if self._parsing:  # who parses goes on by itself
            return
        self._parsing = True
        left = _REQUESTS_PER_TURN
        try:
            while self._input and self._request is None and not self.closing and self._may_begin(left):
                if not self._parse_one():
                    break
                left -= 1
        finally:
            self._parsing = False
        self._settle()

    def _may_begin(self, left: int) -> bool:
        """A request is not begun while the client does not take the answers before it, or when others wait."""
        if self.pace.reasons:
            return False
        if self._buffered() > WRITE_HIGH_WATER_BYTES:
            self.pace.hold(ANSWERS)
            AnswersTaken(self.transport, self._answers_taken)
            return False
        if left <= 0:
            self.pace.hold(TURN)
            self.site.later(self._next_turn)
            return False
        return True

    def _next_turn(self) -> None:
        if not self.closing:
            self.pace.reasons &= ~TURN
            self._parse()

    def _answers_taken(self) -> None:
        if not self.closing:
            self.pace.reasons &= ~ANSWERS
            self._parse()

    def _settle(self) -> None:
        """After all input at hand was looked at: the deadline of an idle connection, and whether to read on."""
        if self.closing or self._parsing:
            return
        pace = self.pace
        if len(self._input) <= MAX_PIPELINED_BYTES:
            pace.reasons &= ~PIPELINE
        if self._request is None and self._timeout is None and not pace.reasons:
            self._idle_since_s = self.site.clock.seconds()
            if self._idle is None:
                self._idle = self.site.deadlines.add(self.site.keepalive_s(), self.idle_over)
        pace.settle()

    def _parse_one(self) -> bool:
        data, seen = self._input, self._seen
        if data[:2] == b"\r\n":  # RFC 9112 2.2: at least one empty line before a request is ignored
            data = self._input = data[2:]
            seen = self._seen = 0
            if not data:
                return False
        end = data.find(b"\r\n\r\n", max(0, seen - 3))
        limit = self.site.limits.max_header_bytes
        if end < 0 or end + 4 > limit:
            if len(data) > limit:
                self._refuse(GatewayError("The request headers are too large.", status=431, code="headers_too_large"))
            elif impossible(data, seen):
                self._refuse(BadRequest(detail="impossible request head", reason="bad_request"))
            elif not self._reading_head:
                self._reading_head = True
                self._deadline(self.site.limits.header_timeout_s, self._head_over)
            self._seen = len(data)
            return False
        self._seen = 0
        self._input = data[end + 4 :] if len(data) > end + 4 else b""
        self._reading_head = False
        try:
            self._begin(self._heads.read(data[: end + 4] if self._input else data, self.peer_ip, self.secure))
        except MalformedMessage as error:
            self._refuse(BadRequest(detail=str(error), reason="bad_request"))
        except GatewayError as error:
            self._refuse(error)
        return True

    def _begin(self, client: ClientRequest) -> None:
        fields = client.fields
        connection = fields.get(b"connection")
        keep_alive = not client.http10 and (connection is None or b"close" not in connection.lower())
        site = self.site
        length = client.content_length
        body = RequestBody(length, client.chunked) if length or client.chunked else EMPTY_BODY
        if length and length <= len(self._input):  # whole already: then a refusal needs not close the connection
            body.receive(self._input[:length], length)
            self._input = self._input[length:]
        request = Request(self, site.exchange(client), body, keep_alive)
        request.wants_continue = b"expect" in fields and not client.http10
        self._request = request
        if body.complete:
            self._deadline(0, None)
        else:
            self._progress = 0
            self._deadline(site.limits.body_timeout_s, self._body_over)
        site.render(request)
        if self._input and not body.complete and self._request is request:
            data, self._input = self._input, b""
            self._body(request, data)

    # -- bodies

    def _body(self, request: Request, data: bytes) -> None:
        body = request.body
        route = request.exchange.route
        limit = self.site.limits.max_body_bytes if route is None else route.max_body_bytes
        outer, self._parsing = self._parsing, True
        try:
            rest = body.receive(data, limit)
        except MalformedMessage as error:
            self._fail(request, BadRequest(detail=str(error), reason="bad_request"))
            return
        except TooLarge:
            self._fail(request, GatewayError("The request body is too large.", status=413, code="payload_too_large"))
            return
        finally:
            self._parsing = outer
        if self.closing:
            return
        if body.complete:  # and perhaps answered already, from inside
            self._deadline(0, None)
            self._input = rest + self._input if self._input else rest
            if self._request is None:
                self._parse()
        elif body.more:
            self.pace.hold(CHUNKS)
            self.site.later(lambda: self._body_goes_on(request))
        elif body.held > self.site.limits.buffer_body_bytes:
            self.pace.hold(NO_TAKER)
        self._settle()

    def _body_goes_on(self, request: Request) -> None:
        if self._request is request and not self.closing and not self.pace.reasons & BACKEND:
            self.pace.reasons &= ~CHUNKS
            self._body(request, b"")

    def body_wanted(self) -> None:
        """There is a connection to a backend for what still comes of the body."""
        self.pace.reasons &= ~NO_TAKER
        self._settle()

    def pauseProducing(self) -> None:
        """The backend does not take the body as fast as it comes."""
        if not self.closing:
            self.pace.hold(BACKEND)

    def resumeProducing(self) -> None:
        """The backend takes more of the body."""
        if self.closing:
            return
        pace, request = self.pace, self._request
        pace.reasons &= ~BACKEND
        if pace.reasons & CHUNKS and request is not None:
            self.site.later(lambda: self._body_goes_on(request))
        self._settle()

    def stopProducing(self) -> None:
        """The backend takes no more; the answer decides what becomes of the connection."""

    def send_continue(self) -> None:
        self.write(_CONTINUE)

    # -- answers

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)
            if self._blocked():
                self._not_taken()

    def _not_taken(self) -> None:
        """The client is slower than its answer: from now on it has to make progress."""
        if self._writing is None:
            site = self.site
            self._writing = WriteWatch(self.transport, site.deadlines, site.limits.body_timeout_s, self.abort)
        self._writing.written()

    def _refuse(self, error: GatewayError) -> None:
        """Answer what could not become a request, log it as one, and close."""
        self._reading_head = False
        request = Request(self, self.site.exchange(unparsed(self.peer_ip, self.secure)), EMPTY_BODY, keep_alive=False)
        self._request = request
        request.fail(error)

    def _fail(self, request: Request, error: GatewayError) -> None:
        """The body of a request in work is not acceptable: the connection is of no use afterwards."""
        request.keep_alive = False
        request.fail(error)

    def answered(self, request: Request) -> None:
        """The answer of the request in work is written."""
        self._request = None
        if not request.keep_alive or self.closing:
            self.close()
            return
        self.pace.reasons = 0
        self._parse()

    # -- ending

    def close(self) -> None:
        """Send what is written, then close; nothing that comes is read any more."""
        self.closing = True
        self._input = b""
        self._deadline(0, None)
        if self.transport is not None:
            self.transport.loseConnection()

    def abort(self) -> None:
        self.closing = True
        self._input = b""
        if self.transport is not None:
            self.transport.abortConnection()

    def drain(self, grace_s: float) -> None:
        """The gateway stops: close when idle for `grace_s`; a request that comes before is answered."""
        if self._request is None and not self.closing:
            self._deadline(grace_s, self._unused)


def _nothing() -> int:
    return 0
