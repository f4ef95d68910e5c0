"""When a Redis that is down is asked whether it is of use again: one probe at a time, and not at once after the last.

idle      now(), or later() and the interval over     asked
asked     answered                                    idle: on_answer(reply, late)
asked     unanswered for 1 s                          idle: on_silence(reason)
any       stop()                                      idle, nothing is called
"""

from collections.abc import Callable
from typing import Any, Final

from twisted.internet.interfaces import IReactorTime

FIRST_PROBE_S: Final = 0.02  # since the last one, when the store goes down: most silences are hiccups
PROBE_INTERVAL_S: Final = 0.25  # after a probe that failed; enforcement is to be back within 2 s of Redis
PROBE_TIMEOUT_S: Final = 1.0  # then the connection is given up: its peer may be frozen, or gone without a word


def _cancel(timer: Any) -> None:
    if timer is not None and timer.active():
        timer.cancel()


class Probe:
    """Made once a node; lives through its connections.

    send: sends the probe and has its reply given to the taker. An answer is late after timeout_s.
    """

    def __init__(
        self,
        clock: IReactorTime,
        timeout_s: float,
        send: Callable[[Callable[[Any], None]], None],
        on_answer: Callable[[Any, bool], None],
        on_silence: Callable[[str], None],
    ) -> None:
        self._clock = clock
        self._timeout_s = timeout_s
        self._send = send
        self._on_answer = on_answer
        self._on_silence = on_silence
        self._next_timer: Any = None
        self._timers: list[Any] = []  # of the probe in flight
        self._late = False
        self._sent_s = float("-inf")
        self._interval_s = PROBE_INTERVAL_S

    def reset(self) -> None:
        """The node is up: the first probe of its next outage comes soon."""
        self._interval_s = FIRST_PROBE_S

    def later(self) -> None:
        """Unless one is in flight, or waits for its time already."""
        if not self._timers and self._next_timer is None:
            delay_s = self._sent_s + self._interval_s - self._clock.seconds()
            self._next_timer = self._clock.callLater(max(0.0, delay_s), self.now)

    def now(self) -> None:
        self._next_timer = None
        self._sent_s = self._clock.seconds()
        self._interval_s = PROBE_INTERVAL_S
        self._late = False
        later = self._clock.callLater
        self._timers = [
            later(self._timeout_s, self._overdue),
            later(PROBE_TIMEOUT_S, self._on_silence, f"no answer within {PROBE_TIMEOUT_S:g} s"),
        ]
        self._send(self._answered)

    def _overdue(self) -> None:
        """After one more look at the socket, as for checks."""
        self._timers.append(self._clock.callLater(0, self._is_late))

    def _is_late(self) -> None:
        self._late = True

    def _answered(self, reply: Any) -> None:
        self._end()
        self._on_answer(reply, self._late)

    def _end(self) -> None:
        for timer in self._timers:
            _cancel(timer)
        self._timers = []

    def stop(self) -> None:
        self._end()
        _cancel(self._next_timer)
        self._next_timer = None
