"""The load generators, run as processes of their own so that their CPU is never the gateway's.

    load.py closed FILE    a fixed number of requests over N keep-alive TLS connections, one outstanding on each
    load.py paced FILE     an open loop: one request each 1/rate s through the gateway, one in between to the backend
    load.py idle FILE      N TLS connections that made one request each and then stay

FILE is a JSON object of `Plan`'s fields. Protocol with the parent: prints "ready", waits for a line, works,
prints one JSON line with the result, waits for another line, ends. One thread, readiness based; requests are
bytes made beforehand; answers are counted by Content-Length and their status is checked.
"""

import heapq
import json
import select
import socket
import ssl
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

READ_BYTES = 65_536
STALL_S = 20.0  # nothing at all for this long: the run is broken


@dataclass
class Plan:
    port: int
    requests: list[str]  # whole requests, used in turn
    connections: int = 32
    count: int = 0  # closed: requests to make after the warm-up
    warm_up: int = 0
    expect: int = 200
    rate: float = 200.0  # paced: per second, each side
    seconds: float = 5.0
    direct_port: int = 0  # paced: plain HTTP
    direct_request: str = ""
    plain: bool = False
    addresses: list[str] = field(default_factory=lambda: ["127.0.0.1"])  # source addresses, used in turn


class Broken(Exception):
    """The peer closed, stalled or sent what is not a complete response with a length."""


def _context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


CONTEXT = _context()


class Connection:
    """One keep-alive connection, non-blocking after the handshake."""

    __slots__ = ("_buffer", "_missing", "due_s", "fd", "socket", "status")

    def __init__(self, port: int, tls: bool, address: str = "127.0.0.1") -> None:
        raw = socket.create_connection(("127.0.0.1", port), 10, source_address=(address, 0))
        raw.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket = CONTEXT.wrap_socket(raw) if tls else raw
        self.socket.setblocking(False)
        self.fd = self.socket.fileno()
        self._buffer = b""
        self._missing = -1
        self.status = 0
        self.due_s = 0.0

    def send(self, request: bytes) -> None:
        """A request is far smaller than a send buffer: a short write is a broken run."""
        self._buffer, self._missing = b"", -1
        if self.socket.send(request) != len(request):
            raise Broken("short write")

    def receive(self) -> bool:
        """True when the answer is complete; False: wait for more. Raises Broken."""
        while True:
            try:
                data = self.socket.recv(READ_BYTES)
            except (ssl.SSLWantReadError, BlockingIOError):
                return False
            if not data:
                raise Broken("closed by the peer")
            if self._missing < 0:
                self._buffer += data
                end = self._buffer.find(b"\r\n\r\n")
                if end < 0:
                    continue
                self._missing = _content_length(self._buffer[:end].lower()) - (len(self._buffer) - end - 4)
                self.status = int(self._buffer[9:12])
            else:
                self._missing -= len(data)
            if self._missing < 0:
                raise Broken("more bytes than Content-Length")
            if not self._missing:
                return True


def _content_length(head: bytes) -> int:
    start = head.find(b"\r\ncontent-length:")
    if start < 0:
        raise Broken(f"no Content-Length in {head[:300]!r}")
    return int(head[start + 17 :].split(b"\r\n", 1)[0])


class ClosedLoop:
    """Keeps every connection busy until `count` answers came."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._requests = [request.encode("latin-1") for request in plan.requests]
        self._next = 0
        self._by_fd: dict[int, Connection] = {}
        self._epoll = select.epoll()
        self.statuses: dict[int, int] = {}
        for _ in range(plan.connections):
            self._connect()

    def _connect(self) -> Connection:
        connection = Connection(self._plan.port, not self._plan.plain)
        self._by_fd[connection.fd] = connection
        self._epoll.register(connection.fd, select.EPOLLIN)
        return connection

    def _send(self, connection: Connection) -> None:
        connection.send(self._requests[self._next])
        self._next = (self._next + 1) % len(self._requests)

    def run(self, count: int) -> int:
        """Makes `count` requests; the number of them that had another status than expected."""
        to_send, open_answers, odd = count, 0, 0
        for connection in list(self._by_fd.values())[:count]:
            self._send(connection)
            to_send -= 1
            open_answers += 1
        while open_answers:
            events = self._epoll.poll(STALL_S)
            if not events:
                raise Broken(f"stalled with {open_answers} answers missing")
            for fd, _ in events:
                connection = self._by_fd[fd]
                if not connection.receive():
                    continue
                self.statuses[connection.status] = self.statuses.get(connection.status, 0) + 1
                odd += connection.status != self._plan.expect
                open_answers -= 1
                if to_send:
                    self._send(connection)
                    to_send -= 1
                    open_answers += 1
        return odd


def closed(plan: Plan) -> None:
    loop = ClosedLoop(plan)
    odd = loop.run(plan.warm_up)
    if odd:
        raise Broken(f"warm-up: {odd} of {plan.warm_up} answers were not {plan.expect}: {loop.statuses}")
    _ready()
    started_s, started_cpu_s = time.perf_counter(), time.process_time()
    odd = loop.run(plan.count)
    elapsed_s = time.perf_counter() - started_s
    _finish(
        {
            "requests": plan.count,
            "seconds": elapsed_s,
            "odd": odd,
            "generator_cpu_s": time.process_time() - started_cpu_s,
        }
    )


class Side:
    """One of the two streams of a paced run: its pool of connections and its samples, in seconds from due to done."""

    def __init__(self, port: int, tls: bool, requests: list[bytes], connections: int, expect: int) -> None:
        self.idle = [Connection(port, tls) for _ in range(connections)]
        self.busy: dict[int, Connection] = {}
        self.samples_s: list[float] = []
        self.late = 0  # requests that found no idle connection: their wait is in the sample
        self.odd = 0
        self._requests, self._next, self._expect = requests, 0, expect
        self._waiting: list[float] = []

    def due(self, due_s: float) -> None:
        heapq.heappush(self._waiting, due_s)
        if not self.idle:
            self.late += 1
        self._start()

    def _start(self) -> None:
        while self.idle and self._waiting:
            connection = self.idle.pop()
            connection.due_s = heapq.heappop(self._waiting)
            connection.send(self._requests[self._next])
            self._next = (self._next + 1) % len(self._requests)
            self.busy[connection.fd] = connection

    def readable(self, fd: int) -> None:
        connection = self.busy[fd]
        if not connection.receive():
            return
        self.samples_s.append(time.perf_counter() - connection.due_s)
        self.odd += connection.status != self._expect
        del self.busy[fd]
        self.idle.append(connection)
        self._start()


def paced(plan: Plan) -> None:
    """Open loop. Gateway and backend are asked in turns, half a period apart: both see the same seconds."""
    requests = [request.encode("latin-1") for request in plan.requests]
    through = Side(plan.port, not plan.plain, requests, plan.connections, plan.expect)
    direct = Side(plan.direct_port, False, [plan.direct_request.encode("latin-1")], plan.connections, 200)
    sides = (through, direct)
    _pace(sides, plan.rate * 2, int(plan.warm_up) * 2)
    through.samples_s.clear()
    direct.samples_s.clear()
    _ready()
    _pace(sides, plan.rate * 2, int(plan.rate * plan.seconds) * 2)
    _finish(
        {
            "requests": len(through.samples_s),
            "odd": through.odd + direct.odd,
            "late": through.late,
            "through_s": through.samples_s,
            "direct_s": direct.samples_s,
        }
    )


def _pace(sides: tuple[Side, Side], rate: float, count: int) -> None:
    clock, started_s, made = time.perf_counter, time.perf_counter(), 0
    last_s = started_s
    while made < count or sides[0].busy or sides[1].busy:
        due_s = started_s + made / rate
        now_s = clock()
        if made < count and now_s >= due_s:
            sides[made % 2].due(due_s)
            made += 1
            continue
        # select(), since epoll's timeout is in whole milliseconds
        wait_s = due_s - now_s if made < count else 1.0
        readable, _, _ = select.select([*sides[0].busy, *sides[1].busy], [], [], wait_s)
        for fd in readable:
            (sides[0] if fd in sides[0].busy else sides[1]).readable(fd)
        if readable:
            last_s = clock()
        elif clock() - last_s > STALL_S:
            raise Broken("stalled")


def idle(plan: Plan) -> None:
    """Holds connections that have made one request each, until the parent says otherwise."""
    held = []
    request = plan.requests[0].encode("latin-1")
    _ready()
    started_s = time.perf_counter()
    for number in range(plan.connections):
        connection = Connection(plan.port, not plan.plain, plan.addresses[number % len(plan.addresses)])
        connection.socket.settimeout(STALL_S)  # one after the other: blocking will do
        connection.send(request)
        if not connection.receive():
            raise Broken("no answer")
        held.append(connection)
    _finish({"connections": len(held), "seconds": time.perf_counter() - started_s})


def _ready() -> None:
    print("ready", flush=True)
    if not sys.stdin.readline():
        sys.exit("the parent is gone")


def _finish(result: dict[str, Any]) -> None:
    print(json.dumps(result), flush=True)
    sys.stdin.readline()


if __name__ == "__main__":
    mode, file_name = sys.argv[1:]
    {"closed": closed, "paced": paced, "idle": idle}[mode](Plan(**json.loads(Path(file_name).read_text())))
