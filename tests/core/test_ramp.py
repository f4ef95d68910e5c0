"""A backend gets its traffic back by shares, and no storm: five minutes of waiting clients need one recovery."""

import heapq
import random
from functools import partial
from typing import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.config.model import CircuitBreaker
from apigw.core.breaker import CLOSED, OPEN, RECOVERING, Breaker
from apigw.core.ramp import EASE, HEADROOM, Ramp

STEPS = (0.10, 0.25, 0.50, 1.0)


def ramp(normal_rps: float | None = None, floor_rps: float = 1.0) -> Ramp:
    return Ramp(STEPS, 120.0, 30.0, 0.0, normal_rps, floor_rps)


def offered(one: Ramp, rps: float, begin_s: float, end_s: float, bad: float = 0.0) -> int:
    """How many pass; of those, the share `bad` fails, at once."""
    passed, failing = 0, 0.0
    for n in range(int((end_s - begin_s) * rps)):
        now_s = begin_s + n / rps
        if one.admits(now_s):
            passed += 1
            failing += bad
            if failing >= 1.0:
                failing -= 1.0
                one.failed(now_s)
            else:
                one.succeeded(now_s)
    return passed


# -- the share


@pytest.mark.parametrize(
    ("now_s", "share"), [(-5, 0.1), (0, 0.1), (39.9, 0.1), (40, 0.25), (79.9, 0.25), (80, 0.5), (119.9, 0.5), (120, 1)]
)
def test_the_steps_are_spread_evenly_and_the_last_begins_at_the_end(now_s: float, share: float) -> None:
    assert ramp().share(now_s) == share


@given(
    st.lists(st.floats(0.001, 1.0), max_size=6).map(lambda steps: (*sorted(steps), 1.0)),
    st.floats(0.1, 3600.0),
    st.integers(1, 500),
)
def test_the_share_that_passes_is_exact_to_one_request_a_step(steps: tuple[float, ...], over_s: float, n: int) -> None:
    """Without a normal rate. It rises and never falls."""
    one = Ramp(steps, over_s, 30.0, 0.0, None, 1.0)
    owed, passed, last = 0.0, 0, 0.0
    for place in range(n):
        now_s = over_s * 1.1 * place / n
        share = one.share(now_s)
        assert share >= last
        last = share
        owed += share
        passed += one.admits(now_s)
        assert owed - 1.0 - 1e-6 <= passed <= owed + 1e-6


def test_it_is_over_at_the_last_step() -> None:
    one = ramp()
    assert not one.over(119.9) and one.over(120.0)


# -- the rate


def test_a_load_that_is_as_before_is_not_held_back() -> None:
    one = ramp(normal_rps=20.0)
    passed = [offered(one, 20.0, begin_s, begin_s + 40.0) for begin_s in (0.0, 40.0, 80.0)]
    assert [round(each / 8) for each in passed] == [10, 25, 50]  # percent
    assert one.over(120.0)


def test_a_load_that_is_many_times_as_before_gets_the_share_of_what_was_before() -> None:
    one = ramp(normal_rps=20.0)
    passed = [offered(one, 2000.0, begin_s, begin_s + 40.0) for begin_s in (0.0, 40.0, 80.0)]
    for count, share in zip(passed, STEPS):
        assert 0.95 * 800 * HEADROOM * share <= count <= 800 * HEADROOM * share + 10
    assert not one.over(120.0)


def test_it_lasts_until_nobody_is_held_back() -> None:
    one = ramp(normal_rps=20.0)
    offered(one, 2000.0, 110.0, 130.0)
    offered(one, 10.0, 130.0, 130.0 + one.quiet_s - 2.0)
    assert not one.over(130.0 + one.quiet_s - 2.0)
    offered(one, 10.0, 130.0 + one.quiet_s - 2.0, 132.0 + one.quiet_s)
    assert one.over(132.0 + one.quiet_s)


def test_traffic_that_has_become_more_for_good_gets_through() -> None:
    """It doubles three times in recovery_seconds while answers are good."""
    one = ramp(normal_rps=20.0)
    offered(one, 200.0, 0.0, 120.0)
    count = offered(one, 200.0, 120.0, 240.0)
    assert 3.0 * 120 * 20 * HEADROOM <= count <= 3.6 * 120 * 20 * HEADROOM
    offered(one, 200.0, 240.0, 600.0)
    assert one.over(600.0)


def test_a_guess_is_soon_left_behind() -> None:
    """After a ramp that failed the next one is bounded at first, until it is seen that all is well."""
    one = Ramp(STEPS, 120.0, 30.0, 0.0, 2.0, 1.0, guessed=True)
    counts = [offered(one, 50.0, begin_s, begin_s + 40.0) for begin_s in (0.0, 40.0, 80.0)]
    assert counts[0] < 0.05 * 40 * 50
    assert counts[2] > 0.45 * 40 * 50
    assert one.over(120.0)


def test_failures_above_a_tenth_cut_it_back_once_a_while() -> None:
    one = ramp(normal_rps=100.0)
    one.look(90.0)
    for n in range(50):
        one.failed(90.0 + n / 100)
    assert one.growth == EASE
    offered(one, 1000.0, 95.0, 96.0, bad=0.05)
    assert EASE <= one.growth <= EASE * 1.05


def test_it_is_never_cut_back_below_what_shows_that_a_backend_is_bad() -> None:
    one = ramp(normal_rps=100.0, floor_rps=2.0)
    offered(one, 1000.0, 0.0, 60.0, bad=1.0)
    assert one.growth < 0.01
    assert offered(one, 1000.0, 60.0, 90.0, bad=1.0) >= 59


# -- the storm

NORMAL_RPS = 10.0
CAPACITY_RPS = 1.5 * NORMAL_RPS
OUTAGE_S = (120.0, 420.0)  # five minutes

Serve = Callable[[float], tuple[float, bool]]  # when a request comes -> (when its outcome is known, good)


def shedding_backend() -> Serve:
    """What is above the capacity is answered 503 at once."""
    free_s = 0.0

    def serve(now_s: float) -> tuple[float, bool]:
        nonlocal free_s
        if free_s > now_s + 0.5:
            return now_s + 0.01, False
        free_s = max(free_s, now_s) + 1.0 / CAPACITY_RPS
        return free_s, True

    return serve


def collapsing_backend(timeout_s: float = 2.0) -> Serve:
    """One queue without end: it works on requests whose clients have gone, so that above the capacity all time out."""
    free_s = 0.0

    def serve(now_s: float) -> tuple[float, bool]:
        nonlocal free_s
        free_s = max(free_s, now_s) + 1.0 / CAPACITY_RPS
        return (free_s, True) if free_s - now_s <= timeout_s else (now_s + timeout_s, False)

    return serve


class Storm:
    """Clients that never give up, each asking again exactly when Retry-After said; one breaker; virtual time."""

    def __init__(self, serve: Serve, seed: int, outage_s: tuple[float, float] = OUTAGE_S) -> None:
        self._outage_s = outage_s
        self._serve = serve
        self._random = random.Random(seed)
        self._events: list[tuple[float, int, str, int]] = []
        self._number = 0
        self.now_s = 0.0
        self.served = 0
        self.waiting = 0
        self.most_waiting = 0
        self.changes: list[tuple[float, str]] = []
        self.ends = {True: 0, False: 0}  # of what the backend was given after the outage
        self.breaker = Breaker(CircuitBreaker(), 0.0, lambda old, new, why: self.changes.append((self.now_s, new)))

    def _at(self, when_s: float, what: str, ticket: int = 0) -> None:
        self._number += 1
        heapq.heappush(self._events, (when_s, self._number, what, ticket))

    def run(self, until_s: float) -> None:
        self._at(0.0, "arrive")
        for second in range(int(until_s)):
            self._at(float(second), "tick")
        while self._events and self._events[0][0] < until_s:
            self.now_s, _, what, ticket = heapq.heappop(self._events)
            getattr(self, f"_{what}")(ticket)

    def _arrive(self, _: int) -> None:
        self._at(self.now_s + self._random.expovariate(NORMAL_RPS), "arrive")
        self.waiting += 1
        self.most_waiting = max(self.waiting, self.most_waiting)
        self._ask(0)

    def _ask(self, _: int) -> None:
        ticket = self.breaker.admit(self.now_s, 10.0)
        if not ticket:
            self._at(self.now_s + self.breaker.retry_after_s(self.now_s), "ask")
        elif self._outage_s[0] <= self.now_s < self._outage_s[1]:
            self._at(self.now_s + 0.01, "bad", ticket)
        else:
            when_s, good = self._serve(self.now_s)
            self._at(when_s, "good" if good else "bad", ticket)

    def _good(self, ticket: int) -> None:
        self.breaker.succeeded(ticket, self.now_s)
        self.waiting -= 1
        self.ends[True] += self.now_s > self._outage_s[1]

    def _bad(self, ticket: int) -> None:
        self.breaker.failed(ticket, self.now_s)
        self.ends[False] += self.now_s > self._outage_s[1] + 0.02
        self._at(self.now_s + 1.0, "ask")

    def _tick(self, _: int) -> None:
        self.breaker.tick(self.now_s)


@pytest.mark.parametrize(
    "backend",
    [shedding_backend, collapsing_backend, partial(collapsing_backend, 0.7), partial(collapsing_backend, 10.0)],
)
def test_five_minutes_of_waiting_clients_are_served_by_one_recovery(backend: Callable[[], Serve]) -> None:
    """The backend can carry 1.5 times the normal load. Nobody gives up, so the queue needs ten minutes at the least."""
    storm = Storm(backend(), 1)
    storm.run(2400.0)
    assert storm.most_waiting > 290 * NORMAL_RPS
    states = [state for when_s, state in storm.changes if when_s > OUTAGE_S[1]]
    after = states[states.index(RECOVERING) :]
    assert after == [RECOVERING, CLOSED]
    assert storm.breaker.opened == 1 and storm.breaker.state == CLOSED
    assert storm.waiting < 5 * NORMAL_RPS  # the queue is gone
    assert storm.ends[False] < 0.1 * storm.ends[True]


def test_a_gateway_that_started_during_the_outage_needs_one_more_opening() -> None:
    """Nothing is known of the normal load: the first ramp is a storm, the second bounded by what the first showed."""
    storm = Storm(collapsing_backend(), 1, outage_s=(5.0, 125.0))
    storm.run(1800.0)
    assert storm.breaker.state == CLOSED and storm.breaker.opened == 2
    assert storm.waiting < 5 * NORMAL_RPS


def test_without_a_bound_on_the_rate_the_storm_opens_it_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the bound is for: a share of a storm is a storm."""
    monkeypatch.setattr(Breaker, "normal_rps", property(lambda self: None, lambda self, value: None))
    storm = Storm(collapsing_backend(), 1)
    storm.run(700.0)
    assert storm.breaker.opened > 1
    assert [state for _, state in storm.changes].count(OPEN) > 1
