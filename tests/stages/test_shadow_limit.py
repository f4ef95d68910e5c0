"""A tier in shadow mode says what it would do, truly, and does nothing."""

from typing import Any

from twisted.internet.defer import Deferred

from apigw.adapters.memory_counters import MemoryCounters
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown
from apigw.stages.shadow_limit import ShadowLimit
from apigw.testing import ended_exchange

NOW_S = 1_707_264_000.0
ONE = Demand("one", "rate:{one:user:a}", 2, 60)
TWO = Demand("two", "rate:{two:global:all}", 4, 60)
EX = ended_exchange()


class World:
    def __init__(self, store: Any) -> None:
        self.decisions: list[tuple[str, str]] = []
        self.told: list[Demand] = []
        self.shadow = ShadowLimit(store, self.decide, lambda demand, ex: self.told.append(demand))

    def decide(self, tier: str, decision: str) -> None:
        self.decisions.append((tier, decision))


def test_it_counts_what_it_would_let_through_and_no_more() -> None:
    """So the share that it reports is that of an enforced tier, also in the next window."""
    store = MemoryCounters()
    world = World(store)
    for _ in range(6):
        world.shadow.take(EX, [ONE], NOW_S)
    assert world.decisions == [("one", "shadow_allowed")] * 2 + [("one", "shadow_rejected")] * 4
    assert world.told == [ONE] * 4
    assert store.take([ONE], NOW_S)[:2] == (False, [(0, 2, 0)])


def test_two_shadows_do_not_hide_each_other() -> None:
    """Each is counted by itself: the second goes on when the first would refuse."""
    world = World(MemoryCounters())
    for _ in range(6):
        world.shadow.take(EX, [ONE, TWO], NOW_S)
    assert world.decisions.count(("one", "shadow_allowed")) == 2
    assert world.decisions.count(("two", "shadow_allowed")) == 4


def test_nobody_waits_for_its_answer() -> None:
    """What the store says later is counted later."""
    answers: list[Deferred[Counted]] = []

    class Later:
        def take(self, demands: Any, now_s: float) -> Any:
            answers.append(Deferred())
            return answers[-1]

    world = World(Later())
    world.shadow.take(EX, [ONE, TWO], NOW_S)
    assert world.decisions == []
    answers[1].callback(Counted(False, [(0, 4, 0)]))
    answers[0].callback(Counted(True, [(0, 1, 0)]))
    assert world.decisions == [("two", "shadow_rejected"), ("one", "shadow_allowed")]


def test_while_the_store_is_down_it_says_nothing() -> None:
    """At once or later: no decision, and no error for anybody."""

    class Down:
        def __init__(self, later: bool) -> None:
            self.later = later

        def take(self, demands: Any, now_s: float) -> Any:
            failed: Deferred[Counted] = Deferred()
            if not self.later:
                raise CounterStoreDown("down")
            failed.errback(CounterStoreDown("down"))
            return failed

    for later in (False, True):
        world = World(Down(later))
        world.shadow.take(EX, [ONE, TWO], NOW_S)
        assert world.decisions == [] and world.told == []
