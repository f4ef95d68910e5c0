"""Routes that could not do what they say (more in tests/golden/{patterns,authentication}.yaml)."""

from typing import Any, Callable

import pytest

Refused = Callable[[Any], list[str]]


@pytest.mark.parametrize(
    ("pattern", "prefix", "accepted"),
    [
        ("/api/v2/users/*", "/api/v2", True),
        ("/api/v2/users/*", "/api/v2/users", True),
        ("/api/v2/users/*", "/api/v", False),
        ("/api/v2/users/*", "/api/v2/users/x", False),
        ("/api/v2/users", "/api/v2/users", True),
        ("/*", "/", True),
        ("/*", "/api", False),
    ],
)
def test_a_stripped_prefix_is_one_of_whole_segments_of_the_pattern(
    refused: Refused, document: dict[str, Any], pattern: str, prefix: str, accepted: bool
) -> None:
    document["routes"][0] |= {"pattern": pattern, "strip_prefix": prefix}
    assert (refused(document) == []) is accepted


@pytest.mark.parametrize(("day", "accepted"), [("2026-05-31", False), ("2026-06-01", True), ("2026-06-02", True)])
def test_a_sunset_is_not_in_the_past(refused: Refused, document: dict[str, Any], day: str, accepted: bool) -> None:
    document["routes"][0]["sunset_date"] = day
    assert (refused(document) == []) is accepted


@pytest.mark.parametrize(
    ("per", "auth", "accepted"),
    [
        ("user_id", "jwt", True),
        ("user_id", "none", False),
        ("api_key", "jwt", False),
        ("api_key", "none", False),
        ("client_ip", "none", True),
        ("global", "jwt", True),
    ],
)
def test_a_tier_must_be_able_to_tell_callers_apart(
    refused: Refused, document: dict[str, Any], per: str, auth: str, accepted: bool
) -> None:
    document["auth"] = {"jwt": {"issuer": "i", "audience": "a", "jwks_url": "https://id.example.com/jwks"}}
    document["rate_limits"] = {"tiers": [{"tier": "t", "limit": 1, "window_seconds": 1, "per": per}]}
    document["routes"][0] |= {"auth_type": auth, "rate_limit_tier": "t"}
    assert (refused(document) == []) is accepted


def test_a_route_that_is_jwt_by_default_needs_the_section(refused: Refused, document: dict[str, Any]) -> None:
    del document["routes"][0]["auth_type"]
    assert refused(document) == ["apigw.yaml:10: route 'r': auth_type jwt needs the section auth.jwt, which is missing"]
