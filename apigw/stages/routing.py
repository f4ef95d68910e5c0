"""Stage 4: the route of a path and method, on the table of the request's own snapshot."""

from typing import Any, Callable

from apigw.config.snapshot import CompiledRoute
from apigw.core.cors import is_preflight
from apigw.core.trie import Trie
from apigw.errors import GatewayError
from apigw.exchange import Exchange


class RouteNotFound(GatewayError):
    """404; counted against the client's IP before it is said."""

    status, code, message = 404, "route_not_found", "No route matches this path."


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
            counting = self._unmatched(ex)
            if counting is None or isinstance(counting, GatewayError):
                raise _not_found(counting)
            return counting.addCallback(_not_found)
        method = ex.request.method
        if method not in route.methods:
            if route.cors_origins and is_preflight(method, ex.request.fields):
                return route
            ex.route = route
            raise GatewayError(
                "This route does not allow the request's method.",
                status=405,
                code="method_not_allowed",
                headers=((b"Allow", route.allow),),
            )
        return route


def _not_found(refused: GatewayError | None) -> GatewayError:
    return refused or RouteNotFound()
