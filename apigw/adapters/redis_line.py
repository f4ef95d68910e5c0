"""A connection to Redis that is kept: made again after it broke, and asked every while whether it still lives.

    state        event                                             then
    stopped      startService                                      connecting
    connecting   connected                                         opening: AUTH, SELECT, SUBSCRIBE ... are asked
    connecting   not within CONNECT_TIMEOUT_S, or refused          waiting
    opening      each was answered well                            up: on_up
    opening      one was not                                       waiting
    up           PING_EVERY_S over                                 PING; unanswered for a second: waiting, on_down
    up           connection lost, or renew()                       waiting, on_down
    waiting      back-off over (0.05 s .. 1 s, jittered)           connecting
    any          stopService                                       stopped, on_down if it was up

A peer that was frozen, or went away without a word, is noticed within PING_EVERY_S + TIMEOUT_S even by a
subscription, which has nothing to ask.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from hiredis import ReplyError
from twisted.application.service import Service
from twisted.internet.defer import Deferred, fail, gatherResults, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.protocol import Protocol
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.adapters.redis_conversation import RedisConversation, Reply
from apigw.adapters.redis_link import pack
from apigw.errors import StoreDown

CONNECT_TIMEOUT_S: Final = 1.0
PING_EVERY_S: Final = 0.75
FIRST_BACKOFF_S: Final = 0.05
LAST_BACKOFF_S: Final = 1.0
_PING: Final = pack("PING")

log = Logger()

Connect = Callable[[Protocol], "Deferred[Any]"]  # puts a Protocol on a new connection; fires when it is made


def _nobody() -> None:
    """Who does not want to know."""


class RedisLine(Service):
    """One kept connection.

    opening: packed commands that begin every connection; all must be answered without an error. on_up, on_down: the
    connection is of use from here, to here. on_message: see RedisConversation. title: for the log, "shared store".
    draw: a number in [0, 1) for the back-off's jitter.

    up, last_error, reconnects: for metrics and /status.
    """

    def __init__(
        self,
        connect: Connect,
        clock: IReactorTime,
        opening: Sequence[bytes],
        *,
        title: str,
        on_up: Callable[[], None] = _nobody,
        on_down: Callable[[], None] = _nobody,
        on_message: Callable[[bytes, bytes], None] | None = None,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.up = False
        self.last_error: str | None = "not connected yet"
        self.reconnects = 0
        self._connect_line = connect
        self._clock = clock
        self._opening = (*opening, _PING)
        self._title = title
        self._on_up = on_up
        self._on_down = on_down
        self._on_message = on_message
        self._draw = draw
        self._conversation: RedisConversation | None = None
        self._connecting: Deferred[Any] | None = None
        self._timer: Any = None  # to the next connect, or to the next PING
        self._backoff_s = FIRST_BACKOFF_S
        self._up_since_s = 0.0
        self._times_up = 0
        self._told_down = False

    def ask(self, command: bytes, key: str | None = None) -> "Deferred[Reply]":
        """A packed command. An error reply is a value, a ReplyError. Fails with StoreDown; while down at once.

        `key` is for the lines of a cluster (redis_cluster_lines.py); one line has all keys.
        """
        if not self.up or self._conversation is None:
            return fail(StoreDown(self.last_error))
        return self._conversation.ask(command)

    def renew(self, reason: str) -> None:
        """This connection leads to the wrong place by now: give it up and make another, soon."""
        if self._conversation is not None:
            self._lost(self._conversation, reason)

    # -- the connection

    def startService(self) -> None:
        Service.startService(self)
        self._connect()

    def stopService(self) -> None:
        """Close; what waits fails with StoreDown."""
        Service.stopService(self)
        self._end("stopped")

    def _connect(self) -> None:
        self._timer = None
        conversation = RedisConversation(self._clock, self._open, self._lost, self._on_message)
        self._conversation = conversation
        connecting = self._connecting = maybeDeferred(self._connect_line, conversation)
        connecting.addTimeout(CONNECT_TIMEOUT_S, self._clock)
        connecting.addErrback(self._not_connected, conversation)

    def _not_connected(self, failure: Failure, conversation: RedisConversation) -> None:
        self._lost(conversation, f"cannot connect: {failure.getErrorMessage() or failure.value!r}")

    def _open(self, conversation: RedisConversation) -> None:
        opened = gatherResults([conversation.ask(command) for command in self._opening], consumeErrors=True)
        opened.addCallbacks(self._opened, self._not_opened, (conversation,), {}, (conversation,))
        opened.addErrback(self._broke)

    def _opened(self, replies: list[Reply], conversation: RedisConversation) -> None:
        if conversation is not self._conversation:
            return
        refused = next((reply for reply in replies if isinstance(reply, ReplyError)), None)
        if refused is not None:
            self.renew(str(refused)[:200])
            return
        self._times_up += 1
        self.reconnects = self._times_up - 1
        self._up_since_s = self._clock.seconds()
        self.up, self.last_error = True, None
        if self._told_down or self._times_up == 1:
            self._told_down = False
            log.info("Redis answers as {title}", title=self._title)
        self._timer = self._clock.callLater(PING_EVERY_S, self._ping)
        self._on_up()

    def _not_opened(self, failure: Failure, conversation: RedisConversation) -> None:
        """Its connection was lost, which _lost() has seen to."""

    def _broke(self, failure: Failure) -> None:
        log.failure("{title}: what begins with a connection failed", failure=failure, title=self._title)

    def _ping(self) -> None:
        self._timer = self._clock.callLater(PING_EVERY_S, self._ping)
        if self._conversation is not None:
            self._conversation.ask(_PING).addErrback(lambda _: None)  # silence and loss are told by on_lost

    def _lost(self, conversation: RedisConversation, reason: str) -> None:
        if conversation is not self._conversation:
            return
        if self.up and self._clock.seconds() - self._up_since_s >= LAST_BACKOFF_S:
            self._backoff_s = FIRST_BACKOFF_S  # it was good for a while; else each flap would reset the back-off
        self._end(reason)
        if self.running:
            if not self._told_down:
                self._told_down = True
                log.warn("Redis is down as {title}: {reason}", title=self._title, reason=reason)
            delay_s = self._backoff_s * (0.5 + 0.5 * self._draw())
            self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)
            self._timer = self._clock.callLater(delay_s, self._connect)

    def _end(self, reason: str) -> None:
        was_up, self.up, self.last_error = self.up, False, reason
        timer, self._timer = self._timer, None
        if timer is not None and timer.active():
            timer.cancel()
        conversation, self._conversation = self._conversation, None
        if conversation is not None:
            conversation.drop(reason)
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        if was_up:
            self._on_down()
