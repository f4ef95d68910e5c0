"""One request and its answer: what Resources render. The one place where errors become bytes.

An answer is built in one piece where it can be: head and first body bytes go out in one write. Once the
head is out, a failure can only be shown by cutting the connection; a cut answer never ends cleanly
(contract 13.6): no final chunk, fewer bytes than Content-Length, or a RST for one that ends by closing.
"""

import time
from email.utils import formatdate
from typing import TYPE_CHECKING, Any, Callable

import orjson
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.core.cors import reply_lines as cors_lines
from apigw.core.trace import Randomness, identify
from apigw.edge.body import RequestBody
from apigw.edge.pace import BACKEND
from apigw.errors import Answered, GatewayError
from apigw.exchange import Exchange
from apigw.names import SHED

if TYPE_CHECKING:
    from apigw.edge.channel import Channel

log = Logger()

REASONS = {
    200: b"OK",
    204: b"No Content",
    400: b"Bad Request",
    401: b"Unauthorized",
    403: b"Forbidden",
    404: b"Not Found",
    405: b"Method Not Allowed",
    408: b"Request Timeout",
    413: b"Content Too Large",
    429: b"Too Many Requests",
    431: b"Request Header Fields Too Large",
    500: b"Internal Server Error",
    502: b"Bad Gateway",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}
_JSON_HEADERS = b"Content-Type: application/json\r\nCache-Control: no-store\r\n"
NO_BODY, BY_LENGTH, BY_CHUNKS, BY_CLOSE = range(4)

_randomness = Randomness()  # for requests refused before the stage that gives an identity


class _Date:
    """The Date header line, made once a second."""

    def __init__(self) -> None:
        self._second = 0
        self._line = b""

    def line(self, now_s: float) -> bytes:
        if int(now_s) != self._second:
            self._second = int(now_s)
            self._line = b"Date: " + formatdate(now_s, usegmt=True).encode("ascii") + b"\r\n"
        return self._line


_date = _Date()

_forms: dict[tuple[object, ...], tuple[bytes, bytes, bytes]] = {}
_FORMS_KEPT = 512  # few: codes, times the seconds of Retry-After, times backends


def _error_form(error: GatewayError) -> tuple[bytes, bytes, bytes]:
    """(header lines, JSON before the request's ID, JSON behind it): the same for all errors that say the same."""
    key = (error.code, error.message, error.retry_after_s, error.headers, *error.extra.items())
    form = _forms.get(key)
    if form is None:
        lines = b"".join([b"%b: %b\r\n" % header for header in error.headers]) + _JSON_HEADERS
        if error.retry_after_s is not None:
            lines += b"Retry-After: %d\r\n" % error.retry_after_s
        before = orjson.dumps({"error": error.code, "message": error.message})[:-1] + b',"request_id":"'
        more = orjson.dumps(dict(error.extra))[1:-1]
        form = (lines, before, b'",' + more + b"}" if more else b'"}')
        if len(_forms) >= _FORMS_KEPT:
            _forms.clear()
        _forms[key] = form
    return form


class Request:
    """Made by the channel for each head; answered exactly once, by answer(), fail() or reply_*().

    on_gone: called when the client is gone before the answer was complete; set by whoever works for it.
    """

    __slots__ = (
        "channel",
        "exchange",
        "body",
        "on_gone",
        "finished",
        "started",
        "keep_alive",
        "wants_continue",
        "_waiting",
        "_head",
        "_mode",
        "_left",
    )

    def __init__(self, channel: "Channel", exchange: Exchange, body: RequestBody, keep_alive: bool) -> None:
        self.channel = channel
        self.exchange = exchange
        self.body = body
        self.keep_alive = keep_alive
        self.wants_continue = False
        self.on_gone: Callable[[], None] | None = None
        self.finished = False
        self.started = False
        self._waiting: Deferred[Any] | None = None
        self._head: bytes | None = None
        self._mode = NO_BODY
        self._left = 0

    # -- down: the pipeline

    def render(self, resource: Any) -> None:
        """Run the pipeline; whatever it raises becomes the answer."""
        try:
            resource.render(self)
        except Answered as answer:
            self.answer(answer.status, answer.headers, answer.body)
        except GatewayError as error:
            self.fail(error)
        except Exception:
            self._unexpected(Failure())

    def wait(self, deferred: "Deferred[Any]", go_on: Callable[[Any, "Request"], None]) -> None:
        """Go on with go_on(value, self) when the Deferred has its value; its failure becomes the answer."""
        self._waiting = deferred
        deferred.addCallbacks(self._waited, self._wait_failed, callbackArgs=(go_on,))

    def _waited(self, value: Any, go_on: Callable[[Any, "Request"], None]) -> None:
        self._waiting = None
        if self.finished:
            return
        try:
            go_on(value, self)
        except Exception:
            self._wait_failed(Failure())

    def _wait_failed(self, failure: Failure) -> None:
        self._waiting = None
        error = failure.value
        if self.finished:
            if not isinstance(error, (CancelledError, GatewayError)):
                log.failure("a request that ended already", failure=failure, request_id=self.request_id)
        elif isinstance(error, Answered):
            self.answer(error.status, error.headers, error.body)
        elif isinstance(error, GatewayError):
            self.fail(error)
        else:
            self._unexpected(failure)

    @property
    def request_id(self) -> str:
        identity = self.exchange.identity
        return identity.request_id if identity is not None else "-"

    @property
    def held_back(self) -> bool:
        """Whether the backend does not take the body as fast as the client sends it."""
        return bool(self.channel.pace.reasons & BACKEND)

    def ready_body(self, hold_bytes: int, ready: Callable[[], None]) -> None:
        """Call ready() when the body is whole or larger than `hold_bytes`; asks the client for it if it waits."""
        if self.wants_continue and not self.body.complete and not self.body.received:
            self.wants_continue = False
            self.channel.send_continue()
        self.body.when_ready(hold_bytes, ready)

    # -- up: the answer

    def fail(self, error: GatewayError) -> None:
        """Answer with the error's JSON (contract section 4); cut the connection when bytes of an answer are out."""
        if self.finished:  # and recorded
            return
        ex = self.exchange
        detail = error.detail or error.message
        if "backend" in error.extra or error.reason == SHED:  # the log says what it was; the client only whose
            ex.error_type, ex.error_message = error.reason, detail
        else:  # the code that the client sees, and for the operator why
            ex.error_type = error.code
            ex.error_message = detail if error.reason == error.code else f"{error.reason}: {detail}"
        if error.status >= 500 and error.code == "internal_error":
            log.error("500: {detail}", detail=error.detail, request_id=self.request_id)
        if self.started and self._head is None:
            self.cut()
            return
        self._head = None  # of an answer that failed before a byte of it was sent
        if ex.identity is None:
            ex.identity = identify(ex.request.fields, _randomness)
        lines, before, behind = _error_form(error)
        body = b"%b%b%b" % (before, ex.identity.request_id.encode("ascii"), behind)
        self._answer(error.status, lines, body)

    def _unexpected(self, failure: Failure) -> None:
        log.failure("internal error", failure=failure, request_id=self.request_id)
        self.fail(GatewayError(detail=f"{type(failure.value).__name__}: {failure.getErrorMessage()}"))

    def answer(self, status: int, headers: tuple[tuple[bytes, bytes], ...], body: bytes) -> None:
        """A whole answer of the gateway's own."""
        self._answer(status, b"".join([b"%b: %b\r\n" % header for header in headers]), body)

    def _answer(self, status: int, lines: bytes, body: bytes) -> None:
        self.reply_head(status, REASONS[status], lines, len(body), has_date=False)
        if body and self._mode != NO_BODY:
            self.reply_body(body)
        self.reply_end()

    def reply_head(self, status: int, reason: bytes, lines: bytes, length: int | None, *, has_date: bool) -> None:
        """Begin the answer. `lines`: header lines with CRLF; `length`: of the body, None when unknown.

        Nothing is written before the first body bytes, flush() or reply_end().
        """
        if self.finished:
            return
        channel = self.channel
        ex = self.exchange
        ex.status = status
        self.started = True
        elapsed_s = channel.site.clock.seconds() - ex.started_s
        method = ex.request.method
        self.keep_alive = self.keep_alive and self.body.complete and not channel.site.draining
        framing = b""
        if method == "HEAD" or status in (204, 304):
            self._mode = NO_BODY
            if length is not None and status != 204:
                framing = b"Content-Length: %d\r\n" % length
        elif length is not None:
            self._mode, self._left = BY_LENGTH, length
            framing = b"Content-Length: %d\r\n" % length
        elif not ex.request.http10:
            self._mode = BY_CHUNKS
            framing = b"Transfer-Encoding: chunked\r\n"
        else:
            self._mode = BY_CLOSE
            self.keep_alive = False
        route = ex.route
        own = b""
        if ex.verdict is not None:
            own = ex.verdict.header_lines
        if route is not None:
            own += route.static_reply_lines
            if route.cors_origins:
                own += cors_lines(ex.request.fields.get(b"origin"), route.cors_origins)
        if ex.identity is None:
            ex.identity = identify(ex.request.fields, _randomness)
        self._head = b"HTTP/1.1 %d %b\r\n%b%b%b%bX-Request-ID: %b\r\nX-Response-Time-Ms: %d\r\n%b\r\n" % (
            status,
            reason,
            lines,
            b"" if has_date else _date.line(time.time()),
            framing,
            own,
            ex.identity.request_id.encode("ascii"),
            elapsed_s * 1000.0,
            b"" if self.keep_alive else b"Connection: close\r\n",
        )

    def reply_body(self, data: bytes) -> None:
        """Some bytes of the body. More than the announced length is the caller's to prevent."""
        if self.finished or not data:
            return
        mode = self._mode
        if mode == NO_BODY:
            return
        self.exchange.response_bytes += len(data)
        if mode == BY_CHUNKS:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        elif mode == BY_LENGTH:
            self._left -= len(data)
        if self._head is not None:
            data = self._head + data
            self._head = None
        self.channel.write(data)

    def flush(self) -> None:
        """Send the head if it still waits for its first body bytes."""
        if self._head is not None and not self.finished:
            head, self._head = self._head, None
            self.channel.write(head)

    def reply_end(self) -> None:
        """The answer is whole."""
        if self.finished:
            return
        if self._mode == BY_LENGTH and self._left:
            self.cut()
            return
        last = b"0\r\n\r\n" if self._mode == BY_CHUNKS else b""
        if self._head is not None:
            last = self._head + last
            self._head = None
        if last:
            self.channel.write(last)
        self._finish()
        self.channel.answered(self)

    def cut(self) -> None:
        """The answer cannot be completed: let the client see that, by a closed connection."""
        if self.finished:
            return
        self._finish()
        self.channel.abort()

    def gone(self) -> None:
        """The client is gone: whoever works for it may stop. Logged as 499, nginx's word for it."""
        if self.finished:
            return
        ex = self.exchange
        if not self.started:
            ex.status = 499
        ex.error_type = ex.error_type or "client_gone"
        self._finish()

    def _finish(self) -> None:
        self.finished = True
        on_gone, self.on_gone = self.on_gone, None
        waiting, self._waiting = self._waiting, None
        ex = self.exchange
        ex.request_bytes = self.body.received
        if not self.body.complete:
            self.body.fail()
        ex.ended_s = self.channel.site.clock.seconds()
        self.channel.site.ended(ex)
        if waiting is not None:
            waiting.cancel()
        if on_gone is not None:
            on_gone()
