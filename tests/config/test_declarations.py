"""Tiers, backends and routes: every key of the design's records is known."""

from typing import Any, Callable

import pytest

from apigw.config.declarations import BACKEND, ROUTE, TIER
from apigw.config.model import Config


def test_the_designs_records_are_complete() -> None:
    assert set(TIER.keys()) == {"tier", "limit", "window_seconds", "per"} | {"mode", "fingerprint_network"}
    assert {"name", "instances", "health_check_path", "health_check_interval_ms"} <= set(BACKEND.keys())
    assert set(ROUTE.keys()) >= set(
        "route_id pattern methods backend_service strip_prefix auth_required auth_type required_scopes rate_limit_tier "
        "rate_limit_fail_mode timeout_ms circuit_breaker cors_allowed_origins deprecated sunset_date auth_grace_period "
        "priority max_body_bytes".split()
    )


@pytest.mark.parametrize(
    ("given", "deprecated", "since_s"),
    [(True, True, None), (False, False, None), ("2026-01-01", True, 1_767_225_600), (None, False, None)],
)
def test_a_route_is_deprecated_or_so_since_a_day(
    loaded: Callable[[Any], Config], document: dict[str, Any], given: Any, deprecated: bool, since_s: int | None
) -> None:
    document["routes"][0]["deprecated"] = given
    route = loaded(document).routes[0]
    assert (route.deprecated, route.deprecated_at) == (deprecated, since_s)


def test_a_health_check_may_ask_with_a_query(loaded: Callable[[Any], Config], document: dict[str, Any]) -> None:
    document["backends"][0]["health_check_path"] = "/up?deep=1"
    assert loaded(document).backends[0].health_check_path == "/up?deep=1"
