"""An observer that fails costs its own record, never the request or the other observers."""

from typing import Any

from twisted.logger import globalLogPublisher

from apigw.edge.ledger import Ledger
from apigw.exchange import Exchange
from apigw.testing import ended_exchange


def broken(ex: Exchange) -> None:
    raise RuntimeError("boom")


def test_every_observer_sees_every_exchange() -> None:
    seen: list[Exchange] = []
    ledger = Ledger([seen.append, seen.append])
    ex = ended_exchange()
    ledger.record(ex)
    assert seen == [ex, ex]


def test_a_failing_observer_is_counted_and_the_next_one_still_runs() -> None:
    seen: list[Exchange] = []
    ledger = Ledger([broken, seen.append])
    for _ in range(3):
        ledger.record(ended_exchange())
    assert len(seen) == 3
    assert ledger.failures == {"broken": 3}


def test_a_failing_observer_is_logged_at_most_every_ten_seconds() -> None:
    events: list[dict[str, object]] = []

    def observe(event: dict[str, object]) -> None:
        if event.get("log_namespace") == "apigw.edge.ledger":
            events.append(event)

    globalLogPublisher.addObserver(observe)
    try:
        ledger = Ledger([broken])
        for ended_s in (100.0, 101.0, 109.9, 110.0, 115.0):
            ledger.record(ended_exchange(ended_s=ended_s))
    finally:
        globalLogPublisher.removeObserver(observe)
    assert [event["n"] for event in events] == [1, 4]


def test_what_ends_in_one_turn_is_recorded_together_after_it() -> None:
    """And what has not been recorded when the process ends is recorded then."""
    seen: list[Any] = []
    turns: list[Any] = []
    ledger = Ledger([seen.append], turns.append)
    first, second = ended_exchange(), ended_exchange()
    ledger.record(first)
    ledger.record(second)
    assert seen == [] and len(turns) == 1
    turns.pop()()
    assert seen == [first, second]
    ledger.record(first)
    ledger.settle()
    assert seen == [first, second, first]
    turns.pop()()
    assert len(seen) == 3
