"""One connection to Redis off the request path: commands and their replies in order, and messages of channels.

open     a reply that nobody waits for, or bytes that are not Redis' protocol      closed: on_lost
open     the oldest command unanswered for TIMEOUT_S                              closed: on_lost
open     the connection ends                                                      closed: on_lost
any      drop()                                                                   closed, and on_lost is not called

Whatever closes it, every command without its answer fails with StoreDown. The request path has a link of its own
(redis_link.py): there an answer is worth microseconds, here one may be a list of megabytes.
"""

from collections import deque
from collections.abc import Callable
from typing import Any, Final

import hiredis
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from apigw.errors import StoreDown

TIMEOUT_S: Final = 1.0  # of one command; whoever asks is a poller, an operator or a key that no cache knows
MAX_OUTSTANDING: Final = 5_000  # commands without an answer
MAX_REPLY_BYTES: Final = 64 * 2**20  # of one unfinished reply; a million revocations are less

Reply = Any  # bytes, int, None, a list of these; an error reply is a hiredis.ReplyError, as a value
Waiting = deque[tuple[float, Deferred[Reply]]]  # (sent at, who waits), in order


class RedisConversation(Protocol):
    """Made anew for each connection, by redis_line.py.

    on_ready(conversation) when connected; on_lost(conversation, reason) once at the end; on_message(channel, message)
    for what a channel says: None for a connection that never subscribes.
    """

    def __init__(
        self,
        clock: IReactorTime,
        on_ready: "Callable[[RedisConversation], None]",
        on_lost: "Callable[[RedisConversation, str], None]",
        on_message: Callable[[bytes, bytes], None] | None = None,
    ) -> None:
        self._clock = clock
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_message = on_message
        self._waiting: Waiting = deque()
        self._timer: Any = None  # looks at the oldest
        self._reader = hiredis.Reader()
        self._unfinished_bytes = 0
        self._closed = False

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if self._closed:  # connected after we gave up waiting for it
            transport.abortConnection()
            return
        transport.setTcpNoDelay(True)
        transport.setTcpKeepAlive(True)
        self._on_ready(self)

    def ask(self, command: bytes) -> "Deferred[Reply]":
        """Send a packed command. Fires with its reply, fails with StoreDown; cancelling it disturbs nobody."""
        if self._closed or self.transport is None:
            return fail(StoreDown("not connected"))
        if len(self._waiting) >= MAX_OUTSTANDING:
            return fail(StoreDown("too many commands wait for Redis"))
        deferred: Deferred[Reply] = Deferred()
        self._waiting.append((self._clock.seconds(), deferred))
        if self._timer is None:
            self._timer = self._clock.callLater(TIMEOUT_S, self._look)
        transport: Any = self.transport
        transport.write(command)
        return deferred

    # -- silence

    def _look(self) -> None:
        """Is the oldest command overdue? The socket is read once more before we say so: our own loop may be late."""
        self._timer = None
        if self._waiting:
            oldest_s, deferred = self._waiting[0]
            left_s = oldest_s + TIMEOUT_S - self._clock.seconds()
            if left_s > 0:
                self._timer = self._clock.callLater(left_s, self._look)
            else:
                self._timer = self._clock.callLater(0, self._judge, deferred)

    def _judge(self, overdue: "Deferred[Reply]") -> None:
        self._timer = None
        if self._waiting and self._waiting[0][1] is overdue:
            self._give_up(f"no answer within {TIMEOUT_S:g} s")
        else:
            self._look()

    # -- replies

    def dataReceived(self, data: bytes) -> None:
        if self._closed:
            return
        self._unfinished_bytes += len(data)
        try:
            self._reader.feed(data)
            while not self._closed and (reply := self._reader.gets()) is not False:
                self._unfinished_bytes = 0
                self._take(reply)
        except hiredis.ProtocolError as error:
            self._give_up(f"what Redis sent is not its protocol: {error}")
            return
        if self._unfinished_bytes > MAX_REPLY_BYTES:
            self._give_up("a reply without end")

    def _take(self, reply: Reply) -> None:
        on_message = self._on_message
        if on_message is not None and reply.__class__ is list and len(reply) == 3 and reply[0] == b"message":
            on_message(reply[1], reply[2])
        elif not self._waiting:
            self._give_up("a reply that nobody asked for")
        else:
            _, deferred = self._waiting.popleft()
            if not deferred.called:
                deferred.callback(reply)

    # -- the end

    def _give_up(self, reason: str) -> None:
        if not self._closed:
            transport: Any = self.transport
            waiting = self._end()
            transport.abortConnection()
            self._on_lost(self, reason)
            _fail(waiting, reason)

    def drop(self, reason: str) -> None:
        """Close now; on_lost is not called, whoever waits fails with StoreDown(reason)."""
        if not self._closed:
            transport: Any = self.transport
            waiting = self._end()
            if transport is not None:
                transport.abortConnection()
            _fail(waiting, reason)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._closed:
            why = f"connection lost: {reason.getErrorMessage()}"
            waiting = self._end()
            self._on_lost(self, why)
            _fail(waiting, why)

    def _end(self) -> Waiting:
        """Closed, and who waited is the caller's to tell: after its owner, so that they find it down."""
        self._closed = True
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        waiting, self._waiting = self._waiting, deque()
        return waiting


def _fail(waiting: Waiting, reason: str) -> None:
    for _, deferred in waiting:
        if not deferred.called:
            deferred.errback(StoreDown(reason))
