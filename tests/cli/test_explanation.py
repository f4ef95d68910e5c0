"""What stages say of one request, in order, up to the one that ends it."""

import time
from typing import Any

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.cli.explanation import Explainer, Explanation
from apigw.config.model import Backend, Config, Instance, RateLimits, Route, Tier
from apigw.config.snapshot import Snapshot
from apigw.stages.authentication import Authentication
from apigw.testing import small_snapshot

OPEN: dict[str, Any] = {"auth_required": False, "auth_type": "none"}
TIERS = (
    Tier("standard", 100, 60, "user_id"),
    Tier("all", 1000, 60, "global"),
    Tier("trial", 5, 60, "client_ip", mode="shadow"),
)
ROUTES = (
    Route("pub", "/pub/*", ("GET", "POST"), "users", strip_prefix="/pub", owner="team", **OPEN),
    Route("cors", "/cors", ("GET",), "users", cors_allowed_origins=("https://a.test",), priority="P0", **OPEN),
    Route("own", "/own", ("GET",), "self", rate_limit_tier="trial", **OPEN),
    Route("api", "/api/*", ("GET",), "users", rate_limit_tier="standard", required_scopes=("read",)),
    Route("grace", "/grace", ("GET",), "users", auth_grace_period=True, required_scopes=("read",)),
    Route("small", "/small", ("POST",), "users", max_body_bytes=10, **OPEN),
)


def config() -> Config:
    return attrs.evolve(
        small_snapshot().config,
        backends=(Backend("users", (Instance("127.0.0.1", 9001),)),),
        routes=ROUTES,
        rate_limits=RateLimits(tiers=TIERS, global_tier="all"),
    )


EXPLAINER = Explainer(
    Snapshot(config()), Authentication(None, None, time.time), lambda route: "shop.yaml:7", 1_800_000_000.0
)


def explained(method: str, target: str, *headers: str) -> Explanation:
    lines = [f"{method} {target} HTTP/1.1", "Host: api.test", *headers]
    return EXPLAINER.explain("\r\n".join([*lines, "", ""]).encode(), "192.0.2.7", True)


def said(explanation: Explanation, stage: str) -> str:
    (found,) = [step.decision for step in explanation.steps if step.stage == stage]
    return found


def test_the_stages_are_the_gateways_in_its_order() -> None:
    stages = [step.stage for step in explained("GET", "/pub/x").steps]
    assert stages == [
        "parser", "identity", "canonical_path", "public_health", "routing", "cors", "admission", "authentication",
        "scopes", "rate_limit", "body_limit", "self_answer", "proxy",
    ]  # fmt: skip


def test_a_request_that_a_backend_gets() -> None:
    found = explained("GET", "/pub/./a/../b?x=1", "X-Request-ID: mine")
    assert (found.status, found.error, found.backend, found.target) == (None, None, "users", "/b?x=1")
    assert said(found, "canonical_path") == "/pub/b, for /pub/./a/../b"
    assert said(found, "routing") == "pub: /pub/* (shop.yaml:7, owner team)"
    assert said(found, "identity") == "the client's X-Request-ID"
    assert said(found, "admission") == "P1: shed above 90 % load, which depends on the moment"
    assert said(found, "authentication") == "the route asks for none"
    assert said(found, "rate_limit") == "global tier all: 1000 in 60 s on rate:{all:global:all}"
    assert said(found, "proxy") == "GET /b to backend users, 10 s at most"


@pytest.mark.parametrize(
    "words, status, error, stage, why",
    [
        (("GET", "/nowhere"), 404, "route_not_found", "routing", "No route matches this path"),
        (("DELETE", "/pub/x"), 405, "method_not_allowed", "routing", "Allow: GET, POST"),
        (("GET", "/a%2fb"), 400, "bad_request", "canonical_path", "bad_path: encoded slash"),
        (("GET", "/a b"), 400, "bad_request", "parser", ""),
        (("GET", "/pub/x", "Host: two.test"), 400, "bad_request", "parser", "repeated host"),
        (("GET", "http://other.test/pub/x"), 400, "bad_request", "parser", "bad Host"),
        (("GET", "/pub/x", "X: " + "x" * 9000), 431, "headers_too_large", "parser", "8192 at most"),
        (("GET", "/api/x"), 401, "missing_credentials", "authentication", "no Authorization header"),
        (("GET", "/api/x", "Authorization: Bearer x"), 503, "authentication_unavailable", "authentication", "not_conf"),
        (("POST", "/small", "Content-Length: 11"), 413, "payload_too_large", "body_limit", "too large"),
    ],
)
def test_a_refusal_ends_it_with_the_contracts_code_and_the_reason_that_the_log_would_have(
    words: tuple[str, ...], status: int, error: str, stage: str, why: str
) -> None:
    found = explained(*words)
    assert (found.status, found.error, found.steps[-1].stage, found.backend) == (status, error, stage, None)
    assert f"refused with {status} {error}" in found.steps[-1].decision and why in found.steps[-1].decision


def test_what_the_gateway_answers_itself() -> None:
    preflight = ("Origin: https://a.test", "Access-Control-Request-Method: GET")
    for words, status in ((("OPTIONS", "/cors", *preflight), 204), (("GET", "/own"), 200), (("GET", "/healthz"), 200)):
        found = explained(*words)
        assert (found.status, found.error) == (status, None)
        assert found.steps[-1].decision == f"answers {status} itself"


def test_origins() -> None:
    assert said(explained("GET", "/cors", "Origin: https://a.test"), "cors") == "https://a.test is allowed"
    assert "is not allowed: a browser" in said(explained("GET", "/cors", "Origin: https://b.test"), "cors")
    assert said(explained("GET", "/cors"), "cors") == "no Origin"
    assert said(explained("GET", "/cors"), "admission") == "P0: not shed for load"


def test_a_grace_period_and_a_shadow_tier_are_called_so() -> None:
    found = explained("GET", "/grace")
    assert said(found, "authentication") == "nobody, let through by auth_grace_period"
    assert found.backend == "users"
    limits = said(explained("GET", "/own"), "rate_limit")
    assert limits.startswith("tier trial: 5 in 60 s on rate:{trial:ip:192.0.2.7}, in shadow mode; global tier all")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_explained(data: bytes) -> None:
    found = EXPLAINER.explain(b"GET /pub/" + data + b"\r\n\r\n", "192.0.2.7", False)
    assert found.steps and (found.status is None) == (found.backend is not None)
