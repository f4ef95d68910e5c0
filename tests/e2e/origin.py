"""A real backend that writes down what reaches it and answers as it is told.

?delay_ms=N  ?status=N  ?bytes=N  ?chunked=1  ?close=1      in a request's query
origin.on("/path", script)                                   for whatever else; a coroutine with the streams
"""

import asyncio
import json
import threading
from typing import Awaitable, Callable
from urllib.parse import parse_qs, urlsplit


class Seen:
    """One request that reached the backend. `body` is None when it never became whole."""

    def __init__(self, method: str, target: str, headers: list[tuple[str, str]]) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.body: bytes | None = None
        self.body_bytes = 0
        self.chunked = False

    def get(self, name: str) -> str | None:
        values = self.all(name)
        return ", ".join(values) if values else None

    def all(self, name: str) -> list[str]:
        return [value for known, value in self.headers if known.lower() == name.lower()]

    @property
    def names(self) -> set[str]:
        return {name.lower() for name, _ in self.headers}


Script = Callable[[Seen, asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
_KEPT_BODY_BYTES = 1 << 20


class Origin:
    """Listens on 127.0.0.1 from a thread of its own. `read_bytes_per_s` slows down how it takes bodies."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.connections = 0
        self.open = 0
        self.port = 0
        self._by_tag: dict[str, list[Seen]] = {}
        self._scripts: dict[str, Script] = {}
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()

    # -- from the tests' thread

    def start(self, port: int = 0) -> "Origin":
        """Listen; on the same port again after stop()."""
        self._run(self._listen(port or self.port))
        return self

    def stop(self) -> None:
        """Close the listening socket and every connection."""
        self._run(self._close())

    def on(self, path: str, script: Script) -> None:
        """Answer requests for this path (without query) by the script."""
        self._scripts[path] = script

    def tagged(self, tag: str) -> list[Seen]:
        """The requests that had this X-Tag."""
        return list(self._by_tag.get(tag, ()))

    def remove(self) -> None:
        """The end, of every connection's task too."""
        self.stop()
        self._run(self._finish())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()

    def _run(self, work: "Awaitable[None]") -> None:
        async def run() -> None:
            await work

        asyncio.run_coroutine_threadsafe(run(), self._loop).result(10)

    # -- in its own thread

    async def _listen(self, port: int) -> None:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", port, limit=1 << 17, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in list(self._writers):
            writer.transport.abort()

    async def _finish(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self.open += 1
        self._writers.add(writer)
        try:
            while await self._one(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            pass  # the gateway closed
        finally:
            self.open -= 1
            self._writers.discard(writer)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        raw = await reader.readuntil(b"\r\n\r\n")
        first, *lines = raw[:-4].decode("latin-1").split("\r\n")
        method, target, _ = first.split(" ")
        seen = Seen(method, target, [(name, value.strip()) for name, _, value in (x.partition(":") for x in lines)])
        path = urlsplit(target).path
        if path == "/healthz":
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
            return True
        self.seen.append(seen)
        self._by_tag.setdefault(seen.get("X-Tag") or "", []).append(seen)
        script = self._scripts.get(path)
        if script is not None:
            await script(seen, reader, writer)
            await writer.drain()
            return not writer.is_closing()
        await read_body(seen, reader)
        return await self._answer(seen, writer)

    async def _answer(self, seen: Seen, writer: asyncio.StreamWriter) -> bool:
        query = {name: values[0] for name, values in parse_qs(urlsplit(seen.target).query).items()}
        if "delay_ms" in query:
            await asyncio.sleep(int(query["delay_ms"]) / 1000)
        body = json.dumps({"tag": seen.get("X-Tag"), "target": seen.target, "bytes": seen.body_bytes}).encode()
        if "bytes" in query:
            body = b"x" * int(query["bytes"])
        status = int(query.get("status", "200"))
        lines = [f"HTTP/1.1 {status} Said", "Content-Type: application/json"]
        chunked = "chunked" in query
        if status not in (204, 304):
            lines.append("Transfer-Encoding: chunked" if chunked else f"Content-Length: {len(body)}")
        if "close" in query:
            lines.append("Connection: close")
        writer.write("\r\n".join(lines).encode() + b"\r\n\r\n")
        if seen.method != "HEAD" and status not in (204, 304):
            for at in range(0, len(body), 65_536):
                piece = body[at : at + 65_536]
                writer.write(b"%x\r\n%b\r\n" % (len(piece), piece) if chunked else piece)
                await writer.drain()
            if chunked:
                writer.write(b"0\r\n\r\n")
        await writer.drain()
        return "close" not in query


async def read_body(seen: Seen, reader: asyncio.StreamReader, bytes_per_s: float = 0.0) -> None:
    """Take the request's body as its framing says; slowly if told so."""
    pieces: list[bytes] = []

    async def take(count: int) -> None:
        while count:
            piece = await reader.read(min(count, 65_536))
            if not piece:
                raise ConnectionError("the body was cut")
            count -= len(piece)
            seen.body_bytes += len(piece)
            if seen.body_bytes <= _KEPT_BODY_BYTES:
                pieces.append(piece)
            if bytes_per_s:
                await asyncio.sleep(len(piece) / bytes_per_s)

    if (seen.get("Transfer-Encoding") or "").lower() == "chunked":
        seen.chunked = True
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            await take(size)
            await reader.readexactly(2)
        await reader.readexactly(2)
    else:
        await take(int(seen.get("Content-Length") or 0))
    seen.body = b"".join(pieces)
