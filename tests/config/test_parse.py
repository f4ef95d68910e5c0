"""Texts become one draft: owners, inherited breakers, the tier of unmatched paths, single values of a store."""

from pathlib import Path
from typing import Any, Callable

import pytest

from apigw.config.model import CircuitBreaker, Config
from apigw.config.parse import assemble, read_main, read_part, read_single
from apigw.config.problems import Problems
from apigw.config.validate import validated
from apigw.errors import ConfigurationError

Document = dict[str, Any]
Loaded = Callable[[Any], Config]


def test_routes_and_backends_have_the_owner_of_their_file_unless_they_name_one(
    loaded: Loaded, document: Document
) -> None:
    document["owner"] = "team-a"
    document["routes"].append(document["routes"][0] | {"route_id": "s", "pattern": "/s", "owner": "team-b"})
    config = loaded(document)
    assert [route.owner for route in config.routes] == ["team-a", "team-b"]
    assert config.backends[0].owner == "team-a"


def test_a_backends_breaker_keeps_the_main_sections_values_where_it_says_nothing(
    loaded: Loaded, document: Document
) -> None:
    document["circuit_breaker"] = {"error_rate": 0.25, "open_seconds": 7}
    document["backends"][0]["circuit_breaker"] = {"open_seconds": 9}
    config = loaded(document)
    assert config.circuit_breaker == CircuitBreaker(error_rate=0.25, open_s=7)
    assert config.backends[0].circuit_breaker == CircuitBreaker(error_rate=0.25, open_s=9)


@pytest.mark.parametrize(("per", "expected"), [("client_ip", "unauthenticated"), ("global", None)])
def test_unmatched_paths_count_against_the_tier_unauthenticated_if_it_is_per_client_ip(
    loaded: Loaded, document: Document, per: str, expected: str | None
) -> None:
    document["rate_limits"] = {"tiers": [{"tier": "unauthenticated", "limit": 1, "window_seconds": 1, "per": per}]}
    assert loaded(document).rate_limits.unmatched_tier == expected


def test_the_instance_name_defaults_to_the_host_name(loaded: Loaded, document: Document) -> None:
    assert loaded(document).gateway.instance_name == "host"
    assert loaded(document | {"gateway": {"max_in_flight": 5}}).gateway.instance_name == "host"
    assert loaded(document | {"gateway": {"instance_name": "gw-1"}}).gateway.instance_name == "gw-1"


def test_saying_none_or_false_is_enough_to_open_a_route_and_saying_nothing_is_not(
    loaded: Loaded, document: Document
) -> None:
    route = {"pattern": "/x", "methods": ["GET"], "backend_service": "b"}
    document["auth"] = {"jwt": {"issuer": "i", "audience": "a", "jwks_url": "https://id.example.com/jwks"}}
    document["routes"] = [
        route | {"route_id": "a", "pattern": "/a", "auth_type": "none"},
        route | {"route_id": "b", "pattern": "/b", "auth_required": False},
        route | {"route_id": "c", "pattern": "/c"},
        route | {"route_id": "d", "pattern": "/d", "auth_type": None, "auth_required": None},
    ]
    routes = loaded(document).routes
    assert [(one.auth_type, one.auth_required) for one in routes] == [
        ("none", False),
        ("none", False),
        ("jwt", True),
        ("jwt", True),
    ]


def test_units_become_seconds(loaded: Loaded, document: Document) -> None:
    document["routes"][0]["timeout_ms"] = 1500
    document["backends"][0]["health_check_interval_ms"] = 50
    config = loaded(document)
    assert config.routes[0].timeout_s == 1.5 and config.backends[0].health_check_interval_s == 0.05


def test_a_file_that_cannot_be_read_leaves_the_draft_incomplete() -> None:
    problems = Problems()
    main = read_main("listeners: [{address: 127.0.0.1, port: 1}]", "m", Path("/"), problems)
    part = read_part("routes: [", "p", Path("/"), problems)
    assert assemble(main, [], "h", problems).complete
    assert not assemble(main, [part], "h", problems).complete


ROUTE = '{"route_id": "orders", "pattern": "/o/*", "methods": ["GET"], "backend_service": "b", "auth_type": "none"}'


def test_one_value_of_a_store_is_one_record() -> None:
    problems = Problems()
    source = "etcd:/gateway/routes/orders"
    part = read_single("routes", "orders", ROUTE, source, problems)
    assert problems.found == [] and part.routes[0].pattern == "/o/*"
    backend = read_single("backends", "b", "name: b\ninstances: [{host: h, port: 1}]\n", "s", problems)
    tier = read_single("policies", "t", "{tier: t, limit: 1, window_seconds: 1, per: client_ip}", "s", problems)
    assert problems.found == [] and backend.backends[0].name == "b" and tier.tiers[0].tier == "t"
    with pytest.raises(KeyError):
        read_single("others", "x", "{}", "s", problems)


@pytest.mark.parametrize("text", ["", "[]", "{", "5", "null", '{"route_id": 5}', ROUTE.replace("GET", "get")])
def test_a_bad_value_of_a_store_is_a_problem_under_its_key(text: str) -> None:
    problems = Problems()
    read_single("routes", "orders", text, "etcd:/gateway/routes/orders", problems)
    assert problems.found and all(problem.file == "etcd:/gateway/routes/orders" for problem in problems.found)


def test_a_value_must_repeat_the_name_of_its_key() -> None:
    problems = Problems()
    read_single("routes", "order", ROUTE, "s", problems)
    assert [str(problem) for problem in problems.found] == ["s:1: route_id is 'orders', but the key ends in 'order'"]


def test_values_of_a_store_and_a_main_file_make_one_configuration(now_s: float) -> None:
    problems = Problems()
    main = read_main("listeners: [{address: 127.0.0.1, port: 1}]", "apigw.yaml", Path("/"), problems)
    route = read_single("routes", "orders", ROUTE, "etcd:/gateway/routes/orders", problems)
    backend = read_single("backends", "b", "{name: b, instances: [{host: h, port: 1}]}", "s", problems)
    config = validated(assemble(main, [route, backend], "h", problems), now_s)
    assert [one.route_id for one in config.routes] == ["orders"] and len(config.version) == 12
    with pytest.raises(ConfigurationError, match="etcd:/gateway/routes/orders:1: route 'orders': backend_service"):
        validated(assemble(main, [route], "h", Problems()), now_s)
