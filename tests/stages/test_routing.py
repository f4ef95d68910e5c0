"""Stage 4: the route of a path and a method, or a refusal that is counted."""

from typing import Any

import pytest
from twisted.internet.defer import Deferred, succeed

from apigw.core.trie import Trie
from apigw.errors import GatewayError
from apigw.stages.routing import MethodNotAllowed, RouteNotFound, Routing

PREFLIGHT = {b"origin": b"https://a.test", b"access-control-request-method": b"PUT"}


def uncounted(ex: Any) -> None:
    """No tier counts unmatched requests."""


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (b"/users/1", "users"),
        (b"/users", "users"),
        (b"/users/me", "me"),
        (b"/users/%6de", "me"),
        (b"/users/x/../me", "me"),
        (b"/users/me/", "users"),
    ],
)
def test_exact_before_wildcard_by_the_canonical_path(exchange: Any, snapshot: Any, target: bytes, name: str) -> None:
    table = snapshot(users={"pattern": "/users/*"}, me={"pattern": "/users/me"})
    assert Routing(table.trie, uncounted).enter(exchange("GET", target)) is table.routes[name]


@pytest.mark.parametrize("target", [b"/", b"/user", b"/usersx", b"/Users/1", b"/%2Ausers"])
def test_no_route_is_404(exchange: Any, snapshot: Any, target: bytes) -> None:
    with pytest.raises(RouteNotFound) as refusal:
        Routing(snapshot(users={"pattern": "/users/*"}).trie, uncounted).enter(exchange("GET", target))
    assert (refusal.value.status, refusal.value.code) == (404, "route_not_found")


def test_no_route_at_all_is_404(exchange: Any) -> None:
    with pytest.raises(RouteNotFound):
        Routing(Trie(), uncounted).enter(exchange())


def test_an_unmatched_request_is_counted_before_it_is_said(exchange: Any) -> None:
    """Else scanning for paths would be free; a client over its limit hears 429, not 404."""
    counted: list[Any] = []
    ex = exchange()
    with pytest.raises(RouteNotFound):
        Routing(Trie(), counted.append).enter(ex)
    assert counted == [ex]

    def over(ex: Any) -> None:
        raise GatewayError(status=429, code="rate_limit_exceeded")

    with pytest.raises(GatewayError) as refusal:
        Routing(Trie(), over).enter(ex)
    assert refusal.value.status == 429


def test_counting_may_take_its_time(exchange: Any) -> None:
    answered: Deferred[None] = Deferred()
    said: list[Any] = []
    waiting = Routing(Trie(), lambda ex: answered).enter(exchange())
    waiting.addCallback(said.append)
    assert said == []
    answered.callback(None)
    assert isinstance(said[0], RouteNotFound)


def test_a_client_over_its_limit_hears_429_and_not_404(exchange: Any) -> None:
    """At once or when the counter has answered."""
    over = GatewayError(status=429, code="rate_limit_exceeded")
    with pytest.raises(GatewayError) as refusal:
        Routing(Trie(), lambda ex: over).enter(exchange())
    assert refusal.value is over
    said: list[Any] = []
    Routing(Trie(), lambda ex: succeed(over)).enter(exchange()).addCallback(said.append)
    assert said == [over]


def test_a_method_that_the_route_has_not_is_counted_like_a_path_that_nobody_has(exchange: Any, snapshot: Any) -> None:
    """Else asking with DELETE would find the paths that there are, as quickly as one likes."""
    table, ex = snapshot(users={"pattern": "/users/*", "methods": ("GET",)}), exchange("DELETE")
    counted: list[Any] = []
    with pytest.raises(MethodNotAllowed):
        Routing(table.trie, counted.append).enter(ex)
    assert counted == [ex] and ex.route is table.routes["users"]
    over = GatewayError(status=429, code="rate_limit_exceeded")
    with pytest.raises(GatewayError) as refusal:
        Routing(table.trie, lambda ex: over).enter(exchange("DELETE"))
    assert refusal.value is over
    said: list[Any] = []
    for answer in (None, over):
        waiting: Deferred[Any] = Deferred()
        Routing(table.trie, lambda ex: waiting).enter(exchange("DELETE")).addCallback(said.append)
        waiting.callback(answer)
    assert isinstance(said[0], MethodNotAllowed) and said[1] is over


def test_a_method_that_the_route_has_not_is_405_with_what_it_has(exchange: Any, snapshot: Any) -> None:
    table = snapshot(users={"pattern": "/users/*", "methods": ("GET", "POST")})
    ex = exchange("DELETE")
    with pytest.raises(GatewayError) as refusal:
        Routing(table.trie, uncounted).enter(ex)
    assert (refusal.value.status, refusal.value.code) == (405, "method_not_allowed")
    assert refusal.value.headers == ((b"Allow", b"GET, POST"),)
    assert ex.route is table.routes["users"], "its log entry names the route"


@pytest.mark.parametrize("method", ["get", "HEAD", "OPTIONS", "G"])
def test_methods_are_compared_exactly(exchange: Any, snapshot: Any, method: str) -> None:
    table = snapshot(users={"pattern": "/users/*", "methods": ("GET",)})
    with pytest.raises(GatewayError) as refusal:
        Routing(table.trie, uncounted).enter(exchange(method))
    assert refusal.value.status == 405


def test_a_preflight_passes_on_a_route_that_names_origins_only(exchange: Any, snapshot: Any) -> None:
    """OPTIONS is not among its methods; the next stage answers. Without origins it is 405 like any other."""
    table = snapshot(
        open={"pattern": "/open/*", "cors_allowed_origins": ("https://a.test",)}, closed={"pattern": "/closed/*"}
    )
    routing = Routing(table.trie, uncounted)
    assert routing.enter(exchange("OPTIONS", b"/open/x", PREFLIGHT)) is table.routes["open"]
    for target, fields in ((b"/closed/x", PREFLIGHT), (b"/open/x", {}), (b"/open/x", {b"origin": b"https://a.test"})):
        with pytest.raises(GatewayError) as refusal:
            routing.enter(exchange("OPTIONS", target, fields))
        assert refusal.value.status == 405
