"""Stage 5: a preflight of a route that names origins is answered here; the backend never sees it."""

from apigw.config.snapshot import CompiledRoute
from apigw.core.cors import is_preflight, preflight_headers
from apigw.errors import Answered
from apigw.exchange import Exchange


class Cors:
    """The CORS lines of all other answers are written with the answer (edge/request.py)."""

    name = "cors"
    needs = frozenset(("route",))
    gives = None

    def concerns(self, route: CompiledRoute) -> bool:
        return bool(route.cors_origins)

    def enter(self, ex: Exchange) -> None:
        route = ex.route
        if route is not None and route.cors_origins and is_preflight(ex.request.method, ex.request.fields):
            raise Answered(204, tuple(preflight_headers(ex.request.fields, route.cors_origins, route.cors_methods)))
