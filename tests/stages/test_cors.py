"""Stage 5: preflights end here."""

from typing import Any

import pytest

from apigw.errors import Answered
from apigw.stages.cors import Cors

ORIGIN = b"https://app.example.com"
PREFLIGHT = {b"origin": ORIGIN, b"access-control-request-method": b"PUT", b"access-control-request-headers": b"x-a"}


def test_a_preflight_is_answered_with_what_the_route_allows(exchange: Any, route: Any) -> None:
    named = route(cors_allowed_origins=(ORIGIN.decode(),), methods=("GET", "PUT"))
    with pytest.raises(Answered) as answer:
        Cors().enter(exchange("OPTIONS", fields=PREFLIGHT, route=named))
    assert answer.value.status == 204 and answer.value.body == b""
    headers = dict(answer.value.headers)
    assert headers[b"Access-Control-Allow-Methods"] == b"GET, PUT"
    assert headers[b"Access-Control-Allow-Headers"] == b"x-a"


def test_a_preflight_from_elsewhere_is_answered_with_nothing_and_still_ends_here(exchange: Any, route: Any) -> None:
    """It carries no credentials: going on would only make it a 401 that the browser cannot read."""
    named = route(cors_allowed_origins=(ORIGIN.decode(),))
    with pytest.raises(Answered) as answer:
        Cors().enter(exchange("OPTIONS", fields={**PREFLIGHT, b"origin": b"https://evil.test"}, route=named))
    assert answer.value.status == 204 and answer.value.headers == ()


def test_other_requests_and_routes_without_origins_go_on(exchange: Any, route: Any) -> None:
    named, bare = route(cors_allowed_origins=(ORIGIN.decode(),)), route()
    Cors().enter(exchange("OPTIONS", fields={b"origin": ORIGIN}, route=named))
    Cors().enter(exchange("PUT", fields=PREFLIGHT, route=named))
    Cors().enter(exchange("OPTIONS", fields=PREFLIGHT, route=bare))
