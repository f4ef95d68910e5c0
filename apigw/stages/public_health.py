"""/healthz on the public listeners, for the balancer in front (contract section 11)."""

from typing import Callable

from apigw.errors import Answered
from apigw.exchange import Exchange

PUBLIC_HEALTH_PATH = "/healthz"
_HEADERS = ((b"Content-Type", b"application/json"), (b"Cache-Control", b"no-store"))


class PublicHealth:
    """Answers before the route table is asked, so that no wildcard can take it. Says nothing but yes or no."""

    name = "public_health"
    needs = frozenset(("target",))
    gives = None

    def __init__(self, ready: Callable[[], bool]) -> None:
        self._ready = ready

    def enter(self, ex: Exchange) -> None:
        if ex.target is not None and ex.target.path == PUBLIC_HEALTH_PATH and ex.request.method in ("GET", "HEAD"):
            if self._ready():
                raise Answered(200, _HEADERS, b'{"ready":true}')
            raise Answered(503, _HEADERS + ((b"Retry-After", b"1"),), b'{"ready":false}')
