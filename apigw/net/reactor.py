"""Twisted's epoll reactor, lean where a request pays for it.

Four differences from `EPollReactor`, measured on the whole job as about a third of its CPU:
- an event of our own transports goes straight to them, without `log.callWithLogger` around each;
- `after_turn` runs a function once at the end of the turn, so that what many requests of one turn want to
  say (Redis checks) becomes one write; `after_sends` runs one after all of these, for what nobody waits for;
- `watch_deadlines` asks for the next deadline when the loop is about to wait: one that was taken back, as nearly
  all are, wakes nobody, where a timer of the reactor does even when it was cancelled;
- `seconds()` is the monotonic clock: with `time.time`, a clock stepped back stops every timer (tried).
Everything else, stock transports included, works as Twisted documents it.
"""

import errno
import time
from select import EPOLLOUT
from typing import Any, Callable, Protocol

from twisted.internet.epollreactor import EPollReactor
from twisted.internet.main import installReactor
from twisted.logger import Logger
from twisted.python import log as legacy_log

_MAX_ROUNDS = 8  # of calls that ask for calls at the end of a turn; what is left then runs before the next wait
_LONGEST_WAIT_S = 2_000_000.0  # epoll counts milliseconds in 32 bits
_MAX_EVENTS = 512  # of one epoll_wait; level-triggered, so the rest comes with the next

log = Logger()


class DeadlineSource(Protocol):
    """Asked once a turn, so cheap."""

    def next_due_s(self) -> float | None:
        """The clock's second at which run_due() has something to do, None for never."""

    def run_due(self) -> None:
        """Do what is due. Never raises."""


class LeanReactor(EPollReactor):
    """The reactor of the daemon. Lean descriptors have `lean_io = True` and handle their own losses."""

    seconds = staticmethod(time.monotonic)

    def __init__(self) -> None:
        self._turn_end: list[Callable[[], None]] = []
        self._turn_rest: list[Callable[[], None]] = []
        self._deadline_sources: list[DeadlineSource] = []
        self._due_s = float("inf")  # the earliest deadline, as of the last wait
        self._events: list[tuple[int, int]] = []  # what this turn's poll found
        self._found: frozenset[int] | None = None  # its descriptors, once somebody asked
        super().__init__()

    def after_turn(self, call: Callable[[], None]) -> None:
        """Run `call()` once, at the end of this turn of the loop. Its exception is logged."""
        self._turn_end.append(call)

    def after_sends(self, call: Callable[[], None]) -> None:
        """Run `call()` once, after all that this turn sends. Its exception is logged."""
        self._turn_rest.append(call)

    def may_be_readable(self, fd: int) -> bool:
        """Whether this turn's poll found something on `fd`, a descriptor that is read from since before that poll.

        False is certain, as of the poll; True is not: it may have been read since, or the poll had no room for more.
        """
        found = self._found
        if found is None:
            found = self._found = frozenset([found_fd for found_fd, _ in self._events])
        return fd in found or len(self._events) >= _MAX_EVENTS

    def watch_deadlines(self, source: DeadlineSource) -> None:
        """Wake for this source's deadlines, for the rest of the process."""
        self._deadline_sources.append(source)

    def _until_deadline(self, timeout: float | None) -> float | None:
        """The wait that ends with the next timer or the next deadline, whichever comes first."""
        earliest_s = float("inf")
        for source in self._deadline_sources:
            due_s = source.next_due_s()
            if due_s is not None and due_s < earliest_s:
                earliest_s = due_s
        self._due_s = earliest_s
        if earliest_s != float("inf"):
            left_s = max(0.0, earliest_s - time.monotonic())
            if timeout is None or left_s < timeout:
                return left_s
        return timeout

    def runUntilCurrent(self) -> None:
        """Twisted's, skipped in the turns that have nothing for it: three of four under load."""
        pending = self._pendingTimedCalls
        if (
            self._newTimedCalls
            or self.threadCallQueue
            or self._justStopped
            or (pending and pending[0].time <= time.monotonic())
        ):
            super().runUntilCurrent()

    def _end_turn(self) -> None:
        """A call may ask for another, as what flushes a batch asks for its send: that one runs in this turn too."""
        for _ in range(_MAX_ROUNDS):
            if self._turn_end:
                calls, self._turn_end = self._turn_end, []
            elif self._turn_rest:
                calls, self._turn_rest = self._turn_rest, []
            else:
                return
            for call in calls:
                try:
                    call()
                except Exception:
                    log.failure("an after_turn call failed")

    def timeout(self) -> float | None:
        """Twisted's, without its calls."""
        if self._newTimedCalls:
            self._insertNewDelayedCalls()
        pending = self._pendingTimedCalls
        if not pending:
            return None
        left_s: float = pending[0].time - time.monotonic()
        return 0.0 if left_s < 0.0 else left_s if left_s < _LONGEST_WAIT_S else _LONGEST_WAIT_S

    def doPoll(self, timeout: float | None) -> None:
        if self._turn_end or self._turn_rest:
            self._end_turn()
            timeout = 0
        timeout = self._until_deadline(timeout)
        selectables: dict[int, Any] = self._selectables
        try:
            events = self._poller.poll(-1 if timeout is None else timeout, min(len(selectables), _MAX_EVENTS) or 1)
        except OSError as error:
            if error.errno == errno.EINTR:
                return
            raise
        self._events, self._found = events, None
        stock = self._doReadOrWrite
        for fd, event in events:
            selectable = selectables.get(fd)
            if selectable is None:
                continue
            if not getattr(selectable, "lean_io", False):
                legacy_log.callWithLogger(selectable, stock, selectable, fd, event)
                continue
            try:
                if event & ~EPOLLOUT:  # EPOLLHUP and EPOLLERR too: the read tells what happened
                    selectable.doRead()
                if event & EPOLLOUT and selectable.fileno() == fd:
                    selectable.doWrite()
            except Exception:
                log.failure("a connection's event failed; the connection is closed")
                selectable.abortConnection()
        if time.monotonic() >= self._due_s:
            for source in self._deadline_sources:
                source.run_due()
        if self._turn_end or self._turn_rest:
            self._end_turn()

    doIteration = doPoll


def install() -> LeanReactor:
    """Make it the process's reactor. Raises ReactorAlreadyInstalledError when there is one."""
    reactor = LeanReactor()
    installReactor(reactor)
    return reactor
