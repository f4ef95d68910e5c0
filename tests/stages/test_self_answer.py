"""`backend_service: self`."""

from typing import Any

import pytest

from apigw.config.model import SELF
from apigw.errors import Answered
from apigw.stages.self_answer import SelfAnswer


def test_a_route_of_the_gateways_own_is_answered(exchange: Any, route: Any) -> None:
    with pytest.raises(Answered) as answer:
        SelfAnswer().enter(exchange(route=route(backend_service=SELF)))
    assert (answer.value.status, answer.value.body) == (200, b'{"status": "ok"}')
    assert (b"Content-Type", b"application/json") in answer.value.headers


def test_a_route_with_a_backend_goes_on(exchange: Any, route: Any) -> None:
    SelfAnswer().enter(exchange(route=route()))
