"""GET a backend's health path, by Twisted's own client: rare, outside requests, and bounded."""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.protocol import Protocol
from twisted.web.client import Agent
from twisted.web.http_headers import Headers

_HEADERS = Headers({b"User-Agent": [b"apigw-health"], b"Connection": [b"close"]})


class _Unread(Protocol):
    """The status was enough."""

    def connectionMade(self) -> None:
        if self.transport is not None:
            self.transport.loseConnection()


class HealthProbe:
    """probe(host, port, path, timeout_s) -> Deferred of the status; fails on anything else. No redirects."""

    def __init__(self, reactor: Any) -> None:
        self._reactor = reactor
        self._agent = Agent(reactor, connectTimeout=5.0)

    def __call__(self, host: str, port: int, path: str, timeout_s: float) -> "Deferred[int]":
        name = f"[{host}]" if ":" in host else host
        asked: Deferred[Any] = self._agent.request(b"GET", f"http://{name}:{port}{path}".encode("ascii"), _HEADERS)
        asked.addTimeout(timeout_s, self._reactor)
        asked.addCallback(self._status)
        return asked

    def _status(self, response: Any) -> int:
        response.deliverBody(_Unread())
        return int(response.code)
