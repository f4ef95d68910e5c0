"""One instance of a backend, a process of its own that can be told to fail while it runs.

    instance.py     listens on 127.0.0.1, prints its port, then takes a mode a line on its standard input and repeats
                    the line when it is in force; ends with its input. `posts`: the ids of the POSTs that it got since

    ok              200 and 1,000 bytes
    refused         nothing listens and what was open is reset: as after a crash
    blackholed      what is open is not read; connects get no answer to their SYN (Note [A black hole on loopback])
    slow            the same answer as ok, SLOW_S after the request
    late            ... LATE_S after it
    resets          half of the body, then RST
    garbage         what is not HTTP/1.1, of several kinds in turn, and the connection ends
    half            one request of two, by chance, gets 500; health checks get 200
    drip            the head at once, then a byte each DRIP_S
    descriptors     no file descriptor is left: who is connected gets one more answer, nobody is accepted
    closing         as ok, with `Connection: close`

"Accepts and hangs" is no mode: SIGSTOP is the real thing. All modes but `half` are those of health checks too.

Note [A black hole on loopback]
    An address without a route fails at once, and dropping packets needs a firewall and root. The kernel itself drops
    SYNs to a listener whose accept queue is full: listen(0) leaves room for one connection, we take that room, and
    accept nothing. listen() with a real backlog ends it; clients notice with the next SYN that they repeat.
"""

import asyncio
import os
import random
import resource
import socket
import struct
import sys

SLOW_S, LATE_S = 0.4, 1.6
DRIP_S, DRIP_BYTES = 0.1, 20
_BACKLOG = 512
_SPARE_DESCRIPTORS = 64  # of the lowered limit, above what is open: so few that they are gone at once
_BODY = b"x" * 1000
_OK = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n" % len(_BODY)
_CLOSING = _OK[:-2] + b"Connection: close\r\n\r\n"
_ERROR = b"HTTP/1.1 500 Oh\r\nContent-Type: text/plain\r\nContent-Length: 5\r\n\r\nnope\n"
_GARBAGE = (
    random.Random(1).randbytes(300),
    b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
    b"HTTP/1.1 20x OK\r\n\r\n",
    b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    b"HTTP/1.1 200 OK\r\n" + b"X-Filler: 0123456789\r\n" * 4000,
    b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
)


class Instance:
    """What the process is."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.mode = "ok"
        self.posts: list[str] = []
        self._loop = loop
        self._random = random.Random(os.getpid())
        self._awake = asyncio.Event()
        self._awake.set()
        self._open: dict[socket.socket, asyncio.Task[None]] = {}
        self._fillers: list[socket.socket] = []
        self._eaten: list[int] = []
        self._garbled = 0
        self._accepting: asyncio.Task[None] | None = None
        self._listener = self._bound(0)
        self.port: int = self._listener.getsockname()[1]
        self._accept()

    @staticmethod
    def _bound(port: int) -> socket.socket:
        listener = socket.create_server(("127.0.0.1", port), backlog=_BACKLOG)
        listener.setblocking(False)
        return listener

    # -- from one mode to another

    async def become(self, mode: str) -> None:
        """Heal what the last mode broke, then break what this one breaks. Raises KeyError for what is no mode."""
        breaks = {"refused": self._refuse, "blackholed": self._swallow, "descriptors": self._eat}
        self._restore()
        if mode in breaks:
            await breaks[mode]()
        elif mode not in ("ok", "slow", "late", "resets", "garbage", "half", "drip", "closing"):
            raise KeyError(mode)
        self.mode = mode

    def _restore(self) -> None:
        for descriptor in self._eaten:
            os.close(descriptor)
        self._eaten.clear()
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        for filler in self._fillers:
            filler.close()
        self._fillers.clear()
        if self._listener.fileno() == -1:
            self._listener = self._bound(self.port)
        self._listener.listen(_BACKLOG)
        self._awake.set()
        self._accept()

    async def _refuse(self) -> None:
        await self._stop_accepting()
        self._listener.close()
        ending = list(self._open.items())
        for sock, task in ending:
            _reset_at_close(sock)
            task.cancel()
        if ending:
            await asyncio.wait([task for _, task in ending])

    async def _swallow(self) -> None:
        await self._stop_accepting()
        self._awake.clear()
        self._listener.listen(0)
        while True:
            filler = socket.socket()
            filler.setblocking(False)
            self._fillers.append(filler)
            try:
                await asyncio.wait_for(self._loop.sock_connect(filler, ("127.0.0.1", self.port)), 0.1)
            except TimeoutError:
                return

    async def _eat(self) -> None:
        """Lower the limit and take all that is left below it. What is open stays open until its next answer."""
        highest = max(int(name) for name in os.listdir("/proc/self/fd"))
        _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (highest + _SPARE_DESCRIPTORS, hard))
        self._eat_rest()

    def _eat_rest(self) -> None:
        try:
            while True:
                self._eaten.append(os.open("/dev/null", os.O_RDONLY))
        except OSError:
            return

    # -- connections

    def _accept(self) -> None:
        if self._accepting is None:
            self._accepting = self._loop.create_task(self._accept_all())

    async def _stop_accepting(self) -> None:
        task, self._accepting = self._accepting, None
        if task is not None:
            task.cancel()
            await asyncio.wait([task])

    async def _accept_all(self) -> None:
        while True:
            try:
                sock, _ = await self._loop.sock_accept(self._listener)
            except OSError:  # out of descriptors
                await asyncio.sleep(0.05)
                continue
            sock.setblocking(False)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._open[sock] = self._loop.create_task(self._serve(sock))

    async def _serve(self, sock: socket.socket) -> None:
        try:
            data = b""
            while True:
                while b"\r\n\r\n" not in data:
                    piece = await self._loop.sock_recv(sock, 65_536)
                    if not piece:
                        return
                    data += piece
                await self._awake.wait()
                head, _, data = data.partition(b"\r\n\r\n")
                if head.startswith(b"POST"):
                    data = await self._post(sock, head, data)
                if not await self._answer(sock, head.startswith(b"GET /healthz ")):
                    return
        except OSError:
            pass
        finally:
            self._open.pop(sock, None)
            sock.close()
            if self.mode == "descriptors":
                self._eat_rest()

    async def _post(self, sock: socket.socket, head: bytes, data: bytes) -> bytes:
        """Take the body and note the id; what follows the body."""
        fields = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields[b"content-length"])
        while len(data) < length:
            data += await self._loop.sock_recv(sock, 65_536)
        self.posts.append(fields[b"x-request-id"].decode())
        return data[length:]

    async def _answer(self, sock: socket.socket, health: bool) -> bool:
        """Whether the connection is good for another request."""
        mode, send = self.mode, self._loop.sock_sendall
        if mode in ("slow", "late"):
            await asyncio.sleep(LATE_S if mode == "late" else SLOW_S)
        elif mode == "resets":
            await send(sock, _OK + _BODY[:500])
            await asyncio.sleep(0.01)
            _reset_at_close(sock)
            return False
        elif mode == "garbage":
            self._garbled += 1
            await send(sock, _GARBAGE[0 if health else self._garbled % len(_GARBAGE)])
            return False
        elif mode == "half" and not health and self._random.random() < 0.5:
            await send(sock, _ERROR)
            return True
        elif mode == "drip":
            await self._drip(sock)
            return True
        closing = mode in ("descriptors", "closing")
        await send(sock, (_CLOSING if closing else _OK) + _BODY)
        return not closing

    async def _drip(self, sock: socket.socket) -> None:
        await self._loop.sock_sendall(sock, b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % DRIP_BYTES)
        for _ in range(DRIP_BYTES):
            await asyncio.sleep(DRIP_S)
            await self._loop.sock_sendall(sock, b"x")


def _reset_at_close(sock: socket.socket) -> None:
    """Its close() will send RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


async def main() -> None:
    loop = asyncio.get_running_loop()
    instance = Instance(loop)
    commands = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    print(instance.port, flush=True)
    while line := (await commands.readline()).decode().strip():
        if line == "posts":
            print(" ".join(instance.posts), flush=True)
            instance.posts.clear()
        else:
            await instance.become(line)
            print(line, flush=True)


if __name__ == "__main__":
    asyncio.run(main())
