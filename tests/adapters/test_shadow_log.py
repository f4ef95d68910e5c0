"""The daemon's lines about tiers in shadow mode."""

from typing import Any

import pytest
from twisted.internet.task import Clock
from twisted.logger import formatEvent, globalLogPublisher

from apigw.adapters.shadow_log import ShadowLog
from apigw.core.window import Demand
from apigw.testing import ended_exchange

ONE = Demand("one", "rate:{one:user:user_789}", 2, 60)
OTHER = Demand("other", "rate:{other:global:all}", 2, 60)


@pytest.fixture
def lines() -> Any:
    said: list[str] = []

    def observe(event: Any) -> None:
        said.append(formatEvent(event))

    globalLogPublisher.addObserver(observe)
    yield said
    globalLogPublisher.removeObserver(observe)


def test_the_first_one_is_told_with_whom_and_where(lines: list[str]) -> None:
    ShadowLog(Clock()).refused(ONE, ended_exchange())
    assert lines == [
        "tier one (shadow) would refuse: rate:{one:user:user_789} on route route-users, request req-abc123; "
        "and 0 before it"
    ]


def test_a_flood_is_one_line_a_second_and_tier_and_none_is_left_out_of_the_number(lines: list[str]) -> None:
    clock = Clock()
    shadow_log = ShadowLog(clock)
    ex = ended_exchange()
    for _ in range(5):
        shadow_log.refused(ONE, ex)
    shadow_log.refused(OTHER, ex)
    assert [line.split()[1] for line in lines] == ["one", "other"]
    clock.advance(1.0)
    shadow_log.refused(ONE, ex)
    assert len(lines) == 3 and lines[-1].endswith("and 4 before it")
    clock.advance(1.0)
    shadow_log.refused(ONE, ex)
    assert lines[-1].endswith("and 0 before it")


def test_a_request_without_a_route_is_told_too(lines: list[str]) -> None:
    """Unmatched paths may have a tier in shadow mode."""
    ex = ended_exchange()
    ex.route = None
    ShadowLog(Clock()).refused(ONE, ex)
    assert "on no route" in lines[0]
