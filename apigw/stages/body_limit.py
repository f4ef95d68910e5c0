"""Stage 9: a body that announces more than the route allows is refused before it is read.

A chunked body announces nothing; the channel counts it as it comes (edge/channel.py).
"""

from apigw.errors import GatewayError
from apigw.exchange import Exchange


class BodyLimit:
    name = "body_limit"
    needs = frozenset(("route", "principal"))
    gives = None

    def enter(self, ex: Exchange) -> None:
        length = ex.request.content_length
        if length is not None and ex.route is not None and length > ex.route.max_body_bytes:
            raise GatewayError("The request body is too large.", status=413, code="payload_too_large")
