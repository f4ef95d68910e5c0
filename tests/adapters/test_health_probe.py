"""Asking real servers on the loopback for their health: a status, or a failure in time."""

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.protocol import Factory, Protocol
from twisted.web.client import ResponseFailed

from apigw.adapters.health_probe import HealthProbe
from tests.servers import free_port


class Wire(Protocol):
    """Says `answer` to a whole head, and after it what `endless` is, without end."""

    def connectionMade(self) -> None:
        self.received = b""

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if self.received.endswith(b"\r\n\r\n"):
            self.factory.heads.append(self.received)
            self.transport.write(self.factory.answer)
            if self.factory.endless:
                self.transport.registerProducer(self, False)

    def resumeProducing(self) -> None:
        self.transport.write(self.factory.endless)

    def stopProducing(self) -> None:
        """The connection is lost."""

    def connectionLost(self, reason: Any = None) -> None:
        if not self.factory.left.called:
            self.factory.left.callback(None)


class Server:
    """`heads` are the requests that came; `left` fires when the first connection ends."""

    def __init__(self) -> None:
        self.factory: Any = Factory.forProtocol(Wire)
        self.factory.heads = []
        self.factory.endless = b""
        self.factory.left = Deferred()
        self.listening = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.port = self.listening.getHost().port
        self.says(b"200 OK")

    def says(self, status: bytes, *lines: bytes) -> None:
        self.factory.answer = b"\r\n".join([b"HTTP/1.1 " + status, *(lines or (b"Content-Length: 0",)), b"", b""])

    def probe(self, timeout_s: float = 5.0) -> "Deferred[int]":
        return HealthProbe(reactor)("127.0.0.1", self.port, "/up?deep=1", timeout_s)

    async def left(self) -> None:
        """Waits until the prober has closed its connection."""
        await self.factory.left.addTimeout(5.0, reactor)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    pytest_twisted.blockon(made.listening.stopListening())


@pytest.mark.parametrize("status", [200, 204, 404, 500, 503])
@pytest_twisted.ensureDeferred
async def test_the_status_is_handed_on_whatever_it_is(server: Server, status: int) -> None:
    server.says(b"%d Said" % status)
    assert await server.probe() == status
    await server.left()


@pytest_twisted.ensureDeferred
async def test_the_request_names_its_path_its_host_and_who_asks(server: Server) -> None:
    await server.probe()
    await server.left()
    lines = server.factory.heads[0].lower().split(b"\r\n")
    assert lines[0] == b"get /up?deep=1 http/1.1"
    assert {b"host: 127.0.0.1:%d" % server.port, b"user-agent: apigw-health", b"connection: close"} <= {*lines}


@pytest_twisted.ensureDeferred
async def test_a_redirect_is_an_answer_and_is_not_followed(server: Server) -> None:
    server.says(b"302 Found", b"Location: http://127.0.0.1:%d/elsewhere" % server.port, b"Content-Length: 0")
    assert await server.probe() == 302
    await server.left()
    assert len(server.factory.heads) == 1


@pytest_twisted.ensureDeferred
async def test_a_body_without_end_is_not_read(server: Server) -> None:
    """The status counts, and the connection is closed."""
    server.says(b"200 OK", b"Content-Type: text/plain")
    server.factory.endless = b"x" * 65_536
    assert await server.probe() == 200
    await server.left()


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n"])
@pytest_twisted.ensureDeferred
async def test_no_answer_in_time_is_a_failure_and_the_connection_is_closed(server: Server, said: bytes) -> None:
    """Neither silence nor half a head holds the probe."""
    server.factory.answer = said
    with pytest.raises(ResponseFailed):
        await server.probe(timeout_s=0.1)
    await server.left()


@pytest_twisted.ensureDeferred
async def test_what_is_no_http_is_a_failure(server: Server) -> None:
    server.factory.answer = b"-ERR unknown command\r\n\r\n"
    with pytest.raises(ResponseFailed):
        await server.probe(timeout_s=2.0)
    await server.left()


@pytest_twisted.ensureDeferred
async def test_a_refused_connection_is_a_failure() -> None:
    with pytest.raises(ConnectionRefusedError):
        await HealthProbe(reactor)("127.0.0.1", free_port(), "/", 5.0)
