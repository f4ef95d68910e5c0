"""Clients that queue before a gateway: new ones come at a rate, and each asks again after Retry-After until served."""

import asyncio
import random
import threading
from collections import Counter
from types import TracebackType


class Queued:
    """From a thread of its own, one connection a request. `waiting`: clients that were not served yet."""

    def __init__(self, port: int, target: str, rps: float) -> None:
        self.waiting = 0
        self.most_waiting = 0
        self.statuses: Counter[int] = Counter()
        self.retries: Counter[int] = Counter()  # Retry-After values
        self._port, self._target, self._rps = port, target, rps
        self._random = random.Random(7)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), daemon=True)

    def __enter__(self) -> "Queued":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join(10)

    async def _run(self) -> None:
        clients: set[asyncio.Task[None]] = set()
        while not self._stop.is_set():
            task = asyncio.create_task(self._client())
            clients.add(task)
            task.add_done_callback(clients.discard)
            await asyncio.sleep(self._random.expovariate(self._rps))
        for task in clients:
            task.cancel()
        await asyncio.gather(*clients, return_exceptions=True)

    async def _client(self) -> None:
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        while True:
            status, retry_after_s = await self._ask()
            self.statuses[status] += 1
            if status == 200:
                self.waiting -= 1
                return
            if retry_after_s:
                self.retries[retry_after_s] += 1
            await asyncio.sleep(retry_after_s or 1)

    async def _ask(self) -> tuple[int, int]:
        reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        try:
            writer.write(f"GET {self._target} HTTP/1.1\r\nHost: gw.test\r\nConnection: close\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            _, _, after = head.lower().partition(b"\r\nretry-after: ")
            return int(head.split(b" ")[1]), int(after.split(b"\r\n")[0] or 0)
        finally:
            writer.close()
