"""Stage 4: the route of a path and method, on the table of the request's own snapshot.

A path that nobody has and a method that its route has not are unmatched alike: both count against the client's address
before they are told, since asking with an odd method finds paths as well as any.
"""

from functools import partial
from typing import Any, Callable

from apigw.config.snapshot import CompiledRoute
from apigw.core.cors import is_preflight
from apigw.core.trie import Trie
from apigw.errors import GatewayError
from apigw.exchange import Exchange


class RouteNotFound(GatewayError):
    """404."""

    status, code, message = 404, "route_not_found", "No route matches this path."


class MethodNotAllowed(GatewayError):
    """405, with the methods that there are."""

    status, code, message = 405, "method_not_allowed", "This route does not allow the request's method."

    def __init__(self, allow: bytes) -> None:
        super().__init__(headers=((b"Allow", allow),))


class Routing:
    """`unmatched(ex)` counts a request without a route against its client: None, a 429, or a Deferred of either."""

    name = "routing"
    needs = frozenset(("target", "identity"))
    gives = "route"

    def __init__(self, trie: Trie[CompiledRoute], unmatched: Callable[[Exchange], Any]) -> None:
        self._match = trie.match
        self._unmatched = unmatched

    def enter(self, ex: Exchange) -> Any:
        assert ex.target is not None
        route = self._match(ex.target.path)
        if route is None:
            return self._refused(RouteNotFound, ex)
        method = ex.request.method
        if method not in route.methods:
            if route.cors_origins and is_preflight(method, ex.request.fields):
                return route
            ex.route = route
            return self._refused(partial(MethodNotAllowed, route.allow), ex)
        return route

    def _refused(self, refusal: Callable[[], GatewayError], ex: Exchange) -> Any:
        """Raised, or a Deferred of it: the refusal, or what counting it says instead."""
        counting = self._unmatched(ex)
        if counting is None or isinstance(counting, GatewayError):
            raise counting or refusal()
        return counting.addCallback(_said, refusal)


def _said(refused: GatewayError | None, refusal: Callable[[], GatewayError]) -> GatewayError:
    return refused or refusal()
