"""How a worker reaches the servers of its Redis: over a lean transport, or over Twisted's TLS.

A Way leads one kept connection: to the server of the URL, or (redis_sentinel.py, redis_cluster_map.py) to whoever has
its part by now.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final, Protocol

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, connectProtocol, wrapClientTLS
from twisted.internet.ssl import Certificate, PrivateCertificate, optionsForClientTLS, trustRootFromCertificates
from twisted.logger import Logger

from apigw.adapters.redis_link import opening_of, pack
from apigw.config.model import RedisSection
from apigw.config.redis_url import Place, RedisURL
from apigw.net.connect import Connector

CONNECT_TIMEOUT_S: Final = 0.5  # one server; a Redis that takes longer is of no use to a check of 5 ms
_MAX_NAMES: Final = 256  # whose TLS options are kept; making them reads all that is trusted

Renew = Callable[[str], None]

log = Logger()


def _read(file: Path) -> list[Certificate]:
    """Every certificate of a PEM file. Raises OSError."""
    certificates = x509.load_pem_x509_certificates(file.read_bytes())
    return [Certificate.loadPEM(one.public_bytes(Encoding.PEM)) for one in certificates]


def tls_terms(section: RedisSection) -> dict[str, Any]:
    """What optionsForClientTLS() wants besides the host name: the section's files. Raises OSError."""
    terms: dict[str, Any] = {}
    if section.ca_file is not None:
        terms["trustRoot"] = trustRootFromCertificates(_read(section.ca_file))
    if section.cert_file is not None and section.key_file is not None:
        own, *chain = _read(section.cert_file)
        terms["clientCertificate"] = PrivateCertificate.loadPEM(own.dumpPEM() + section.key_file.read_bytes())
        terms["extraCertificateOptions"] = {"extraCertChain": [one.original for one in chain]}
    return terms


class Way(Protocol):
    """Leads a kept connection. renew: to be set by its owner, if it must hear that the way leads elsewhere by now."""

    renew: Renew

    def connect(self, protocol: Any) -> "Deferred[Any]":
        """Puts a Protocol on a new connection; fires when it is made."""
        ...


def unmoved(reason: str) -> None:
    """The renew of a connection whose way always leads to the same place."""


class StraightWay:
    """To one server."""

    def __init__(self, connect: Callable[[Any], "Deferred[Any]"]) -> None:
        self.renew: Renew = unmoved
        self.connect = connect


class RedisAccess:
    """To any server of one deployment, as its section says. Made once a worker. Raises OSError for its files.

    url: what the section's URL says. opening, sentinel_opening: the commands that begin a connection.
    """

    def __init__(self, section: RedisSection, reactor: Any, connector: Connector) -> None:
        self.url = RedisURL.of(section.url)
        self.opening = opening_of(self.url)
        self.sentinel_opening: tuple[bytes, ...] = ()
        if section.sentinel_password is not None:
            user = [section.sentinel_user] if section.sentinel_user is not None else []
            self.sentinel_opening = (pack("AUTH", *user, section.sentinel_password),)
        self._reactor = reactor
        self._connector = connector
        self._section = section
        self._tls_files = _state_of(section)
        self._tls_terms = tls_terms(section)
        self._tls_options: dict[str, Any] = {}

    def to(self, place: Place) -> Callable[[Any], "Deferred[Any]"]:
        """What puts a Protocol on a new connection to this place."""
        return partial(self.open, place)

    def open(self, place: Place, protocol: Any) -> "Deferred[Any]":
        """Fires with the protocol when it is connected, over TLS where the URL says so."""
        host, port = place
        if not self.url.tls:
            # Why connect again? A failover, often; where a name follows it, the second try is at the right place
            self._connector.outdated(host, port)
            return self._connector.open(host, port, CONNECT_TIMEOUT_S, protocol)
        plain = HostnameEndpoint(self._reactor, host, port, timeout=CONNECT_TIMEOUT_S)
        connected: Deferred[Any] = connectProtocol(wrapClientTLS(self._options(host), plain), protocol)
        return connected

    def _options(self, host: str) -> Any:
        """Of the files as they are now: certificates are renewed while the process lives."""
        state = _state_of(self._section)
        if state != self._tls_files:
            self._tls_files = state
            try:
                self._tls_terms = tls_terms(self._section)
                self._tls_options.clear()
            except Exception as error:  # any defect of a file that somebody is writing
                log.warn("the TLS files of redis cannot be used, the old ones serve: {error}", error=error)
        options = self._tls_options.get(host)
        if options is None:
            if len(self._tls_options) >= _MAX_NAMES:
                self._tls_options.clear()
            options = self._tls_options[host] = optionsForClientTLS(host, **self._tls_terms)
        return options


def _state_of(section: RedisSection) -> tuple[object, ...]:
    """Changes when one of the files does."""
    files = (section.ca_file, section.cert_file, section.key_file)
    return tuple(_stat(file) for file in files if file is not None)


def _stat(file: Path) -> object:
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size
