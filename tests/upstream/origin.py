"""A scripted backend and a raw client on real sockets; both wait in threads, the gateway runs on the reactor."""

import socket
import struct
import threading
from collections.abc import Callable
from typing import Any

from attrs import evolve
from twisted.internet import reactor as installed_reactor
from twisted.internet.threads import deferToThread

from apigw.config.model import Backend, Instance, Limits, Listener, Route
from apigw.config.snapshot import Snapshot
from apigw.core.trace import Randomness
from apigw.edge.listener import ListeningPort, bind
from apigw.edge.site import Site
from apigw.exchange import Exchange
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from apigw.pipeline import compose
from apigw.stages.body_limit import BodyLimit
from apigw.stages.canonical_path import CanonicalPath
from apigw.stages.identity import RequestIdentity
from apigw.stages.routing import Routing
from apigw.testing import small_snapshot
from apigw.upstream.leaf import Proxy
from apigw.upstream.pool import Pool
from tests.edge.conversation import LIMITS, Anonymous

TIMEOUT_S = 10.0
RESET = struct.pack("ii", 1, 0)
OK = b"HTTP/1.1 200 OK\r\n"


def reply(body: bytes = b"hello", *lines: bytes) -> bytes:
    return b"\r\n".join([b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(body), *lines, b"", b""]) + body


class Caller:
    """One connection from the gateway, in the thread of a script."""

    def __init__(self, sock: socket.socket, number: int) -> None:
        self.sock = sock
        self.number = number  # of the connection, from 0
        self._input = b""

    def _more(self) -> None:
        data = self.sock.recv(65_536)
        if not data:
            raise EOFError
        self._input += data

    def head(self) -> bytes:
        """The next request's head. Raises EOFError when there is none."""
        while b"\r\n\r\n" not in self._input:
            self._more()
        head, _, self._input = self._input.partition(b"\r\n\r\n")
        return head

    def body(self, head: bytes) -> bytes:
        """The body that belongs to `head`, without its chunks' framing."""
        fields = {line.split(b":")[0].lower(): line.split(b":")[1].strip() for line in head.split(b"\r\n")[1:]}
        if b"transfer-encoding" not in fields:
            return self.exactly(int(fields.get(b"content-length", 0)))
        body = b""
        while size := int(self._line(), 16):
            body += self.exactly(size)
            self._line()
        self._line()
        return body

    def _line(self) -> bytes:
        while b"\r\n" not in self._input:
            self._more()
        line, _, self._input = self._input.partition(b"\r\n")
        return line

    def exactly(self, count: int) -> bytes:
        while len(self._input) < count:
            self._more()
        data, self._input = self._input[:count], self._input[count:]
        return data

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def reset(self) -> None:
        """Close with a RST."""
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()

    def wait_for_end(self) -> str:
        """How the gateway ends the connection: "fin" or "rst". What it still sends is dropped."""
        try:
            while self.sock.recv(65_536):
                pass
            return "fin"
        except ConnectionResetError:
            return "rst"


Scene = Callable[[Caller], None]


class Origin:
    """Runs `script` for each connection. `requests` are the heads and bodies that answering() saw."""

    def __init__(self, script: Scene) -> None:
        self.script = script
        self.requests: list[tuple[bytes, bytes]] = []
        self.connections = 0
        self.errors: list[BaseException] = []
        self._socks: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0), backlog=256)
        self.port = int(self._listening.getsockname()[1])
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listening.accept()
            except OSError:
                return
            sock.settimeout(TIMEOUT_S)
            self._socks.append(sock)
            caller = Caller(sock, self.connections)
            self.connections += 1
            threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: Caller) -> None:
        try:
            self.script(caller)
        except (OSError, EOFError):
            pass
        except BaseException as error:  # told to the test, which asserts that there is none
            self.errors.append(error)
        finally:
            caller.sock.close()

    def close(self) -> None:
        self._listening.close()
        for sock in self._socks:
            sock.close()

    @classmethod
    def answering(cls, answer: Callable[[bytes, bytes], bytes]) -> "Origin":
        """Answers every request with answer(head, body), and keeps its connections."""

        def script(caller: Caller) -> None:
            while True:
                head = caller.head()
                body = caller.body(head)
                origin.requests.append((head, body))
                caller.say(answer(head, body))

        origin = cls(script)
        return origin


class Answer:
    """What a client received: `ended` is "fin" or "rst", or "" when the answer was whole before."""

    def __init__(self, data: bytes, ended: str) -> None:
        self.data = data
        self.ended = ended
        head, _, self.body = data.partition(b"\r\n\r\n")
        self.head = head
        self.status = int(head[9:12]) if head else 0


class Client:
    """A raw client; its methods block, to be called in a thread."""

    def __init__(self, port: int, receive_buffer_bytes: int = 0) -> None:
        self.sock = socket.socket()
        if receive_buffer_bytes:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.settimeout(TIMEOUT_S)
        self.sock.connect(("127.0.0.1", port))

    def say(self, data: bytes) -> None:
        self.sock.sendall(data)

    def to_the_end(self, data: bytes = b"") -> Answer:
        """All that comes until the connection ends."""
        try:
            while piece := self.sock.recv(65_536):
                data += piece
            return Answer(data, "fin")
        except ConnectionResetError:
            return Answer(data, "rst")

    def answer(self) -> Answer:
        """One answer with a Content-Length; the connection stays."""
        data = b""
        while b"\r\n\r\n" not in data:
            piece = self.sock.recv(65_536)
            if not piece:
                return Answer(data, "fin")
            data += piece
        length = int(data.lower().split(b"content-length:")[1].split(b"\r\n")[0])
        while len(data.partition(b"\r\n\r\n")[2]) < length:
            piece = self.sock.recv(65_536)
            if not piece:
                return Answer(data, "fin")
            data += piece
        return Answer(data, "")

    def leave(self, how: str = "fin") -> None:
        if how == "rst":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self.sock.close()


class Gateway:
    """Site, stages, proxy and one pool between real sockets."""

    def __init__(self, *ports: int, timeout_s: float = 5.0, limits: Limits = LIMITS, **backend: Any) -> None:
        self.reactor: Any = installed_reactor
        self.deadlines = Deadlines(self.reactor)
        self.records: list[Exchange] = []
        record = Backend("users", tuple(Instance("127.0.0.1", port) for port in ports), **backend)
        config = small_snapshot().config
        route = Route("all", "/*", ("GET", "HEAD", "POST", "PUT"), "users", timeout_s=timeout_s)
        self.snapshot = Snapshot(evolve(config, limits=limits, backends=(record,), routes=(route,)))
        self.pool = Pool(self.reactor, self.deadlines, Connector(self.reactor, self.deadlines), record)
        stages = [
            RequestIdentity(Randomness()),
            CanonicalPath(),
            Routing(self.snapshot.trie, lambda ex: None),
            Anonymous(),
            BodyLimit(),
        ]
        self.replays: list[tuple[str, str]] = []
        leaf = Proxy(
            self.reactor,
            self.deadlines,
            {"users": self.pool},
            limits.buffer_body_bytes,
            lambda backend, reason: self.replays.append((backend, reason)),
        )
        self.root = compose(stages, leaf)
        self.site = Site(self.reactor, self.deadlines, lambda: 0.0, self, self.records.append)
        listener = Listener("127.0.0.1", 0)
        self._listening = ListeningPort(self.reactor, self.site, listener, None, bind(listener))
        self._listening.start()
        self.port = self._listening.port

    def client(self, receive_buffer_bytes: int = 0) -> Client:
        return Client(self.port, receive_buffer_bytes)

    async def ask(self, request: bytes) -> Answer:
        """One request on a connection of its own, until the connection ends."""

        def talk() -> Answer:
            client = self.client()
            client.say(request)
            answer = client.to_the_end()
            client.leave()
            return answer

        answer: Answer = await deferToThread(talk)
        return answer

    def stop(self) -> None:
        self._listening.stop()
        self.site.abort_all()
        self.pool.close()
        for connection in [*self.pool._detached]:
            connection.kill()
        self.deadlines.stop()

    def books_balance(self) -> None:
        """Nothing in flight, nothing busy, no deadline left but those of open connections, each request once."""
        assert self.site.in_flight == 0
        assert self.pool.busy == 0
        assert self.pool.open == self.pool.idle
        assert len({id(ex) for ex in self.records}) == len(self.records)
