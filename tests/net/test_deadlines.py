"""Deadlines: never early, at most a tick late (long ones eight), whatever is set, dropped or raised between them."""

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock

from apigw.net.deadlines import LONG_TICKS, Deadlines

TICK_S = 0.005
delays_s = st.one_of(st.floats(0, 0.1), st.floats(0, 100), st.sampled_from([0.0, TICK_S, 0.05, 1.0, 75.0]))


@given(st.lists(st.tuples(delays_s, delays_s), max_size=30), st.floats(0, 1e6), st.sampled_from([1, LONG_TICKS]))
def test_none_is_early_and_none_more_than_a_tick_late(
    plan: list[tuple[float, float]], start_s: float, long_ticks: int
) -> None:
    """Each pair: advance the clock by the first (its timers run when due), then set a deadline of the second."""
    clock = Clock()
    clock.rightNow = start_s
    deadlines = Deadlines(clock, TICK_S, long_ticks)
    fired: list[tuple[float, float, float]] = []
    for gap_s, delay_s in plan:
        advance(clock, gap_s)
        due_s = clock.seconds() + delay_s
        late_s = TICK_S if delay_s <= 32 * LONG_TICKS * TICK_S or long_ticks == 1 else (LONG_TICKS + 1) * TICK_S
        deadlines.add(delay_s, lambda d=due_s, l=late_s: fired.append((d, l, clock.seconds())))  # type: ignore[misc]  # noqa: E741
    advance(clock, 101.0)
    assert len(fired) == len(plan)
    for due_s, late_s, at_s in fired:
        assert due_s - 1e-6 <= at_s <= due_s + late_s + 1e-6


def advance(clock: Clock, gap_s: float) -> None:
    """As a reactor would: never past the next timer without running it."""
    end_s = clock.seconds() + gap_s
    while True:
        times = [call.getTime() for call in clock.getDelayedCalls()]
        if not times or min(times) > end_s:
            break
        clock.advance(max(0.0, min(times) - clock.seconds()))
    clock.advance(max(0.0, end_s - clock.seconds()))


def test_a_loop_that_lags_runs_all_that_is_overdue_at_once() -> None:
    clock = Clock()
    deadlines = Deadlines(clock, TICK_S)
    ran: list[int] = []
    for number in range(10):
        deadlines.add(0.1 * number, lambda number=number: ran.append(number))  # type: ignore[misc]
    clock.advance(5)
    assert sorted(ran) == list(range(10)) == ran


def test_a_deadline_taken_back_does_not_run() -> None:
    clock = Clock()
    deadlines = Deadlines(clock, TICK_S)
    ran: list[str] = []

    def kept() -> None:
        ran.append("kept")

    def dropped() -> None:
        ran.append("dropped")

    deadlines.add(1, kept)
    bucket = deadlines.add(1, dropped)
    bucket.pop(dropped, None)
    bucket.pop(dropped, None)  # taking it back again is nothing
    clock.advance(2)
    assert ran == ["kept"]
    bucket.pop(kept, None)  # nor is it after it ran


def test_a_call_can_take_back_another_of_its_own_tick() -> None:
    clock = Clock()
    deadlines = Deadlines(clock, TICK_S)
    ran: list[str] = []
    calls = {}
    buckets = {}

    def make(name: str, other: str) -> None:
        def call() -> None:
            ran.append(name)
            buckets[other].pop(calls[other], None)

        calls[name] = call
        buckets[name] = deadlines.add(1, call)

    make("a", "b")
    make("b", "a")
    clock.advance(2)
    assert len(ran) == 1


def test_a_raising_call_hurts_no_other_neither_of_its_tick_nor_later() -> None:
    clock = Clock()
    deadlines = Deadlines(clock, TICK_S)
    ran: list[int] = []

    def raising() -> None:
        raise ValueError("on purpose")

    deadlines.add(1, lambda: ran.append(1))
    deadlines.add(1, raising)
    deadlines.add(1, lambda: ran.append(2))
    deadlines.add(2, lambda: ran.append(3))
    clock.advance(1.5)
    assert sorted(ran) == [1, 2]
    clock.advance(1)
    assert ran[-1] == 3


def test_a_call_that_sets_a_deadline_of_no_delay_runs_it_a_tick_later_not_for_ever() -> None:
    clock = Clock()
    deadlines = Deadlines(clock, TICK_S)
    ran: list[float] = []

    def again() -> None:
        ran.append(clock.seconds())
        deadlines.add(0, again)

    deadlines.add(0, again)
    clock.advance(TICK_S)
    assert len(ran) == 1
    clock.advance(TICK_S)
    assert len(ran) == 2


def test_one_timer_of_the_reactor_stands_for_all_of_them() -> None:
    """Ten thousand deadlines do not become ten thousand timers; an earlier one moves the one there is."""
    clock = Clock()
    deadlines = Deadlines(clock, TICK_S)
    for number in range(1000):
        deadlines.add(75 - number / 100, lambda number=number: None)  # type: ignore[misc]
    assert len(clock.getDelayedCalls()) == 1
    clock.advance(100)
    assert clock.getDelayedCalls() == []


def test_stop_forgets_everything() -> None:
    clock = Clock()
    deadlines = Deadlines(clock, TICK_S)
    ran: list[int] = []
    deadlines.add(1, lambda: ran.append(1))
    deadlines.stop()
    clock.advance(10)
    assert ran == [] and clock.getDelayedCalls() == []
