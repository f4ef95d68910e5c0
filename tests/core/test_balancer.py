"""Smooth weighted round robin."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.balancer import SmoothRoundRobin

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
