"""The window slides by tenths, forgets what is older, and knows how far back it reaches."""

from hypothesis import given
from hypothesis import strategies as st

from apigw.core.outcomes import Outcomes


def add(outcomes: Outcomes, now_s: float, good: int = 0, bad: int = 0) -> None:
    outcomes.turn(now_s)
    outcomes.ever += good
    for _ in range(bad):
        outcomes.failed()


def test_outcomes_count_while_they_are_in_the_window() -> None:
    outcomes = Outcomes(30.0, 100.0)
    add(outcomes, 100.0, good=3, bad=2)
    assert (outcomes.total, outcomes.bad) == (5, 2)
    add(outcomes, 126.0, good=1)
    assert (outcomes.total, outcomes.bad) == (6, 2)
    add(outcomes, 130.1)
    assert (outcomes.total, outcomes.bad) == (1, 0)


def test_a_long_silence_leaves_nothing() -> None:
    outcomes = Outcomes(30.0, 0.0)
    add(outcomes, 1.0, good=5, bad=5)
    add(outcomes, 1e9)
    assert (outcomes.total, outcomes.bad) == (0, 0)
    add(outcomes, 1e9 + 1, bad=1)
    assert (outcomes.total, outcomes.bad) == (1, 1)


def test_it_knows_how_far_back_it_reaches() -> None:
    outcomes = Outcomes(30.0, 0.0)
    assert outcomes.covered_s(2.0) == 2.0
    outcomes.turn(14.0)
    assert outcomes.covered_s(14.0) == 14.0
    outcomes.turn(100.0)
    assert 27.0 <= outcomes.covered_s(100.0) <= 30.0


@given(
    st.floats(0.1, 3600.0),
    st.lists(st.tuples(st.floats(0.0, 50.0), st.integers(0, 3), st.integers(0, 3)), max_size=60),
)
def test_what_is_counted_lies_between_nine_tenths_of_the_window_and_all_of_it(
    window_s: float, events: list[tuple[float, int, int]]
) -> None:
    outcomes = Outcomes(window_s, 0.0)
    now_s = 0.0
    told: list[tuple[float, int, int]] = []
    for since_s, good, bad in events:
        now_s += since_s * window_s / 30.0
        add(outcomes, now_s, good, bad)
        told.append((now_s, good, bad))
        slack_s = window_s * 1e-6 + now_s * 1e-9
        surely = [one for one in told if one[0] > now_s - 0.9 * window_s + slack_s]
        perhaps = [one for one in told if one[0] >= now_s - window_s - slack_s]
        assert sum(b for _, _, b in surely) <= outcomes.bad <= sum(b for _, _, b in perhaps)
        assert sum(g + b for _, g, b in surely) <= outcomes.total <= sum(g + b for _, g, b in perhaps)
        assert now_s <= outcomes.until_s + slack_s
