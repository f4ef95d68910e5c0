"""How a worker reaches its Redis: over a lean transport, or over Twisted's TLS for rediss://."""

from collections.abc import Callable
from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import optionsForClientTLS

from apigw.adapters.redis_counters import CONNECT_TIMEOUT_S
from apigw.adapters.redis_link import RedisAddress
from apigw.net.connect import Connector


def connect_to(
    address: RedisAddress, reactor: Any, connector: Connector, trust_root: Any = None
) -> Callable[[Protocol], "Deferred[Any]"]:
    """What RedisCounters wants as `connect`. trust_root: IOpenSSLTrustRoot of rediss://, None for the system's."""
    if address.tls:
        options = optionsForClientTLS(address.host, trust_root)
        plain = HostnameEndpoint(reactor, address.host, address.port, timeout=CONNECT_TIMEOUT_S)
        endpoint = wrapClientTLS(options, plain)
        return lambda protocol: connectProtocol(endpoint, protocol)
    return lambda protocol: connector.open(address.host, address.port, CONNECT_TIMEOUT_S, protocol)
