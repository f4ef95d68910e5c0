"""Work that comes again: the one base class of everything that runs by the clock.

Twisted's LoopingCall stops for good when its function raises, knows no jitter and no back-off, and waits for
ever for a Deferred that never fires. A Poller does not: whatever poll() does, the next one is set.

    stopped --startService--> polling --poll() ended, well or not--> waiting --delay--> polling
    any     --stopService---> stopped: the poll in flight is cancelled, whoever waits for it gets False
"""

from typing import Any, Callable

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred, TimeoutError, maybeDeferred, succeed
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

_TOLD_AT_ONCE = 50

log = Logger()


class PollFailed(Exception):
    """A poll failed as polls do (refused, not found, nonsense): one line in the log and no traceback."""


def _no_jitter() -> float:
    return 0.0


class Poller(Service):
    """Calls poll() when started and every `interval_s` seconds from then on; subclasses say what a poll is.

    jitter: each delay is shortened by up to this fraction, drawn by `draw` (a number in [0, 1), such as
    random.random), so that many processes do not ask at the same moment and none asks late.
    timeout_s: a poll that takes longer is cancelled and has failed. first_delay_s: from the start to the first poll.

    last_success: the clock's seconds at the end of the last good poll, None before it.
    failures, consecutive_failures: polls that failed, ever and since the last good one.
    """

    def __init__(
        self,
        clock: IReactorTime,
        interval_s: float,
        *,
        name: str,
        jitter: float = 0.0,
        draw: Callable[[], float] = _no_jitter,
        timeout_s: float | None = None,
        first_delay_s: float = 0.0,
    ) -> None:
        self.clock = clock
        self.interval_s = interval_s
        self.last_success: float | None = None
        self.failures = 0
        self.consecutive_failures = 0
        self._poll_title = name  # Service.name must be unique among siblings; this is for the log
        self._poll_jitter = jitter
        self._poll_draw = draw
        self._poll_timeout_s = timeout_s
        self._poll_first_delay_s = first_delay_s
        self._poll_began_s = 0.0
        self._poll_timer: Any = None
        self._poll_in_flight: Deferred[Any] | None = None
        self._poll_waiting: dict[Deferred[bool], None] = {}

    def poll(self) -> "Deferred[Any] | None":
        """One piece of work. May raise or fail with anything: it is logged and counted. Made by subclasses."""
        raise NotImplementedError

    def delay_s(self) -> float:
        """Seconds until the next poll, before jitter; asked after each poll, so a subclass may back off.

        Counted from the beginning of the poll that ended, or from its end when it took longer than that.
        """
        return self.interval_s

    @property
    def in_flight(self) -> bool:
        """Whether a poll has begun and not ended."""
        return self._poll_in_flight is not None

    @property
    def waiting(self) -> int:
        """How many callers of poll_now() wait."""
        return len(self._poll_waiting)

    def startService(self) -> None:
        """Begin; the first poll is made from here unless first_delay_s is set. Nothing when it runs already."""
        if self.running:
            return
        Service.startService(self)
        if self._poll_first_delay_s > 0:
            self._poll_timer = self.clock.callLater(self._poll_first_delay_s, self._poll_begin)
        else:
            self._poll_begin()

    def stopService(self) -> None:
        """Stop at once; a poll in flight is cancelled and no longer counted."""
        Service.stopService(self)
        self._poll_unset()
        in_flight, self._poll_in_flight = self._poll_in_flight, None
        if in_flight is not None:
            in_flight.cancel()
        self._poll_tell(False)

    def poll_now(self) -> "Deferred[bool]":
        """Poll without waiting for the delay, or join the poll in flight: True when it went well.

        Each caller gets its own Deferred, cancelled without harm to the others. False at once when not started.
        """
        if not self.running:
            return succeed(False)
        waiting: Deferred[bool] = Deferred(self._poll_forget)
        self._poll_waiting[waiting] = None
        if self._poll_in_flight is None:
            self._poll_begin()
        return waiting

    def poll_within(self, delay_s: float) -> None:
        """Bring the next poll forward, to `delay_s` from now; it is never put off. A poll that is in flight is
        followed as delay_s() says."""
        timer, delay_s = self._poll_timer, max(0.0, delay_s)
        if timer is not None and timer.active() and timer.getTime() > self.clock.seconds() + delay_s:
            timer.reset(delay_s)

    def _poll_forget(self, waiting: "Deferred[bool]") -> None:
        self._poll_waiting.pop(waiting, None)

    def _poll_unset(self) -> None:
        timer, self._poll_timer = self._poll_timer, None
        if timer is not None and timer.active():
            timer.cancel()

    def _poll_begin(self) -> None:
        self._poll_unset()
        self._poll_began_s = self.clock.seconds()
        in_flight: Deferred[Any] = maybeDeferred(self.poll)
        self._poll_in_flight = in_flight
        if self._poll_timeout_s is not None:
            in_flight.addTimeout(self._poll_timeout_s, self.clock)
        in_flight.addCallbacks(self._poll_went_well, self._poll_went_wrong, (in_flight,), {}, (in_flight,))
        in_flight.addErrback(self._poll_broke)

    def _poll_went_well(self, _: object, in_flight: "Deferred[Any]") -> None:
        if self._poll_in_flight is not in_flight:
            return  # stopped meanwhile
        if self.consecutive_failures:
            count = self.consecutive_failures
            log.info("{name}: good again after {count} failures", name=self._poll_title, count=count)
        self.last_success = self.clock.seconds()
        self.consecutive_failures = 0
        self._poll_end(True)

    def _poll_went_wrong(self, failure: Failure, in_flight: "Deferred[Any]") -> None:
        if self._poll_in_flight is not in_flight:
            return
        self.failures += 1
        self.consecutive_failures += 1
        self._poll_log(failure)
        self._poll_end(False)

    def _poll_log(self, failure: Failure) -> None:
        """The 1st, 2nd, 4th, 8th ... failure in a row: an outage of hours is a few lines."""
        count = self.consecutive_failures
        if count & (count - 1):
            return
        error = failure.value
        if isinstance(error, (PollFailed, TimeoutError, CancelledError)):
            why = str(error) or type(error).__name__
            log.warn("{name}: failed, {count} in a row: {why}", name=self._poll_title, count=count, why=why)
        else:
            log.failure("{name}: failed, {count} in a row", failure=failure, name=self._poll_title, count=count)

    def _poll_end(self, good: bool) -> None:
        self._poll_in_flight = None
        if self.running:  # poll() itself may have stopped the service
            delay_s = self.delay_s() * (1.0 - self._poll_jitter * self._poll_draw())
            left_s = self._poll_began_s + delay_s - self.clock.seconds()
            self._poll_timer = self.clock.callLater(left_s if left_s > 0 else delay_s, self._poll_begin)
        self._poll_tell(good)

    def _poll_tell(self, good: bool) -> None:
        waiting, self._poll_waiting = self._poll_waiting, {}
        self._poll_tell_some(list(waiting), good)

    def _poll_tell_some(self, waiting: "list[Deferred[bool]]", good: bool) -> None:
        """A slice a turn of the loop: what a thousand requests do when they go on would hold it for 50 ms."""
        for one in waiting[:_TOLD_AT_ONCE]:
            if not one.called:  # cancelled by one that was told before it
                one.callback(good)
        if len(waiting) > _TOLD_AT_ONCE:
            self.clock.callLater(0, self._poll_tell_some, waiting[_TOLD_AT_ONCE:], good)

    def _poll_broke(self, failure: Failure) -> None:
        """A defect in delay_s() or draw: the next poll is set all the same."""
        log.failure("{name}: cannot say when to poll next", failure=failure, name=self._poll_title)
        if self.running and self._poll_timer is None:
            self._poll_timer = self.clock.callLater(self.interval_s, self._poll_begin)
        self._poll_tell(False)
