"""What is said of a rise is right about as often as promised, on waits of which the truth is known."""

import random

import pytest

from tests.e2e.tails import ERRING, Blocks, Rise, blocks, rise, tail, undisturbed


def waits(
    seconds: int, longer: float = 1.0, seed: int = 1, rate: int = 400, machine: random.Random | None = None
) -> Blocks:
    """Exponential, 1 ms and more; each second by a factor of its own, as machines are."""
    rolls = random.Random(seed)
    found = []
    for _ in range(seconds):
        slow = longer * (machine.lognormvariate(0, 0.5) if machine else rolls.lognormvariate(0, 0.1))
        found.append([slow * (0.0002 + rolls.expovariate(1000)) for _ in range(rate)])
    return found


def test_a_p99_is_the_wait_that_99_of_100_are_not_above() -> None:
    found = tail([[number / 1000 for number in range(1, 501)], [number / 1000 for number in range(501, 1001)]])
    assert found.p99_s() == pytest.approx(0.990)
    assert found.p99_s([2, 0]) == pytest.approx(0.495)
    with pytest.raises(ValueError, match="too few"):
        tail([[0.001] * 299])


@pytest.mark.parametrize(
    "at_s, wait_s, kept",
    [
        (0.999, 0.005, True),  # answered before the machine stood still, from 1.000 to 1.010
        (1.011, 0.010, False),
        (1.005, 0.012, True),  # longer outside than within
        (1.005, 0.008, False),
        (1.028, 0.002, False),  # what came meanwhile was not done yet
        (1.035, 0.004, True),
        (1.100, 0.200, True),  # a stall of its own, with the machine's within
    ],
)
def test_a_wait_that_is_the_machines_is_left_out(at_s: float, wait_s: float, kept: bool) -> None:
    others = [(2.0, 0.001)]
    assert undisturbed([*others, (at_s, wait_s)], [(1.0, 1.01)]) == [*others, *[(at_s, wait_s)] * kept]


def test_stalls_that_overlap_are_one() -> None:
    assert undisturbed([(1.025, 0.015), (2.0, 0.001)], [(1.0, 1.005), (1.004, 1.006)]) == [(1.025, 0.015), (2.0, 0.001)]
    assert undisturbed([(1.012, 0.012), (2.0, 0.001)], [(1.0, 1.004), (1.002, 1.006)]) == [(2.0, 0.001)]


def test_where_most_would_be_left_out_all_stay() -> None:
    disturbed = [(1.005, 0.001), (1.006, 0.001), (2.0, 0.001)]
    assert undisturbed(disturbed, [(1.0, 1.01)]) == disturbed


def test_blocks_are_the_seconds_of_the_spans_and_nothing_else() -> None:
    found = blocks([(0.5, 1.0), (1.0, 2.0), (2.9, 3.0), (3.0, 4.0), (7.2, 5.0)], [(7.0, 7.4), (1.0, 3.0)])
    assert found == [[2.0], [3.0], [5.0]]


def test_enough_data_tell_15_percent_from_none() -> None:
    more, none = rise(waits(400, seed=2), waits(400, 1.15, seed=3)), rise(waits(400, seed=4), waits(400, seed=5))
    assert more.above(0.10)
    assert none.below(0.10)


def test_few_data_decide_nothing() -> None:
    found = rise(waits(5, seed=2), waits(5, 1.15, seed=3))
    assert not found.below(0.10) and not found.above(0.10)


def test_a_twin_takes_out_what_the_machine_did_to_both() -> None:
    """A machine that is twice as slow while the fault lasts: alone it looks like a rise, beside a twin it does not."""

    def pair(seconds: int, slower: float, longer: float) -> tuple[Blocks, Blocks]:
        return (
            waits(seconds, slower * longer, 7, machine=random.Random(seconds)),
            waits(seconds, slower, 8, machine=random.Random(seconds)),
        )

    quiet, faulty, worse = pair(60, 1.0, 1.0), pair(61, 2.0, 1.0), pair(61, 2.0, 1.3)
    assert rise(quiet[0], faulty[0]).above(0.10)
    assert rise(quiet[0], faulty[0], (quiet[1], faulty[1])).below(0.10)
    assert rise(quiet[0], worse[0], (quiet[1], worse[1])).above(0.10)


def test_a_rise_that_is_not_allowed_is_seldom_called_small() -> None:
    """Of 100 measurements of a rise by just 10%: ERRING of them, and some luck."""
    found = [rise(waits(20, seed=2 * n, rate=100), waits(20, 1.1, 2 * n + 1, rate=100)) for n in range(100)]
    assert sum(one.below(0.10) for one in found) <= 100 * ERRING + 4
    assert sum(one.above(0.10) for one in found) <= 100 * ERRING + 4


def test_a_rise_is_told_with_its_bounds() -> None:
    assert str(Rise(0.02, -0.054, 0.081)) == "+2% (-5% to +8%)"
