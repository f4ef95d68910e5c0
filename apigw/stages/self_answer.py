"""`backend_service: self`: the gateway answers by itself, after limits and authentication."""

from apigw.config.snapshot import CompiledRoute
from apigw.errors import Answered
from apigw.exchange import Exchange

_HEADERS = ((b"Content-Type", b"application/json"),)
_BODY = b'{"status": "ok"}'


class SelfAnswer:
    name = "self_answer"
    needs = frozenset(("route",))
    gives = None

    def concerns(self, route: CompiledRoute) -> bool:
        return route.backend is None

    def enter(self, ex: Exchange) -> None:
        if ex.route is not None and ex.route.backend is None:
            raise Answered(200, _HEADERS, _BODY)
