"""The loop's lag: the worst delay of a timer within the last two seconds, the present one included."""

import pytest
from twisted.internet.task import Clock

from apigw.supervisor.lag import LoopLag


@pytest.fixture
def clock() -> Clock:
    return Clock()


def started(clock: Clock) -> LoopLag:
    lag = LoopLag(clock)
    lag.startService()
    return lag


def test_none_is_measured_before_the_start() -> None:
    assert LoopLag(Clock()).lag_s() == 0.0


def test_timers_in_time_are_no_lag(clock: Clock) -> None:
    lag = started(clock)
    for _ in range(20):
        clock.advance(0.25)
        assert lag.lag_s() == 0.0


def test_a_held_loop_shows_for_two_seconds_and_is_forgotten_then(clock: Clock) -> None:
    lag = started(clock)
    clock.advance(0.5)
    clock.advance(0.8)  # the timer was due 0.3 s ago
    assert lag.lag_s() == pytest.approx(0.3)
    clock.pump([0.5] * 3)
    assert lag.lag_s() == pytest.approx(0.3)
    clock.advance(0.5)
    assert lag.lag_s() == pytest.approx(0.0)


def test_the_worst_of_several_counts(clock: Clock) -> None:
    lag = started(clock)
    for late_s in (0.1, 0.4, 0.2):
        clock.advance(0.5 + late_s)
    assert lag.lag_s() == pytest.approx(0.4)


def test_a_timer_that_is_overdue_counts_before_it_runs(clock: Clock) -> None:
    """/readyz may be asked in the same turn of the loop, before the timers."""
    lag = started(clock)
    clock.rightNow += 2.0  # time passes, no timer runs
    assert lag.lag_s() == pytest.approx(1.5)
