"""Listening sockets on loopback: accept, admit, TLS or not, and stop."""

import errno
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet import reactor as installed_reactor
from twisted.internet.threads import deferToThread

from apigw.config.model import Limits, Listener, TLSSection
from apigw.edge.certificates import CertificateStore
from apigw.edge.listener import ListeningPort, bind
from apigw.edge.site import Site
from apigw.exchange import Exchange
from apigw.net.deadlines import Deadlines
from tests.edge.authority import certificate
from tests.edge.conversation import LIMITS, Generation, Leaf, get
from tests.servers import until

reactor: Any = installed_reactor
TIMEOUT_S = 5.0


class Listening:
    """A Site behind one listening socket, and clients that wait in threads."""

    def __init__(self, limits: Limits = LIMITS, tls: TLSSection | None = None) -> None:
        self.records: list[Exchange] = []
        deadlines = Deadlines(reactor)
        self.site = Site(reactor, deadlines, lambda: 0.0, Generation(limits, Leaf()), self.records.append)
        listener = Listener("127.0.0.1", 0, tls)
        self.names = CertificateStore().serve(tls, "a") if tls is not None else None
        self.port = ListeningPort(reactor, self.site, listener, self.names, bind(listener))
        self.port.start()
        self.address = ("127.0.0.1", self.port.port)

    async def ask(self, request: bytes, context: ssl.SSLContext | None = None) -> bytes:
        """All that is answered until the connection closes."""
        return bytes(await deferToThread(self._ask, request, context))

    def _ask(self, request: bytes, context: ssl.SSLContext | None) -> bytes:
        with socket.create_connection(self.address, TIMEOUT_S) as plain:
            sock = plain if context is None else context.wrap_socket(plain, server_hostname="api.example.com")
            sock.sendall(request)
            received = b""
            while data := sock.recv(65_536):
                received += data
            if context is not None:
                sock.close()
            return received

    def stop(self) -> None:
        self.port.stop()
        self.site.abort_all()
        self.site.deadlines.stop()


@pytest.fixture
def plain() -> Iterator[Listening]:
    listening = Listening()
    yield listening
    listening.stop()


def trusting_anybody() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@pytest.fixture
def secure(tmp_path: Path) -> Iterator[Listening]:
    listening = Listening(tls=TLSSection((certificate(tmp_path, "api", "api.example.com"),)))
    yield listening
    listening.stop()


@pytest_twisted.ensureDeferred
async def test_a_plain_listener_serves(plain: Listening) -> None:
    answer = await plain.ask(get("/now", "Connection: close"))
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    request = plain.records[0].request
    assert (request.peer_ip, request.secure) == ("127.0.0.1", False)


@pytest_twisted.ensureDeferred
async def test_a_secure_listener_serves_over_tls_alone(secure: Listening) -> None:
    answer = await secure.ask(get("/now", "Connection: close"), trusting_anybody())
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert secure.records[0].request.secure
    try:
        answer = await secure.ask(get("/now"))
    except ConnectionResetError:
        answer = b""
    assert b"HTTP" not in answer
    await until(lambda: not secure.site.channels, reactor)
    assert len(secure.records) == 1


@pytest_twisted.ensureDeferred
async def test_new_certificates_are_for_new_connections(secure: Listening, tmp_path: Path) -> None:
    def served(address: tuple[str, int]) -> bytes | None:
        with socket.create_connection(address, TIMEOUT_S) as sock:
            with trusting_anybody().wrap_socket(sock, server_hostname="api.example.com") as tls:
                return tls.getpeercert(True)

    before = await deferToThread(served, secure.address)
    section = TLSSection((certificate(tmp_path, "newer", "api.example.com"),))
    secure.port.names = CertificateStore().serve(section, "a")
    after = await deferToThread(served, secure.address)
    assert before is not None and after is not None
    assert before != after


@pytest_twisted.ensureDeferred
async def test_connections_above_the_limit_are_closed_at_once_and_counted() -> None:
    listening = Listening(evolve(LIMITS, max_connections_per_ip=2))
    held = [socket.create_connection(listening.address) for _ in range(2)]
    await until(lambda: len(listening.site.channels) == 2, reactor)
    try:
        answer = await listening.ask(get("/now", "Connection: close"))
    except ConnectionError:
        answer = b""
    assert answer == b""
    assert listening.port.refused == 1
    held[0].close()
    await until(lambda: len(listening.site.channels) == 1, reactor)
    assert await listening.ask(get("/now", "Connection: close"))
    held[1].close()
    listening.stop()


@pytest_twisted.ensureDeferred
async def test_a_stopped_listener_accepts_nobody_while_its_connections_live_on(plain: Listening) -> None:
    with socket.create_connection(plain.address) as kept:
        await until(lambda: plain.site.channels, reactor)
        plain.port.stop()
        plain.port.stop()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(plain.address)
        kept.sendall(get("/now"))
        await until(lambda: plain.records, reactor)
        assert plain.records[0].status == 200


@pytest_twisted.ensureDeferred
async def test_peers_that_vanish_before_they_are_accepted_leave_nothing(plain: Listening) -> None:
    for _ in range(50):
        sock = socket.create_connection(plain.address)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        sock.close()
    assert await plain.ask(get("/now", "Connection: close"))
    await until(lambda: not plain.site.channels, reactor)
    assert not plain.site._per_ip


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_during_the_handshake_is_no_longer_counted(secure: Listening) -> None:
    sock = socket.create_connection(secure.address)
    sock.sendall(b"\x16\x03\x01\x02\x00\x01")
    await until(lambda: secure.site.channels, reactor)
    sock.close()
    await until(lambda: not secure.site.channels, reactor)
    assert secure.records == []


def test_an_address_that_is_taken_is_an_error() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(OSError) as raised:
            bind(Listener("127.0.0.1", taken.getsockname()[1]))
        assert raised.value.errno == errno.EADDRINUSE


def test_an_ipv6_address_may_be_bound() -> None:
    sock = bind(Listener("::1", 0))
    assert sock.family == socket.AF_INET6
    sock.close()
