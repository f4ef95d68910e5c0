"""The order of the stages, which of them a configuration leaves out, and that none can be gone round."""

from itertools import product
from types import SimpleNamespace
from typing import Any

import pytest
from attrs import evolve
from twisted.internet.task import Clock

from apigw import gateway
from apigw.adapters.memory_counters import MemoryCounters
from apigw.config.model import JWTSection, RateLimits, Route, Tier
from apigw.config.snapshot import Snapshot
from apigw.core.shedding import Shedding
from apigw.core.tokens import Keyring
from apigw.core.trace import Randomness
from apigw.errors import Answered, GatewayError
from apigw.exchange import ClientRequest, Exchange
from apigw.net.deadlines import Deadlines
from apigw.pipeline import PipelineError, StageResource, compose
from apigw.stages.routing import RouteNotFound
from apigw.testing import small_snapshot
from apigw.upstream.leaf import Proxy
from tests.corpus import forge

NOW_S = 1_800_000_000
FORGE = forge.Forge(NOW_S)
GOOD = b"Bearer " + FORGE.token({})
APP = "https://app.test"

# From the client down, by the numbers of the contract; those in brackets are there for a route that wants them.
ORDER = [
    "identity",
    "canonical_path",
    "public_health",
    "routing",
    "cors",  # [names origins]
    "admission",
    "standing_refusal",
    "authentication",
    "scopes",  # [requires scopes]
    "rate_limit",
    "body_limit",
    "self_answer",  # [has no backend]
]
OPTIONAL: dict[str, dict[str, Any]] = {
    "cors": {"cors_allowed_origins": (APP,)},
    "scopes": {"required_scopes": ("admin",)},
    "self_answer": {"backend_service": "self"},
}


class Keys:
    """A key source with one key."""

    ring = Keyring.from_jwks({"keys": FORGE.jwks()["keys"][:1]}, ("RS256",))

    def current(self) -> Keyring:
        return self.ring

    def refreshed(self) -> None:
        return None


def route(route_id: str = "users", **more: Any) -> Route:
    fields: dict[str, Any] = {"methods": ("GET", "POST"), "backend_service": "users", **more}
    return Route(route_id, f"/{route_id}/*", **fields)


def snapshot(*routes: Route, **sections: Any) -> Snapshot:
    jwt = JWTSection(issuer=forge.ISSUER, audience=forge.AUDIENCE, jwks_url="https://id.test/keys")
    return Snapshot(evolve(small_snapshot().config, routes=routes, jwt=jwt, **sections), lambda: 0.0)


def build(made: Snapshot, in_flight: int = 1) -> gateway.Generation:
    clock, shedding = Clock(), made.config.load_shedding
    parts = gateway.Parts(
        clock=clock,
        deadlines=Deadlines(clock),
        wall=lambda: NOW_S,
        randomness=Randomness(),
        in_flight=lambda: in_flight,
        ready=lambda: True,
        on_decision=lambda tier, decision: None,
        shedding=Shedding(shedding.cpu_percent, shedding.memory_percent),
        on_shed=lambda priority: None,
    )
    store = MemoryCounters()
    return gateway.build(made, parts, {}, Keys(), store, store)


def links(generation: gateway.Generation) -> list[Any]:
    """The Resources of a chain, from the client down; the leaf is the last."""
    found, resource = [], generation.root
    while isinstance(resource, StageResource):
        found.append(resource)
        resource = resource._next.__self__
    return [*found, resource]


def chain(*routes: Route) -> list[str]:
    *stages, leaf = links(build(snapshot(*routes)))
    assert isinstance(leaf, Proxy)
    return [link.stage.name for link in stages]


def outcome(generation: gateway.Generation, target: bytes, method: str = "GET", **fields: bytes) -> Any:
    """What the stages say of one request: what they raised, or the exchange that reached the leaf."""
    named = {name.replace("_", "-").encode(): value for name, value in fields.items()}
    length = int(named.get(b"content-length", 0))
    request = ClientRequest(method, target, [], named, content_length=length, peer_ip="192.0.2.1")
    ex = Exchange(generation.snapshot, request, 0.0, NOW_S)
    *stages, _ = links(generation)
    try:
        for link in stages:
            part = link.stage.enter(ex)
            if link.stage.gives is not None:
                setattr(ex, link.stage.gives, part)
    except (GatewayError, Answered) as said:
        return said
    return ex


def code(said: Any) -> Any:
    return (said.status, getattr(said, "code", None)) if not isinstance(said, Exchange) else "proxied"


def test_all_stages_stand_in_the_contracts_order() -> None:
    assert chain(route(**{name: value for more in OPTIONAL.values() for name, value in more.items()})) == ORDER


def test_a_configuration_without_routes_has_all_of_them() -> None:
    assert chain() == ORDER


def test_a_stage_is_left_out_only_when_no_route_concerns_it() -> None:
    """Every mixture of routes: the chain has what any one of them wants, in order."""
    for wanted in product((False, True), repeat=len(OPTIONAL)):
        names = [name for name, on in zip(OPTIONAL, wanted) if on]
        routes = [route("plain"), *(route(f"with-{name}", **OPTIONAL[name]) for name in names)]
        assert chain(*routes) == [name for name in ORDER if name not in OPTIONAL or name in names]


@pytest.mark.parametrize("name", OPTIONAL)
def test_a_stage_that_is_there_for_one_route_does_nothing_to_another(name: str) -> None:
    generation = build(snapshot(route("plain"), route("other", **OPTIONAL[name])))
    assert code(outcome(generation, b"/plain/x", authorization=GOOD)) == "proxied"


@pytest.mark.parametrize("wanted", [{}, *OPTIONAL.values()])
def test_no_chain_lets_a_protected_route_be_reached_without_a_credential(wanted: dict[str, Any]) -> None:
    """Whatever is left out: the chain ends where the credential does not verify."""
    generation = build(snapshot(route("plain"), route("other", **wanted)))
    for target in (b"/plain/x", b"/other/x", b"/plain/%2e%2e/other/x", b"/other//x"):
        assert code(outcome(generation, target)) == (401, "missing_credentials")
        assert code(outcome(generation, target, authorization=GOOD[:-8] + b"AAAAAAAA")) == (401, "invalid_token")


def test_every_request_that_reaches_the_leaf_has_its_principal() -> None:
    generation = build(snapshot(route("plain"), route("open", auth_required=False, auth_type="none")))
    known = outcome(generation, b"/plain/x", authorization=GOOD)
    assert known.principal.user_id == "alice"
    nobody = outcome(generation, b"/open/x", authorization=GOOD)
    assert nobody.principal is not None and nobody.principal.user_id is None


def test_the_first_stage_that_refuses_decides() -> None:
    """What is wrong with a request in several ways is said in the order of the contract."""
    tiers = (Tier("none", 0, 60, "user_id"),)
    wants: dict[str, Any] = {"rate_limit_tier": "none", "max_body_bytes": 1, "methods": ("POST",)}
    routes = route("small", **wants), route("admin", required_scopes=("admin",), **wants)
    generation = build(snapshot(*routes, rate_limits=RateLimits(tiers=tiers)))
    ask = {"content_length": b"2"}
    assert code(outcome(generation, b"/small/..%2f", "GET", **ask)) == (400, "bad_request")
    assert code(outcome(generation, b"/nowhere", "GET", **ask)) == (404, "route_not_found")
    assert code(outcome(generation, b"/small/x", "GET", **ask)) == (405, "method_not_allowed")
    assert code(outcome(generation, b"/small/x", "POST", **ask)) == (401, "missing_credentials")
    assert code(outcome(generation, b"/admin/x", "POST", authorization=GOOD, **ask)) == (403, "insufficient_scope")
    assert code(outcome(generation, b"/small/x", "POST", authorization=GOOD, **ask)) == (429, "rate_limit_exceeded")


def test_an_overloaded_gateway_verifies_no_token() -> None:
    busy = build(snapshot(route("plain")), in_flight=1_000_000)
    assert code(outcome(busy, b"/plain/x")) == (503, "overloaded")


def test_health_is_answered_without_a_route_and_a_preflight_without_a_credential() -> None:
    generation = build(snapshot(route("app", cors_allowed_origins=(APP,))))
    assert code(outcome(generation, b"/healthz"))[0] == 200
    asks = {"origin": APP.encode(), "access_control_request_method": b"GET"}
    assert code(outcome(generation, b"/app/x", "OPTIONS", **asks))[0] == 204


def test_paths_without_a_route_count_against_their_client() -> None:
    limits = RateLimits(tiers=(Tier("unauthenticated", 2, 60, "client_ip"),), unmatched_tier="unauthenticated")
    generation = build(snapshot(route(), rate_limits=limits))
    said = [outcome(generation, b"/nowhere") for _ in range(3)]
    assert [type(one) for one in said[:2]] == [RouteNotFound] * 2
    assert code(said[2]) == (429, "rate_limit_exceeded")


def test_a_stage_that_does_not_say_whom_it_concerns_concerns_every_route() -> None:
    compiled = snapshot(route()).routes["users"]
    assert gateway.concerns(SimpleNamespace(), compiled)


def test_a_wrong_order_is_refused_when_it_is_built() -> None:
    """So a stage left out can never be one that another one stands on."""
    *stages, leaf = links(build(snapshot(route())))
    without = [link.stage for link in stages if link.stage.name != "authentication"]
    with pytest.raises(PipelineError, match="principal"):
        compose(without, leaf)
