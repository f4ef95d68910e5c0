"""Asking real servers on the loopback for their health: a status, or in words why there is none, in time."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock

from apigw.adapters.health_probe import HealthProbe
from apigw.errors import NotAsked, ProbeFailed
from apigw.net.connect import EXHAUSTED, REFUSED, TIMED_OUT, Connector
from apigw.net.deadlines import Deadlines
from apigw.testing import MemoryConnector
from tests.servers import free_port, until


class Wire(Protocol):
    """Says `answer` to a whole head, and after it what `endless` is, without end."""

    def connectionMade(self) -> None:
        self.received = b""
        self.factory.made.append(self)

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


def probe(port: int, path: str = "/up?deep=1", timeout_s: float = 5.0, host: str = "127.0.0.1") -> "Deferred[int]":
    deadlines = Deadlines(reactor)  # type: ignore[arg-type]
    return HealthProbe(deadlines, Connector(reactor, deadlines))(host, port, path, timeout_s)


class Server:
    """`heads` are the requests that came; `left` fires when the first connection ends."""

    def __init__(self) -> None:
        self.factory: Any = Factory.forProtocol(Wire)
        self.factory.heads = []
        self.factory.made = []
        self.factory.endless = b""
        self.factory.left = Deferred()
        self.listening = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        self.port = self.listening.getHost().port
        self.says(b"200 OK")

    def says(self, status: bytes, *lines: bytes) -> None:
        self.factory.answer = b"\r\n".join([b"HTTP/1.1 " + status, *(lines or (b"Content-Length: 0",)), b"", b""])

    def probe(self, timeout_s: float = 5.0) -> "Deferred[int]":
        return probe(self.port, timeout_s=timeout_s)

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


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 100 Continue\r\n\r\n"])
@pytest_twisted.ensureDeferred
async def test_no_answer_in_time_is_a_failure_and_the_connection_is_closed(server: Server, said: bytes) -> None:
    """Neither silence nor half a head holds the probe; an interim answer is none."""
    server.factory.answer = said
    with pytest.raises(ProbeFailed, match="^no answer within 0.1 s$"):
        await server.probe(timeout_s=0.1)
    await server.left()


@pytest_twisted.ensureDeferred
async def test_an_answer_behind_interim_ones_counts(server: Server) -> None:
    server.factory.answer = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"
    assert await server.probe() == 204


@pytest.mark.parametrize(
    "said",
    [
        b"-ERR unknown command\r\n\r\n",
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nX: " + b"a" * 70_000,
        b"HTTP/1.1 103 Early Hints\r\n\r\n" * 20,
    ],
)
@pytest_twisted.ensureDeferred
async def test_what_is_no_http_is_a_failure(server: Server, said: bytes) -> None:
    server.factory.answer = said
    with pytest.raises(ProbeFailed, match="^its answer is not HTTP: "):
        await server.probe(timeout_s=2.0)
    await server.left()


@pytest_twisted.ensureDeferred
async def test_a_server_that_hangs_up_is_a_failure(server: Server) -> None:
    server.factory.answer = b"HTTP/1.1 200"
    probing = server.probe()
    await until(lambda: server.factory.heads, reactor)
    for connection in server.factory.made:
        connection.transport.abortConnection()
    with pytest.raises(ProbeFailed, match="^it closed before its answer$"):
        await probing


@pytest_twisted.ensureDeferred
async def test_a_refused_connection_is_a_failure() -> None:
    with pytest.raises(ProbeFailed, match="^connection refused: nothing listens there$"):
        await probe(free_port())


@pytest_twisted.ensureDeferred
async def test_a_name_without_an_address_is_a_failure() -> None:
    with pytest.raises(ProbeFailed, match="^unresolved: "):
        await probe(80, host="no-such-host.invalid")


@pytest.mark.parametrize(
    ("reason", "kind", "said"),
    [
        (TIMED_OUT, ProbeFailed, "no answer to the connect within 5 s"),
        (REFUSED, ProbeFailed, "connection refused: nothing listens there"),
        (EXHAUSTED, NotAsked, "this gateway could not ask: as the test said"),
    ],
)
def test_why_there_was_no_connection_is_said_in_words(reason: str, kind: type[ProbeFailed], said: str) -> None:
    clock, connector = Clock(), MemoryConnector()
    told = HealthProbe(Deadlines(clock), connector)("10.0.0.1", 80, "/", 5.0)  # type: ignore[arg-type]
    connector.attempts[0].fail(reason)
    failure = failure_of(told)
    assert type(failure) is kind and str(failure) == said
    clock.advance(10)


def test_a_connection_that_is_made_too_late_is_closed() -> None:
    clock, connector = Clock(), MemoryConnector()
    told = HealthProbe(Deadlines(clock), connector)("10.0.0.1", 80, "/", 1.0)  # type: ignore[arg-type]
    clock.advance(1.1)
    assert str(failure_of(told)) == "no answer to the connect within 1 s"
    near, far = socket.socketpair()
    connector.attempts[0]._wanting.connect_done(near, None)
    assert far.recv(1) == b"" and connector.transports == []
    far.close()


def failure_of(told: "Deferred[int]") -> BaseException:
    """What a Deferred has failed with by now."""
    failed: list[BaseException] = []
    told.addErrback(lambda failure: failed.append(failure.value))
    return failed[0]
