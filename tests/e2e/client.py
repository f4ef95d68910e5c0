"""An HTTP/1.1 client over raw sockets that shows what came, not what it would like: cut answers, order, spelling."""

import json
import socket
import ssl
from types import TracebackType
from typing import Any, Iterable


class Closed(Exception):
    """The connection ended before the head of an answer."""


class Response:
    """What came. `complete`: the body ended as its framing says. `headers` as on the wire, in order."""

    def __init__(self, status: int, headers: list[tuple[str, str]], body: bytes, complete: bool) -> None:
        self.status = status
        self.headers = headers
        self.body = body
        self.complete = complete

    def __repr__(self) -> str:
        return f"<{self.status} {self.headers} {self.body[:300]!r}{'' if self.complete else ' CUT'}>"

    def get(self, name: str) -> str | None:
        """The values of a header, joined; None when there is none."""
        values = self.all(name)
        return ", ".join(values) if values else None

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name.lower()]

    def json(self) -> Any:
        return json.loads(self.body)


class Client:
    """One connection. `buffered` holds what came and was not read as part of an answer."""

    def __init__(
        self,
        port: int,
        context: ssl.SSLContext | None = None,
        *,
        name: str | None = "gw.test",
        timeout_s: float = 10.0,
        session: ssl.SSLSession | None = None,
        receive_buffer_bytes: int | None = None,
    ) -> None:
        self.sock: Any = socket.socket()
        if receive_buffer_bytes is not None:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        self.sock.settimeout(timeout_s)
        try:
            self.sock.connect(("127.0.0.1", port))
            self.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if context is not None:
                self.sock = context.wrap_socket(self.sock, server_hostname=name, session=session)
        except OSError:
            self.sock.close()
            raise
        self.buffered = b""

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self.sock.close()

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    def request(
        self,
        method: str,
        target: str,
        headers: Iterable[tuple[str, str]] = (),
        body: bytes | None = None,
        *,
        host: str | None = "gw.test",
    ) -> Response:
        """Send one request and read its answer. A body gets a Content-Length."""
        self.send(head(method, target, headers, body, host=host) + (body or b""))
        return self.response(method)

    def response(self, method: str = "GET") -> Response:
        """Read one final answer; interim ones are skipped. Raises Closed, TimeoutError."""
        while True:
            status, headers = self._head()
            if status >= 200:
                break
        fields = {name.lower(): value for name, value in headers}
        if method == "HEAD" or status in (204, 304):
            return Response(status, headers, b"", True)
        if "transfer-encoding" in fields:
            body, complete = self._chunks()
        elif "content-length" in fields:
            body, complete = self._exactly(int(fields["content-length"]))
        else:
            body, complete = self.rest(), True
        return Response(status, headers, body, complete)

    def rest(self, limit_bytes: int = 1 << 30) -> bytes:
        """Everything until the connection ends. Raises TimeoutError when it does not."""
        data, self.buffered = self.buffered, b""
        while len(data) < limit_bytes:
            more = self._receive()
            if not more:
                break
            data += more
        return data

    def ended(self, within_s: float) -> bool:
        """Whether the gateway closes within this time, without another byte."""
        self.sock.settimeout(within_s)
        try:
            return not self.buffered and self._receive() == b""
        except TimeoutError:
            return False

    def _receive(self) -> bytes:
        try:
            return bytes(self.sock.recv(262_144))
        except (ConnectionResetError, BrokenPipeError, ssl.SSLEOFError, ssl.SSLZeroReturnError):
            return b""

    def _fill(self) -> bool:
        more = self._receive()
        self.buffered += more
        return bool(more)

    def _head(self) -> tuple[int, list[tuple[str, str]]]:
        while b"\r\n\r\n" not in self.buffered:
            if not self._fill():
                raise Closed(repr(self.buffered[:200]))
        raw, self.buffered = self.buffered.split(b"\r\n\r\n", 1)
        first, *lines = raw.decode("latin-1").split("\r\n")
        version, status, _ = (first + " ").split(" ", 2)
        assert version == "HTTP/1.1", first
        return int(status), [(name, value.strip()) for name, _, value in (line.partition(":") for line in lines)]

    def _exactly(self, count: int) -> tuple[bytes, bool]:
        pieces, got = [self.buffered], len(self.buffered)
        while got < count:
            more = self._receive()
            if not more:
                break
            pieces.append(more)
            got += len(more)
        data = b"".join(pieces)
        self.buffered = data[count:]
        return data[:count], len(data) >= count

    def _chunks(self) -> tuple[bytes, bool]:
        pieces: list[bytes] = []
        while True:
            while b"\r\n" not in self.buffered:
                if not self._fill():
                    return b"".join(pieces), False
            size_line, self.buffered = self.buffered.split(b"\r\n", 1)
            size = int(size_line.split(b";")[0], 16)
            piece, whole = self._exactly(size + 2)
            pieces.append(piece[:size])
            if size == 0 or not whole:
                return b"".join(pieces), whole


def head(
    method: str,
    target: str,
    headers: Iterable[tuple[str, str]] = (),
    body: bytes | None = None,
    *,
    host: str | None = "gw.test",
) -> bytes:
    """The bytes of a request head."""
    lines = [f"{method} {target} HTTP/1.1"]
    if host is not None:
        lines.append(f"Host: {host}")
    lines += [f"{name}: {value}" for name, value in headers]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join(lines).encode("latin-1") + b"\r\n\r\n"
