"""What the log says of a Redis that comes and goes."""

from twisted.internet.task import Clock
from twisted.logger import LogEvent, formatEvent, globalLogPublisher

from apigw.adapters.redis_told import Told


def test_one_line_each_way_and_one_a_second_of_one_that_flaps() -> None:
    heard: list[str] = []

    def observe(event: LogEvent) -> None:
        if event["log_namespace"] == "apigw.adapters.redis_told":
            heard.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    try:
        clock = Clock()
        told = Told(clock, "Redis")
        told.changed(False, "refused")
        told.changed(False, "refused again")
        clock.advance(5)
        told.changed(True, None)
        told.changed(False, "flap 1")
        told.changed(True, None)
        told.changed(False, "flap 2")
        assert heard == ["Redis is down for rate limit checks: refused", "Redis answers rate limit checks"]
        clock.advance(1)
        assert heard[2:] == ["Redis is down for rate limit checks: flap 2"]
        told.changed(True, None)
        told.changed(False, "the same as was told")
        clock.advance(1)
        assert len(heard) == 3
        told.changed(True, None)
        told.changed(False, "x")
        told.stop()
        assert not clock.getDelayedCalls()
    finally:
        globalLogPublisher.removeObserver(observe)
