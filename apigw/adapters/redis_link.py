"""One connection to Redis: packed commands out, replies to whoever waits for them, in order, and an eye on silence.

open     bytes that are not Redis' protocol, or a reply nobody waits for   closed: on_lost
open     the oldest watched write unanswered for timeout_s                 on_silent; open
open     the connection ends                                               closed: on_lost
any      drop()                                                            closed, and nothing is called any more
"""

from collections import deque
from collections.abc import Callable, Iterable
from typing import Any, Final

import hiredis
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol, connectionDone
from twisted.python.failure import Failure

from apigw.config.redis_url import RedisURL
from apigw.net.deadlines import Bucket, Deadlines

_MAX_REPLY_BYTES: Final = 65_536  # of one unfinished reply; ours have a hundred


Taker = Callable[[Any], None]  # gets its reply; an error reply is a hiredis.ReplyError


def pack(*words: str | bytes | int) -> bytes:
    """One command as the wire wants it."""
    command: bytes = hiredis.pack_command(words)  # type: ignore[arg-type]  # its stub wants a tuple of one
    return command


def opening_of(url: RedisURL) -> tuple[bytes, ...]:
    """AUTH and SELECT, where the URL wants them."""
    opening: list[bytes] = []
    if url.password is not None:
        user = [url.user] if url.user else []  # a user of its own: Redis 6
        opening.append(pack("AUTH", *user, url.password))
    if url.database:
        opening.append(pack("SELECT", url.database))
    return tuple(opening)


class RedisLink(Protocol):
    """Made anew for each connection, by redis_counters.py.

    on_ready(link) when connected; on_lost(link, reason) once at the end; on_silent(link) when the oldest write of
    checks is not answered within timeout_s; on_batch(seconds, checks) when one is answered, late or not.
    """

    def __init__(
        self,
        clock: IReactorTime,
        deadlines: Deadlines,
        timeout_s: float,
        on_ready: "Callable[[RedisLink], None]",
        on_lost: "Callable[[RedisLink, str], None]",
        on_silent: "Callable[[RedisLink], None]",
        on_batch: Callable[[float, int], None],
    ) -> None:
        self.waiting: deque[Taker] = deque()  # in the order of the replies to come
        self._clock = clock
        self._timeout_s = timeout_s
        self._on_ready = on_ready
        self._on_lost = on_lost
        self._on_silent = on_silent
        self._on_batch = on_batch
        self._writes: deque[tuple[float, int, int]] = deque()  # of checks: (sent at, number of last reply, checks)
        self._asked = self._answered = 0  # replies wanted and got
        self._deadlines = deadlines
        self._bucket: Bucket | None = None  # the deadline of the oldest write, one for all
        self._timer: Any = None  # the second look at a silence
        self._reader = hiredis.Reader()
        self._unfinished_bytes = 0
        self._dropped = False

    # -- asking

    def connectionMade(self) -> None:
        transport: Any = self.transport
        if self._dropped:  # connected after we gave up waiting for it
            transport.abortConnection()
            return
        transport.setTcpNoDelay(True)  # else a write waits for the answer to the one before
        self._on_ready(self)

    def ask(self, data: bytes, takers: Iterable[Taker], checks: int = 0) -> None:
        """Send packed commands, one taker each. With `checks` their round trip is measured and its silence told."""
        waiting = self.waiting
        before = len(waiting)
        waiting.extend(takers)
        self._asked += len(waiting) - before
        if checks:
            self._writes.append((self._clock.seconds(), self._asked, checks))
            if self._bucket is None and self._timer is None:
                self._bucket = self._deadlines.add(self._timeout_s, self._look)
        transport: Any = self.transport
        transport.write(data)

    # -- silence

    def _look(self) -> None:
        """Is the oldest write overdue? If so the socket is read once more before we say so: it may be our own loop
        that was late, with the answer waiting in the kernel."""
        self._bucket = None
        if self._writes:
            sent_s, last_reply, _ = self._writes[0]
            left_s = sent_s + self._timeout_s - self._clock.seconds()
            if left_s > 0:
                self._bucket = self._deadlines.add(left_s, self._look)
            else:
                self._timer = self._clock.callLater(0, self._judge_silence, last_reply)

    def _judge_silence(self, last_reply: int) -> None:
        self._timer = None
        if self._answered >= last_reply:
            self._look()
        else:
            self._on_silent(self)

    # -- replies

    def dataReceived(self, data: bytes) -> None:
        if self._dropped:
            return
        before = self._answered
        try:
            self._reader.feed(data)
            self._hand_out()
        except hiredis.ProtocolError as error:
            self._give_up(f"what Redis sent is not its protocol: {error}")
            return
        if self._dropped:
            return
        if self._answered > before:
            self._unfinished_bytes = 0
            self._measure()
        else:
            self._unfinished_bytes += len(data)
            if self._unfinished_bytes > _MAX_REPLY_BYTES:
                self._give_up("a reply without end")

    def _hand_out(self) -> None:
        waiting = self.waiting
        next_reply = self._reader.gets
        while (reply := next_reply()) is not False:
            if self._dropped:  # by a taker
                return
            if not waiting:
                self._give_up("a reply that nobody asked for")
                return
            self._answered += 1
            waiting.popleft()(reply)

    def _measure(self) -> None:
        writes = self._writes
        now_s = self._clock.seconds()
        while writes and writes[0][1] <= self._answered:
            sent_s, _, checks = writes.popleft()
            self._on_batch(now_s - sent_s, checks)
        if not writes:
            self._unset()

    def _unset(self) -> None:
        if self._bucket is not None:
            self._bucket.pop(self._look, None)
            self._bucket = None

    # -- the end

    def _give_up(self, reason: str) -> None:
        if not self._dropped:
            self.drop()
            self._on_lost(self, reason)

    def drop(self) -> None:
        """Close now; nothing more is called back."""
        if not self._dropped:
            self._end()
            transport: Any = self.transport
            if transport is not None:
                transport.abortConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        if not self._dropped:
            self._end()
            self._on_lost(self, f"connection lost: {reason.getErrorMessage()}")

    def _end(self) -> None:
        self._dropped = True
        self._unset()
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
