"""Stage 9: a body that says it is too large is refused unread."""

from typing import Any

import pytest

from apigw.errors import GatewayError
from apigw.stages.body_limit import BodyLimit


@pytest.mark.parametrize("length", [None, 0, 1, 100])
def test_up_to_the_routes_limit_bodies_pass(exchange: Any, route: Any, length: int | None) -> None:
    """None: a chunked body, which the channel counts."""
    BodyLimit().enter(exchange("POST", content_length=length, route=route(max_body_bytes=100)))


@pytest.mark.parametrize("length", [101, 10**18])
def test_above_it_they_do_not(exchange: Any, route: Any, length: int) -> None:
    with pytest.raises(GatewayError) as refusal:
        BodyLimit().enter(exchange("POST", content_length=length, route=route(max_body_bytes=100)))
    assert (refusal.value.status, refusal.value.code) == (413, "payload_too_large")


def test_a_limit_of_nothing_allows_nothing(exchange: Any, route: Any) -> None:
    BodyLimit().enter(exchange("POST", content_length=0, route=route(max_body_bytes=0)))
    with pytest.raises(GatewayError):
        BodyLimit().enter(exchange("POST", content_length=1, route=route(max_body_bytes=0)))


def test_a_route_without_a_limit_has_the_gateways(exchange: Any, route: Any) -> None:
    default = route().max_body_bytes
    BodyLimit().enter(exchange("POST", content_length=default, route=route()))
    with pytest.raises(GatewayError):
        BodyLimit().enter(exchange("POST", content_length=default + 1, route=route()))
