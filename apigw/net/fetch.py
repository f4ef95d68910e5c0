"""One question over HTTP(S): no redirect followed, bounded in bytes, on a connection of its own.

For what is asked every few seconds or minutes. The connection is closed hard in the end, whatever happened: over TLS a
polite close waits for the peer's, and a peer that hangs is why there are deadlines.
"""

import re
from collections.abc import Callable
from typing import Any

import OpenSSL.crypto
from attrs import field, frozen
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import Certificate, platformTrust, trustRootFromCertificates
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory, IBodyProducer
from zope.interface import implementer

import apigw

_CERTIFICATE = re.compile(rb"-----BEGIN CERTIFICATE-----.+?-----END CERTIFICATE-----", re.DOTALL)
MAX_HEAD_BYTES = 131_072  # of an answer: what comes before its body begins, as far as it is read in one piece


class FetchFailed(Exception):
    """No document: the text says why and names no secret. Cancelling a fetch raises CancelledError instead."""


@frozen
class Answer:
    """Status, headers and body of one answer; the body is empty where its parts were handed over as they came."""

    status: int
    headers: Headers
    body: bytes = b""

    def header(self, name: str) -> str | None:
        """The first value of a header."""
        values = self.headers.getRawHeaders(name)
        return values[0] if values else None


@frozen
class Question:
    """What is asked. `headers` may hold secrets; a `body` makes it a POST.

    limit_bytes bounds the answer's body. With `on_part` a body of status 200 is handed over as it comes instead,
    which may go on for ever: the taker has its own bounds and ends it by raising FetchFailed or Enough.
    timeout_s bounds the connect; the whole is bounded by whoever cancels it.
    """

    url: str
    headers: dict[str, str] = field(repr=False)
    limit_bytes: int
    timeout_s: float
    body: bytes | None = None
    on_part: Callable[[bytes], None] | None = None


class Enough(Exception):
    """Raised by a taker of parts: it has what it wanted, and the answer is over."""


class _Body(Protocol):
    """Collects a body of at most `limit_bytes`, or hands it over; `whole` has it, or fires when all is handed over."""

    def __init__(self, limit_bytes: int, on_part: Callable[[bytes], None] | None) -> None:
        self._left_bytes = limit_bytes
        self._on_part = on_part
        self._parts: list[bytes] = []
        self.whole: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        if self.whole.called:
            return
        if self._on_part is not None:
            self._hand_over(data, self._on_part)
            return
        self._left_bytes -= len(data)
        if self._left_bytes >= 0:
            self._parts.append(data)
        else:
            self._parts.clear()
            self.whole.errback(FetchFailed("the document is too large"))

    def _hand_over(self, data: bytes, on_part: Callable[[bytes], None]) -> None:
        try:
            on_part(data)
        except Enough:
            self.whole.callback(b"")
        except Exception:
            self.whole.errback()

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self.whole.called:
            return
        if reason is not None and isinstance(reason.value, (ResponseDone, PotentialDataLoss)):
            self.whole.callback(b"".join(self._parts))
        else:
            self.whole.errback(FetchFailed("the answer ended early"))


@implementer(IBodyProducer)
class _Sent:
    """A short body, written at once."""

    def __init__(self, body: bytes) -> None:
        self._body = body
        self.length = len(body)

    def startProducing(self, consumer: Any) -> "Deferred[None]":
        consumer.write(self._body)
        return succeed(None)

    def pauseProducing(self) -> None: ...

    def resumeProducing(self) -> None: ...

    def stopProducing(self) -> None: ...


class _Opened:
    """The connections of one fetch: Agent's response has no way to abort its own, and no bound on a head."""

    def __init__(self) -> None:
        self._protocols: list[Any] = []
        self._left_bytes = MAX_HEAD_BYTES
        self.too_much = False
        self.head_is_whole = False

    def keep(self, protocol: Any) -> Any:
        self._protocols.append(protocol)
        received = protocol.dataReceived

        def bounded(data: bytes) -> None:
            if not self.head_is_whole:
                self._left_bytes -= len(data)
                if self._left_bytes < 0:
                    self.too_much = True
                    self.abort()
                    return
            received(data)

        protocol.dataReceived = bounded
        return protocol

    def abort(self) -> None:
        for protocol in self._protocols:
            if protocol.transport is not None:
                protocol.transport.abortConnection()


@implementer(IStreamClientEndpoint)
class _Recording:
    """An endpoint that keeps what it connected."""

    def __init__(self, endpoint: Any, opened: _Opened) -> None:
        self._endpoint = endpoint
        self._opened = opened

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        connecting: Deferred[IProtocol] = self._endpoint.connect(factory)
        return connecting.addCallback(self._opened.keep)


class Trust:
    """Whose certificates are believed, and what TLS needs of each host, made once: it costs milliseconds.

    pem: the certificates of the authorities; None: the system's (OpenSSL's SSL_CERT_FILE and SSL_CERT_DIR count).
    Raises FetchFailed when the text holds no certificate.
    """

    def __init__(self, pem: bytes | None = None) -> None:
        try:
            roots = None if pem is None else [Certificate.loadPEM(one) for one in _CERTIFICATE.findall(pem)]
        except OpenSSL.crypto.Error:
            roots = []
        if roots is not None and not roots:
            raise FetchFailed("the CA file holds no certificate")
        self._policy = BrowserLikePolicyForHTTPS(platformTrust() if roots is None else trustRootFromCertificates(roots))
        self._made: dict[tuple[bytes, int], Any] = {}

    def for_host(self, host: bytes, port: int) -> Any:
        """What verifies this host. Of a handful of hosts: none is forgotten."""
        made = self._made.get((host, port))
        if made is None:
            made = self._made[host, port] = self._policy.creatorForNetloc(host, port)
        return made


@implementer(IAgentEndpointFactory)
class _Endpoints:
    def __init__(self, reactor: Any, trust: Trust, timeout_s: float, opened: _Opened) -> None:
        self._reactor = reactor
        self._trust = trust
        self._timeout_s = timeout_s
        self._opened = opened

    def endpointForURI(self, uri: URI) -> _Recording:
        endpoint: Any = HostnameEndpoint(self._reactor, uri.host, uri.port, timeout=self._timeout_s)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(self._trust.for_host(uri.host, uri.port), endpoint)
        elif uri.scheme != b"http":
            raise FetchFailed("only http and https are fetched")
        return _Recording(endpoint, self._opened)


async def fetch(
    reactor: Any,
    url: str,
    *,
    accept: str,
    limit_bytes: int,
    timeout_s: float,
) -> bytes:
    """The body of a 200 answer to GET `url`. Certificates are verified against the system's trust store.

    Raises FetchFailed as ask() does, and for any other status (a redirect is one).
    """
    question = Question(url, {"Accept": accept}, limit_bytes, timeout_s)
    return (await ask(reactor, question, Trust(), only_ok=True)).body


async def ask(reactor: Any, question: Question, trust: Trust, *, only_ok: bool = False) -> Answer:
    """The answer, whatever its status, unless `only_ok`.

    Raises FetchFailed: not reached, no HTTP, a head or body above its limit or cut. CancelledError when cancelled.
    """
    opened = _Opened()
    agent = Agent.usingEndpointFactory(reactor, _Endpoints(reactor, trust, question.timeout_s, opened))
    headers = Headers({"User-Agent": [f"apigw/{apigw.__version__}"]})
    for name, value in question.headers.items():
        headers.setRawHeaders(name, [value])
    method, producer = (b"GET", None) if question.body is None else (b"POST", _Sent(question.body))
    try:
        response: Any = await agent.request(method, question.url.encode("ascii"), headers, producer)
        opened.head_is_whole = True
        if only_ok and response.code != 200:
            raise FetchFailed(f"status {response.code}")
        body = _Body(question.limit_bytes, question.on_part if response.code == 200 else None)
        response.deliverBody(body)
        return Answer(response.code, response.headers, await body.whole)
    except ResponseFailed as error:
        if opened.too_much:
            raise FetchFailed("the head of the answer is too large") from error
        reasons = "; ".join(_said(reason.value) for reason in error.reasons)
        raise FetchFailed(f"no answer: {reasons}") from error
    except (ConnectError, ConnectionClosed, DNSLookupError) as error:
        raise FetchFailed(_said(error)) from error
    finally:
        opened.abort()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
