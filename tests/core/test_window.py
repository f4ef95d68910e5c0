"""The rule of the sliding window, its keys and its words to the client."""

from collections import Counter
from collections.abc import Callable
from math import floor, sqrt
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.core.window import (
    Counted,
    Demand,
    counter_key,
    exhausted,
    judge,
    key,
    retry_after_s,
    safe_identifier,
    weight,
    window_start,
)

EPOCH_S = 1_707_264_000


class Reference:
    """One counter in the plainest words, and the exact log of what it let through."""

    def __init__(self, limit: int, window_s: int) -> None:
        self.limit, self.window_s = limit, window_s
        self.counts: dict[int, int] = {}
        self.log: list[float] = []

    def take(self, now_s: float) -> bool:
        start_s = window_start(now_s, self.window_s)
        previous = self.counts.get(start_s - self.window_s, 0)
        current = self.counts.get(start_s, 0)
        if exhausted(previous, current, self.limit, weight(now_s, self.window_s)):
            return False
        self.counts[start_s] = current + 1
        self.log.append(now_s)
        return True

    def most_in_one_window(self, since_s: float = 0.0) -> int:
        """The exact sliding log's maximum: requests let through in any stretch of one window's length."""
        log = [at_s for at_s in self.log if at_s >= since_s]
        most = first = 0
        for last, at_s in enumerate(log):
            while log[first] <= at_s - self.window_s:
                first += 1
            most = max(most, last - first + 1)
        return most


class Windows:
    """The counters of Redis in the plainest words: one for each window of a key, whoever's clock says which it is."""

    def __init__(self) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()

    def take(self, demand: Demand, now_s: float) -> Counted:
        start_s = window_start(now_s, demand.window_s)
        previous = self.counts[demand.key, start_s - demand.window_s]
        current = self.counts[demand.key, start_s]
        if exhausted(previous, current, demand.limit, weight(now_s, demand.window_s)):
            return Counted(False, [(previous, current)])
        self.counts[demand.key, start_s] += 1
        return Counted(True, [(previous, current + 1)])

    def add(self, demand: Demand, count: int, start_s: int) -> None:
        """What was counted elsewhere."""
        self.counts[demand.key, start_s] += count


def by_a_fleet(
    asks: list[Callable[[float], bool]], limit: int, times: list[float], random: Random
) -> tuple[Counter[int], int]:
    """Requests at `times` to gateways whose clocks are off by up to 10 ms; what passed by window, and what one exact
    counter would have let through."""
    alone, passed = Reference(limit, 60), Counter[int]()
    clocks_s = [random.uniform(-0.01, 0.01) for _ in asks]
    for at_s in times:
        alone.take(at_s)
        gateway = random.randrange(len(asks))
        clock_s = at_s + clocks_s[gateway]
        if asks[gateway](clock_s):
            passed[window_start(clock_s, 60)] += 1
    return passed, len(alone.log)


gaps_s = st.one_of(st.floats(0, 0.5), st.floats(0, 30), st.sampled_from([0.0, 1.0, 5.0, 9.999, 10.0]))


@given(st.integers(1, 20), st.lists(gaps_s, min_size=1, max_size=200))
def test_whatever_the_schedule_the_bounds_of_the_note_hold(limit: int, gaps: list[float]) -> None:
    """At most `limit` in an aligned window, 2 * limit in any stretch, and the stated bound at each request."""
    counter = Reference(limit, 10)
    now_s = float(EPOCH_S)
    for gap_s in gaps:
        now_s += gap_s
        if counter.take(now_s):
            start_s = window_start(now_s, 10)
            in_stretch = sum(1 for at_s in counter.log if at_s > now_s - 10)
            previous = counter.counts.get(start_s - 10, 0)
            assert in_stretch <= limit + 1 + previous * (now_s - start_s) / 10 + 1e-6
    assert max(counter.counts.values()) <= limit
    assert counter.most_in_one_window() <= 2 * limit
    assert len(counter.log) <= limit * (1 + (now_s - EPOCH_S) // 10)


def test_the_bound_of_twice_the_limit_is_reached() -> None:
    """The worst schedule: the limit in the last instant of a window, and again at the end of the next."""
    counter = Reference(100, 60)
    assert sum(counter.take(EPOCH_S + 59.999) for _ in range(200)) == 100
    assert sum(counter.take(EPOCH_S + 119.99) for _ in range(200)) == 100
    assert counter.most_in_one_window() == 200


def offered(limit: int, gap_s: Callable[[], float]) -> Reference:
    """Six windows of traffic with the given gaps."""
    counter = Reference(limit, 60)
    now_s = float(EPOCH_S)
    while now_s < EPOCH_S + 6 * 60:
        now_s += gap_s()
        counter.take(now_s)
    return counter


SETTLED_S = EPOCH_S + 2 * 60
seeds = st.integers(0, 2**32)


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 200), st.floats(1.0, 10.0), seeds)
def test_steady_traffic_stays_within_five_percent_of_an_exact_log(limit: int, excess: float, seed: int) -> None:
    """Gaps that vary by half: no stretch of a window has more than 1.05 * limit + 1, once it has gone on for one."""
    random = Random(seed)
    counter = offered(limit, lambda: random.uniform(0.5, 1.5) * 60 / (excess * limit))
    assert counter.most_in_one_window(SETTLED_S) <= 1.05 * limit + 1


@settings(max_examples=40, deadline=None)
@given(st.integers(20, 200), st.floats(1.0, 10.0), seeds)
def test_random_traffic_exceeds_an_exact_log_by_its_own_bunching_only(limit: int, excess: float, seed: int) -> None:
    """Poisson arrivals: the worst stretch is over by at most 2 / sqrt(limit), and the whole never by more than 5%."""
    random = Random(seed)
    counter = offered(limit, lambda: random.expovariate(excess * limit / 60))
    assert counter.most_in_one_window(SETTLED_S) <= limit * (1 + 2 / sqrt(limit))
    assert sum(1 for at_s in counter.log if at_s < EPOCH_S + 6 * 60) <= 6 * limit


def test_a_burst_at_the_border_of_two_windows_is_no_double_burst() -> None:
    """The design's example: 99 at 12:00:59 and 99 at 12:01:01 are not all let through, as a fixed window would."""
    counter = Reference(100, 60)
    assert sum(counter.take(EPOCH_S + 59) for _ in range(99)) == 99
    assert sum(counter.take(EPOCH_S + 61) for _ in range(99)) <= 4


def test_refused_requests_are_not_counted_so_a_busy_client_is_not_starved() -> None:
    """A client at ten times its limit still gets its limit, window after window."""
    counter = Reference(60, 60)
    for tick in range(600 * 5):
        counter.take(EPOCH_S + tick / 10)
    assert sum(1 for at_s in counter.log if at_s >= EPOCH_S + 60) >= 4 * 60 * 0.95


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 100), st.sampled_from([1, 7, 60]), st.floats(0, 120))
def test_retry_after_is_the_earliest_whole_second_that_passes(
    previous: int, current: int, limit: int, window_s: int, offset_s: float
) -> None:
    """Against a search by trial; also when this window alone exceeds the limit, as after a lowered one."""
    now_s = EPOCH_S + offset_s
    start_s = window_start(now_s, window_s)

    def passes(wait_s: int) -> bool:
        later_s = now_s + wait_s
        counts = {start_s - window_s: previous, start_s: current}
        begin_s = window_start(later_s, window_s)
        return not exhausted(
            counts.get(begin_s - window_s, 0), counts.get(begin_s, 0), limit, weight(later_s, window_s)
        )

    expected = next(wait_s for wait_s in range(1, 2 * window_s + 2) if passes(wait_s))
    assert retry_after_s(previous, current, limit, window_s, now_s) == expected


def test_a_limit_of_nothing_still_gets_an_answer() -> None:
    """A limit of 0 refuses for ever; the advice is a window, not an endless search."""
    assert retry_after_s(0, 0, 0, 60, EPOCH_S) == 60


@given(st.integers(0, 200), st.integers(0, 200), st.integers(1, 100), st.floats(0, 59.9))
def test_judgement_is_floored_never_negative_and_agrees_with_the_rule(
    previous: int, current: int, limit: int, elapsed_s: float
) -> None:
    """remaining is whole requests; retry_after_s is 0 exactly when a request would pass."""
    demand = Demand("standard", "rate:{standard:user:a}", limit, 60)
    verdict = judge(demand, previous, current, EPOCH_S + elapsed_s)
    share = weight(EPOCH_S + elapsed_s, 60)
    refused = exhausted(previous, current, limit, share)
    assert verdict.limit == limit
    assert verdict.reset_epoch_s == EPOCH_S + 60
    assert verdict.remaining == max(0, floor(limit - (previous * share + current)))
    assert (verdict.retry_after_s >= 1) is refused
    assert not (refused and verdict.remaining)


def test_keys_are_those_of_the_contract() -> None:
    """The braces are part of the key, so that both windows share a cluster slot."""
    assert key("standard", "user", "user_789", EPOCH_S) == "rate:{standard:user:user_789}:1707264000"
    assert counter_key("login", "ip", "203.0.113.42") == "rate:{login:ip:203.0.113.42}"


@pytest.mark.parametrize("identifier", ["a:b", "a}b", "{a", "a\r\nFLUSHALL", "", "x" * 65, "é", "\ud800", "a b"])
def test_an_identifier_cannot_break_out_of_its_key(identifier: str) -> None:
    """Anything unusual becomes a digest."""
    safe = safe_identifier(identifier)
    assert safe.startswith("sha256-") and len(safe) == 39


@pytest.mark.parametrize("identifier", ["user_789", "203.0.113.42", "a.b@c+d-e", "x" * 64, "sha256"])
def test_an_ordinary_identifier_stands_as_it_is(identifier: str) -> None:
    """So that an operator can read the keys."""
    assert safe_identifier(identifier) == identifier


@given(st.text(max_size=80), st.text(max_size=80))
def test_two_identifiers_never_share_a_counter(one: str, other: str) -> None:
    """Also not by calling oneself like another's digest."""
    for first, second in ((one, other), (one, safe_identifier(one) if safe_identifier(one) != one else other)):
        if first != second:
            assert safe_identifier(first) != safe_identifier(second)


def schedule(shape: str, limit: int, excess: float, random: Random) -> list[float]:
    """Arrival times of six windows of a minute: steady, random (Poisson), or bursts of a tenth of the limit at once."""
    rate = excess * limit / 60
    now_s, times = float(EPOCH_S), []
    while now_s < EPOCH_S + 6 * 60:
        if shape == "steady":
            now_s += random.uniform(0.5, 1.5) / rate
        elif shape == "random":
            now_s += random.expovariate(rate)
        else:
            burst = max(1, limit // 10)
            now_s += random.expovariate(rate / burst)
            times += [now_s + n / 1000 for n in range(burst - 1)]
        times.append(now_s)
    return sorted(times)


def by_four_gateways(limit: int, times: list[float], random: Random) -> Reference:
    """One counter asked by four gateways: clocks off by up to 10 ms, answers to late questions out of their order.

    The log has the true times.
    """
    counter = Reference(limit, 60)
    offsets_s = [random.uniform(-0.01, 0.01) for _ in range(4)]
    asked = sorted((at_s + random.uniform(0, 0.005), at_s, random.choice(offsets_s)) for at_s in times)
    passed = [at_s for _, at_s, offset_s in asked if counter.take(at_s + offset_s)]
    counter.log = sorted(passed)
    return counter


SHAPES = ("steady", "random", "bursts")
OVER_SHARE = {"steady": lambda limit: 0.05, "random": lambda limit: 2 / sqrt(limit), "bursts": lambda limit: 1.0}


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(20, 200), st.floats(0.5, 10.0), seeds)
def test_four_gateways_let_through_what_one_exact_counter_would(
    shape: str, limit: int, excess: float, seed: int
) -> None:
    """Within 5% of a single counter with the rule, never more than the limit in a window, the exact log as stated.

    What the rule itself lets through above an exact log is the schedule's own bunching: Note [What the rule promises].
    """
    random = Random(seed)
    times = schedule(shape, limit, excess, random)
    alone, shared = Reference(limit, 60), by_four_gateways(limit, times, random)
    for at_s in times:
        alone.take(at_s)
    assert abs(len(shared.log) - len(alone.log)) <= 0.05 * len(alone.log) + 1
    assert max(shared.counts.values()) <= limit
    assert shared.most_in_one_window(SETTLED_S) <= limit * (1 + OVER_SHARE[shape](limit)) + 1


@given(
    st.integers(1, 20),
    st.lists(st.tuples(gaps_s, st.integers(0, 3), st.floats(0, 0.05)), min_size=1, max_size=200),
    st.lists(st.floats(-0.5, 0.5), min_size=4, max_size=4),
)
def test_whatever_four_clocks_say_no_window_has_more_than_the_limit(
    limit: int, asked: list[tuple[float, int, float]], offsets_s: list[float]
) -> None:
    """Half a second apart, questions overtaking each other: windows of the asking clocks hold, n of them n limits."""
    counter = Reference(limit, 10)
    now_s, questions = float(EPOCH_S), []
    for gap_s, gateway, late_s in asked:
        now_s += gap_s
        questions.append((now_s + late_s, now_s + offsets_s[gateway]))
    for _, clock_s in sorted(questions):
        counter.take(clock_s)
    assert max(counter.counts.values()) <= limit
    assert len(counter.log) <= limit * len(counter.counts)
