"""How a worker reaches its Redis: over a lean transport, or over Twisted's TLS for rediss://."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import Certificate, optionsForClientTLS, trustRootFromCertificates

from apigw.adapters.redis_link import RedisAddress
from apigw.adapters.redis_node import CONNECT_TIMEOUT_S
from apigw.net.connect import Connector


def trust_root_of(ca_file: Path) -> Any:
    """What TLS trusts instead of the system's authorities: every certificate of a PEM file. Raises OSError."""
    certificates = x509.load_pem_x509_certificates(ca_file.read_bytes())
    return trustRootFromCertificates([Certificate.loadPEM(one.public_bytes(Encoding.PEM)) for one in certificates])


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
