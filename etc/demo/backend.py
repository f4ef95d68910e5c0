"""A sample backend of the demo: JSON answers that show what the gateway told it about the caller.

usage: backend.py users|orders|products PORT
"""

import json
import sys
from typing import Any

from twisted.internet import reactor
from twisted.web.http import Request
from twisted.web.resource import Resource
from twisted.web.server import Site

PRODUCTS = [{"id": 1, "name": "kettle", "price": 2900}, {"id": 2, "name": "teapot", "price": 4900}]
ORDERS = [{"id": 7, "product": 2, "state": "shipped"}]

# (service, method, path) and what is found there; {user} is the caller by the gateway's word.
ANSWERS: dict[tuple[str, str, str], Any] = {
    ("users", "GET", "/users/me"): {"id": "{user}", "name": "{user}"},
    ("orders", "GET", "/orders"): {"orders": ORDERS},
    ("orders", "POST", "/orders/refund"): {"refunded": True},
    ("orders", "GET", "/partner/orders"): {"orders": ORDERS},
    ("products", "GET", "/products"): {"products": PRODUCTS},
    ("products", "GET", "/products/search"): {"found": PRODUCTS[:1]},
}
SHOWN = (
    "X-User-ID",
    "X-User-Scopes",
    "X-Partner-ID",
    "X-Request-ID",
    "X-Forwarded-For",
    "X-Forwarded-Proto",
    "traceparent",
)


class Backend(Resource):
    """All paths of one service. Every answer says which of the gateway's headers came with the request."""

    isLeaf = True

    def __init__(self, service: str) -> None:
        super().__init__()
        self._service = service

    def render(self, request: Request) -> bytes:
        """200 with the answer of the table, or 404; /healthz is 200 as long as the process lives."""
        path = request.path.decode("latin-1").rstrip("/")
        request.setHeader("Content-Type", "application/json")
        if path == "/healthz":
            return b'{"status": "ok"}\n'
        answer = ANSWERS.get((self._service, request.method.decode("latin-1"), path))
        if answer is None:
            request.setResponseCode(404)
            return json.dumps({"service": self._service, "error": "not_found", "path": path}).encode() + b"\n"
        seen = {name: value for name in SHOWN if (value := request.getHeader(name)) is not None}
        if path == "/users/me":
            answer = {name: value.format(user=seen.get("X-User-ID", "nobody")) for name, value in answer.items()}
        return json.dumps({"service": self._service, **answer, "seen_headers": seen}, indent=2).encode() + b"\n"


def main() -> None:
    service, port = sys.argv[1], int(sys.argv[2])
    reactor.listenTCP(port, Site(Backend(service)), interface="127.0.0.1")
    reactor.run()


if __name__ == "__main__":
    main()
