"""Rate counters in Redis: one connection a worker, one script call a request, one write a turn of the loop.

    state                 event                                         then
    down, no connection   back-off over (0.05 s .. 1 s, jittered)       connect; opening commands and a probe
    down, connected       probe answered within timeout_s               up
                          probe answered late, or with an error         the next probe, 0.25 s after that one
                          probe unanswered for 1 s                      connection aborted
                          an error that a new connection may cure       connection aborted
    up                    a check unanswered for timeout_s              down: all unanswered checks fail; probe
                          an error reply that is not about one key      down: likewise
    any                   connection lost, or garbage on it             down, no connection

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
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.adapters.redis_link import RedisAddress, RedisLink
from apigw.adapters.redis_script import LOAD, PROBE, Check, Settlement, about_one_key, cured_by_new_connection, packed
from apigw.config.model import RedisSection
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown
from apigw.net.deadlines import Deadlines

CONNECT_TIMEOUT_S: Final = 0.5  # a Redis that takes longer is of no use to a check of 5 ms
FIRST_PROBE_S: Final = 0.02  # since the last one, when the store goes down: most silences are hiccups
PROBE_INTERVAL_S: Final = 0.25  # after a probe that failed; enforcement is to be back within 2 s of Redis
PROBE_TIMEOUT_S: Final = 1.0  # then the connection is given up: its peer may be frozen, or gone without a word
FIRST_BACKOFF_S: Final = 0.05
LAST_BACKOFF_S: Final = 1.0
MAX_OUTSTANDING: Final = 10_000  # checks without an answer; more than 5 ms of any load
_TICK_S: Final = 0.001  # timeout_ms is 5 by default: late by no more than a fifth
_LOG_GAP_S: Final = 1.0  # a Redis that flaps four times a second is one line a second

log = Logger()


def _ignore(duration_s: float, checks: int) -> None:
    """Nobody observes."""


def _loaded(reply: Any) -> None:
    """SCRIPT LOAD was answered. If it failed (LOADING), the probe tells."""


def _cancel(timer: Any) -> None:
    if timer is not None and timer.active():
        timer.cancel()


class RedisCounters(Service):
    """A CounterStore over one Redis, shared by all gateways that use it.

    connect: puts the given Protocol on a new connection to RedisAddress.of(section.url); fires when it is made.
    after_turn: runs a function once at the end of this turn of the reactor; joins a turn's checks into one write.
    on_batch: called with the round trip in seconds and the number of checks of each write.
    draw: a number in [0, 1) for the back-off's jitter.

    up, last_error, reconnects: for metrics and /status.
    """

    def __init__(
        self,
        connect: Callable[[RedisLink], "Deferred[Any]"],
        clock: IReactorTime,
        after_turn: Callable[[Callable[[], None]], Any],
        section: RedisSection,
        *,
        on_batch: Callable[[float, int], None] = _ignore,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self.up = False
        self.last_error: str | None = "not connected yet"
        self.reconnects = 0
        self._connect_link = connect
        self._clock = clock
        self._after_turn = after_turn
        self._opening = RedisAddress.of(section.url).opening
        self._timeout_s = section.timeout_s
        self._deadlines = Deadlines(clock, _TICK_S)
        self._on_batch = on_batch
        self._draw = draw
        self._link: RedisLink | None = None  # the connection, also while it is being made
        self._connecting: Deferred[Any] | None = None
        self._connections = 0
        self._backoff_s = FIRST_BACKOFF_S
        self._up_since_s = 0.0
        self._batch: list[Check | Settlement] = []  # of this turn
        self._again: list[Check] = []  # of this turn, met NOSCRIPT
        self._next_timer: Any = None  # to the next connect, or on a connection to the next probe
        self._probe_timers: list[Any] = []  # of the probe in flight
        self._probe_late = False
        self._probed_s = float("-inf")
        self._probe_interval_s = PROBE_INTERVAL_S
        self._log_timer: Any = None
        self._logged_up: bool | None = None
        self._logged_s = float("-inf")

    # -- the port

    def take(self, demands: Sequence[Demand], now_s: float) -> "Deferred[Counted]":
        """Count one request against all of `demands` or none; `now_s` is in epoch seconds.

        Raises CounterStoreDown at once while down; the Deferred fails with it when Redis does not answer in time.
        """
        link = self._link
        if not self.up or link is None:
            raise CounterStoreDown(self.last_error)
        batch = self._batch
        if len(batch) + len(link.waiting) >= MAX_OUTSTANDING:
            raise CounterStoreDown("too many checks wait for Redis")
        if not batch:
            self._after_turn(self._flush)
        deferred: Deferred[Counted] = Deferred()
        batch.append(Check(deferred, packed(demands, now_s), 1 + 2 * len(demands), self._refused))
        return deferred

    def add(self, demand: Demand, count: int, start_s: int) -> None:
        """Requests counted elsewhere, to the window that began at `start_s`; before the checks of this turn."""
        if self.up and self._link is not None:
            if not self._batch:
                self._after_turn(self._flush)
            key = f"{demand.key}:{start_s}"
            # the counter may be gone by now, evicted or flushed: without a TTL of its own it would live for ever
            self._batch += Settlement("INCRBY", key, count), Settlement("EXPIRE", key, 2 * demand.window_s)

    def _flush(self) -> None:
        batch, self._batch = self._batch, []
        if batch and self._link is not None:  # else it failed together with the connection
            self._link.ask(b"".join([check.command for check in batch]), batch, len(batch))

    def _refused(self, check: Check, reply: Any) -> None:
        """A check was not answered with counts."""
        text = str(reply)[:200]
        if not isinstance(reply, ReplyError):
            self._abandon("a check's answer is not the script's")
        elif text.startswith("NOSCRIPT") and not check.second_try:  # SCRIPT FLUSH, or a failover
            check.second_try = True
            if not self._again:
                self._after_turn(self._ask_again)
            self._again.append(check)
            return
        elif not about_one_key(text):
            self._error(text)
        check.fail(text)

    def _ask_again(self) -> None:
        """Load the script and repeat what missed it, once."""
        again, self._again = self._again, []
        if again and self._link is not None:
            commands = LOAD + b"".join([check.command for check in again])
            self._link.ask(commands, [_loaded, *again], len(again))

    # -- up and down

    def _go_up(self) -> None:
        self.up = True
        self.last_error = None
        self._up_since_s = self._clock.seconds()
        self._probe_interval_s = FIRST_PROBE_S  # of the next outage
        self._announce()

    def _go_down(self, reason: str, link: RedisLink | None) -> None:
        """All that wait on `link` fail. Its late answers find nobody."""
        if self.up and self._clock.seconds() - self._up_since_s >= LAST_BACKOFF_S:
            self._backoff_s = FIRST_BACKOFF_S  # it was good for a while; else each flap would reset the back-off
        self.up = False
        self.last_error = reason
        failed = self._batch + self._again
        self._batch, self._again = [], []
        if link is not None:
            failed += [check for check in link.waiting if isinstance(check, Check)]
        self._announce()
        if self._link is not None:
            self._probe_later()
        for check in failed:
            check.fail(reason)

    def _silent(self, link: RedisLink) -> None:
        if self.up:
            self._go_down(f"no answer within {self._timeout_s * 1000:g} ms", link)

    def _error(self, text: str) -> None:
        """Redis refuses what every check does."""
        if cured_by_new_connection(text):
            self._abandon(text)
        else:
            self._go_down(text, self._link)

    def _announce(self) -> None:
        """Log a change of state, at most once in _LOG_GAP_S, and then what holds by then."""
        if self._logged_up is self.up or self._log_timer is not None or not self.running:
            return
        left_s = self._logged_s + _LOG_GAP_S - self._clock.seconds()
        if left_s > 0:
            self._log_timer = self._clock.callLater(left_s, self._announce_late)
            return
        self._logged_up, self._logged_s = self.up, self._clock.seconds()
        if self.up:
            log.info("Redis answers rate limit checks")
        else:
            log.warn("Redis is down for rate limit checks: {reason}", reason=self.last_error)

    def _announce_late(self) -> None:
        self._log_timer = None
        self._announce()

    # -- the probe

    def _probe_later(self) -> None:
        """One probe at a time, not at once after the last."""
        if not self._probe_timers and self._next_timer is None:
            delay_s = self._probed_s + self._probe_interval_s - self._clock.seconds()
            self._next_timer = self._clock.callLater(max(0.0, delay_s), self._probe)

    def _probe(self) -> None:
        self._next_timer = None
        if self._link is None:
            return
        self._probed_s = self._clock.seconds()
        self._probe_interval_s = PROBE_INTERVAL_S
        self._probe_late = False
        later = self._clock.callLater
        self._probe_timers = [
            later(self._timeout_s, self._probe_overdue),
            later(PROBE_TIMEOUT_S, self._abandon, f"no answer within {PROBE_TIMEOUT_S:g} s"),
        ]
        self._link.ask(PROBE, [self._probe_answered])

    def _probe_overdue(self) -> None:
        """After one more look at the socket, as for checks."""
        self._probe_timers.append(self._clock.callLater(0, self._probe_is_late))

    def _probe_is_late(self) -> None:
        self._probe_late = True

    def _probe_answered(self, reply: Any) -> None:
        self._end_probe()
        text = str(reply)[:200]
        if not isinstance(reply, ReplyError):
            if reply.__class__ is not list:
                self._abandon("the probe's answer is not the script's")
                return
            if not self._probe_late:
                self._go_up()
                return
            text = f"answers take longer than {self._timeout_s * 1000:g} ms"
        elif text.startswith("NOSCRIPT") and self._link is not None:
            self._link.ask(LOAD, [_loaded])
        self._error(text)

    def _end_probe(self) -> None:
        for timer in self._probe_timers:
            _cancel(timer)
        self._probe_timers = []

    # -- the connection

    def startService(self) -> None:
        """Begin to connect; checks raise CounterStoreDown until a probe was answered."""
        Service.startService(self)
        self._connect()

    def stopService(self) -> None:
        """Close the connection; checks in flight fail with CounterStoreDown."""
        Service.stopService(self)
        self._disconnect("stopped")
        _cancel(self._log_timer)
        self._log_timer = None

    def _connect(self) -> None:
        self._next_timer = None
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
        takers = [self._opened] * len(self._opening)
        link.ask(b"".join(self._opening) + LOAD, [*takers, _loaded])
        self._probe()

    def _opened(self, reply: Any) -> None:
        """AUTH and SELECT must succeed: without SELECT we would count in another's database."""
        if isinstance(reply, ReplyError):
            self._abandon(str(reply)[:200])

    def _lost(self, link: RedisLink, reason: str) -> None:
        if link is self._link:
            self._abandon(reason)

    def _abandon(self, reason: str) -> None:
        """No more of this connection; the next one after the back-off."""
        self._disconnect(reason)
        if self.running and self._next_timer is None:
            delay_s = self._backoff_s * (0.5 + 0.5 * self._draw())
            self._backoff_s = min(2 * self._backoff_s, LAST_BACKOFF_S)
            self._next_timer = self._clock.callLater(delay_s, self._connect)

    def _disconnect(self, reason: str) -> None:
        link, self._link = self._link, None
        self._end_probe()
        _cancel(self._next_timer)
        self._next_timer = None
        if link is not None:
            link.drop()
        connecting, self._connecting = self._connecting, None
        if connecting is not None:
            connecting.cancel()
        self._go_down(reason, link)
