"""An observer that fails costs its own record, never the request or the other observers."""

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
