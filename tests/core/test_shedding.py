"""Which requests an overloaded worker refuses: thresholds, order, ramps, memory; and the closed loop comes to rest."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.shedding import (
    FALL_S,
    LAG_FULL_S,
    NORMAL,
    PRIORITIES,
    REJECTING,
    SHEDDING,
    Sample,
    Shedding,
    cpu_share,
    memory_share,
)

CPU = {"P1": 90.0, "P2": 75.0, "P3": 60.0}
MEMORY = {"shed": 80.0, "reject": 95.0}
TICK_S = 0.1


def shedding(cpu: dict[str, float] = CPU, memory: dict[str, float] = MEMORY) -> Shedding:
    return Shedding(cpu, memory)


def feed(one: Shedding, seconds: float, cpu: float = 0.0, lag_s: float = 0.0, memory: float = 10.0) -> Shedding:
    """This load for so long."""
    for _ in range(round(seconds / TICK_S)):
        one.observe(Sample(cpu, lag_s, memory), TICK_S)
    return one


def shed(one: Shedding) -> set[str]:
    return {priority for priority, share in one.shares.items() if share > 0}


# -- CPU


@pytest.mark.parametrize(
    ("cpu", "wanted"),
    [
        (0, set()),
        (59, set()),
        (62, {"P3"}),
        (74, {"P3"}),
        (77, {"P3", "P2"}),
        (89, {"P3", "P2"}),
        (95, {"P3", "P2", "P1"}),
    ],
)
def test_priorities_go_in_the_designs_order(cpu: float, wanted: set[str]) -> None:
    one = feed(shedding(), 30, cpu)
    assert shed(one) == wanted
    assert one.active == bool(wanted)
    assert one.state == (SHEDDING if wanted else NORMAL)


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0.1, 100))
def test_a_higher_level_never_sheds_less_and_a_ramp_has_no_cliff(level: float, other: float, threshold: float) -> None:
    low, high = sorted((level, other))
    assert 0.0 <= cpu_share(low, threshold) <= cpu_share(high, threshold) <= 1.0
    if 1.0 <= threshold <= 90.0:
        assert cpu_share(high, threshold) - cpu_share(low, threshold) <= (high - low) / (threshold * 0.1) + 1e-9
        assert cpu_share(threshold * 1.1 + 1e-6, threshold) == 1.0
    assert cpu_share(threshold, threshold) == 0.0


def test_a_ramp_ends_at_100_percent_at_the_latest() -> None:
    assert cpu_share(100, 95) == 1.0
    assert 0.4 < cpu_share(97.5, 95) < 0.6


loads = st.tuples(st.floats(0, 100), st.floats(0, 0.2), st.floats(0, 79))


@given(st.lists(st.tuples(loads, st.tuples(st.floats(0, 50), st.floats(0, 0.1), st.floats(0, 10))), max_size=40))
def test_a_worker_with_more_load_at_every_moment_sheds_at_least_as_much(pairs: list[Any]) -> None:
    less, more = shedding(), shedding()
    for (cpu, lag_s, memory), (cpu_more, lag_more_s, memory_more) in pairs:
        less.observe(Sample(cpu, lag_s, memory), TICK_S)
        more.observe(Sample(cpu + cpu_more, lag_s + lag_more_s, memory + memory_more), TICK_S)
        assert all(more.shares[priority] >= less.shares[priority] - 1e-9 for priority in PRIORITIES)


@given(st.lists(st.tuples(st.floats(0, 1000), st.floats(0, 10), st.floats(0, 94), st.floats(0.001, 5)), max_size=40))
def test_p0_is_never_shed_by_cpu_lag_or_memory_below_reject(samples: list[Any]) -> None:
    """And a higher priority never more than a lower one."""
    one = shedding()
    for cpu, lag_s, memory, since_s in samples:
        one.observe(Sample(cpu, lag_s, memory), since_s)
        assert one.shares["P0"] == 0.0 and not one.refuses("P0")
        assert one.shares["P1"] <= one.shares["P2"] <= one.shares["P3"]


def test_what_is_shed_comes_back_slowly() -> None:
    """Half of the fall's time constant after the load has gone, P3 is still refused; twice it later all is well."""
    one = feed(shedding(), 20, 100)
    assert one.shares["P3"] == 1.0
    feed(one, FALL_S / 4, 0)
    assert one.shares["P3"] == 1.0
    feed(one, FALL_S * 2, 0)
    assert (one.active, one.state) == (False, NORMAL)


def test_a_load_that_wavers_about_the_threshold_is_one_episode() -> None:
    """The state ends only below 0.97 of the threshold, so that the log has one line and not a hundred."""
    one, states = feed(shedding(), 20, 61), []
    for turn in range(200):
        feed(one, 0.5, 59.5 if turn % 2 else 61)
        states.append(one.state)
    assert set(states) == {SHEDDING}


def test_a_threshold_of_100_percent_is_off() -> None:
    one = feed(shedding({"P1": 100.0, "P2": 100.0, "P3": 100.0}, {"shed": 100.0, "reject": 100.0}), 20, 100, 1.0, 100)
    assert (one.active, one.state) == (False, NORMAL)
    one = feed(shedding({"P1": 100.0, "P2": 100.0, "P3": 60.0}), 20, 100)
    assert shed(one) == {"P3"}


def test_a_reload_changes_thresholds_and_keeps_the_level() -> None:
    one = feed(shedding(), 20, 70)
    assert shed(one) == {"P3"}
    one.configure({"P1": 90.0, "P2": 65.0, "P3": 20.0}, MEMORY)
    assert shed(one) == {"P3", "P2"}
    one.configure({"P1": 90.0, "P2": 85.0, "P3": 80.0}, MEMORY)
    assert (one.active, one.state) == (False, NORMAL)


# -- the loop's lag


def test_lag_counts_where_cpu_says_little() -> None:
    one = feed(shedding(), 20, 40, LAG_FULL_S)
    assert shed(one) == {"P1", "P2", "P3"}
    assert "loop lag" in one.because
    assert not feed(shedding(), 20, 40, LAG_FULL_S / 4).active


def test_one_long_pause_is_no_overload() -> None:
    one = feed(shedding(), 20, 50)
    for pause_s in (5.0, 0.0, 0.0, 2.0, 0.0, 0.0):
        one.observe(Sample(50, pause_s, 10), TICK_S + pause_s)
        assert not one.active


# -- memory


def test_memory_sheds_from_80_percent_and_refuses_everything_at_95() -> None:
    assert not feed(shedding(), 1, memory=80).active
    one = feed(shedding(), 1, memory=83)
    assert shed(one) == {"P3"} and one.memory_high and "memory" in one.because
    one = feed(shedding(), 1, memory=94)
    assert shed(one) == {"P3", "P2", "P1"}
    one = feed(shedding(), TICK_S, memory=95)
    assert one.state == REJECTING
    assert all(one.refuses(priority) for priority in PRIORITIES)


def test_it_lets_go_below_what_was_reached() -> None:
    one = feed(shedding(), 1, memory=95)
    assert feed(one, 1, memory=93).state == REJECTING
    assert feed(one, 1, memory=91).state == SHEDDING
    assert feed(one, 1, memory=70).state == NORMAL


@given(st.floats(0, 100), st.floats(0, 100), st.floats(0.1, 99), st.floats(0.1, 100))
def test_more_memory_never_sheds_less_and_low_priorities_go_first(a: float, b: float, shed: float, more: float) -> None:
    low, high = sorted((a, b))
    reject = min(100.0, shed + more)
    for priority in ("P1", "P2", "P3"):
        assert memory_share(low, priority, shed, reject) <= memory_share(high, priority, shed, reject)
    p1, p2, p3 = (memory_share(high, priority, shed, reject) for priority in ("P1", "P2", "P3"))
    assert p1 <= p2 + 1e-6 and p2 <= p3 + 1e-6
    if high >= reject < 100.0:
        assert p1 > 1 - 1e-6


# -- which requests


@given(st.floats(60, 67), st.integers(1, 400))
def test_a_share_is_kept_to_the_request_and_spread_evenly(cpu: float, requests: int) -> None:
    """Error diffusion: after any number of requests the refused ones are the share of them, one more or less."""
    one = feed(shedding(), 60, cpu)
    refused = 0
    for asked in range(1, requests + 1):
        refused += one.refuses("P3")
        assert abs(refused - asked * one.shares["P3"]) <= 1.0 + 1e-6


# -- the loop closed: refusing lowers the load that made it refuse


class Worker:
    """`demand` times what the worker can do, all of one priority; a refusal costs `refusal` of a request."""

    def __init__(self, demand: float, priority: str, refusal: float = 0.3) -> None:
        self.demand, self.priority, self.refusal = demand, priority, refusal
        self.shedding = shedding()
        self.backlog_s = 0.0

    def run(self, seconds: float) -> list[tuple[float, float]]:
        """(what was wanted of the CPU, share refused) of each tick."""
        seen = []
        for _ in range(round(seconds / TICK_S)):
            share = self.shedding.shares[self.priority]
            wanted = self.demand * (1.0 - share + self.refusal * share)
            done = min(1.0, wanted + self.backlog_s / TICK_S)
            self.backlog_s = min(0.05, max(0.0, self.backlog_s + (wanted - 1.0) * TICK_S))
            self.shedding.observe(Sample(100 * done, self.backlog_s, 10), TICK_S)
            seen.append((wanted, share))
        return seen


@pytest.mark.parametrize("priority", ["P1", "P2", "P3"])
@pytest.mark.parametrize("demand", [1.2, 1.5, 2.0, 3.0])
def test_an_overload_comes_to_rest_below_full(demand: float, priority: str) -> None:
    """Within seconds the CPU is not full, nothing waits, and the share moves no more."""
    worker = Worker(demand, priority)
    first = worker.run(10)
    assert next(tick for tick, (_, share) in enumerate(first) if share > 0) <= 10, "it begins within a second"
    rest = worker.run(20)[100:]
    assert worker.backlog_s == 0.0
    assert max(wanted for wanted, _ in rest) < 1.0
    shares = [share for _, share in rest]
    assert max(shares) - min(shares) < 0.02


def test_it_serves_what_it_can() -> None:
    """Twice the capacity of P1: the CPU is used up to P1's threshold and beyond, not half."""
    wanted = [wanted for wanted, _ in Worker(2.0, "P1").run(40)[200:]]
    assert min(wanted) > 0.9


def test_after_an_overload_everything_is_served_again() -> None:
    worker = Worker(3.0, "P2")
    worker.run(20)
    worker.demand = 0.5
    assert worker.run(15)[-1] == (0.5, 0.0)
