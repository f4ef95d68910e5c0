"""Real servers for tests: a redis-server of its own that can be frozen, killed and started again, and a slow wire.

from tests.servers import DelayProxy, RedisServer, free_port
"""

import os
import random
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import hiredis
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol

from tests.processes import ServerProcess


def free_port() -> int:
    """A TCP port of 127.0.0.1 that nobody listened on a moment ago."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


def ports_between(first: int, last: int) -> Iterator[int]:
    """In a random order, and none that another process of this run (tests/conftest.py) gets too."""
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    step = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    ports = range(first + number, last, step)
    return iter(random.sample(ports, len(ports)))


_server_ports = ports_between(2_000, 12_000)


def server_port() -> int:
    """A free port that this run never gives again, below those that the kernel gives to clients: a server that is
    started later, or again, still finds it free."""
    for port in _server_ports:
        with socket.socket() as sock:
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("no free port")


async def until(condition: Callable[[], Any], reactor: Any, timeout_s: float = 5.0) -> float:
    """Wait for a condition that tells nobody when it comes true; the seconds it took. Raises AssertionError."""
    began_s = reactor.seconds()
    while not condition():
        assert reactor.seconds() - began_s < timeout_s, "it did not come true in time"
        await turns(reactor, 0.005)
    return float(reactor.seconds() - began_s)


async def turns(reactor: Any, seconds: float = 0.0) -> None:
    """Let the reactor run."""
    waited: Deferred[None] = Deferred()
    reactor.callLater(seconds, waited.callback, None)
    await waited


class RedisServer(ServerProcess):
    """A redis-server on a free port of the loopback, without persistence.

    credentials: the words of an AUTH that precedes the commands of the test, where the server wants one.
    tls: a folder with cert.pem and key.pem; then it speaks TLS only, to replicas and cluster nodes too.
    """

    def __init__(self, *arguments: str, credentials: tuple[str, ...] = (), tls: Path | None = None) -> None:
        super().__init__("redis")
        self.port = server_port()
        self.credentials = credentials
        self._tls = tls
        self._arguments = arguments

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self) -> None:
        """Returns when it accepts connections."""
        self.launch()
        self.ready()

    def launch(self) -> None:
        """Begin to start; what it says goes to a file, since a full pipe would block it."""
        with (self.folder / "said").open("wb") as said:
            self.process = subprocess.Popen(
                self.command_line(),
                stdin=subprocess.DEVNULL,
                stdout=said,
                stderr=subprocess.STDOUT,
            )

    def command_line(self) -> list[str]:
        command = ["redis-server", *self.listening(), "--save", "", "--appendonly", "no"]
        return [*command, "--dir", str(self.folder), *self._arguments]

    def listening(self) -> list[str]:
        """The options of its port."""
        if self._tls is None:
            return ["--bind", "127.0.0.1", "--port", str(self.port)]
        certificate, key = str(self._tls / "cert.pem"), str(self._tls / "key.pem")
        files = ["--tls-cert-file", certificate, "--tls-key-file", key, "--tls-ca-cert-file", certificate]
        more = ["--tls-auth-clients", "optional", "--tls-replication", "yes", "--tls-cluster", "yes"]
        return ["--bind", "127.0.0.1", "--port", "0", "--tls-port", str(self.port), *files, *more]

    def _connection(self) -> socket.socket:
        sock = socket.create_connection(("127.0.0.1", self.port), timeout=5)
        if self._tls is None:
            return sock
        context = ssl.create_default_context(cafile=self._tls / "cert.pem")
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        return context.wrap_socket(sock, server_hostname="127.0.0.1")

    def ready(self) -> None:
        """Returns when it accepts connections."""
        assert self.process is not None
        said = self.folder / "said"
        while b"eady to accept connections" not in (text := said.read_bytes()):
            if self.process.poll() is not None:
                raise RuntimeError(f"redis-server did not start: {text[-500:]!r}")
            time.sleep(0.005)

    def restart(self) -> None:
        """Killed, then started on the same port with nothing in it."""
        self.kill()
        self.start()

    def command(self, *words: str | bytes | int) -> Any:
        """One command, waiting for the reply. Raises hiredis.ReplyError for an error."""
        return self.packed_command(hiredis.pack_command(words))  # type: ignore[arg-type]

    def packed_command(self, data: bytes) -> Any:
        """One command as it goes over the wire, on a connection of its own."""
        reader = hiredis.Reader()
        with self._connection() as sock:
            for each in ([hiredis.pack_command(("AUTH", *self.credentials))] if self.credentials else []) + [data]:
                sock.sendall(each)
                while (reply := reader.gets()) is False:
                    received = sock.recv(65_536)
                    assert received, "redis-server closed the connection"
                    reader.feed(received)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def config_set(self, name: str, value: str) -> None:
        self.command("CONFIG", "SET", name, value)


@contextmanager
def redis_server(*arguments: str, **options: Any) -> Iterator[RedisServer]:
    """A RedisServer that runs for a block, to be made a fixture of the scope that a test module wants."""
    with RedisServer(*arguments, **options).running() as server:
        yield server


class DelayProxy:
    """A TCP proxy that hands on the server's bytes `delay_s` late, which may be set at any time.

    target_port: where the next connection leads; those that are open stay where they are.
    connections: how many were made so far.
    """

    def __init__(self, reactor: Any, target_port: int, delay_s: float = 0.0) -> None:
        self.delay_s = delay_s
        self.connections = 0
        self._reactor = reactor
        self.target_port = target_port
        self._open: set[Protocol] = set()
        factory = Factory.forProtocol(_ClientSide)
        factory.proxy = self  # type: ignore[attr-defined]
        self._listening = reactor.listenTCP(0, factory, interface="127.0.0.1")
        self.port = int(self._listening.getHost().port)

    def connect(self, protocol: Protocol) -> "Deferred[Any]":
        self.connections += 1
        endpoint = TCP4ClientEndpoint(self._reactor, "127.0.0.1", self.target_port, timeout=1)
        return connectProtocol(endpoint, protocol)

    def hand_on(self, data: bytes, transport: Any) -> None:
        self._reactor.callLater(self.delay_s, transport.write, data)

    async def close(self) -> None:
        """Stop listening and cut what is open."""
        for protocol in list(self._open):
            transport: Any = protocol.transport
            transport.abortConnection()
        await self._listening.stopListening()

    def opened(self, protocol: Protocol) -> None:
        self._open.add(protocol)

    def closed(self, protocol: Protocol) -> None:
        self._open.discard(protocol)


class _ClientSide(Protocol):
    def connectionMade(self) -> None:
        self._early: list[bytes] = []
        self._server: _ServerSide | None = None
        self._proxy: DelayProxy = self.factory.proxy  # type: ignore[union-attr]
        self._proxy.opened(self)
        self._proxy.connect(_ServerSide(self)).addCallbacks(self._connected, self._refused)

    def _connected(self, server: "_ServerSide") -> None:
        self._server = server
        for data in self._early:
            server.transport.write(data)  # type: ignore[union-attr]

    def _refused(self, _: Any) -> None:
        self.transport.abortConnection()  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        if self._server is None:
            self._early.append(data)
        else:
            self._server.transport.write(data)  # type: ignore[union-attr]

    def from_server(self, data: bytes) -> None:
        self._proxy.hand_on(data, self.transport)

    def connectionLost(self, reason: Any = None) -> None:
        self._proxy.closed(self)
        if self._server is not None:
            self._server.transport.abortConnection()  # type: ignore[union-attr]


class _ServerSide(Protocol):
    def __init__(self, client: _ClientSide) -> None:
        self._client = client

    def dataReceived(self, data: bytes) -> None:
        self._client.from_server(data)

    def connectionLost(self, reason: Any = None) -> None:
        self._client.transport.loseConnection()  # type: ignore[union-attr]
