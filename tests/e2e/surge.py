"""Traffic that does not wait for answers, and a backend that costs little: processes of their own, one thread each.

    surge.py backend            listens, prints its port, answers everything with 200 until its stdin ends
    surge.py clients JSON       asks `target` on `port` `rate` times a second over `connections` keep-alive connections
                                for `seconds`, whatever comes back; prints {"began_s", "answers", "unsent"}. `{n}` in
                                the target or the head is the number of the request in 20 digits. `niceness`: how
                                much they stand back for whom they ask

A wait is counted from the moment at which the request was due, also when no connection was free then. epoll sleeps in
whole milliseconds, and up to one of them is in a wait; `exact` sleeps are to the microsecond.

Requests are due in even steps; those of `exact` clients, which measure, at a moment within each step that is drawn.
In even steps they would keep step with all that comes evenly, too: checks each half second, a thousand refusals a
second. Either each of those met a request or hardly any did, for a whole run, and its p99 told nothing but that.
"""

import json
import os
import random
import resource
import select
import socket
import subprocess
import sys
import time
from collections import Counter, deque
from contextlib import suppress
from pathlib import Path
from typing import Any

# Priorities, before all else. Who is asked and who is measured do not wait for whoever is there to be in the way: a
# flood comes over a network, and what it costs to make it is not the gateway's.
ASIDE, MEASURED = 1, 2

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\nContent-Type: text/plain\r\n\r\n" + b"x" * 1000


class Clients:
    """What `surge.py clients` is."""

    def __init__(
        self,
        port: int,
        target: str,
        rate: float,
        connections: int,
        seconds: float,
        head: str = "",
        niceness: int = 0,
        exact: bool = False,
    ) -> None:
        os.nice(niceness)
        self._request = f"GET {target} HTTP/1.1\r\nHost: gw.test\r\n{head}\r\n".encode()
        self._rate, self._seconds, self._exact = rate, seconds, exact
        self._asked = 0
        self._epoll = select.epoll()
        self._sockets: dict[int, socket.socket] = {}
        self._due_s: dict[int, float] = {}
        self._buffers: dict[int, bytes] = {}
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
        for _ in range(connections):
            sock = socket.create_connection(("127.0.0.1", port), 10)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setblocking(False)
            self._sockets[sock.fileno()] = sock
            self._epoll.register(sock, select.EPOLLIN)
        self._free = deque(self._sockets)
        self._answers: list[tuple[float, int, float]] = []

    def run(self) -> dict[str, Any]:
        """(seconds since the begin, status, wait) of each answer; what was due and never sent."""
        began_s = time.monotonic()
        due_s, step_s, end_s = began_s, 1.0 / self._rate, began_s + self._seconds
        steps = 0
        while True:
            now_s = time.monotonic()
            while due_s <= min(now_s, end_s) and self._free:
                self._ask(self._free.popleft(), due_s)
                steps += 1
                due_s = began_s + step_s * (steps + (random.random() if self._exact else 0.0))
            if now_s > end_s and (not self._due_s or now_s > end_s + 5.0):
                break
            waits_s = 0.05 if not self._free or due_s > end_s else max(0.0, due_s - now_s)
            if self._exact:
                select.select([self._epoll], [], [], waits_s)
            for fd, _ in self._epoll.poll(0 if self._exact else waits_s):
                self._read(fd, began_s)
        unsent = int(max(0.0, end_s - due_s) * self._rate) + len(self._due_s)
        return {"began_s": began_s, "answers": self._answers, "unsent": unsent}

    def _ask(self, fd: int, due_s: float) -> None:
        self._due_s[fd] = due_s
        self._buffers[fd] = b""
        self._asked += 1
        self._sockets[fd].send(self._request.replace(b"{n}", b"%020d" % self._asked))

    def _read(self, fd: int, began_s: float) -> None:
        data = self._sockets[fd].recv(65_536)
        if not data:
            raise ConnectionError("a connection was closed")
        self._buffers[fd] = data = self._buffers[fd] + data
        head, ended, body = data.partition(b"\r\n\r\n")
        if not ended or len(body) < int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0]):
            return
        now_s = time.monotonic()
        self._answers.append((now_s - began_s, int(head[9:12]), now_s - self._due_s.pop(fd)))
        self._free.append(fd)


def serve() -> None:
    """What `surge.py backend` is."""
    listener = socket.create_server(("127.0.0.1", 0), backlog=1024)
    listener.setblocking(False)
    poll = select.epoll()
    poll.register(listener, select.EPOLLIN)
    poll.register(sys.stdin, select.EPOLLIN)
    sockets: dict[int, socket.socket] = {}
    print(listener.getsockname()[1], flush=True)
    while True:
        for fd, _ in poll.poll():
            if fd == sys.stdin.fileno():
                return
            if fd == listener.fileno():
                sock = listener.accept()[0]
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                sockets[sock.fileno()] = sock
                poll.register(sock, select.EPOLLIN)
            elif not _answer(sockets[fd]):
                sockets.pop(fd).close()


def _answer(sock: socket.socket) -> bool:
    try:
        data = sock.recv(65_536)
        if data:
            sock.sendall(_ANSWER * data.count(b"\r\n\r\n"))
    except OSError:
        return False
    return bool(data)


def start(*arguments: str) -> "subprocess.Popen[str]":
    """This file as a process."""
    command = [sys.executable, str(Path(__file__)), *arguments]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def clients(**plan: Any) -> "subprocess.Popen[str]":
    """Started; summary() waits for it."""
    return start("clients", json.dumps(plan))


def first(pid: int, priority: int = MEASURED) -> None:
    """Before all else that the machine has to do, where we may ask for it: root, or CAP_SYS_NICE. Niceness counts
    within a session only. Threads that stand back go on to do so.
    """
    with suppress(PermissionError):
        for thread in map(int, os.listdir(f"/proc/{pid}/task")):
            if os.getpriority(os.PRIO_PROCESS, thread) == os.getpriority(os.PRIO_PROCESS, pid):
                os.sched_setscheduler(thread, os.SCHED_FIFO, os.sched_param(priority))


class Summary:
    """What clients saw; `began_s` is of time.monotonic(). `after_s`: answers before it are left out."""

    def __init__(self, said: dict[str, Any], after_s: float = 0.0) -> None:
        self.began_s: float = said["began_s"]
        self.answers = [answer for answer in said["answers"] if answer[0] >= after_s]
        self.unsent: int = said["unsent"]
        self.statuses = Counter(status for _, status, _ in self.answers)

    def wait_s(self, share: float) -> float:
        """The wait that this share of the answers took at most."""
        waits_s = sorted(wait_s for _, _, wait_s in self.answers)
        return waits_s[min(len(waits_s) - 1, int(len(waits_s) * share))]


def summary(process: "subprocess.Popen[str]", timeout_s: float, after_s: float = 0.0) -> Summary:
    """Wait for clients() to end."""
    output, _ = process.communicate(timeout=timeout_s)
    assert process.returncode == 0
    return Summary(json.loads(output), after_s)


if __name__ == "__main__":
    if sys.argv[1] == "backend":
        serve()
    else:
        json.dump(Clients(**json.loads(sys.argv[2])).run(), sys.stdout)
