"""What the client is told of several limits at once."""

import pytest

from apigw.core.verdicts import exceeded, nearest, refusal
from apigw.core.window import Counted, Demand

NOW_S = 1_707_264_012.0  # 12 s into a minute
USER = Demand("user", "rate:{user:user:a}", 10, 60)
ALL = Demand("all", "rate:{all:global:all}", 100, 60)


@pytest.mark.parametrize(("everybody", "limit", "remaining"), [(50, 10, 7), (96, 100, 4), (93, 10, 7)])
def test_headers_speak_of_the_limit_with_the_fewest_requests_left(everybody: int, limit: int, remaining: int) -> None:
    """Of the first one, the route's, when both have as many."""
    verdict = nearest(Counted(True, [(0, 3, 0), (0, everybody, 0)]), [USER, ALL], NOW_S)
    assert (verdict.limit, verdict.remaining, verdict.reset_epoch_s) == (limit, remaining, 1_707_264_060)


def test_a_refusal_is_by_the_limit_that_keeps_waiting_longest() -> None:
    """One that has requests left says nothing; of two exhausted ones the longer wait is the true one."""
    by, verdict, wait_s = refusal(Counted(False, [(0, 10, 0), (0, 50, 0)]), [USER, ALL], NOW_S)
    assert (by, verdict.limit, verdict.remaining, wait_s) == (USER, 10, 0, 49)
    by, _, wait_s = refusal(Counted(False, [(10, 8, 10), (0, 100, 0)]), [USER, ALL], NOW_S)
    assert (by, wait_s) == (ALL, 49)


def test_the_refusal_says_when_to_come_again_and_keeps_its_detail_for_the_log() -> None:
    error = exceeded(7, "why")
    assert (error.status, error.code, error.retry_after_s, error.extra) == (
        429,
        "rate_limit_exceeded",
        7,
        {"retry_after": 7},
    )
    assert error.detail == "why" and "why" not in error.message
