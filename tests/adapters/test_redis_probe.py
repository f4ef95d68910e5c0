"""When a Redis that is down is asked again, under a clock that the test moves."""

from collections.abc import Callable
from typing import Any

from twisted.internet.task import Clock

from apigw.adapters.redis_probe import FIRST_PROBE_S, PROBE_INTERVAL_S, PROBE_TIMEOUT_S, Probe

TIMEOUT_S = 0.005


class Asked:
    """A probe, and all that it does."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.events: list[Any] = []
        self.takers: list[Callable[[Any], None]] = []
        self.probe = Probe(
            self.clock,
            TIMEOUT_S,
            self.takers.append,
            lambda reply, late: self.events.append((reply, late)),
            self.events.append,
        )


def test_answered_in_time_late_and_not_at_all() -> None:
    asked = Asked()
    asked.probe.now()
    asked.takers[-1]("good")
    asked.probe.now()
    asked.clock.advance(2 * TIMEOUT_S)
    asked.takers[-1]("slow")
    asked.probe.now()
    asked.clock.advance(PROBE_TIMEOUT_S)
    assert asked.events == [("good", False), ("slow", True), "no answer within 1 s"]


def test_one_at_a_time_and_not_at_once_after_the_last() -> None:
    """The first of an outage comes soon, those after one that failed every quarter of a second."""
    asked = Asked()
    asked.probe.now()
    asked.probe.later()
    asked.clock.advance(0.9)
    assert len(asked.takers) == 1
    asked.takers[-1]("good")
    asked.probe.reset()
    asked.clock.advance(10)
    asked.probe.later()
    asked.probe.later()
    asked.clock.advance(0)
    assert len(asked.takers) == 2
    asked.takers[-1]("bad")
    asked.probe.later()
    asked.clock.advance(PROBE_INTERVAL_S - 0.01)
    assert len(asked.takers) == 2
    asked.clock.advance(0.01)
    assert len(asked.takers) == 3
    asked.takers[-1]("good")
    asked.probe.reset()
    asked.probe.later()
    asked.clock.advance(FIRST_PROBE_S)
    assert len(asked.takers) == 4


def test_stopped_it_says_nothing_and_leaves_no_timer() -> None:
    asked = Asked()
    asked.probe.now()
    asked.probe.stop()
    asked.probe.later()
    asked.probe.stop()
    assert not asked.clock.getDelayedCalls()
    assert asked.events == []
