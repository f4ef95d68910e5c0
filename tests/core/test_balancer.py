"""Smooth weighted round robin."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.balancer import (
    RAMP_FROM,
    SLOW_FLOOR_S,
    SLOW_RATIO,
    SmoothRoundRobin,
    is_slow,
    lower_median,
    ramp,
)

weights = st.lists(st.integers(1, 30), min_size=1, max_size=8)


@given(weights, st.integers(1, 3))
def test_over_full_rounds_each_item_comes_exactly_as_often_as_it_weighs(sizes: list[int], rounds: int) -> None:
    balance = SmoothRoundRobin(list(enumerate(sizes)))
    picked = Counter(balance.pick() for _ in range(rounds * sum(sizes)))
    assert picked == {item: rounds * weight for item, weight in enumerate(sizes)}


@given(weights)
def test_at_any_time_no_item_is_a_turn_per_neighbour_ahead_of_its_share(sizes: list[int]) -> None:
    """That is what smooth means: a heavy item does not come in one burst."""
    balance = SmoothRoundRobin(list(enumerate(sizes)))
    total = sum(sizes)
    picked: Counter[int | None] = Counter()
    for turn in range(1, total + 1):
        picked[balance.pick()] += 1
        for item, weight in enumerate(sizes):
            assert abs(picked[item] - turn * weight / total) < len(sizes)


def test_it_gives_nginxs_order() -> None:
    balance = SmoothRoundRobin([("a", 5), ("b", 1), ("c", 1)])
    assert "".join(balance.pick() or "-" for _ in range(14)) == "aabacaa" * 2


def test_equal_weights_take_turns() -> None:
    balance = SmoothRoundRobin([("a", 1), ("b", 1), ("c", 1)])
    assert [balance.pick() for _ in range(6)] == ["a", "b", "c"] * 2


@pytest.mark.parametrize(("items", "expected"), [([], None), ([("a", 3)], "a")])
def test_none_and_one_are_no_choice(items: list[tuple[str, int]], expected: str | None) -> None:
    balance = SmoothRoundRobin(items)
    assert [balance.pick() for _ in range(3)] == [expected] * 3


def test_an_item_without_weight_never_comes_beside_others() -> None:
    balance = SmoothRoundRobin([("zero", 0), ("a", 1), ("b", 2)])
    assert "zero" not in [balance.pick() for _ in range(30)]


@given(weights, st.lists(st.integers(0, 40), min_size=1, max_size=12))
def test_a_round_that_is_made_anew_all_the_time_is_still_shared_by_weight(sizes: list[int], pauses: list[int]) -> None:
    """Lists and weights may change several times a second: nobody is first each time."""
    balance: SmoothRoundRobin[int] = SmoothRoundRobin(list(enumerate(sizes)))
    picked: Counter[int | None] = Counter()
    for turn in range(3 * sum(sizes)):
        if turn in pauses or turn % 5 == 0:
            balance = SmoothRoundRobin(list(enumerate(sizes)), balance)
        picked[balance.pick()] += 1
    assert picked == {item: 3 * weight for item, weight in enumerate(sizes)}


@given(weights, weights, st.integers(0, 30))
def test_after_a_change_of_the_weights_the_new_shares_hold(before: list[int], after: list[int], turns: int) -> None:
    """Within a turn per neighbour, and what was left of the old round: items may come and go."""
    old: SmoothRoundRobin[int] = SmoothRoundRobin(list(enumerate(before)))
    for _ in range(turns):
        old.pick()
    balance = SmoothRoundRobin(list(enumerate(after)), old)
    total = sum(after)
    picked = Counter(balance.pick() for _ in range(50 * total))
    left_over = 2 * max(sum(before) / total, 1)
    for item, weight in enumerate(after):
        assert abs(picked[item] - 50 * weight) <= len(after) + left_over


@given(weights, st.sets(st.integers(0, 7)))
def test_among_those_that_fit_shares_are_by_weight_and_the_others_never_come(sizes: list[int], out: set[int]) -> None:
    balance = SmoothRoundRobin(list(enumerate(sizes)))
    fits = {item: weight for item, weight in enumerate(sizes) if item not in out}
    picked = Counter(balance.pick_among(lambda item: item not in out) for _ in range(2 * sum(fits.values()) or 3))
    assert picked == ({item: 2 * weight for item, weight in fits.items()} or {None: 3})


def test_weights_need_not_be_whole() -> None:
    balance = SmoothRoundRobin([("new", 0.5), ("a", 2), ("b", 2.5)])
    assert Counter(balance.pick() for _ in range(500)) == {"new": 50, "a": 200, "b": 250}
    assert (len(balance), bool(SmoothRoundRobin(()))) == (3, False)


@given(st.floats(0, 1000), st.floats(0, 1000), st.floats(0, 600))
def test_a_ramp_rises_from_a_tenth_to_all(age_s: float, more_s: float, over_s: float) -> None:
    assert RAMP_FROM <= ramp(age_s, over_s) <= ramp(age_s + more_s, over_s) <= 1.0
    assert ramp(over_s, over_s) == 1.0


def test_a_ramp_is_a_straight_line() -> None:
    assert [ramp(age_s, 20.0) for age_s in (0, 2, 5, 10, 15, 20, 99)] == [0.1, 0.1, 0.25, 0.5, 0.75, 1.0, 1.0]


@given(st.lists(st.floats(0, 100), min_size=1, max_size=12))
def test_never_more_than_half_of_the_instances_are_slow(latencies_s: list[float]) -> None:
    median_s = lower_median(latencies_s)
    assert sum(is_slow(one, median_s, False) for one in latencies_s) <= len(latencies_s) / 2


def test_slow_is_far_above_the_others_and_above_a_floor_and_ends_later_than_it_begins() -> None:
    assert not is_slow(SLOW_FLOOR_S, 0.001, False) and is_slow(SLOW_FLOOR_S * 1.01, 0.001, False)
    assert not is_slow(SLOW_RATIO, 1.0, False) and is_slow(SLOW_RATIO * 1.01, 1.0, False)
    assert is_slow(SLOW_RATIO * 0.51, 1.0, True) and not is_slow(SLOW_RATIO * 0.5, 1.0, True)
    assert lower_median([]) == 0.0 and lower_median([3, 1]) == 1
