"""One connection to an instance of a backend: HTTP/1.1, one request at a time, then back to the pool.

    CONNECTING -> IDLE <-> BUSY -> DEAD        IDLE: bytes that come are nobody's: the connection dies
                            BUSY -> DETACHED -> IDLE or DEAD   its client is gone, its answer still comes
An answer is believed only while it keeps to its own framing; what follows it poisons the connection.
"""

from typing import TYPE_CHECKING, Any, Protocol

from twisted.internet.error import ConnectionDone

from apigw.constants import MAX_RESPONSE_HEADER_BYTES
from apigw.core.http1 import ChunkDecoder, Head, MalformedMessage, response_head

if TYPE_CHECKING:
    from apigw.upstream.member import Member
    from apigw.upstream.pool import Pool

_MAX_INTERIM = 16  # 1xx answers before the final one; more is garbage
_DETACHED_MAX_BYTES = 262_144  # of an answer that nobody waits for; above it the connection is cheaper to close

# Machine words of a failed answer.
RESET, INVALID, TRUNCATED = "connection_reset", "invalid_response", "truncated_response"


class ReplySink(Protocol):
    """Who sent the request. reply_failed() is final and may come at any time, even before reply_head()."""

    def reply_head(self, head: Head) -> None: ...

    def reply_body(self, data: bytes) -> None: ...

    def reply_flush(self) -> None: ...

    def reply_end(self) -> None: ...

    def reply_failed(self, reason: str, detail: str) -> None: ...


class UpstreamConnection:
    """A Twisted protocol by duck type. `reused` tells a stale idle connection from a fresh failure."""

    __slots__ = (
        "pool",
        "member",
        "transport",
        "ends_s",
        "idle_since_s",
        "reused",
        "dead",
        "_sink",
        "_to_head",
        "_input",
        "_head",
        "_left",
        "_decoder",
        "_interim",
        "_answered",
        "_reusable",
        "_request_sent",
        "_written",
        "_discarded",
        "_detached",
        "_paused",
        "_chewing",
    )

    def __init__(self, pool: "Pool", member: "Member", now_s: float, lifetime_s: float) -> None:
        self.pool = pool
        self.member = member
        self.transport: Any = None
        self.ends_s = now_s + lifetime_s  # then it is closed as soon as it is idle
        self.idle_since_s = now_s
        self.reused = False
        self.dead = False
        self._sink: ReplySink | None = None
        self._to_head = False
        self._input = b""
        self._head: Head | None = None
        self._left: int | None = None
        self._decoder: ChunkDecoder | None = None
        self._interim = 0
        self._answered = False
        self._reusable = True
        self._request_sent = False
        self._written = 0  # bytes of the request
        self._discarded = 0
        self._detached = False
        self._paused = False
        self._chewing = False

    # -- the request

    def begin(self, sink: ReplySink, to_head: bool, data: bytes, whole: bool) -> None:
        """Send a request's head (and body, if `whole`); the answer goes to `sink`."""
        self._sink = sink
        self._to_head = to_head
        self._head = None
        self._left = None
        self._decoder = None
        self._interim = 0
        self._answered = False
        self._discarded = 0
        self._request_sent = whole
        self._written = len(data)
        self.transport.write(data)

    def more(self, data: bytes, last: bool) -> None:
        """Further bytes of the request's body, in their framing."""
        self._request_sent = last
        if data and not self.dead:
            self._written += len(data)
            self.transport.write(data)

    @property
    def hears_last_words(self) -> bool:
        """Sending failed (net/transport.py): whether what came before may be the answer to this request, of which the
        backend got a part, such as an upload that it does not read to its end; else it is nobody's (contract 13.5).
        """
        return bool(self._written > self.transport.buffered_bytes())

    @property
    def answered(self) -> bool:
        """Whether a byte of the answer has come."""
        return self._answered

    def detach(self) -> None:
        """Nobody waits for the answer any more, and the backend is not told to stop (contract section 3)."""
        if self.dead or self._sink is None:
            return
        self._detached = True
        self._sink = _Nobody(self)
        self.pause(False)
        if not self._request_sent or self._head is not None:
            self.kill()  # half a request can only be cut; half an answer is not worth its bytes
        else:
            self.pool.detached(self)

    def pause(self, paused: bool) -> None:
        """Backpressure of the client."""
        if paused == self._paused or self.dead:
            return
        self._paused = paused
        if paused:
            self.transport.pauseProducing()
        elif self._undigested():
            self._chew()
        else:
            self.transport.resumeProducing()

    def stale(self) -> bool:
        """Whether an idle connection has ended, or has bytes that no request of ours asked for."""
        return self.reused and bool(self.transport.stale())

    # -- Twisted's protocol interface

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport

    def dataReceived(self, data: bytes) -> None:
        sink = self._sink
        if sink is None:
            self.kill()  # bytes nobody asked for: the next answer on it could be another request's
            return
        self._answered = True
        try:
            if self._head is None:
                rest = self._take_head(data)
                if rest is None:
                    return
                data = rest
            self._take_body(data)
        except MalformedMessage as error:
            self._fail(INVALID, str(error))
            return
        if self._sink is sink:
            sink.reply_flush()

    def connectionLost(self, reason: Any) -> None:
        was_dead, self.dead = self.dead, True
        self.transport = None
        sink, self._sink = self._sink, None
        if not was_dead:
            self.pool.lost(self)
        if sink is None:
            return
        if self._head is not None and self._left is None and self._decoder is None and reason.check(ConnectionDone):
            sink.reply_end()  # the end of the connection is the end of this body (RFC 9112 6.3, 8)
        elif self._head is not None:
            sink.reply_failed(TRUNCATED, "the backend closed in the middle of its answer")
        else:
            sink.reply_failed(RESET, "the backend closed before its answer")

    # -- the answer

    def _take_head(self, data: bytes) -> bytes | None:
        """The bytes behind the final head, or None when there is none yet."""
        seen = len(self._input)
        if seen:
            data = self._input + data
        while True:
            end = data.find(b"\r\n\r\n", max(0, seen - 3))
            if end < 0 or end > MAX_RESPONSE_HEADER_BYTES:
                if len(data) > MAX_RESPONSE_HEADER_BYTES:
                    raise MalformedMessage("response head too large")
                if data[:5] != b"HTTP/"[: len(data)]:
                    raise MalformedMessage("not HTTP")
                self._input = data
                return None
            head = response_head(data[: end + 4], self._to_head)
            data, seen = data[end + 4 :], 0
            self._input = b""
            if head.status >= 200:
                break
            self._interim += 1
            if head.status == 101 or self._interim > _MAX_INTERIM:
                raise MalformedMessage("unasked-for 101 or too many interim answers")
        self._head = head
        connection = head.fields.get(b"connection")
        self._reusable = not head.http10 and (connection is None or b"close" not in connection.lower())
        if head.chunked:
            self._decoder = ChunkDecoder()
        else:
            self._left = head.content_length
        assert self._sink is not None
        self._sink.reply_head(head)
        return data

    def _take_body(self, data: bytes) -> None:
        sink = self._sink
        if sink is None or self.dead:
            return
        decoder = self._decoder
        if decoder is not None:
            for piece in decoder.feed(data):
                sink.reply_body(piece)
            if decoder.done:
                self._finish(decoder.rest)
            elif decoder.more:
                self._chew()
        elif self._left is None:
            if data:
                sink.reply_body(data)
        else:
            body = data if len(data) <= self._left else data[: self._left]
            self._left -= len(body)
            if body:
                sink.reply_body(body)
            if self._left == 0:
                self._finish(data[len(body) :])

    def _undigested(self) -> bool:
        return self._decoder is not None and self._decoder.more

    def _chew(self) -> None:
        """Many tiny chunks wait: in turns of their own, so that they hold nobody up, and nothing is read meanwhile."""
        if self.dead:
            return
        self.transport.pauseProducing()
        if not self._chewing:
            self._chewing = True
            self.pool.later(self._go_on)

    def _go_on(self) -> None:
        self._chewing = False
        if self.dead or self._paused:
            return
        try:
            if self._undigested():
                self._take_body(b"")
        except MalformedMessage as error:
            self._fail(INVALID, str(error))
        if not self.dead and not self._paused and not self._chewing:
            self.transport.resumeProducing()

    def _finish(self, rest: bytes) -> None:
        if self.dead:  # its last piece was one too many for nobody
            return
        sink, self._sink = self._sink, None
        self._head = None
        self._input = b""
        self.pause(False)
        if rest or not self._reusable or not self._request_sent or self.transport.buffered_bytes():
            self.kill()
        else:
            self.reused = True
            self._detached = False
            self.pool.release(self)
        if sink is not None:
            sink.reply_end()

    def _fail(self, reason: str, detail: str) -> None:
        sink, self._sink = self._sink, None
        self.kill()
        if sink is not None:
            sink.reply_failed(reason, detail)

    def discarded(self, count: int) -> None:
        self._discarded += count
        if self._discarded > _DETACHED_MAX_BYTES:
            self.kill()

    def kill(self) -> None:
        """Close at once; the pool forgets it. The sink, if any, is not told."""
        self._sink = None
        if not self.dead:
            self.dead = True
            self.pool.lost(self)
            if self.transport is not None:
                self.transport.abortConnection()


class _Nobody:
    """Reads an answer that nobody waits for, to keep the connection."""

    __slots__ = ("_connection",)

    def __init__(self, connection: UpstreamConnection) -> None:
        self._connection = connection

    def reply_head(self, head: Head) -> None:
        """The status no longer matters."""

    def reply_body(self, data: bytes) -> None:
        self._connection.discarded(len(data))

    def reply_flush(self) -> None:
        """Nothing was held."""

    def reply_end(self) -> None:
        """The pool has it back already."""

    def reply_failed(self, reason: str, detail: str) -> None:
        """The client had its 504 already."""
