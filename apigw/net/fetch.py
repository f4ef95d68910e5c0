"""One small document over HTTP(S): no redirect followed, bounded in bytes, on a connection of its own.

For what is fetched every few minutes. The connection is closed hard in the end, whatever happened: over TLS a
polite close waits for the peer's, and a peer that hangs is why there are deadlines.
"""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.endpoints import HostnameEndpoint, wrapClientTLS
from twisted.internet.error import ConnectError, ConnectionClosed, DNSLookupError
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.ssl import platformTrust
from twisted.python.failure import Failure
from twisted.web.client import URI, Agent, BrowserLikePolicyForHTTPS, ResponseDone, ResponseFailed
from twisted.web.http import PotentialDataLoss
from twisted.web.http_headers import Headers
from twisted.web.iweb import IAgentEndpointFactory
from zope.interface import implementer

import apigw


class FetchFailed(Exception):
    """No document: the text says why and names no secret. Cancelling a fetch raises CancelledError instead."""


class _Body(Protocol):
    """Collects a body of at most `limit_bytes`; `whole` has it."""

    def __init__(self, limit_bytes: int) -> None:
        self._left_bytes = limit_bytes
        self._parts: list[bytes] = []
        self.whole: Deferred[bytes] = Deferred()

    def dataReceived(self, data: bytes) -> None:
        self._left_bytes -= len(data)
        if self._left_bytes >= 0:
            self._parts.append(data)
        elif not self.whole.called:
            self._parts.clear()
            self.whole.errback(FetchFailed("the document is too large"))

    def connectionLost(self, reason: Failure | None = None) -> None:
        if self.whole.called:
            return
        if reason is not None and isinstance(reason.value, (ResponseDone, PotentialDataLoss)):
            self.whole.callback(b"".join(self._parts))
        else:
            self.whole.errback(FetchFailed("the answer ended early"))


@implementer(IStreamClientEndpoint)
class _Recording:
    """An endpoint that keeps what it connected: Agent's response has no way to abort its connection."""

    def __init__(self, endpoint: Any, opened: list[Any]) -> None:
        self._endpoint = endpoint
        self._opened = opened

    def connect(self, factory: IProtocolFactory) -> "Deferred[IProtocol]":
        connecting: Deferred[IProtocol] = self._endpoint.connect(factory)
        return connecting.addCallback(self._keep)

    def _keep(self, protocol: IProtocol) -> IProtocol:
        self._opened.append(protocol)
        return protocol


@implementer(IAgentEndpointFactory)
class _Endpoints:
    def __init__(self, reactor: Any, policy: BrowserLikePolicyForHTTPS, timeout_s: float, opened: list[Any]) -> None:
        self._reactor = reactor
        self._policy = policy
        self._timeout_s = timeout_s
        self._opened = opened

    def endpointForURI(self, uri: URI) -> _Recording:
        endpoint: Any = HostnameEndpoint(self._reactor, uri.host, uri.port, timeout=self._timeout_s)
        if uri.scheme == b"https":
            endpoint = wrapClientTLS(self._policy.creatorForNetloc(uri.host, uri.port), endpoint)
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
    """The body of a 200 answer to GET `url`.

    Certificates are verified against the system's trust store (OpenSSL's SSL_CERT_FILE and SSL_CERT_DIR count).
    timeout_s bounds the connect; the whole is bounded by whoever cancels it (Poller's timeout_s does).
    Raises FetchFailed: not reached, any other status (a redirect is one), a body above limit_bytes or cut.
    """
    opened: list[Any] = []
    policy = BrowserLikePolicyForHTTPS(platformTrust())
    agent = Agent.usingEndpointFactory(reactor, _Endpoints(reactor, policy, timeout_s, opened))
    headers = Headers({"Accept": [accept], "User-Agent": [f"apigw/{apigw.__version__}"]})
    try:
        response: Any = await agent.request(b"GET", url.encode("ascii"), headers)
        if response.code != 200:
            raise FetchFailed(f"status {response.code}")
        body = _Body(limit_bytes)
        response.deliverBody(body)
        return await body.whole
    except ResponseFailed as error:
        reasons = "; ".join(_said(reason.value) for reason in error.reasons)
        raise FetchFailed(f"no answer: {reasons}") from error
    except (ConnectError, ConnectionClosed, DNSLookupError) as error:
        raise FetchFailed(_said(error)) from error
    finally:
        for protocol in opened:
            if protocol.transport is not None:
                protocol.transport.abortConnection()


def _said(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"
