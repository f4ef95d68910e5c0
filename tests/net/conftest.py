"""Real sockets on loopback: pairs of them, a recording protocol, certificates made once."""

import datetime
import ipaddress
import socket
import ssl
import time
from pathlib import Path
from typing import Any, Callable, Iterator

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from apigw.net.deadlines import Deadlines
from apigw.net.transport import TCPTransport


class Recorder:
    """A protocol that writes down what happens to it. Hooks run inside the callback, for re-entrancy."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.received = bytearray()
        self.calls = 0
        self.lost: list[Failure] = []
        self.failed_handshakes: list[Failure] = []
        self.events: list[str] = []
        self.on_made: Callable[[], None] = lambda: None
        self.on_data: Callable[[bytes], None] = lambda data: None

    def makeConnection(self, transport: Any) -> None:
        self.transport = transport
        self.events.append("made")
        self.on_made()

    def dataReceived(self, data: bytes) -> None:
        assert not self.lost, "data after connectionLost"
        self.calls += 1
        self.received += data
        self.on_data(data)

    def connectionLost(self, reason: Failure) -> None:
        self.events.append("lost")
        self.lost.append(reason)

    def handshakeFailed(self, reason: Failure) -> None:
        self.events.append("handshake failed")
        self.failed_handshakes.append(reason)


class Producer:
    """Counts what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def pauseProducing(self) -> None:
        self.told.append("pause")

    def resumeProducing(self) -> None:
        self.told.append("resume")

    def stopProducing(self) -> None:
        self.told.append("stop")


async def until(condition: Callable[[], Any], limit_s: float = 5.0) -> None:
    """Let the reactor turn until the condition holds: each turn is one poll of it, no fixed sleep."""
    reactor: Any = installed_reactor
    end_s = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end_s, "the condition never came to hold"
        turned: Deferred[None] = Deferred()
        reactor.callLater(0.001, turned.callback, None)
        await turned


async def turns(count: int) -> None:
    """Let the reactor turn a few times."""
    reactor: Any = installed_reactor
    for _ in range(count):
        turned: Deferred[None] = Deferred()
        reactor.callLater(0, turned.callback, None)
        await turned


class Net:
    """What a test of this package needs: sockets that are closed afterwards."""

    until = staticmethod(until)
    turns = staticmethod(turns)
    Recorder = Recorder
    Producer = Producer

    def __init__(self) -> None:
        self.reactor: Any = installed_reactor
        self.deadlines = Deadlines(self.reactor)
        self._transports: list[TCPTransport] = []
        self._opened: list[Any] = []

    def keep(self, closable: Any) -> Any:
        """Have it closed, or aborted if it is a transport, behind the test."""
        (self._transports if isinstance(closable, TCPTransport) else self._opened).append(closable)
        return closable

    def socket_pair(self, buffer_bytes: int = 0) -> tuple[socket.socket, socket.socket]:
        """(server side, client side) of one TCP connection, both non-blocking; small buffers when asked for."""
        listening = socket.socket()
        listening.bind(("127.0.0.1", 0))
        client = self.keep(socket.socket())
        if buffer_bytes:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, buffer_bytes)
        listening.listen(1)
        client.connect(listening.getsockname())
        server, _ = listening.accept()
        listening.close()
        server.setblocking(False)
        client.setblocking(False)
        return self.keep(server), client

    def tcp(self, buffer_bytes: int = 0) -> "tuple[TCPTransport, Recorder, socket.socket]":
        """A started transport, its protocol, and the other end."""
        server, client = self.socket_pair(buffer_bytes)
        protocol = Recorder()
        transport = TCPTransport(self.reactor, self.deadlines, server, server.getpeername(), protocol)
        self.keep(transport)
        transport.start()
        return transport, protocol, client

    def close(self) -> None:
        for transport in self._transports:
            transport.abortConnection()
        for closable in self._opened:
            closable.close()
        self.deadlines.stop()


@pytest.fixture
def net() -> Iterator[Net]:
    net = Net()
    yield net
    net.close()


def drain(sock: socket.socket) -> bytes:
    """What has arrived at a non-blocking socket; ends at EOF too."""
    taken = bytearray()
    while True:
        try:
            data = sock.recv(1 << 20)
        except BlockingIOError:
            return bytes(taken)
        if not data:
            return bytes(taken)
        taken += data


@pytest.fixture(scope="session")
def server_context(tmp_path_factory: pytest.TempPathFactory) -> ssl.SSLContext:
    """A context for localhost with the settings of edge/certificates.py."""
    folder: Path = tmp_path_factory.mktemp("tls")
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(
            x509.SubjectAlternativeName([x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]),
            critical=False,
        )
        .sign(key, hashes.SHA256())
    )
    (folder / "cert.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("ECDHE+AESGCM:ECDHE+CHACHA20")
    context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION | ssl.OP_CIPHER_SERVER_PREFERENCE
    context.set_alpn_protocols(["http/1.1"])
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    return context


def client_context(version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    """A client that trusts anybody; `version` alone when given."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context
