"""The global tier counted by several workers: what the store does not know stays small, and nothing is forgotten."""

from collections.abc import Callable
from random import Random

from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.adapters.memory_counters import MemoryCounters
from apigw.core.global_share import GlobalShares
from apigw.core.window import Demand, part, weight, window_start
from tests.core.test_window import SHAPES, Windows, by_a_fleet, schedule

START_S = 1_707_264_000
NOW_S = START_S + 12.5
ALL = Demand("all", "rate:{all:global:all}", 8000, 60)  # a share is 20


def holding(previous: int = 0, current: int = 1000, now_s: float = NOW_S, demand: Demand = ALL) -> GlobalShares:
    shares = GlobalShares()
    shares.learn(demand, (previous, current, 0), now_s)
    return shares


def test_before_the_first_answer_the_store_is_asked() -> None:
    shares = GlobalShares()
    assert shares.spend(ALL, NOW_S) is None
    assert shares.settle(ALL, NOW_S) == (0, 0.0)


def test_a_share_is_counted_here_and_settled_with_its_window() -> None:
    """What is left of the limit goes down with each; then the store must be asked, and told."""
    shares = holding()
    assert [shares.spend(ALL, NOW_S) for _ in range(21)] == [*range(6999, 6979, -1), None]
    assert shares.settle(ALL, NOW_S + 0.5) == (20, NOW_S), "when the last of them came"
    assert shares.settle(ALL, NOW_S) == (0, 0.0), "once"
    assert shares.spend(ALL, NOW_S) is None


def test_near_the_limit_every_request_is_asked_for() -> None:
    """From 90% on, the last window's included."""
    assert holding(current=7199).spend(ALL, NOW_S) is not None
    assert holding(current=7200).spend(ALL, NOW_S) is None
    assert holding(previous=7100, current=100).spend(ALL, NOW_S) is None


def test_a_small_limit_is_always_exact() -> None:
    small = Demand("all", ALL.key, 3999, 60)
    assert holding(current=0, demand=small).spend(small, NOW_S) is None


def test_a_share_ends_after_a_moment_with_its_window_and_when_the_clock_steps_back() -> None:
    assert holding().spend(ALL, NOW_S + 0.74) is not None
    assert holding().spend(ALL, NOW_S + 0.75) is None
    assert holding(now_s=START_S + 59.9).spend(ALL, START_S + 60.0) is None
    assert holding().spend(ALL, NOW_S - 3600) is None


def test_what_was_spent_goes_to_its_own_window_also_later() -> None:
    """In the next one it is the previous; after that its counter has expired and is not made anew."""
    for later_s, settled in ((61.0, (1, NOW_S)), (119.0, (1, NOW_S)), (120.0, (0, 0.0))):
        shares = holding()
        shares.spend(ALL, NOW_S)
        assert shares.settle(ALL, START_S + later_s) == settled


def test_a_request_that_another_tier_refused_is_given_back() -> None:
    shares = holding()
    shares.spend(ALL, NOW_S)
    shares.take_back(ALL)
    assert shares.spend(ALL, NOW_S) == 6999
    assert shares.settle(ALL, NOW_S) == (1, NOW_S)
    shares.take_back(ALL)
    assert shares.settle(ALL, NOW_S) == (0, 0.0)


def test_what_is_overdue_is_settled_once_and_what_is_held_is_not() -> None:
    """Also when the clock was set back; a share of which nothing was spent ends without a word."""
    for later_s in (0.8, 61.0, -3600.0):
        shares = holding()
        shares.spend(ALL, NOW_S)
        assert shares.overdue(NOW_S + 0.7) == []
        assert shares.overdue(NOW_S + later_s) == [(ALL, 1, NOW_S)]
        assert shares.overdue(NOW_S + later_s) == [] and shares.spend(ALL, NOW_S) is None
    assert holding().overdue(NOW_S + 5.0) == []


def test_answers_that_come_while_a_share_is_held_forget_nothing() -> None:
    """Several requests of one turn ask before the first answer is there."""
    shares = holding()
    shares.spend(ALL, NOW_S)
    shares.learn(ALL, (0, 1001, 0), NOW_S)
    assert shares.spend(ALL, NOW_S) == 6998
    assert shares.settle(ALL, NOW_S) == (2, NOW_S)


class Store(MemoryCounters):
    """One store of several workers, which can be told later."""

    def add(self, demand: Demand, count: int, at_s: float) -> None:
        for _ in range(count):
            self._count(self._entry(demand.key, window_start(at_s, 60), 60), part(weight(at_s, 60)))


def let_through(workers: int, limit: int, times: list[float], random: Random) -> tuple[int, int, int]:
    """(requests let through in one window by so many workers, by one exact counter, questions to the store)."""
    demand = Demand("all", ALL.key, limit, 60)
    store, alone = Store(), MemoryCounters()
    each = [GlobalShares() for _ in range(workers)]
    passed = exact = asked = 0
    for now_s in times:
        exact += alone.take([demand], now_s).allowed
        shares = random.choice(each)
        if shares.spend(demand, now_s) is not None:
            passed += 1
            continue
        spent, last_s = shares.settle(demand, now_s)
        if spent:
            store.add(demand, spent, last_s)
        counted = store.take([demand], now_s)
        asked += 1
        shares.learn(demand, counted.counts[0], now_s)
        passed += counted.allowed
    return passed, exact, asked


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 20), st.integers(4000, 8000), st.floats(0.2, 20.0), st.integers(0, 2**32))
def test_many_workers_stay_within_five_percent_of_an_exact_counter(
    workers: int, limit: int, excess: float, seed: int
) -> None:
    """Up to twenty, from a fifth of the limit to twenty times it, in one window: never more than 5%, never less."""
    random = Random(seed)
    offered = min(int(excess * limit), 15_000)
    times = sorted(START_S + random.uniform(0, min(59.9, 60 * offered / (excess * limit))) for _ in range(offered))
    passed, exact, asked = let_through(workers, limit, times, random)
    assert exact <= passed <= 1.05 * exact + 1
    if excess < 0.8 and workers == 1:
        assert asked < offered / 5


def test_the_worst_case_of_the_note() -> None:
    """All hold an unspent share while one fills the counter: each is over by its share, and no more."""
    store, each = Store(), [GlobalShares() for _ in range(20)]
    for shares in each:
        shares.learn(ALL, store.take([ALL], NOW_S).counts[0], NOW_S)
    passed = 20
    while store.take([ALL], NOW_S).allowed:
        passed += 1
    for shares in each:
        while shares.spend(ALL, NOW_S) is not None:
            passed += 1
        store.add(ALL, *shares.settle(ALL, NOW_S))
        assert not store.take([ALL], NOW_S).allowed
    assert passed == 8000 + 20 * 20 == 1.05 * 8000


def asking(store: Windows, demand: Demand) -> Callable[[float], bool]:
    """One gateway, which counts on its share while it has one; whether a request passes."""
    shares = GlobalShares()

    def ask(now_s: float) -> bool:
        if shares.spend(demand, now_s) is not None:
            return True
        spent, last_s = shares.settle(demand, now_s)
        if spent:
            store.add(demand, spent, last_s)
        counted = store.take(demand, now_s)
        shares.learn(demand, counted.counts[0], now_s)
        return counted.allowed

    return ask


@settings(max_examples=12, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(4000, 6000), st.floats(0.3, 3.0), st.integers(0, 2**32))
def test_four_gateways_over_many_windows_stay_within_five_percent(
    shape: str, limit: int, excess: float, seed: int
) -> None:
    """Whatever the schedule, with clocks a little apart: no window and no stretch of an exact log above 105% of the
    limit, and all that one exact counter lets through, within 5%."""
    random, store = Random(seed), Windows()
    demand = Demand("all", ALL.key, limit, 60)
    times = schedule(shape, limit, excess, random)
    fleet = by_a_fleet([asking(store, demand) for _ in range(4)], limit, times, random)
    assert max(fleet.windows.values()) <= 1.05 * limit
    assert fleet.most_in_a_stretch <= 1.05 * limit
    assert 0.95 * fleet.by_one <= sum(fleet.windows.values()) <= 1.05 * fleet.by_one
    for start_s, count in fleet.windows.items():
        assert 0 <= count - store.counts[demand.key, start_s] <= 4 * (limit // 400), "what nobody settled"
