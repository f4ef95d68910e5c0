"""Allowances: never more than a hundredth of the limit unasked, settled by the next question, gone with the window."""

from collections.abc import Callable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.core.allowance import Allowances
from apigw.core.window import Demand, judge
from tests.core.test_window import SHAPES, Windows, by_a_fleet, schedule

KEY = "rate:{door:ip:203.0.113.42}"
NOW_S = 1_707_264_012.5


def granted(limit: int = 1000, remaining: int = 900, now_s: float = NOW_S) -> Allowances:
    allowances = Allowances()
    allowances.grant(KEY, limit, 60, remaining, now_s)
    return allowances


def test_without_a_grant_the_counter_is_asked() -> None:
    assert Allowances().spend(KEY, NOW_S) is None and Allowances().settle(KEY, 60, NOW_S) == (0, 0.0)


def test_a_hundredth_of_the_limit_is_let_through_and_then_settled() -> None:
    allowances = granted()
    assert [allowances.spend(KEY, NOW_S) for _ in range(11)] == [*range(899, 889, -1), None]
    assert allowances.settle(KEY, 60, NOW_S + 0.5) == (10, NOW_S), "when the last of them came"
    assert allowances.spend(KEY, NOW_S) is None, "and it takes another question"


def test_a_limit_below_a_hundred_is_exact() -> None:
    assert granted(limit=99, remaining=99).spend(KEY, NOW_S) is None


def test_near_the_limit_every_request_is_asked_for() -> None:
    assert granted(limit=1000, remaining=20).spend(KEY, NOW_S) is None
    assert granted(limit=1000, remaining=21).spend(KEY, NOW_S) == 20


def test_it_ends_after_a_second_with_its_window_and_when_the_clock_steps_back() -> None:
    assert granted().spend(KEY, NOW_S + 1.01) is None
    assert granted(now_s=1_707_264_059.9).spend(KEY, 1_707_264_060.0) is None
    assert granted().spend(KEY, NOW_S - 10.0) is None


def test_what_was_spent_is_settled_while_its_counter_lives_and_not_after() -> None:
    """In the next window it still counts; later it would make a counter that nothing ever removes."""
    for later_s, settled in ((119.0, (1, NOW_S + 0.5)), (120.0, (0, 0.0))):
        allowances = granted()
        allowances.spend(KEY, NOW_S + 0.5)
        assert allowances.settle(KEY, 60, 1_707_264_000 + later_s) == settled


def test_a_second_answer_forgets_nothing_of_what_was_spent_since_the_first() -> None:
    """A flood asks several times before the first answer is there."""
    allowances = granted()
    allowances.spend(KEY, NOW_S)
    allowances.grant(KEY, 1000, 60, 890, NOW_S)
    assert allowances.settle(KEY, 60, NOW_S) == (1, NOW_S)


@given(st.integers(1, 5000), st.lists(st.floats(0, 3), max_size=300))
def test_unasked_requests_never_exceed_their_share(limit: int, gaps: list[float]) -> None:
    """Whatever the schedule: between two questions at most a hundredth of the limit."""
    allowances = Allowances()
    now_s, remaining, unasked = NOW_S, limit, 0
    for gap in gaps:
        now_s += gap / 100
        if allowances.spend(KEY, now_s) is None:
            spent, _ = allowances.settle(KEY, 60, now_s)
            assert spent == unasked <= limit / 100
            remaining -= spent + 1
            allowances.grant(KEY, limit, 60, remaining, now_s)
            unasked = 0
        else:
            unasked += 1


def test_the_memory_is_bounded() -> None:
    allowances = Allowances()
    for number in range(5000):
        allowances.grant(f"rate:{{door:ip:{number}}}", 1000, 60, 900, NOW_S)
    assert len(allowances._by_key) == 4096
    assert allowances.spend("rate:{door:ip:0}", NOW_S) is None
    assert allowances.spend("rate:{door:ip:4999}", NOW_S) == 899


def asking(store: Windows, demand: Demand) -> Callable[[float], bool]:
    """One gateway, which counts on the address' allowance while there is one; whether a request passes."""
    allowances = Allowances()

    def ask(now_s: float) -> bool:
        if allowances.spend(demand.key, now_s) is not None:
            return True
        spent, last_s = allowances.settle(demand.key, demand.window_s, now_s)
        if spent:
            store.add(demand, spent, last_s)
        counted = store.take(demand, now_s)
        if counted.allowed:
            remaining = judge(demand, counted.counts[0], now_s).remaining
            allowances.grant(demand.key, demand.limit, demand.window_s, remaining, now_s)
        return counted.allowed

    return ask


@settings(max_examples=30, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(20, 3000), st.floats(0.3, 5.0), st.integers(0, 2**32))
def test_four_gateways_over_many_windows_stay_within_five_percent(
    shape: str, limit: int, excess: float, seed: int
) -> None:
    """Whatever the schedule, with clocks a little apart: at most a hundredth of the limit more for each gateway, in
    aligned windows and by an exact log."""
    random, store = Random(seed), Windows()
    demand = Demand("door", KEY, limit, 60)
    times = schedule(shape, limit, excess, random)
    fleet = by_a_fleet([asking(store, demand) for _ in range(4)], limit, times, random)
    assert max(fleet.windows.values()) <= 1.05 * limit
    assert fleet.most_in_a_stretch <= 1.05 * limit
    assert 0.95 * fleet.by_one - 1 <= sum(fleet.windows.values()) <= 1.05 * fleet.by_one + 1
    for start_s, count in fleet.windows.items():
        assert 0 <= count - store.counts[demand.key, start_s] <= 4 * (limit // 100), "what nobody settled"
