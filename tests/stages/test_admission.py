"""Stage 6: the ceiling of requests in flight."""

from typing import Any

import pytest

from apigw.errors import GatewayError
from apigw.stages.admission import Admission


@pytest.mark.parametrize("in_flight", [0, 1, 5])
def test_up_to_the_ceiling_requests_pass(exchange: Any, in_flight: int) -> None:
    """The request itself is counted already."""
    Admission(lambda: in_flight, 5).enter(exchange())


def test_above_it_they_are_told_to_come_again(exchange: Any) -> None:
    with pytest.raises(GatewayError) as refusal:
        Admission(lambda: 6, 5).enter(exchange())
    error = refusal.value
    assert (error.status, error.code) == (503, "overloaded")
    assert error.retry_after_s and error.retry_after_s > 0
