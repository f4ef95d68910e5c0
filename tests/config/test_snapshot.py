"""A configuration compiled: the route table, the tiers, and what each answer of a route carries."""

from typing import Any, Callable

import pytest

from apigw.config.model import Config
from apigw.config.snapshot import Snapshot

Loaded = Callable[[Any], Config]


def test_routes_are_found_by_path_and_know_their_tier_and_limits(loaded: Loaded, document: dict[str, Any]) -> None:
    document["rate_limits"] = {
        "tiers": [
            {"tier": "unauthenticated", "limit": 1, "window_seconds": 1, "per": "client_ip"},
            {"tier": "all", "limit": 1, "window_seconds": 1, "per": "global"},
        ],
        "global_tier": "all",
    }
    document["limits"] = {"max_body_bytes": 70_000}
    document["routes"][0] |= {"rate_limit_tier": "unauthenticated", "strip_prefix": "/r", "methods": ["GET", "PUT"]}
    document["routes"].append(document["routes"][0] | {"route_id": "s", "pattern": "/r/s", "max_body_bytes": 0})
    config = loaded(document)
    snapshot = Snapshot(config, lambda: 5.0)
    route, exact = snapshot.trie.match("/r/x"), snapshot.trie.match("/r/s")
    assert route is snapshot.routes["r"] and exact is snapshot.routes["s"]
    assert route is not None and route.tier is config.rate_limits.tiers[0] and route.allow == b"GET, PUT"
    assert route.strip == 2 and route.max_body_bytes == 70_000 and snapshot.routes["s"].max_body_bytes == 0
    assert snapshot.global_tier is config.rate_limits.tiers[1]
    assert snapshot.unmatched_tier is config.rate_limits.tiers[0]
    assert (snapshot.version, snapshot.made_s) == (config.version, 5.0)


def test_a_route_that_the_gateway_answers_itself_has_no_backend(loaded: Loaded, document: dict[str, Any]) -> None:
    document["routes"][0]["backend_service"] = "self"
    assert Snapshot(loaded(document)).routes["r"].backend is None


@pytest.mark.parametrize(
    ("change", "lines"),
    [
        ({}, b""),
        ({"deprecated": True}, b"Deprecation: @0\r\n"),
        ({"deprecated": "2026-01-01"}, b"Deprecation: @1767225600\r\n"),
        (
            {"deprecated": "2026-01-01", "sunset_date": "2026-12-31"},
            b"Deprecation: @1767225600\r\nSunset: Thu, 31 Dec 2026 00:00:00 GMT\r\n",
        ),
    ],
)
def test_deprecation_and_sunset_are_sent_as_their_rfcs_want(
    loaded: Loaded, document: dict[str, Any], change: dict[str, Any], lines: bytes
) -> None:
    """RFC 9745: @epoch; RFC 8594: an HTTP-date."""
    document["routes"][0] |= change
    assert Snapshot(loaded(document)).routes["r"].static_reply_lines == lines
