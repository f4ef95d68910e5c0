"""Pollers under a clock that the test moves: whatever a poll does, the next one comes."""

from typing import Any, Callable

import pytest
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.task import Clock

from apigw.net.poller import Poller, PollFailed


class Scripted(Poller):
    """Polls by a script: each entry is returned, raised or called; the last one repeats."""

    def __init__(self, clock: Clock, *script: Any, **options: Any) -> None:
        self.script = list(script)
        self.polls: list[float] = []
        super().__init__(clock, options.pop("interval_s", 10.0), name="test", **options)

    def poll(self) -> Any:
        self.polls.append(self.clock.seconds())
        step = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        if isinstance(step, Exception):
            raise step
        return step() if callable(step) else step


@pytest.fixture
def clock() -> Clock:
    return Clock()


def advance(clock: Clock, seconds: float, step_s: float = 0.5) -> None:
    clock.pump([step_s] * int(seconds / step_s))


def test_a_poll_at_the_start_and_one_every_interval(clock: Clock) -> None:
    poller = Scripted(clock, None)
    poller.startService()
    assert poller.polls == [0.0]
    advance(clock, 35)
    assert poller.polls == [0.0, 10.0, 20.0, 30.0]
    assert poller.last_success == 30.0


def test_nothing_happens_before_the_start_or_after_the_stop(clock: Clock) -> None:
    poller = Scripted(clock, None)
    advance(clock, 20)
    assert not poller.polls
    poller.startService()
    poller.stopService()
    advance(clock, 50)
    assert poller.polls == [20.0] and not clock.getDelayedCalls()


@pytest.mark.parametrize("error", [PollFailed("down"), ValueError("defect"), RecursionError()])
def test_a_poll_that_raises_is_counted_and_the_next_one_comes(clock: Clock, error: Exception) -> None:
    poller = Scripted(clock, error, error, None)
    poller.startService()
    assert (poller.failures, poller.consecutive_failures, poller.last_success) == (1, 1, None)
    advance(clock, 25)
    assert poller.polls == [0.0, 10.0, 20.0]
    assert (poller.failures, poller.consecutive_failures, poller.last_success) == (2, 0, 20.0)


def test_a_poll_that_never_ends_is_cancelled_at_its_timeout(clock: Clock) -> None:
    cancelled: list[object] = []
    poller = Scripted(clock, lambda: Deferred(cancelled.append), None, timeout_s=3.0)
    poller.startService()
    advance(clock, 2.5)
    assert poller.in_flight and not cancelled
    advance(clock, 0.5)
    assert not poller.in_flight and len(cancelled) == 1 and poller.failures == 1
    advance(clock, 7)
    assert poller.polls == [0.0, 10.0]


def test_a_poll_longer_than_its_interval_is_never_doubled(clock: Clock) -> None:
    """The next one comes an interval after its end."""
    ends: list[Deferred[None]] = []

    def slow() -> "Deferred[None]":
        ends.append(Deferred())
        return ends[-1]

    poller = Scripted(clock, slow)
    poller.startService()
    advance(clock, 25)
    assert len(ends) == 1
    ends[0].callback(None)
    advance(clock, 10)
    assert poller.polls == [0.0, 35.0]


def test_jitter_makes_delays_shorter_and_never_longer(clock: Clock) -> None:
    draws = iter([0.0, 0.5, 0.999, 0.0, 0.0])
    poller = Scripted(clock, None, jitter=0.2, draw=lambda: next(draws))
    poller.startService()
    clock.pump([0.125] * 300)
    gaps = [later - earlier for earlier, later in zip(poller.polls, poller.polls[1:])]
    assert gaps == pytest.approx([10.0, 9.0, 8.0, 10.0], abs=0.13)


def test_a_subclass_may_back_off(clock: Clock) -> None:
    class BackingOff(Scripted):
        def delay_s(self) -> float:
            return self.interval_s * 2**self.consecutive_failures

    poller = BackingOff(clock, PollFailed("a"), PollFailed("b"), None, interval_s=1.0)
    poller.startService()
    advance(clock, 8)
    assert poller.polls == [0.0, 2.0, 6.0, 7.0, 8.0]


def test_a_defect_in_the_delay_does_not_end_the_polling(clock: Clock) -> None:
    class Broken(Scripted):
        def delay_s(self) -> float:
            raise ZeroDivisionError

    poller = Broken(clock, None)
    poller.startService()
    advance(clock, 20)
    assert poller.polls == [0.0, 10.0, 20.0]


def test_the_first_poll_may_be_put_off(clock: Clock) -> None:
    poller = Scripted(clock, None, first_delay_s=4.0)
    poller.startService()
    advance(clock, 15)
    assert poller.polls == [4.0, 14.0]


def told(waiting: "Deferred[bool]") -> list[Any]:
    seen: list[Any] = []
    waiting.addBoth(seen.append)
    return seen


def hanging(ends: "list[Deferred[None]]") -> Callable[[], "Deferred[None]"]:
    def begin() -> "Deferred[None]":
        ends.append(Deferred())
        return ends[-1]

    return begin


def test_poll_now_polls_at_once_and_counts_the_interval_anew(clock: Clock) -> None:
    poller = Scripted(clock, None)
    poller.startService()
    advance(clock, 7)
    assert told(poller.poll_now()) == [True]
    advance(clock, 10)
    assert poller.polls == [0.0, 7.0, 17.0]


def test_callers_of_poll_now_share_the_poll_in_flight(clock: Clock) -> None:
    ends: list[Deferred[None]] = []
    poller = Scripted(clock, hanging(ends))
    poller.startService()
    seen = [told(poller.poll_now()) for _ in range(3)]
    assert len(ends) == 1 and poller.waiting == 3 and seen == [[], [], []]
    ends[0].errback(PollFailed("down"))
    assert seen == [[False]] * 3 and poller.waiting == 0


def test_a_caller_that_gives_up_takes_nothing_from_the_others(clock: Clock) -> None:
    ends: list[Deferred[None]] = []
    poller = Scripted(clock, hanging(ends))
    poller.startService()
    first, second = poller.poll_now(), poller.poll_now()
    gone, seen = told(first), told(second)
    first.cancel()
    assert gone[0].check(CancelledError) and poller.waiting == 1 and poller.in_flight
    ends[0].callback(None)
    assert seen == [True]


def test_a_caller_may_cancel_another_while_being_told(clock: Clock) -> None:
    ends: list[Deferred[None]] = []
    poller = Scripted(clock, hanging(ends))
    poller.startService()
    first, second = poller.poll_now(), poller.poll_now()
    first.addCallback(lambda _: second.cancel())
    gone = told(second)
    ends[0].callback(None)
    assert gone[0].check(CancelledError)
    assert not poller.in_flight and clock.getDelayedCalls()


def test_many_callers_are_told_in_slices_so_that_the_loop_runs_between(clock: Clock) -> None:
    ends: list[Deferred[None]] = []
    poller = Scripted(clock, hanging(ends))
    poller.startService()
    seen = [told(poller.poll_now()) for _ in range(120)]
    ends[0].callback(None)
    assert sum(map(bool, seen)) == 50
    clock.advance(0)
    assert seen == [[True]] * 120


def test_stopping_cancels_the_poll_in_flight_and_frees_who_waits(clock: Clock) -> None:
    cancelled: list[object] = []
    poller = Scripted(clock, lambda: Deferred(cancelled.append), timeout_s=5.0)
    poller.startService()
    seen = told(poller.poll_now())
    poller.stopService()
    assert len(cancelled) == 1 and seen == [False]
    assert poller.failures == 0, "being stopped is no failure"
    assert not clock.getDelayedCalls()
    assert told(poller.poll_now()) == [False]


def test_a_poller_can_be_started_again_and_twice_is_once(clock: Clock) -> None:
    poller = Scripted(clock, None)
    poller.startService()
    poller.startService()
    poller.stopService()
    advance(clock, 3)
    poller.startService()
    advance(clock, 10)
    assert poller.polls == [0.0, 3.0, 13.0]


def test_a_poll_may_stop_its_own_poller(clock: Clock) -> None:
    poller = Scripted(clock, lambda: poller.stopService())
    poller.startService()
    assert poller.polls == [0.0] and not clock.getDelayedCalls() and not poller.in_flight


def test_a_poll_can_be_brought_forward_and_is_never_put_off(clock: Clock) -> None:
    poller = Scripted(clock, None)
    poller.poll_within(1.0)
    poller.startService()
    poller.poll_within(3.0)
    poller.poll_within(5.0)
    advance(clock, 4)
    assert poller.polls == [0.0, 3.0]
    poller.poll_within(60.0)
    poller.poll_within(-1.0)
    clock.advance(0)
    assert poller.polls == [0.0, 3.0, 4.0]
    poller.stopService()
    poller.poll_within(0.0)
    assert not clock.getDelayedCalls()


def test_a_poll_in_flight_is_not_doubled_by_one_that_is_brought_forward(clock: Clock) -> None:
    going: Deferred[None] = Deferred()
    poller = Scripted(clock, lambda: going, None)
    poller.startService()
    poller.poll_within(0.0)
    advance(clock, 20)
    assert poller.polls == [0.0]
    going.callback(None)
    poller.poll_within(1.0)
    advance(clock, 1)
    assert poller.polls == [0.0, 21.0] and len(clock.getDelayedCalls()) == 1
