"""GET a backend's health path on a connection of its own: the status, or in words why there is none. No redirects.

The connection is made as those of requests are, so that it fails for the same reasons; of the answer only its
head is read.
"""

from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from apigw.constants import MAX_RESPONSE_HEADER_BYTES
from apigw.core.http1 import MalformedMessage, response_head
from apigw.errors import NotAsked, ProbeFailed
from apigw.net.connect import EXHAUSTED, REFUSED, TIMED_OUT, Connector
from apigw.net.deadlines import Bucket, Deadlines

_MAX_INTERIM = 16  # as for requests: 1xx answers before the final one


class HealthProbe:
    """probe(host, port, path, timeout_s) -> Deferred of the status; fails with ProbeFailed within the timeout."""

    def __init__(self, deadlines: Deadlines, connector: Connector) -> None:
        self._deadlines = deadlines
        self._connector = connector

    def __call__(self, host: str, port: int, path: str, timeout_s: float) -> "Deferred[int]":
        name = f"[{host}]" if ":" in host else host
        head = (
            f"GET {path} HTTP/1.1\r\nHost: {name}:{port}\r\nUser-Agent: apigw-health\r\n"
            "Accept: */*\r\nConnection: close\r\n\r\n"
        ).encode("ascii")
        asking = _Asking(self._connector, self._deadlines, head, timeout_s)
        self._connector.connect(host, port, timeout_s, asking)
        return asking.told


class _Asking:
    """One check: who wants the connection, and then its protocol. Exactly one outcome, within the timeout."""

    def __init__(self, connector: Connector, deadlines: Deadlines, head: bytes, timeout_s: float) -> None:
        self.told: Deferred[int] = Deferred()
        self._connector = connector
        self._head = head
        self._timeout_s = timeout_s
        self._transport: Any = None
        self._input = b""
        self._interim = 0
        self._ended = False
        self._bucket: Bucket = deadlines.add(timeout_s, self._over)

    # -- the connection

    def connect_done(self, sock: Any, peer: Any) -> None:
        if self._ended:
            sock.close()
            return
        self._transport = self._connector.transport(sock, peer, self)
        self._transport.start()

    def connect_failed(self, reason: str, detail: str) -> None:
        if reason == REFUSED:
            self._fail("connection refused: nothing listens there")
        elif reason == TIMED_OUT:
            self._over()
        elif reason == EXHAUSTED:
            self._end(NotAsked(f"this gateway could not ask: {detail}"))
        else:
            self._fail(f"{reason}: {detail}")

    def makeConnection(self, transport: Any) -> None:
        transport.write(self._head)

    def connectionLost(self, reason: Failure) -> None:
        self._transport = None
        self._fail("it closed before its answer")

    # -- the answer

    def dataReceived(self, data: bytes) -> None:
        self._input += data
        try:
            status = self._status()
        except MalformedMessage as error:
            self._fail(f"its answer is not HTTP: {error}")
            return
        if status is not None:
            self._end(status)

    def _status(self) -> int | None:
        """Of the final answer, None when its head is not whole."""
        while True:
            end = self._input.find(b"\r\n\r\n")
            if end < 0:
                if len(self._input) > MAX_RESPONSE_HEADER_BYTES or not b"HTTP/".startswith(self._input[:5]):
                    raise MalformedMessage("no head of an answer")
                return None
            head = response_head(self._input[: end + 4], False)
            if head.status >= 200:
                return head.status
            self._input = self._input[end + 4 :]
            self._interim += 1
            if self._interim > _MAX_INTERIM:
                raise MalformedMessage("too many interim answers")

    # -- ends

    def _over(self) -> None:
        what = "no answer" if self._transport is not None else "no answer to the connect"
        self._fail(f"{what} within {self._timeout_s:g} s")

    def _fail(self, why: str) -> None:
        self._end(ProbeFailed(why))

    def _end(self, outcome: "int | ProbeFailed") -> None:
        if self._ended:
            return
        self._ended = True
        self._bucket.pop(self._over, None)
        transport, self._transport = self._transport, None
        if transport is not None:
            if isinstance(outcome, int):
                transport.loseConnection()  # politely, also where a body is still coming
            else:
                transport.abortConnection()
        if isinstance(outcome, int):
            self.told.callback(outcome)
        else:
            self.told.errback(outcome)
