"""A worker that goes quiet: what it counted by itself is told within a second of its last request."""

from typing import Any

from twisted.internet.task import Clock

from apigw.adapters.share_settlement import ShareSettlement
from apigw.core.global_share import GlobalShares
from apigw.core.window import Counted, Demand

ALL = Demand("all", "rate:{all:global:all}", 8000, 60)
START_S = 1_707_264_000


class Told:
    """A store far away."""

    def __init__(self) -> None:
        self.added: list[tuple[Demand, int, float]] = []

    def take(self, demands: Any, now_s: float) -> Counted:
        raise AssertionError("nobody asks")

    def add(self, demand: Demand, count: int, at_s: float) -> None:
        self.added.append((demand, count, at_s))


def test_the_last_requests_of_a_quiet_worker_are_told_within_a_second() -> None:
    clock, shares, store = Clock(), GlobalShares(), Told()
    settlement = ShareSettlement(clock, shares, store, lambda: START_S + 5.0 + clock.seconds())
    settlement.startService()
    clock.advance(0.1)
    shares.learn(ALL, (0, 100, 0), START_S + 5.1)
    for _ in range(3):
        assert shares.spend(ALL, START_S + 5.1) is not None
    clock.pump([0.05] * 10)
    assert store.added == [], "a question may still take them along"
    clock.pump([0.05] * 10)
    assert store.added == [(ALL, 3, START_S + 5.1)]
    clock.pump([0.05] * 100)
    assert len(store.added) == 1, "once"
    settlement.stopService()
    assert not clock.getDelayedCalls()
