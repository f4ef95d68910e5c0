"""The rule of the sliding window, its keys and its words to the client."""

from collections import Counter
from collections.abc import Callable
from math import floor
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.core.window import (
    PARTS,
    UNKNOWN,
    Counted,
    Demand,
    counter_key,
    judge,
    key,
    part,
    recent,
    retry_after_s,
    safe_identifier,
    spread_key,
    used,
    weight,
    window_start,
)

EPOCH_S = 1_707_264_000


def steps(by_part: list[int]) -> list[int]:
    """Requests by the part in which they fell, as core.window.Steps."""
    found, before = [], 0
    for number, count in enumerate(by_part):
        if count:
            found += [number, before]
        before += count
    return found


class Windows:
    """The counters of Redis in the plainest words: one for each window of a key, whoever's clock says which it is.

    guarded: by the guard, too; without it, by the contract's formula alone.
    """

    def __init__(self, guarded: bool = True) -> None:
        self.counts: Counter[tuple[str, int]] = Counter()
        self.parts: Counter[tuple[str, int, int]] = Counter()
        self._guarded = guarded

    def take(self, demand: Demand, now_s: float) -> Counted:
        key, limit, window_s = demand.key, demand.limit, demand.window_s
        start_s, share = window_start(now_s, window_s), weight(now_s, window_s)
        previous = self.counts[key, start_s - window_s]
        current = self.counts[key, start_s] + self.counts[key, start_s + window_s]
        late = sum(self.parts[key, start_s - window_s, number] for number in range(part(share), PARTS))
        exceeded = self._guarded and late + current >= limit + max(1, limit // 50)
        if exceeded or previous * share + current >= limit:
            spread = (self._spread(key, start_s - window_s), self._spread(key, start_s))
            return Counted(False, [(previous, current, late)], [spread])
        self.add(demand, 1, now_s)
        return Counted(True, [(previous, current + 1, late)])

    def _spread(self, key: str, start_s: int) -> list[int]:
        return steps([self.parts[key, start_s, number] for number in range(PARTS)])

    def add(self, demand: Demand, count: int, at_s: float) -> None:
        """What was counted elsewhere."""
        start_s = window_start(at_s, demand.window_s)
        self.counts[demand.key, start_s] += count
        self.parts[demand.key, start_s, part(weight(at_s, demand.window_s))] += count


class Reference:
    """One counter, and the exact log of what it let through."""

    def __init__(self, limit: int, window_s: int, guarded: bool = True) -> None:
        self.limit, self.window_s = limit, window_s
        self.log: list[float] = []
        self._demand = Demand("standard", "one", limit, window_s)
        self._windows = Windows(guarded)

    def take(self, now_s: float) -> bool:
        allowed = self._windows.take(self._demand, now_s).allowed
        if allowed:
            self.log.append(now_s)
        return allowed

    def of_window(self, start_s: int) -> int:
        return self._windows.counts["one", start_s]

    @property
    def most_of_a_window(self) -> int:
        """Of those that begin at multiples of their length."""
        return max(self._windows.counts.values())

    @property
    def windows(self) -> int:
        return len([count for count in self._windows.counts.values() if count])

    def most_in_a_stretch(self, shorter_s: float = 0.0) -> int:
        return most_in_a_stretch(self.log, self.window_s - shorter_s)


def most_in_a_stretch(log: list[float], length_s: float) -> int:
    """The exact sliding log's maximum: requests let through in any stretch of this length. `log` is sorted."""
    most = first = 0
    for last, at_s in enumerate(log):
        while log[first] <= at_s - length_s:
            first += 1
        most = max(most, last - first + 1)
    return most


CLOCKS_S = 0.01  # each gateway's differs by up to so much from the true time


def by_a_fleet(asks: list[Callable[[float], bool]], limit: int, times: list[float], random: Random) -> "Fleet":
    """Requests at `times` to gateways whose clocks are off."""
    alone, passed, log = Reference(limit, 60), Counter[int](), []
    clocks_s = [random.uniform(-CLOCKS_S, CLOCKS_S) for _ in asks]
    for at_s in times:
        alone.take(at_s)
        gateway = random.randrange(len(asks))
        clock_s = at_s + clocks_s[gateway]
        if asks[gateway](clock_s):
            passed[window_start(clock_s, 60)] += 1
            log.append(at_s)
    return Fleet(passed, most_in_a_stretch(log, 60 - 2 * CLOCKS_S), len(alone.log))


class Fleet(NamedTuple):
    """What it let through: by window, in the busiest stretch of one's length; and what one counter would have."""

    windows: Counter[int]
    most_in_a_stretch: int
    by_one: int


gaps_s = st.one_of(st.floats(0, 0.5), st.floats(0, 30), st.sampled_from([0.0, 1.0, 5.0, 9.999, 10.0]))


@given(st.integers(1, 120), st.lists(gaps_s, min_size=1, max_size=200), st.integers(1, 40))
def test_whatever_the_schedule_the_promises_of_the_note_hold(limit: int, gaps: list[float], burst: int) -> None:
    """At most `limit` in an aligned window, 2% or one request more in any stretch, and n + 1 limits in n windows."""
    counter = Reference(limit, 10)
    now_s = float(EPOCH_S)
    for gap_s in gaps:
        now_s += gap_s
        for _ in range(burst):
            counter.take(now_s)
    assert counter.most_of_a_window <= limit
    assert counter.most_in_a_stretch() <= limit + max(1, limit // 50)
    assert len(counter.log) <= limit * (1 + (now_s - EPOCH_S) // 10)


def test_the_worst_schedule_for_the_rule_alone_meets_its_guard() -> None:
    """The limit in the last instant of a window, and again at the end of the next: twice the limit in one stretch."""
    for guarded, second, most in ((False, 100, 200), (True, 2, 102)):
        counter = Reference(100, 60, guarded)
        assert sum(counter.take(EPOCH_S + 59.999) for _ in range(200)) == 100
        assert sum(counter.take(EPOCH_S + 119.99) for _ in range(200)) == second
        assert counter.most_in_a_stretch() == most


def offered(limit: int, gap_s: Callable[[], float], guarded: bool = True) -> Reference:
    """Six windows of traffic with the given gaps."""
    counter = Reference(limit, 60, guarded)
    now_s = float(EPOCH_S)
    while now_s < EPOCH_S + 6 * 60:
        now_s += gap_s()
        counter.take(now_s)
    return counter


seeds = st.integers(0, 2**32)


@settings(max_examples=40, deadline=None)
@given(st.integers(50, 300), st.floats(1.0, 10.0), seeds)
def test_steady_traffic_hardly_meets_the_guard(limit: int, excess: float, seed: int) -> None:
    """Gaps that vary by half: it gets what the rule alone would let through, within 2%."""

    def let_through(guarded: bool) -> int:
        random = Random(seed)
        return len(offered(limit, lambda: random.uniform(0.5, 1.5) * 60 / (excess * limit), guarded).log)

    assert let_through(False) * 0.98 - 1 <= let_through(True) <= let_through(False) + 1


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


counts_by_part = st.lists(st.sampled_from([0, 0, 0, 0, 1, 2, 40]), max_size=PARTS)


@given(counts_by_part, counts_by_part, st.integers(1, 100), st.sampled_from([1, 7, 60]), st.floats(0, 120))
def test_retry_after_is_the_earliest_whole_second_that_passes(
    earlier: list[int], now: list[int], limit: int, window_s: int, offset_s: float
) -> None:
    """Against a search by trial; also when this window alone exceeds the limit, as after a lowered one."""
    now_s = EPOCH_S + offset_s
    start_s = window_start(now_s, window_s)
    by_window = {start_s - window_s: earlier, start_s: now}

    def passes(wait_s: int) -> bool:
        begin_s, share = window_start(now_s + wait_s, window_s), weight(now_s + wait_s, window_s)
        before, current = by_window.get(begin_s - window_s, []), sum(by_window.get(begin_s, []))
        by_rule = sum(before) * share + current < limit
        return by_rule and sum(before[part(share) :]) + current < limit + max(1, limit // 50)

    expected = next(wait_s for wait_s in range(1, 2 * window_s + 2) if passes(wait_s))
    spread = steps(earlier), steps(now)
    late = recent(sum(earlier), spread[0], weight(now_s, window_s), limit)
    assert retry_after_s((sum(earlier), sum(now), late), spread, limit, window_s, now_s) == expected


@given(st.integers(0, 300), st.integers(0, 300), st.integers(1, 100), st.sampled_from([1, 7, 60]), st.floats(0, 120))
def test_without_a_spread_retry_after_is_the_rules_own(
    previous: int, current: int, limit: int, window_s: int, offset_s: float
) -> None:
    """As for counters that another program wrote."""
    now_s = EPOCH_S + offset_s
    start_s = window_start(now_s, window_s)
    counts = {start_s - window_s: previous, start_s: current}

    def passes(wait_s: int) -> bool:
        begin_s = window_start(now_s + wait_s, window_s)
        before, here = counts.get(begin_s - window_s, 0), counts.get(begin_s, 0)
        return before * weight(now_s + wait_s, window_s) + here < limit

    expected = next(wait_s for wait_s in range(1, 2 * window_s + 2) if passes(wait_s))
    assert retry_after_s((previous, current, 0), UNKNOWN, limit, window_s, now_s) == expected


@given(counts_by_part, st.integers(1, 100), st.floats(0.001, 1.0))
def test_who_need_not_be_looked_for_changes_nothing(parts: list[int], limit: int, share: float) -> None:
    """recent() counts all where the rule says more than the guard could."""
    exact = sum(parts[part(share) :])
    found = recent(sum(parts), steps(parts), share, limit)
    assert used((sum(parts), 0, found), limit, share) == used((sum(parts), 0, exact), limit, share)


def test_a_limit_of_nothing_still_gets_an_answer() -> None:
    """A limit of 0 refuses for ever; the advice is a window, not an endless search."""
    assert retry_after_s((0, 0, 0), UNKNOWN, 0, 60, EPOCH_S) == 60


@given(counts_by_part, counts_by_part, st.integers(1, 100), st.floats(0, 59.9))
def test_judgement_is_floored_never_negative_and_agrees_with_the_rule(
    earlier: list[int], now: list[int], limit: int, elapsed_s: float
) -> None:
    """remaining is whole requests, of the rule or the guard; retry_after_s is 0 exactly when a request would pass."""
    demand = Demand("standard", "rate:{standard:user:a}", limit, 60)
    share = weight(EPOCH_S + elapsed_s, 60)
    previous, current, late = sum(earlier), sum(now), sum(earlier[part(share) :])
    verdict = judge(demand, (previous, current, late), EPOCH_S + elapsed_s, (steps(earlier), steps(now)))
    left = min(limit - (previous * share + current), limit + max(1, limit // 50) - late - current)
    assert verdict.limit == limit
    assert verdict.reset_epoch_s == EPOCH_S + 60
    assert verdict.remaining == max(0, floor(left + 1e-9))
    assert (verdict.retry_after_s >= 1) is (left <= 1e-9)
    assert not (verdict.retry_after_s and verdict.remaining)


def test_keys_are_those_of_the_contract() -> None:
    """The braces are part of the key, so that both windows share a cluster slot."""
    assert key("standard", "user", "user_789", EPOCH_S) == "rate:{standard:user:user_789}:1707264000"
    assert counter_key("login", "ip", "203.0.113.42") == "rate:{login:ip:203.0.113.42}"
    assert spread_key("rate:{login:ip:203.0.113.42}", EPOCH_S) == "spread:{login:ip:203.0.113.42}:1707264000"


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
    """One counter asked by four gateways: clocks off, answers to late questions out of their order.

    The log has the true times.
    """
    counter = Reference(limit, 60)
    offsets_s = [random.uniform(-CLOCKS_S, CLOCKS_S) for _ in range(4)]
    asked = sorted((at_s + random.uniform(0, 0.005), at_s, random.choice(offsets_s)) for at_s in times)
    passed = [at_s for _, at_s, offset_s in asked if counter.take(at_s + offset_s)]
    counter.log = sorted(passed)
    return counter


SHAPES = ("steady", "random", "bursts")


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(5, 300), st.floats(0.5, 10.0), seeds)
def test_four_gateways_stay_within_five_percent_of_an_exact_log(
    shape: str, limit: int, excess: float, seed: int
) -> None:
    """Never above 102% of the limit in any stretch, as its clocks can tell; and within 5% of a single counter."""
    random = Random(seed)
    times = schedule(shape, limit, excess, random)
    alone, shared = Reference(limit, 60), by_four_gateways(limit, times, random)
    for at_s in times:
        alone.take(at_s)
    assert abs(len(shared.log) - len(alone.log)) <= 0.05 * len(alone.log) + 1
    assert shared.most_of_a_window <= limit
    assert shared.most_in_a_stretch(2 * CLOCKS_S) <= limit + max(1, limit // 50)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(SHAPES), st.integers(20, 300), st.floats(0.5, 10.0), seeds)
def test_the_guard_takes_little_of_what_the_rule_would_let_through(
    shape: str, limit: int, excess: float, seed: int
) -> None:
    """Over six windows; more than 7% only from bursts and from limits too small to have a 2% of their own."""
    times = schedule(shape, limit, excess, Random(seed))
    guarded, alone = Reference(limit, 60), Reference(limit, 60, guarded=False)
    for at_s in times:
        guarded.take(at_s)
        alone.take(at_s)
    share = 0.93 if shape != "bursts" and limit >= 50 else 0.85
    assert share * len(alone.log) - 1 <= len(guarded.log) <= len(alone.log) + 1


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
    assert counter.most_of_a_window <= limit
    assert len(counter.log) <= limit * counter.windows
