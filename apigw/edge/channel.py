"""One client connection: strict HTTP/1.1, one request in work at a time, answers in order.

    state      input is                              deadline                      at the deadline
    WAITING    nothing yet                           keep-alive (first: header)    close, silently
    HEAD       part of a request head                header, from its first byte   408, close
    BODY       the rest of a request's body          body, while it makes progress 408, close
    BUSY       held for the next request (bounded)   none: upstream has its own    -
    CLOSING    dropped                               body, while bytes flow        RST

Whatever happens after a refusal, no byte that arrives later is looked at: `closing` is final (13.2).
"""

from typing import TYPE_CHECKING, Any, Callable

from apigw.constants import MAX_PIPELINED_BYTES, MIN_PROGRESS_BYTES
from apigw.core.http1 import Head, MalformedMessage, impossible, request_head
from apigw.core.paths import AmbiguousPath, split_absolute, valid_authority
from apigw.edge.body import RequestBody, TooLarge
from apigw.edge.request import Request
from apigw.errors import BadRequest, GatewayError
from apigw.exchange import ClientRequest

if TYPE_CHECKING:
    from apigw.edge.site import Site

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_NO_HEADERS: list[Any] = []


def _too_large() -> GatewayError:
    return GatewayError("The request body is too large.", status=413, code="payload_too_large")


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
        "_sent_mark",
        "_stall",
        "_buffered",
        "_held_back",
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
        self._stall: Any = None
        self._sent_mark = 0
        self._held_back = False

    # -- Twisted's protocol interface

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self._buffered: Callable[[], int] = getattr(transport, "buffered_bytes", _nothing)
        self._deadline(self.site.limits.header_timeout_s, self._idle_over)

    def dataReceived(self, data: bytes) -> None:
        if self.closing:
            return
        request = self._request
        if request is None:
            self._input = self._input + data if self._input else data
            if not self._parsing:
                self._parse(len(self._input) - len(data))
        elif not request.body.complete:
            self._body(request, data)
        else:
            self._input += data
            if len(self._input) > MAX_PIPELINED_BYTES:
                self._hold_back()

    def connectionLost(self, reason: Any) -> None:
        self.closing = True
        self._deadline(0, None)
        if self._stall is not None:
            self._stall.pop(self._stalled, None)
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

    def _idle_over(self) -> None:
        self._timeout = None
        self.close()

    def _head_over(self) -> None:
        self._timeout = None
        self._refuse(_timed_out("header timeout"))

    def _body_over(self) -> None:
        self._timeout = None
        request = self._request
        if request is None or request.body.complete:
            return
        if self._held_back or request.body.received - self._progress >= MIN_PROGRESS_BYTES:
            self._progress = request.body.received
            self._deadline(self.site.limits.body_timeout_s, self._body_over)
            return
        self._fail(request, _timed_out("body timeout"))

    def _watch_writing(self) -> None:
        """The client does not take its answer as fast as it comes: see to it that it takes it at all."""
        self._sent_mark = self.transport.sent_bytes
        self._stall = self.site.deadlines.add(self.site.limits.body_timeout_s, self._stalled)

    def _stalled(self) -> None:
        self._stall = None
        if not self._buffered():
            return
        if self.transport.sent_bytes - self._sent_mark < MIN_PROGRESS_BYTES:
            self.abort()
        else:
            self._watch_writing()

    # -- heads

    def _parse(self, seen: int = 0) -> None:
        """Take requests off the input while none is in work. `seen`: input bytes looked at before."""
        self._parsing = True
        try:
            while self._input and self._request is None and not self.closing:
                if not self._parse_one(seen):
                    break
                seen = 0
        finally:
            self._parsing = False

    def _parse_one(self, seen: int) -> bool:
        data = self._input
        if data[:2] == b"\r\n":  # RFC 9112 2.2: at least one empty line before a request is ignored
            data = self._input = data[2:]
            if not data:
                return False
        end = data.find(b"\r\n\r\n", max(0, seen - 3))
        limit = self.site.limits.max_header_bytes
        if end < 0 or end + 4 > limit:
            if len(data) > limit:
                self._refuse(
                    GatewayError("The request headers are too large.", status=431, code="headers_too_large")
                )
            elif impossible(data, seen):
                self._refuse(BadRequest(detail="impossible request head", reason="bad_request"))
            elif not self._reading_head:
                self._reading_head = True
                self._deadline(self.site.limits.header_timeout_s, self._head_over)
            return False
        self._input = data[end + 4 :] if len(data) > end + 4 else b""
        self._reading_head = False
        try:
            head = request_head(data[: end + 4] if self._input else data)
            self._begin(head, end + 4)
        except MalformedMessage as error:
            self._refuse(BadRequest(detail=str(error), reason="bad_request"))
        except GatewayError as error:
            self._refuse(error)
        return True

    def _begin(self, head: Head, head_bytes: int) -> None:
        fields = head.fields
        authority, target = split_absolute(head.target)
        host = fields.get(b"host")
        if host is None:
            if not head.http10:
                raise BadRequest(detail="no Host")
        elif not valid_authority(host):
            raise BadRequest(detail="bad Host")
        elif authority is not None and authority.lower() != host.lower():
            raise BadRequest(detail="Host differs from the target's authority")
        expect = fields.get(b"expect")
        if expect is not None and expect.lower() != b"100-continue":
            raise BadRequest(detail="unknown expectation")
        client = ClientRequest(
            head.method,
            target,
            head.headers,
            fields,
            content_length=head.content_length,
            chunked=head.chunked,
            http10=head.http10,
            authority=host or authority or b"",
            peer_ip=self.peer_ip,
            secure=self.secure,
            head_bytes=head_bytes,
        )
        connection = fields.get(b"connection")
        keep_alive = not head.http10 and (connection is None or b"close" not in connection.lower())
        site = self.site
        body = RequestBody(head.content_length, head.chunked)
        request = Request(self, site.exchange(client), body, keep_alive)
        request.wants_continue = expect is not None and not head.http10
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
        try:
            rest = body.receive(data, limit)
        except MalformedMessage as error:
            self._fail(request, BadRequest(detail=str(error), reason="bad_request"))
            return
        except TooLarge:
            self._fail(request, _too_large())
            return
        if self._request is not request:
            return
        if body.complete:
            self._deadline(0, None)
            self._input = rest
        elif body.more:
            self._hold_back()
            self.site.later(lambda: self._body_goes_on(request))
        elif body.held > self.site.limits.buffer_body_bytes:
            self._hold_back()

    def _body_goes_on(self, request: Request) -> None:
        if self._request is request and not self.closing and not request.body.complete:
            self._let_in()
            self._body(request, b"")

    def pauseProducing(self) -> None:
        """The backend does not take the body as fast as it comes."""
        self._hold_back()

    def resumeProducing(self) -> None:
        self._let_in()

    def stopProducing(self) -> None:
        """The backend takes no more; the answer decides what becomes of the connection."""

    def _hold_back(self) -> None:
        if not self._held_back and self.transport is not None:
            self._held_back = True
            self.transport.pauseProducing()

    def _let_in(self) -> None:
        if self._held_back and self.transport is not None:
            self._held_back = False
            self.transport.resumeProducing()

    def send_continue(self) -> None:
        self.write(_CONTINUE)

    # -- answers

    def write(self, data: bytes) -> None:
        if self.transport is not None:
            self.transport.write(data)
            if self._stall is None and self._buffered():
                self._watch_writing()

    def _refuse(self, error: GatewayError) -> None:
        """Answer what could not become a request, log it as one, and close."""
        self._reading_head = False
        request = Request(self, self.site.exchange(self._unparsed()), RequestBody(None, False), keep_alive=False)
        self._request = request
        request.fail(error)

    def _unparsed(self) -> ClientRequest:
        return ClientRequest("", b"", _NO_HEADERS, {}, peer_ip=self.peer_ip, secure=self.secure)

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
        self._let_in()
        if self._input:
            if not self._parsing:
                self._parse()
                if self._request is None and not self.closing and not self._reading_head:
                    self._deadline(self.site.keepalive_s(), self._idle_over)
        else:
            self._deadline(self.site.keepalive_s(), self._idle_over)

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
            self._deadline(grace_s, self._idle_over)


def _nothing() -> int:
    return 0
