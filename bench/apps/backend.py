"""The backend where there is no nginx: any GET gets the fixed 5 KB JSON, over keep-alive. usage: backend.py PORT"""

import asyncio
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import job

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n" % job.BODY_BYTES
BODY = job.answer_body()


class Backend(asyncio.Protocol):
    """Reads heads of requests without a body; knows no other."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        self._buffer = b""

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head, self._buffer = self._buffer[: end + 2], self._buffer[end + 4 :]
            start = head.lower().find(b"\r\nx-user-id:")
            user = head[start + 12 : head.index(b"\r\n", start + 2)].strip() if start >= 0 else b""
            seen = job.SEEN_USER_HEADER.encode() + b": " + user + b"\r\n" if user else b""
            self._transport.write(HEAD + seen + b"\r\n" + BODY)


async def main(port: int) -> None:
    server = await asyncio.get_running_loop().create_server(Backend, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
