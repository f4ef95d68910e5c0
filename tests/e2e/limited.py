"""A backend process that can do so much and no more: one queue, served at a rate, whoever still waits for the answer.

    python -m tests.e2e.limited PORT RATE        GET /fail, /recover, /counts control it; /healthz is always 200
Above its rate the queue grows, answers come later than anybody waits, and it works for nobody: congestion collapse.
"""

import asyncio
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.e2e.client import Client


class _Server:
    def __init__(self, rate: float) -> None:
        self._interval_s = 1.0 / rate
        self._free_s = 0.0
        self._failing = False
        self._counts = {"asked": 0, "failed": 0, "most_in_a_second": 0}
        self._second = (0, 0)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                status, body = await self._answer(head.split(b" ")[1].decode())
                writer.write(b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, path: str) -> tuple[int, bytes]:
        if path in ("/fail", "/recover"):
            self._failing = path == "/fail"
            self._counts = dict.fromkeys(self._counts, 0)
            return 200, b"ok"
        if path == "/counts":
            return 200, json.dumps(self._counts).encode()
        if path == "/healthz":
            return 200, b"ok"
        now_s = asyncio.get_running_loop().time()
        self._count(int(now_s))
        if self._failing:
            self._counts["failed"] += 1
            return 500, b"failing"
        self._free_s = max(self._free_s, now_s) + self._interval_s
        await asyncio.sleep(self._free_s - now_s)
        return 200, b"done"

    def _count(self, second: int) -> None:
        self._counts["asked"] += 1
        self._second = (second, self._second[1] + 1 if self._second[0] == second else 1)
        self._counts["most_in_a_second"] = max(self._counts["most_in_a_second"], self._second[1])


class Limited:
    """The process, from the test's side."""

    def __init__(self, port: int, rate: float) -> None:
        self.port = port
        words = [sys.executable, "-m", "tests.e2e.limited", str(port), str(rate)]
        self._process = subprocess.Popen(words, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL)

    def ready(self) -> bool:
        assert self._process.poll() is None
        try:
            return self.tell("/healthz") == b"ok"
        except OSError:
            return False

    def tell(self, path: str) -> bytes:
        with Client(self.port, timeout_s=5) as client:
            return client.request("GET", path).body

    def counts(self) -> dict[str, Any]:
        """Since the last /fail or /recover."""
        found: dict[str, Any] = json.loads(self.tell("/counts"))
        return found

    def remove(self) -> None:
        self._process.kill()
        self._process.wait()


async def _main(port: int, rate: float) -> None:
    server = await asyncio.start_server(_Server(rate).serve, "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), float(sys.argv[2])))
