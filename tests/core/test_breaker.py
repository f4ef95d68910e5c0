"""The circuit breaker by its table, and by a machine that tries everything at any moment."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from apigw.config.model import CircuitBreaker
from apigw.core.breaker import CLOSED, HALF_OPEN, OPEN, RECOVERING, Breaker

POLICY = CircuitBreaker()
PATIENCE_S = 10.0


class Watched(Breaker):
    """A breaker whose changes are written down."""

    __slots__ = ("changes",)

    def __init__(self, policy: CircuitBreaker = POLICY, now_s: float = 0.0) -> None:
        self.changes: list[tuple[str, str]] = []
        super().__init__(policy, now_s, lambda old, new, why: self.changes.append((old, new)))


def outcomes(breaker: Breaker, now_s: float, good: int = 0, bad: int = 0) -> None:
    """This many answers, the good ones first, each to a request of this moment."""
    for _ in range(good):
        breaker.succeeded(breaker.admit(now_s, PATIENCE_S), now_s)
    for _ in range(bad):
        breaker.failed(breaker.admit(now_s, PATIENCE_S), now_s)


def opened(policy: CircuitBreaker = POLICY) -> Watched:
    """OPEN at 0."""
    breaker = Watched(policy)
    outcomes(breaker, 0.0, bad=policy.min_requests)
    assert breaker.state == OPEN
    return breaker


def recovering(policy: CircuitBreaker = POLICY) -> tuple[Watched, float]:
    """RECOVERING since the moment that is returned, a ramp without a normal rate."""
    breaker = opened(policy)
    outcomes(breaker, policy.open_s, good=policy.close_after_probes)
    assert breaker.state == RECOVERING
    return breaker, policy.open_s


# -- opening


@pytest.mark.parametrize(
    ("good", "bad", "state"),
    [(0, 19, CLOSED), (0, 20, OPEN), (10, 10, CLOSED), (9, 11, OPEN), (500, 500, CLOSED), (499, 501, OPEN)],
)
def test_more_than_half_of_at_least_twenty_open_it(good: int, bad: int, state: str) -> None:
    breaker = Watched()
    outcomes(breaker, 1.0, good, bad)
    assert (breaker.state, breaker.closed) == (state, state == CLOSED)


def test_the_twentieth_may_be_a_good_one() -> None:
    breaker = Watched()
    for _ in range(11):
        breaker.failed(breaker.era, 1.0)
    for _ in range(8):
        breaker.succeeded(breaker.era, 1.0)
    assert breaker.state == CLOSED
    breaker.succeeded(breaker.era, 1.0)
    assert breaker.state == OPEN


def test_failures_count_for_the_window_and_no_longer() -> None:
    breaker = Watched()
    outcomes(breaker, 0.0, bad=15)
    outcomes(breaker, 26.0, bad=4)
    outcomes(breaker, 30.1, bad=15)
    assert breaker.state == CLOSED and breaker.counts() == (19, 19)
    outcomes(breaker, 31.0, bad=1)
    assert breaker.state == OPEN


def test_what_was_not_the_backends_fault_counts_for_nothing() -> None:
    breaker = Watched()
    for _ in range(100):
        breaker.abandoned(breaker.admit(1.0, PATIENCE_S), 1.0)
    assert breaker.counts() == (0, 0)


def test_a_request_that_is_not_counted_has_ticket_0() -> None:
    breaker = Watched()
    for _ in range(100):
        breaker.failed(0, 1.0)
    assert breaker.state == CLOSED
    breaker = opened()
    breaker.admit(30.0, PATIENCE_S)
    breaker.succeeded(0, 30.0)
    breaker.failed(0, 30.0)
    assert breaker.state == HALF_OPEN


# -- open, half open


def test_open_refuses_everybody_and_says_until_when() -> None:
    breaker = opened()
    for now_s, left_s in ((0.0, 30), (0.5, 30), (28.9, 2), (29.99, 1)):
        assert breaker.admit(now_s, PATIENCE_S) == 0
        assert breaker.retry_after_s(now_s) == left_s
    assert breaker.changes == [(CLOSED, OPEN)]


def test_probes_go_one_at_a_time_and_two_good_ones_in_a_row_end_it() -> None:
    breaker = opened()
    first = breaker.admit(30.0, PATIENCE_S)
    assert first and breaker.state == HALF_OPEN
    assert not any(breaker.admit(30.0 + n / 100, PATIENCE_S) for n in range(100))
    assert breaker.retry_after_s(31.0) == 1
    breaker.succeeded(first, 31.0)
    assert breaker.state == HALF_OPEN
    second = breaker.admit(31.0, PATIENCE_S)
    assert second and second != first and not breaker.admit(31.0, PATIENCE_S)
    breaker.succeeded(second, 31.5)
    assert breaker.state == RECOVERING
    assert breaker.changes == [(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, RECOVERING)]


def test_a_bad_probe_opens_it_again_and_good_ones_before_it_are_forgotten() -> None:
    breaker = opened()
    outcomes(breaker, 30.0, good=1)
    outcomes(breaker, 31.0, bad=1)
    assert breaker.state == OPEN and breaker.opened == 1
    assert breaker.admit(60.9, PATIENCE_S) == 0
    outcomes(breaker, 61.0, good=1)
    assert breaker.state == HALF_OPEN
    outcomes(breaker, 61.0, good=1)
    assert breaker.state == RECOVERING


def test_a_late_answer_from_before_the_opening_is_no_probe() -> None:
    breaker = Watched()
    early = breaker.admit(0.0, PATIENCE_S)
    outcomes(breaker, 0.0, bad=20)
    probe = breaker.admit(30.0, PATIENCE_S)
    breaker.succeeded(early, 30.1)
    breaker.failed(early, 30.1)
    assert breaker.state == HALF_OPEN and not breaker.admit(30.2, PATIENCE_S)
    breaker.succeeded(probe, 30.3)
    breaker.succeeded(early, 30.3)
    assert breaker.state == HALF_OPEN


def test_a_probe_that_came_to_nothing_makes_room_for_another() -> None:
    breaker = opened()
    breaker.abandoned(breaker.admit(30.0, PATIENCE_S), 30.5)
    assert breaker.state == HALF_OPEN
    assert breaker.admit(30.5, PATIENCE_S)


def test_a_probe_that_never_returns_wedges_nothing() -> None:
    breaker = opened()
    lost = breaker.admit(30.0, PATIENCE_S)
    assert not breaker.admit(39.9, PATIENCE_S)
    second = breaker.admit(40.0, PATIENCE_S)
    assert second
    breaker.succeeded(lost, 41.0)  # too late to count, and not the other's
    breaker.failed(lost, 41.0)
    assert breaker.state == HALF_OPEN and not breaker.admit(41.0, PATIENCE_S)
    breaker.succeeded(second, 41.5)
    outcomes(breaker, 42.0, good=1)
    assert breaker.state == RECOVERING


def test_a_backend_that_only_streams_is_got_back() -> None:
    """An answer that began well and is still coming when the probe's patience is over was good."""
    breaker = opened()
    breaker.answering(breaker.admit(30.0, PATIENCE_S))
    assert not breaker.admit(35.0, PATIENCE_S)
    breaker.tick(40.0)
    breaker.answering(breaker.admit(40.0, PATIENCE_S))
    breaker.tick(50.0)
    assert breaker.state == RECOVERING


# -- the ramp


def test_the_ramp_admits_its_shares_and_then_everybody() -> None:
    breaker, begun_s = recovering()
    admitted = {share: 0 for share in (0.1, 0.25, 0.5)}
    for n in range(12_000):  # 100 a second
        now_s = begun_s + n / 100
        share = breaker.share(now_s)
        ticket = breaker.admit(now_s, PATIENCE_S)
        admitted[share] += bool(ticket)
        breaker.succeeded(ticket, now_s)
    assert [round(n / 40) for n in admitted.values()] == [10, 25, 50]
    assert breaker.state == RECOVERING
    assert breaker.admit(begun_s + 120.0, PATIENCE_S) and breaker.state == CLOSED
    assert breaker.changes[-1] == (RECOVERING, CLOSED)


def test_the_ramp_ends_without_requests() -> None:
    breaker, begun_s = recovering()
    breaker.tick(begun_s + 119.9)
    assert breaker.state == RECOVERING
    breaker.tick(begun_s + 120.0)
    assert breaker.state == CLOSED


@pytest.mark.parametrize("policy", [evolve(POLICY, recovery_s=0.0), evolve(POLICY, recovery_steps=(1.0,))])
def test_without_steps_or_time_for_them_it_closes_at_once(policy: CircuitBreaker) -> None:
    breaker = opened(policy)
    outcomes(breaker, 30.0, good=2)
    assert breaker.state == CLOSED


def test_failures_in_the_ramp_open_it_again_by_a_fresh_window() -> None:
    """The failures from before the opening do not count."""
    breaker, begun_s = recovering(evolve(POLICY, open_s=1.0))
    assert breaker.counts() == (0, 0)
    now_s = begun_s
    for _ in range(19):
        breaker.failed(breaker.era, now_s)
    assert breaker.state == RECOVERING
    breaker.failed(breaker.era, now_s)
    assert breaker.state == OPEN and breaker.opened == 2


def test_an_answer_to_a_request_of_the_ramp_counts_after_its_end() -> None:
    breaker, begun_s = recovering()
    ticket = breaker.era
    breaker.tick(begun_s + 120.0)
    breaker.failed(ticket, begun_s + 120.0)
    assert breaker.counts() == (1, 1)


def test_clients_that_wait_for_the_ramp_are_spread_over_some_seconds() -> None:
    breaker, begun_s = recovering()
    assert {breaker.retry_after_s(begun_s) for _ in range(20)} == {*range(1, 11)}


# -- settings


def test_other_settings_apply_to_what_is_open() -> None:
    breaker = opened()
    breaker.configure(evolve(POLICY, open_s=3.0), 1.0)
    assert breaker.state == OPEN and breaker.retry_after_s(1.0) == 3
    assert breaker.admit(4.0, PATIENCE_S)


def test_other_settings_apply_to_the_ramp_and_its_beginning_stays() -> None:
    breaker, begun_s = recovering()
    breaker.configure(evolve(POLICY, recovery_s=10.0), begun_s + 6.0)
    assert breaker.share(begun_s + 6.0) == 0.25
    breaker.tick(begun_s + 10.0)
    assert breaker.state == CLOSED


def test_a_lower_rate_applies_to_what_is_counted_already() -> None:
    breaker = Watched()
    outcomes(breaker, 1.0, good=15, bad=6)
    breaker.configure(evolve(POLICY, error_rate=0.2), 1.0)
    outcomes(breaker, 1.0, bad=1)
    assert breaker.state == OPEN


# -- other gateways


def test_what_another_gateway_opened_is_open_here_and_not_for_longer_than_by_oneself() -> None:
    breaker = Watched()
    breaker.open_elsewhere(1e9, 5.0, "another says so")
    assert breaker.state == OPEN and breaker.retry_after_s(5.0) == 30
    assert breaker.admit(35.0, PATIENCE_S)
    breaker = Watched()
    breaker.open_elsewhere(-1.0, 5.0, "over already")
    assert breaker.state == CLOSED


def test_another_gateways_failed_probe_ends_the_probing_here() -> None:
    breaker = opened()
    probe = breaker.admit(30.0, PATIENCE_S)
    breaker.open_elsewhere(29.0, 31.0, "its probe failed")
    breaker.succeeded(probe, 31.5)
    assert breaker.state == OPEN and breaker.retry_after_s(31.0) == 29


def test_another_gateways_ramp_is_joined_where_it_is() -> None:
    for breaker in (opened(), Watched()):
        breaker.recovering_elsewhere(45.0, 40.0, "its probes were good")
        assert breaker.state == RECOVERING and breaker.share(40.0) == 0.25
        breaker.recovering_elsewhere(0.0, 41.0, "again")
        assert breaker.share(41.0) == 0.25
        breaker.tick(115.0)
        assert breaker.state == CLOSED
    breaker = opened()
    breaker.recovering_elsewhere(500.0, 40.0, "long ago")
    assert breaker.state == CLOSED


def test_what_is_open_and_over_shows_as_half_open() -> None:
    breaker = opened()
    assert [breaker.state_at(now_s) for now_s in (29.0, 30.0)] == [OPEN, HALF_OPEN]
    assert breaker.open_until_s == 30.0
    assert breaker.recovering_for_s(30.0) is None
    breaker.recovering_elsewhere(0.0, 30.0, "")
    assert breaker.recovering_for_s(31.0) == 1.0


# -- everything at any moment

SMALL = CircuitBreaker(
    window_s=10.0, min_requests=4, open_s=5.0, close_after_probes=2, recovery_steps=(0.1, 0.5, 1.0), recovery_s=20.0
)


class Anything(RuleBasedStateMachine):
    """Requests, answers in any order, silence, reloads and other gateways."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0
        self.breaker = Watched(SMALL)
        self.out: list[tuple[int, float, float]] = []  # (ticket, admitted at, patience)
        self.probes: dict[int, float] = {}  # out: until when
        self.seen_changes = 0

    @rule(seconds=st.sampled_from([0.0, 0.01, 0.3, 1.0, 4.9, 5.0, 12.0, 100.0]))
    def wait(self, seconds: float) -> None:
        self.now_s += seconds

    @rule()
    def second(self) -> None:
        self.breaker.tick(self.now_s)

    @rule(patience_s=st.sampled_from([0.2, 2.0, 30.0]))
    def ask(self, patience_s: float) -> None:
        breaker, before = self.breaker, self.breaker.state
        until_s = breaker.open_until_s
        ticket = breaker.admit(self.now_s, patience_s)
        if before == OPEN and self.now_s < until_s:
            assert not ticket
        if ticket:
            assert breaker.state != OPEN
            self.out.append((ticket, self.now_s, patience_s))
            if breaker.state == HALF_OPEN:
                assert not any(self.now_s < until_s for until_s in self.probes.values())
                self.probes = {ticket: self.now_s + patience_s}
        else:
            assert breaker.retry_after_s(self.now_s) >= 1

    @precondition(lambda self: self.out)
    @rule(data=st.data(), outcome=st.sampled_from(["good", "bad", "nothing", "answering"]))
    def answer(self, data: Any, outcome: str) -> None:
        place = data.draw(st.integers(0, len(self.out) - 1))
        ticket = self.out[place][0]
        state, era = self.breaker.state, self.breaker.era
        if outcome == "answering":
            self.breaker.answering(ticket)
            return
        del self.out[place]
        tell = {"good": self.breaker.succeeded, "bad": self.breaker.failed, "nothing": self.breaker.abandoned}[outcome]
        tell(ticket, self.now_s)
        self.probes.pop(ticket, None)
        if ticket != era:  # of another era
            assert (self.breaker.state, self.breaker.era) == (state, era)
        if state == HALF_OPEN and outcome == "bad" and ticket == era:
            assert self.breaker.state == OPEN

    @rule(left_s=st.floats(-10.0, 1e6))
    def open_elsewhere(self, left_s: float) -> None:
        self.breaker.open_elsewhere(left_s, self.now_s, "")
        if self.breaker.state == OPEN:
            self.probes.clear()

    @rule(since_s=st.floats(-10.0, 1e6))
    def recovering_elsewhere(self, since_s: float) -> None:
        self.breaker.recovering_elsewhere(since_s, self.now_s, "")
        self.probes.clear()

    @rule(
        policy=st.builds(
            CircuitBreaker,
            error_rate=st.sampled_from([0.2, 0.5, 1.0]),
            window_s=st.sampled_from([1.0, 10.0]),
            min_requests=st.sampled_from([1, 4]),
            open_s=st.sampled_from([0.5, 5.0]),
            close_after_probes=st.sampled_from([1, 3]),
            recovery_steps=st.sampled_from([(1.0,), (0.1, 0.5, 1.0)]),
            recovery_s=st.sampled_from([0.0, 20.0]),
        )
    )
    def reload(self, policy: CircuitBreaker) -> None:
        self.breaker.configure(policy, self.now_s)

    @invariant()
    def what_shows_fits(self) -> None:
        breaker = self.breaker
        assert breaker.closed == (breaker.state == CLOSED)
        total, bad = breaker.counts()
        assert 0 <= bad <= total
        if breaker.state == OPEN:
            assert breaker.open_until_s <= self.now_s + breaker.policy.open_s + 1e-6
        for old, new in breaker.changes[self.seen_changes :]:
            self.seen_changes += 1
            assert old != new or old == OPEN
            assert (old, new) != (OPEN, CLOSED) and (old, new) != (HALF_OPEN, CLOSED)

    def teardown(self) -> None:
        """Whatever came before: with a backend that is well it comes back, and stays."""
        breaker, self.now_s = self.breaker, self.now_s + 1.0
        for _ in range(4000):
            ticket = breaker.admit(self.now_s, 30.0)
            breaker.succeeded(ticket, self.now_s)
            self.now_s += 0.05
        assert breaker.state == CLOSED


TestAnything = Anything.TestCase
TestAnything.settings = settings(max_examples=60, stateful_step_count=60, deadline=None)
