"""Counters in memory: the rule, and a bound on what strangers can make it keep."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from apigw.adapters.memory_counters import MemoryCounters
from apigw.core.verdicts import refusal
from apigw.core.window import Demand
from tests.core.test_window import Windows

NOW_S = 1_707_264_012.5


def demand(name: str = "a", limit: int = 10, window_s: int = 60) -> Demand:
    return Demand("standard", f"rate:{{standard:user:{name}}}", limit, window_s)


def test_the_limit_holds_and_refusals_are_not_counted() -> None:
    """Ten of a limit of ten, however many ask."""
    store = MemoryCounters()
    answers = [store.take([demand()], NOW_S) for _ in range(25)]
    assert [answer.allowed for answer in answers] == [True] * 10 + [False] * 15
    assert answers[-1].counts == [(0, 10, 0)]


def test_all_demands_are_counted_or_none() -> None:
    """A request that the second limit refuses costs the first nothing."""
    store = MemoryCounters()
    wide, narrow = demand("wide"), demand("narrow", 1)
    assert store.take([wide, narrow], NOW_S)[:2] == (True, [(0, 1, 0), (0, 1, 0)])
    assert store.take([wide, narrow], NOW_S)[:2] == (False, [(0, 1, 0), (0, 1, 0)])
    assert store.take([wide], NOW_S)[:2] == (True, [(0, 2, 0)])


def test_a_reload_of_the_limit_resets_no_counter() -> None:
    """The key has no limit in it."""
    store = MemoryCounters()
    for _ in range(3):
        store.take([demand(limit=10)], NOW_S)
    assert store.take([demand(limit=3)], NOW_S)[:2] == (False, [(0, 3, 0)])
    assert store.take([demand(limit=4)], NOW_S)[:2] == (True, [(0, 4, 0)])


def test_a_clock_stepped_back_locks_nobody_out() -> None:
    """A counter from the future says nothing."""
    store = MemoryCounters()
    for _ in range(10):
        store.take([demand()], NOW_S + 86_400)
    assert store.take([demand()], NOW_S)[:2] == (True, [(0, 1, 0)])


@given(
    st.lists(
        st.tuples(st.sampled_from("abc"), st.sampled_from([0.0, 0.3, 1.0, 3.0, 4.5, 9.0])), min_size=1, max_size=120
    ),
    st.integers(1, 5),
)
def test_it_is_the_rule_over_counts_per_window(steps: Any, limit: int) -> None:
    """Against a dictionary that keeps every window for ever."""
    store, plain = MemoryCounters(), Windows()
    now_s = NOW_S
    for name, gap_s in steps:
        now_s += gap_s
        one = demand(name, limit, 3)
        counted, expected = store.take([one], now_s), plain.take(one, now_s)
        assert counted.allowed == expected.allowed
        assert [count[:2] for count in counted.counts] == [count[:2] for count in expected.counts]
        if not counted.allowed:
            assert refusal(counted, [one], now_s).wait_s == refusal(expected, [one], now_s).wait_s


def test_strangers_without_end_do_not_grow_it() -> None:
    """The most recently seen are kept; a busy client keeps its count through the flood."""
    store = MemoryCounters(max_entries=1000)
    for number in range(20_000):
        store.take([demand(f"stranger{number}")], NOW_S)
        if number % 500 == 0:
            store.take([demand("busy", 1000)], NOW_S)
    assert len(store) == 1000
    assert store.take([demand("busy", 1000)], NOW_S).counts == [(0, 41, 0)]


def test_the_dead_go_as_requests_come() -> None:
    """After a flood ordinary traffic clears it away, two counters a request."""
    store = MemoryCounters()
    for number in range(2000):
        store.take([demand(f"stranger{number}")], NOW_S)
    for _ in range(1000):
        store.take([demand("regular", 5000)], NOW_S + 180)
    assert len(store) == 1


def test_prune_clears_a_gateway_that_nobody_calls() -> None:
    """In bounded steps, and only what is over."""
    store = MemoryCounters()
    for number in range(50):
        store.take([demand(f"stranger{number}")], NOW_S)
    store.prune(NOW_S + 60, at_most=1000)
    assert len(store) == 50
    store.prune(NOW_S + 120, at_most=30)
    assert len(store) == 20
    store.prune(NOW_S + 120, at_most=30)
    assert len(store) == 0
