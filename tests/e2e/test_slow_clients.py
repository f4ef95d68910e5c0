"""Clients that hold connections of a full pool by their slowness give way to those who wait; all others stay."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Callable, Iterator

import pytest

from tests.e2e.client import Client, Response
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, backend, route
from tests.e2e.origin import Origin

TIMEOUT_S = 10.0  # of the route, the default
BIG = 40_000_000
PACED_BYTES_S = 40_000


class Slow:
    """A client in a thread of its own: `step(client)` every `every_s` until it is cut or the test is over."""

    def __init__(self, client: Client, every_s: float, step: Callable[[Client], None]) -> None:
        self.client = client
        self.error: OSError | None = None
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(every_s, step))
        self._thread.start()

    def _run(self, every_s: float, step: Callable[[Client], None]) -> None:
        while not self._over.wait(every_s):
            try:
                step(self.client)
            except OSError as error:
                self.error = error
                return

    def stop(self) -> None:
        self._over.set()
        self._thread.join()


class Crowd:
    """The clients of one test; all of them end with it."""

    def __init__(self, gateway: Gateway) -> None:
        self.gateway = gateway
        self.members: list[Slow] = []

    def uploading(self, path: str, first: int, piece: int, every_s: float, tls: bool = False) -> Slow:
        client = self.gateway.tls_client() if tls else self.gateway.client()
        client.send(f"POST {path} HTTP/1.1\r\nHost: gw.test\r\nContent-Length: {BIG}\r\n\r\n".encode() + b"u" * first)
        return self._joined(client, every_s, lambda client: client.send(b"u" * piece))

    def reading(self, path: str, piece: int, every_s: float, tls: bool = False, **more: int) -> Slow:
        client = self.gateway.tls_client(**more) if tls else self.gateway.client(**more)
        client.send(f"GET {path}?bytes={BIG} HTTP/1.1\r\nHost: gw.test\r\n\r\n".encode())

        def step(client: Client) -> None:
            if not client.sock.recv(piece):
                raise ConnectionError("cut")

        return self._joined(client, every_s, step)

    def _joined(self, client: Client, every_s: float, step: Callable[[Client], None]) -> Slow:
        self.members.append(Slow(client, every_s, step))
        return self.members[-1]

    def leave(self) -> None:
        for member in self.members:
            member.stop()
            member.client.close()


@pytest.fixture
def crowd(launch: Launch, origin: Origin) -> Iterator[Callable[[int], Crowd]]:
    """crowd(n): a gateway whose backend `narrow` has n connections, and its clients."""
    made: list[Crowd] = []

    def make(connections: int) -> Crowd:
        def narrow(gateway: Gateway) -> None:
            gateway.settings["backends"].append(backend("narrow", origin.port, max_connections=connections))
            gateway.settings["routes"].append(
                route("narrow", "/narrow/*", "narrow", timeout_ms=int(TIMEOUT_S * 1000), max_body_bytes=BIG)
            )

        made.append(Crowd(launch(narrow)))
        return made[-1]

    yield make
    for one in made:
        one.leave()
        one.gateway.until(one.gateway.quiet, 5)


def _full(gateway: Gateway, connections: int) -> None:
    gateway.until(lambda: gateway.metric("upstream_connections", backend="narrow", state="busy") == connections)


def _others(gateway: Gateway, count: int, delay_ms: int) -> tuple[list[Response], float]:
    """The answers to requests that come together, and how long the first of them took."""
    firsts: list[float] = []

    def ask(number: int) -> Response:
        began_s = time.monotonic()
        reply = gateway.ask("GET", f"/narrow/other-{number}?delay_ms={delay_ms}")
        firsts.append(time.monotonic() - began_s)
        return reply

    with ThreadPoolExecutor(count) as threads:
        replies = list(threads.map(ask, range(count)))
    return replies, min(firsts)


@pytest.mark.parametrize("tls", [False, True])
def test_four_slow_uploads_do_not_close_a_pool_of_four(crowd: Callable[[int], Crowd], tls: bool) -> None:
    """70 KB at once, then 1,000 bytes every 1.4 s: more than the body timeout asks for. The fifth is served."""
    clients = crowd(4)
    gateway = clients.gateway
    slow = [clients.uploading(f"/narrow/slow-{n}", 70_000, 1000, 1.4, tls) for n in range(4)]
    _full(gateway, 4)
    reply = gateway.ask("GET", "/narrow/fifth")
    assert reply.status == 200 and int(reply.get("X-Response-Time-Ms") or 0) < TIMEOUT_S * 1000
    assert gateway.metric("slow_clients_total", backend="narrow") == 1, "one waited, so one had to go"
    gateway.until(lambda: any(entry["status"] == 408 for entry in gateway.entries()))
    (entry,) = [entry for entry in gateway.entries() if entry["status"] == 408]
    assert entry["error_type"] == "request_timeout" and entry["error_message"].startswith("slow_client: ")
    ended = slow[int(entry["path"][-1])]
    ended.stop()
    said = ended.client.response("POST")
    assert (said.status, said.json()["error"]) == (408, "request_timeout")


@pytest.mark.parametrize("tls", [False, True])
def test_four_slow_readers_do_not_close_a_pool_of_four(crowd: Callable[[int], Crowd], tls: bool) -> None:
    """A large answer, of which 500 bytes are taken in a second: it is cut, and never looks whole."""
    clients = crowd(4)
    gateway = clients.gateway
    for n in range(4):
        clients.reading(f"/narrow/slow-{n}", 500, 1.0, tls, receive_buffer_bytes=8192)
    _full(gateway, 4)
    reply = gateway.ask("GET", "/narrow/fifth")
    assert reply.status == 200 and int(reply.get("X-Response-Time-Ms") or 0) < TIMEOUT_S * 1000
    assert gateway.metric("slow_clients_total", backend="narrow") == 1
    gateway.until(lambda: any(entry["error_type"] for entry in gateway.entries()))
    (entry,) = [entry for entry in gateway.entries() if entry["error_type"]]
    assert (entry["status"], entry["error_type"]) == (200, "slow_client")
    assert entry["response_bytes"] < BIG


def test_who_goes_at_its_pace_stays_however_many_wait(crowd: Callable[[int], Crowd]) -> None:
    """Beside four slow ones an upload and a download of 40 KB/s; twenty others fill the queue for seconds."""
    clients = crowd(6)
    gateway = clients.gateway
    paced = [
        clients.uploading("/narrow/paced-up", 0, PACED_BYTES_S // 10, 0.1),
        clients.reading("/narrow/paced-down", PACED_BYTES_S // 10, 0.1, receive_buffer_bytes=8192),
    ]
    for n in range(2):
        clients.uploading(f"/narrow/slow-up-{n}", 1000, 1000, 1.4)
        clients.reading(f"/narrow/slow-down-{n}", 500, 1.0, receive_buffer_bytes=8192)
    _full(gateway, 6)
    replies, first_s = _others(gateway, 20, delay_ms=900)
    assert [reply.status for reply in replies] == [200] * 20
    assert first_s < TIMEOUT_S
    assert gateway.metric("slow_clients_total", backend="narrow") == 4
    assert [one.error for one in paced] == [None, None]
    ended = [entry["path"] for entry in gateway.entries() if entry["error_type"]]
    assert sorted(ended) == [f"/narrow/slow-{way}-{n}" for way in ("down", "up") for n in range(2)]


def test_slow_clients_stay_while_nobody_waits(crowd: Callable[[int], Crowd]) -> None:
    """Slowness alone is no offence: the pool is full for longer than it takes to be far behind, and nobody asks."""
    clients = crowd(2)
    gateway = clients.gateway
    slow = [clients.uploading(f"/narrow/slow-{n}", 1000, 1000, 0.5) for n in range(2)]
    _full(gateway, 2)
    time.sleep(5)
    assert [one.error for one in slow] == [None, None]
    assert gateway.metric("slow_clients_total", backend="narrow") == 0
    assert gateway.metric("upstream_connections", backend="narrow", state="busy") == 2
