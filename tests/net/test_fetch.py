"""Fetching one document from real servers of the loopback, over TCP and TLS."""

import datetime
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from cryptography import x509
from cryptography.hazmat.primitives import serialization as ser
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from twisted.internet import reactor, ssl
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.protocol import Factory, Protocol

from apigw.net.fetch import FetchFailed, fetch
from tests.servers import free_port, until


class Wire(Protocol):
    """Sends `answer` when a request came, and closes unless it is to hang."""

    def connectionMade(self) -> None:
        self.factory.connections.append(self)
        self.received = b""
        self.closed = False

    def dataReceived(self, data: bytes) -> None:
        self.received += data
        if b"\r\n\r\n" in self.received:
            self.transport.write(self.factory.answer)
            if not self.factory.hangs:
                self.transport.loseConnection()

    def connectionLost(self, reason: Any = None) -> None:
        self.closed = True


class Server:
    """A server that says exactly `answer`."""

    def __init__(self, context: Any = None) -> None:
        self.factory: Any = Factory.forProtocol(Wire)
        self.factory.connections = []
        self.factory.answer = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
        self.factory.hangs = False
        if context is None:
            self.port = reactor.listenTCP(0, self.factory, interface="127.0.0.1")
        else:
            self.port = reactor.listenSSL(0, self.factory, context, interface="127.0.0.1")
        scheme = "http" if context is None else "https"
        self.url = f"{scheme}://127.0.0.1:{self.port.getHost().port}/keys"

    def get(self, url: str | None = None) -> "Deferred[bytes]":
        got = fetch(reactor, url or self.url, accept="application/json", limit_bytes=1000, timeout_s=5.0)
        return Deferred.fromCoroutine(got)


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    pytest_twisted.blockon(made.port.stopListening())


def certificate(names: list[x509.GeneralName]) -> tuple[bytes, Any]:
    """(PEM, context of a server) of a self-signed certificate."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "identity")])
    now = datetime.datetime.now(datetime.timezone.utc)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).add_extension(x509.SubjectAlternativeName(names), False)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=None), True)
    day = datetime.timedelta(days=1)
    builder = builder.not_valid_before(now - day).not_valid_after(now + day)
    pem = builder.sign(key, SHA256()).public_bytes(ser.Encoding.PEM)
    private = key.private_bytes(ser.Encoding.PEM, ser.PrivateFormat.PKCS8, ser.NoEncryption())
    return pem, ssl.PrivateCertificate.loadPEM(private + pem).options()


LOOPBACK = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))


@pytest.fixture
def secure() -> Iterator[tuple[Server, bytes]]:
    pem, context = certificate([LOOPBACK])
    made = Server(context)
    yield made, pem
    pytest_twisted.blockon(made.port.stopListening())


def trust(pem: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "ca.pem").write_bytes(pem)
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))


@pytest_twisted.ensureDeferred
async def test_the_body_of_a_good_answer(server: Server) -> None:
    assert await server.get() == b"{}"
    (wire,) = server.factory.connections
    assert wire.received.startswith(b"GET /keys HTTP/1.1\r\n")
    assert b"Accept: application/json\r\n" in wire.received and b"User-Agent: apigw/" in wire.received


ANSWERS = {
    "chunked": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n", b"{}"),
    "ended by its close": (b"HTTP/1.1 200 OK\r\n\r\n{}", b"{}"),
    "empty": (b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", b""),
    "of the limit": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000, b"x" * 1000),
    "an error": (b"HTTP/1.1 500 Oops\r\nContent-Length: 2\r\n\r\n{}", "status 500"),
    "a redirect": (b"HTTP/1.1 302 Found\r\nLocation: /other\r\nContent-Length: 2\r\n\r\n{}", "status 302"),
    "another success": (b"HTTP/1.1 204 No Content\r\n\r\n", "status 204"),
    "too large": (b"HTTP/1.1 200 OK\r\nContent-Length: 1001\r\n\r\n" + b"x" * 1001, "too large"),
    "too large in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"64\r\n%b\r\n" % (b"x" * 100) * 20,
        "too large",
    ),
    "cut": (b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{}", "ended early"),
    "cut in a chunk": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n20\r\n{}", "ended early"),
    "no HTTP": (b"SSH-2.0-OpenSSH\r\n\r\n", "no answer"),
    "nothing": (b"", "no answer"),
}


@pytest.mark.parametrize("name", ANSWERS)
@pytest_twisted.ensureDeferred
async def test_an_answer_is_its_body_or_a_reason(server: Server, name: str) -> None:
    server.factory.answer, outcome = ANSWERS[name]
    if isinstance(outcome, bytes):
        assert await server.get() == outcome
    else:
        with pytest.raises(FetchFailed, match=outcome):
            await server.get()
    assert len(server.factory.connections) == 1
    await until(lambda: server.factory.connections[0].closed, reactor)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"])
@pytest_twisted.ensureDeferred
async def test_cancelling_closes_the_connection_at_any_point(server: Server, answer: bytes) -> None:
    server.factory.answer, server.factory.hangs = answer, True
    await cancelled(server)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 20\r\n\r\n{"])
@pytest_twisted.ensureDeferred
async def test_cancelling_closes_a_tls_connection_too(
    secure: tuple[Server, bytes], answer: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, pem = secure
    trust(pem, tmp_path, monkeypatch)
    server.factory.answer, server.factory.hangs = answer, True
    await cancelled(server)


async def cancelled(server: Server) -> None:
    getting = server.get()
    await until(lambda: server.factory.connections and server.factory.connections[0].received, reactor)
    getting.cancel()
    with pytest.raises((CancelledError, FetchFailed)):
        await getting
    await until(lambda: server.factory.connections[0].closed, reactor)


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_the_system_trusts_is_good(
    secure: tuple[Server, bytes], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server, pem = secure
    trust(pem, tmp_path, monkeypatch)
    assert await server.get() == b"{}"


@pytest_twisted.ensureDeferred
async def test_a_certificate_that_nobody_vouches_for_is_refused(secure: tuple[Server, bytes]) -> None:
    server, _ = secure
    with pytest.raises(FetchFailed, match="certificate verify failed"):
        await server.get()
    assert not any(wire.received for wire in server.factory.connections), "no request was sent"


@pytest_twisted.ensureDeferred
async def test_a_certificate_of_another_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pem, context = certificate([x509.DNSName("other.test")])
    server = Server(context)
    trust(pem, tmp_path, monkeypatch)
    with pytest.raises(FetchFailed):
        await server.get()
    assert not any(wire.received for wire in server.factory.connections), "no request was sent"
    await server.port.stopListening()


@pytest_twisted.ensureDeferred
async def test_a_port_where_nothing_listens_and_a_name_that_is_none(server: Server) -> None:
    with pytest.raises(FetchFailed, match="refused"):
        await server.get(f"http://127.0.0.1:{free_port()}/keys")
    with pytest.raises(FetchFailed):
        await server.get("http://no-such-host.invalid/keys")


@pytest.mark.parametrize("url", ["file:///etc/passwd", "ftp://127.0.0.1/keys"])
@pytest_twisted.ensureDeferred
async def test_only_http_is_fetched(server: Server, url: str) -> None:
    with pytest.raises(FetchFailed):
        await server.get(url)
