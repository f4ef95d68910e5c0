"""A cap holds over any stretch of time, is used up under demand, and lets a small burst through."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.pace import BURST_S, LEAST_BURST, Pace


def burst(rps: float) -> float:
    return max(1.0, rps * BURST_S, min(rps, LEAST_BURST))


@pytest.mark.parametrize("rps", [0.5, 1.0, 7.0, 50.0, 333.0, 5000.0])
def test_three_times_the_rate_gets_the_rate(rps: float) -> None:
    pace = Pace(rps)
    taken = sum(pace.take(n / (3 * rps)) for n in range(round(3 * rps * 60)))
    assert 60 * rps - 1 <= taken <= 60 * rps + burst(rps) + 1


@pytest.mark.parametrize("rps", [5.0, 100.0, 1000.0])
def test_what_stays_below_the_rate_is_let_through(rps: float) -> None:
    pace = Pace(rps)
    assert all(pace.take(n / (0.95 * rps)) for n in range(1000))


def test_a_burst_after_silence_is_small() -> None:
    for rps in (0.5, 1.0, 10.0, 1000.0):
        pace = Pace(rps)
        pace.take(0.0)
        assert sum(pace.take(3600.0) for _ in range(2000)) == int(burst(rps) + 1e-6)


def test_who_is_refused_books_nothing() -> None:
    pace = Pace(10.0)
    for _ in range(100_000):
        pace.take(0.0)
    assert pace.take(0.1 + 1e-6)


def test_another_rate_holds_from_now_on() -> None:
    pace = Pace(1000.0)
    for n in range(2000):
        pace.take(n / 2000)
    pace.set(10.0)
    taken = sum(pace.take(1.0 + n / 100) for n in range(1000))
    assert 95 <= taken <= 106
    pace.set(100.0)
    taken = sum(pace.take(11.0 + n / 1000) for n in range(1000))
    assert 60 <= taken <= 112  # what was booked at the old rate, 0.4 s, stays booked


@given(st.floats(0.1, 10_000.0), st.lists(st.floats(0.0, 2.0), max_size=200), st.floats(0.1, 10.0))
def test_no_stretch_of_time_has_more_than_the_rate_and_a_burst(rps: float, gaps: list[float], scale: float) -> None:
    pace = Pace(rps)
    now_s, taken = 0.0, []
    for gap in gaps:
        now_s += gap / rps * scale
        if pace.take(now_s):
            taken.append(now_s)
    for begin in range(len(taken)):
        for end in range(begin, len(taken)):
            assert end - begin + 1 <= (taken[end] - taken[begin]) * rps + burst(rps) + 1e-3
