"""Deadlines by the thousand: setting and dropping one costs a dict entry, not a timer of the reactor.

Deadlines are gathered in buckets of TICK_S; one reactor timer stands for the earliest bucket. A deadline is
never early and at most a tick (40 ms for those of seconds, and the loop's lag) late. Most are taken back long
before: a bucket of its own for each would wake an idle loop for nothing.
"""

from heapq import heappop, heappush
from typing import Any, Callable

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from apigw.constants import TICK_S

Call = Callable[[], None]
Bucket = dict[Call, None]

LONG_TICKS = 8  # deadlines beyond 32 times that share coarser buckets: fewer wake-ups, at most 3% late

log = Logger()


class Deadlines:
    """`bucket = deadlines.add(seconds, call)`; `bucket.pop(call, None)` takes it back. A call stands once a bucket.

    On a LeanReactor it is a deadline source; on any other clock one timer stands for the earliest bucket.
    long_ticks: what deadlines of seconds share; 1 for deadlines that nearly all come to pass, a wake-up each anyway.
    """

    def __init__(self, clock: IReactorTime, tick_s: float = TICK_S, long_ticks: int = LONG_TICKS) -> None:
        self._clock = clock
        self._tick_s = tick_s
        self._long_ticks = long_ticks
        self._long_s = 32 * long_ticks * tick_s
        self._buckets: dict[int, Bucket] = {}
        self._ticks: list[int] = []  # heap of the buckets' ticks
        self._timer: Any = None
        self._timer_tick = 0
        watch = getattr(clock, "watch_deadlines", None)
        self._watched = watch is not None
        if watch is not None:
            watch(self)

    def add(self, delay_s: float, call: Call) -> Bucket:
        """Have `call()` run `delay_s` from now. Its exception is logged, never raised into the loop."""
        tick = int((self._clock.seconds() + delay_s) / self._tick_s) + 1
        if delay_s > self._long_s:
            tick += -tick % self._long_ticks
        bucket = self._buckets.get(tick)
        if bucket is None:
            bucket = self._buckets[tick] = {}
            heappush(self._ticks, tick)
            if not self._watched and (self._timer is None or tick < self._timer_tick):
                self._arm()
        bucket[call] = None
        return bucket

    def next_due_s(self) -> float | None:
        """When the first bucket that is not empty is due. Buckets whose deadlines were all taken back go."""
        ticks, buckets = self._ticks, self._buckets
        while ticks and not buckets[ticks[0]]:
            del buckets[heappop(ticks)]
        return ticks[0] * self._tick_s if ticks else None

    def run_due(self) -> None:
        """Run what is due by now."""
        ticks = self._ticks
        if not ticks:
            return
        now_tick = self._clock.seconds() / self._tick_s + 1e-6
        while ticks and ticks[0] <= now_tick:
            bucket = self._buckets.pop(heappop(ticks))
            while bucket:
                call, _ = bucket.popitem()
                try:
                    call()
                except Exception:
                    log.failure("a deadline's call failed")

    def _arm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._ticks:
            self._timer_tick = self._ticks[0]
            delay_s = self._timer_tick * self._tick_s - self._clock.seconds()
            self._timer = self._clock.callLater(max(0.0, delay_s), self._fire)

    def _fire(self) -> None:
        self._timer = None
        self.run_due()
        if not self._watched:
            self._arm()

    def stop(self) -> None:
        """Forget every deadline; at the end of the process only."""
        self._buckets.clear()
        self._ticks.clear()
        if not self._watched:
            self._arm()
