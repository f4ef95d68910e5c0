"""One connection to one Redis that counts, and whether it is of use: kept, probed, given up and made anew.

    state                 event                                         then
    down, no connection   back-off over (0.05 s .. 1 s, jittered)       connect; opening commands and a probe
    down, connected       probe answered within timeout_s               up
                          probe answered late, or with an error         the next probe, 0.25 s after that one
                          probe unanswered for 1 s                      connection aborted
                          an error that a new connection may cure       connection aborted
                          it is a replica, where a master is wanted     connection aborted
    up                    a check unanswered for timeout_s              down: all unanswered checks fail; probe
                          an error reply that is not about one key      down: likewise
    any                   connection lost, or garbage on it             down, no connection
    any                   renew()                                       down; connect at once

A probe is the real script on a counter of its own, so that it meets what checks would meet: READONLY, OOM,
LOADING, MISCONF, NOREPLICAS. While down a check costs the raising of CounterStoreDown and nothing else.
A frozen Redis accepts connections (its kernel does) and never answers: hence aborting on silence.
"""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

from hiredis import ReplyError
from twisted.application.service import Service
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from apigw.adapters.redis_link import RedisLink, opening_of, pack
from apigw.adapters.redis_probe import Probe
from apigw.adapters.redis_script import LOAD, PROBE, Question, cured_by_new_connection
from apigw.adapters.redis_told import Told
from apigw.config.model import RedisSection
from apigw.config.redis_url import SENTINEL, RedisURL
from apigw.net.deadlines import Deadlines

CONNECT_TIMEOUT_S: Final = 1.0  # to find the master, if need be, and to connect
FIRST_BACKOFF_S: Final = 0.05
LAST_BACKOFF_S: Final = 1.0
_TICK_S: Final = 0.001  # timeout_ms is 5 by default: late by no more than a fifth
_ROLE: Final = pack("ROLE")

Connect = Callable[[RedisLink], "Deferred[Any]"]  # puts it on a new connection; fires when that is made


def unobserved(duration_s: float, checks: int) -> None:
    """Nobody observes."""


def unheard() -> None:
    """Nobody wants to know."""


def ignored(reply: Any) -> None:
    """For SCRIPT LOAD and ASKING. If the former failed (LOADING), the probe tells."""


class RedisNode(Service):
    """The connection of counters (redis_counters.py), which say what fails with it: see _unanswered().

    connect: puts the given link on a new connection; fires when that is made.
    after_turn: runs a function once at the end of this turn of the reactor; joins a turn's checks into one write.
    section: its URL says with which commands a connection begins, and whether it must be a master's: what sentinels
    named may be a replica by now. title: who it is, in the log.
    on_batch: called with the round trip in seconds and the number of checks of each write. on_change: when it goes up
    or down, and when its first try fails. draw: a number in [0, 1) for the back-off's jitter.

    up, last_error, reconnects: for metrics and /status. fresh: it was never up, and nothing went wrong yet.
    probe: the probe's command, may be set.
    """

    def __init__(
        self,
        connect: Connect,
        clock: IReactorTime,
        after_turn: Callable[[Callable[[], None]], Any],
        section: RedisSection,
        *,
        title: str = "Redis",
        on_batch: Callable[[float, int], None] = unobserved,
        on_change: Callable[[], None] = unheard,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.up = False
        self.fresh = True
        self.last_error: str | None = "not connected yet"
        self.reconnects = 0
        self.probe = PROBE
        url = RedisURL.of(section.url)
        self._opening = opening_of(url)
        self._needs_master = url.kind == SENTINEL
        self._connect_link = connect
        self._clock = clock
        self._after_turn = after_turn
        self._timeout_s = section.timeout_s
        self._deadlines = Deadlines(clock, _TICK_S)
        self._on_batch = on_batch
        self._on_change = on_change
        self._draw = draw
        self._link: RedisLink | None = None  # the connection, also while it is being made
        self._connecting: Deferred[Any] | None = None
        self._connections = 0
        self._backoff_s = FIRST_BACKOFF_S
        self._up_since_s = 0.0
        self._connect_timer: Any = None
        self._probing = Probe(clock, section.timeout_s, self._probe, self._probed, self._abandon)
        self._told = Told(clock, title)

    def _unanswered(self, link: RedisLink | None) -> Sequence[Question]:
        """Takes out what must fail with `link`."""
        raise NotImplementedError

    # -- up and down

    def _go_up(self) -> None:
        self.up = True
        self.fresh = False
        self.last_error = None
        self._up_since_s = self._clock.seconds()
        self._probing.reset()
        self._told.changed(True, None)
        self._on_change()

    def _go_down(self, reason: str, link: RedisLink | None) -> None:
        """All that wait on `link` fail. Its late answers find nobody."""
        was_up, self.up = self.up, False
        was_fresh, self.fresh = self.fresh, False
        if was_up and self._clock.seconds() - self._up_since_s >= LAST_BACKOFF_S:
            self._backoff_s = FIRST_BACKOFF_S  # it was good for a while; else each flap would reset the back-off
        self.last_error = reason
        failed = self._unanswered(link)
        if self.running:
            self._told.changed(False, reason)
        if self._link is not None and self._connect_timer is None:
            self._probing.later()
        for question in failed:
            question.fail(reason)
        if was_up or was_fresh:
            self._on_change()

    def _silent(self, link: RedisLink) -> None:
        if self.up:
            self._go_down(f"no answer within {self._timeout_s * 1000:g} ms", link)

    def _error(self, text: str) -> None:
        """Redis refuses what every check does."""
        if cured_by_new_connection(text):
            self._abandon(text)
        else:
            self._go_down(text, self._link)

    # -- the probe

    def _probe(self, taker: Callable[[Any], None]) -> None:
        if self._link is not None:
            self._link.ask(self.probe, [taker])

    def _probed(self, reply: Any, late: bool) -> None:
        text = str(reply)[:200]
        if not isinstance(reply, ReplyError):
            if reply.__class__ is not list:
                self._abandon("the probe's answer is not the script's")
                return
            if not late:
                self._go_up()
                return
            text = f"answers take longer than {self._timeout_s * 1000:g} ms"
        elif text.startswith("NOSCRIPT") and self._link is not None:
            self._link.ask(LOAD, [ignored])
        self._error(text)

    # -- the connection

    def startService(self) -> None:
        """Begin to connect; checks raise CounterStoreDown until a probe was answered."""
        Service.startService(self)
        self._connect()

    def stopService(self) -> None:
        """Close the connection; checks in flight fail with CounterStoreDown."""
        Service.stopService(self)
        self._disconnect("stopped")
        self._told.stop()

    def renew(self, reason: str) -> None:
        """This connection leads to the wrong server by now: away with it, and connect at once."""
        self._disconnect(reason)
        self._backoff_s = FIRST_BACKOFF_S
        if self.running:
            self._connect()

    def _connect(self) -> None:
        self._connect_timer = None
        link = RedisLink(
            self._clock, self._deadlines, self._timeout_s, self._connected, self._lost, self._silent, self._on_batch
        )
        self._link = link
        connecting = self._connecting = maybeDeferred(self._connect_link, link)
        connecting.addTimeout(CONNECT_TIMEOUT_S, self._clock)
        connecting.addErrback(self._not_connected, link)

    def _not_connected(self, failure: Failure, link: RedisLink) -> None:
        self._lost(link, f"cannot connect: {failure.getErrorMessage() or failure.value!r}")

    def _connected(self, link: RedisLink) -> None:
        if link is not self._link:
            return
        self._connections += 1
        self.reconnects = self._connections - 1
        commands, takers = list(self._opening), [self._opened] * len(self._opening)
        if self._needs_master:
            commands.append(_ROLE)
            takers.append(self._role)
        link.ask(b"".join(commands) + LOAD, [*takers, ignored])
        self._probing.now()

    def _opened(self, reply: Any) -> None:
        """AUTH and SELECT must succeed: without SELECT we would count in another's database."""
        if isinstance(reply, ReplyError):
            self._abandon(str(reply)[:200])

    def _role(self, reply: Any) -> None:
        if isinstance(reply, list) and reply and reply[0] != b"master":
            self._abandon("it is a replica, not the master")

    def _lost(self, link: RedisLink, reason: str) -> None:
        if link is self._link:
            self._abandon(reason)

    def _abandon(self, reason: str) -> None:
        """No more of this connection; the next one after the back-off."""
        self._disconnect(reason)
        if self.running and self._connect_timer is None and self._link is None:
            delay_s = self._backoff_s * (0.5 + 0.5 * self._draw())
            self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)
            self._connect_timer = self._clock.callLater(delay_s, self._connect)

    def _disconnect(self, reason: str) -> None:
        link, self._link = self._link, None
        self._probing.stop()
        timer, self._connect_timer = self._connect_timer, None
        if timer is not None:
            timer.cancel()
        if link is not None:
            link.drop()
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        self._go_down(reason, link)
