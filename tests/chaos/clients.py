"""The clients of the backend that fails: an open loop in a process of its own that notes everything about each answer.

    clients.py JSON     asks `target` on `port` `rate` times a second for `seconds`, then waits for what is still open;
                        prints a JSON list with a row (the fields of Seen) for each request

Every fourth request is a POST. Connections are kept alive, CONNECTIONS from the beginning and more when needed; each
request has an X-Request-ID of its own, which its answer must have too.
"""

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, NamedTuple

CONNECTIONS = 20
MOST = 500  # requests open at once; those beyond are noted as unsent
GIVE_UP_S = 12.0  # nothing is to take that long
_BODY = b"b" * 100


class Seen(NamedTuple):
    """What one request got. Times are of time.monotonic(), which all processes of a host share."""

    due_s: float
    method: str
    request_id: str
    status: int = 0  # 0: none came
    first_s: float = 0.0  # from due to the first byte of the answer
    took_s: float = 0.0  # from due to its end
    whole: bool = False  # as its framing says
    own: bool = False  # with this request's X-Request-ID
    code: str | None = None  # of the gateway's own errors
    backend: str | None = None
    retry_after: str | None = None
    problem: str | None = None  # why no answer came, or not all of it


class Clients:
    """What the process is."""

    def __init__(self, port: int, target: str, rate: float, seconds: float) -> None:
        self._port, self._target = port, target
        self._rate, self._seconds = rate, seconds
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []
        self._seen: list[Seen] = []

    async def run(self) -> list[Seen]:
        await asyncio.gather(*(self._one(Seen(time.monotonic(), "GET", "chaos-warm")) for _ in range(CONNECTIONS)))
        self._seen.clear()
        began_s = time.monotonic()
        asking: set[asyncio.Task[None]] = set()
        for number in range(int(self._rate * self._seconds)):
            due_s = began_s + number / self._rate
            await asyncio.sleep(max(0.0, due_s - time.monotonic()))
            blank = Seen(due_s, "GET" if number % 4 else "POST", f"chaos-{number}")
            if len(asking) >= MOST:
                self._seen.append(blank._replace(problem="unsent"))
                continue
            task = asyncio.create_task(self._one(blank))
            asking.add(task)
            task.add_done_callback(asking.discard)
        if asking:
            await asyncio.wait(asking)
        for _, writer in self._idle:
            writer.close()
        return self._seen

    async def _one(self, blank: Seen) -> None:
        progress = {"seen": blank}
        try:
            async with asyncio.timeout(GIVE_UP_S):
                await self._exchange(progress)
        except TimeoutError:
            progress["seen"] = progress["seen"]._replace(problem=f"open after {GIVE_UP_S:.0f} s")
        except (OSError, asyncio.IncompleteReadError) as error:
            progress["seen"] = progress["seen"]._replace(problem=type(error).__name__)
        seen = progress["seen"]
        self._seen.append(seen if seen.took_s else seen._replace(took_s=time.monotonic() - seen.due_s))

    async def _exchange(self, progress: dict[str, Seen]) -> None:
        """One request and its answer, noted as they come."""
        blank = progress["seen"]
        if self._idle:
            reader, writer = self._idle.pop()
        else:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
        kept = False
        try:
            writer.write(self._request(blank))
            head = await reader.readuntil(b"\r\n\r\n")
            first, *lines = head[:-4].decode("latin-1").split("\r\n")
            fields = dict(line.lower().split(": ", 1) for line in lines)
            seen = blank._replace(
                status=int(first.split(" ")[1]),
                first_s=time.monotonic() - blank.due_s,
                own=fields.get("x-request-id") == blank.request_id,
                retry_after=fields.get("retry-after"),
            )
            progress["seen"] = seen
            body = await _body(reader, fields)
            whole = seen._replace(whole=True, took_s=time.monotonic() - blank.due_s)
            progress["seen"] = _with_code(whole, fields, body)
            kept = fields.get("connection") != "close"
        finally:
            if kept:
                self._idle.append((reader, writer))
            else:
                writer.transport.abort()

    def _request(self, seen: Seen) -> bytes:
        body = _BODY if seen.method == "POST" else b""
        length = f"Content-Length: {len(body)}\r\n" if body else ""
        head = (
            f"{seen.method} {self._target} HTTP/1.1\r\nHost: gw.test\r\nX-Request-ID: {seen.request_id}\r\n{length}\r\n"
        )
        return head.encode() + body


async def _body(reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
    if "content-length" in fields:
        return await reader.readexactly(int(fields["content-length"]))
    body = b""
    while size := int(await reader.readuntil(b"\r\n"), 16):
        body += await reader.readexactly(size)
        await reader.readexactly(2)
    await reader.readexactly(2)
    return body


def _with_code(seen: Seen, fields: dict[str, str], body: bytes) -> Seen:
    """With what the gateway's own error says; a backend's 500 has no code."""
    if fields.get("content-type") != "application/json":
        return seen
    said = json.loads(body)
    own = seen.own and said["request_id"] == seen.request_id
    return seen._replace(code=said["error"], backend=said.get("backend"), own=own)


def start(**plan: Any) -> "subprocess.Popen[str]":
    """This file as a process; seen() waits for it."""
    command = [sys.executable, str(Path(__file__)), json.dumps(plan)]
    return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True)


def seen(process: "subprocess.Popen[str]", timeout_s: float) -> list[Seen]:
    """All that the clients saw, when they are through."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0
    return [Seen(*row) for row in json.loads(output)]


if __name__ == "__main__":
    json.dump(asyncio.run(Clients(**json.loads(sys.argv[1])).run()), sys.stdout)
