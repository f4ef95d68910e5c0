"""How a worker reaches its Redis: over a lean transport, or over Twisted's TLS for rediss://."""

import socket
from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.error import ConnectError
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import optionsForClientTLS

from apigw.adapters.redis_counters import CONNECT_TIMEOUT_S
from apigw.adapters.redis_link import RedisAddress
from apigw.net.connect import Connector


class _Connecting:
    """One attempt, as net.connect wants it. A result that nobody waits for any more is the protocol's to close."""

    def __init__(self, connector: Connector, protocol: Protocol) -> None:
        self.connected: Deferred[Protocol] = Deferred()
        self._connector = connector
        self._protocol = protocol

    def connect_done(self, sock: socket.socket, peer: Any) -> None:
        self._connector.transport(sock, peer, self._protocol).start()
        self.connected.callback(self._protocol)

    def connect_failed(self, reason: str, detail: str) -> None:
        self.connected.errback(ConnectError(string=detail or reason))  # type: ignore[no-untyped-call]


def connect_to(
    address: RedisAddress, reactor: Any, connector: Connector, trust_root: Any = None
) -> Callable[[Protocol], "Deferred[Protocol]"]:
    """What RedisCounters wants as `connect`. trust_root: IOpenSSLTrustRoot of rediss://, None for the system's."""
    if address.tls:
        options = optionsForClientTLS(address.host, trust_root)
        plain = HostnameEndpoint(reactor, address.host, address.port, timeout=CONNECT_TIMEOUT_S)
        endpoint = wrapClientTLS(options, plain)
        return lambda protocol: connectProtocol(endpoint, protocol)  # type: ignore[no-untyped-call]

    def connect(protocol: Protocol) -> "Deferred[Protocol]":
        attempt = _Connecting(connector, protocol)
        connector.connect(address.host, address.port, CONNECT_TIMEOUT_S, attempt)
        return attempt.connected

    return connect
