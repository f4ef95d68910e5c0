"""Bodies in both directions: as they come, bounded in memory, and never whole when they were cut."""

import asyncio
import contextlib
import threading
import time
import uuid
from typing import Iterator

import pytest

from tests.e2e.client import Client
from tests.e2e.gateway import Gateway, route
from tests.e2e.origin import Origin, Seen, read_body

MIB = 1 << 20
BIG = 100 * MIB


class Watch:
    """The most memory that a gateway took beyond what it had at the start of the block."""

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._before = gateway.rss_bytes()
        self._over = threading.Event()
        self.grown_bytes = 0
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.grown_bytes = max(self.grown_bytes, self._gateway.rss_bytes() - self._before)


@pytest.fixture(scope="module")
def streams(tmp_path_factory: pytest.TempPathFactory, origin: Origin) -> Iterator[Gateway]:
    """A gateway that lets 200 MB through."""
    gateway = Gateway(tmp_path_factory.mktemp("streams"), origin.port)
    gateway.settings["routes"].append(route("big", "/big/*", max_body_bytes=200 * MIB, timeout_ms=30_000))
    try:
        gateway.start()
        gateway.ask("GET", "/big/warm?bytes=1000000")
        gateway.ask("POST", "/big/warm", body=b"w" * 1_000_000)
        yield gateway
        gateway.assert_quiet()
        gateway.assert_accounts()
        gateway.stop()
    finally:
        gateway.kill()


@pytest.mark.parametrize("query", ["", "&chunked=1"])
@pytest.mark.parametrize("tls", [False, True])
def test_100_mib_to_a_slow_client_stay_out_of_memory(streams: Gateway, query: str, tls: bool) -> None:
    """The client pauses again and again; the backend is made to wait, the gateway grows by less than 8 MiB."""
    with Watch(streams) as watch, streams.tls_client() if tls else streams.client() as client:
        client.send(b"GET /big/x?bytes=%d%b HTTP/1.1\r\nHost: gw.test\r\n\r\n" % (BIG, query.encode()))
        for _ in range(15):
            time.sleep(0.05)
            client.buffered += client.sock.recv(65_536)
        reply = client.response()
    assert reply.complete and len(reply.body) == BIG
    assert watch.grown_bytes < 8 * MIB


@pytest.mark.parametrize("chunked", [False, True])
def test_100_mib_to_a_slow_backend_stay_out_of_memory(streams: Gateway, origin: Origin, chunked: bool) -> None:
    """The client is made to wait, the body arrives whole, the gateway grows by less than 8 MiB."""

    async def slow(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.5)
        await read_body(seen, reader, 100 * MIB)
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origin.on("/big/slow", slow)
    tag = uuid.uuid4().hex
    framing = b"Transfer-Encoding: chunked" if chunked else b"Content-Length: %d" % BIG
    piece = b"u" * MIB
    with Watch(streams) as watch, streams.client(timeout_s=30) as client:
        client.send(b"POST /big/slow HTTP/1.1\r\nHost: gw.test\r\nX-Tag: %b\r\n%b\r\n\r\n" % (tag.encode(), framing))
        for _ in range(BIG // MIB):
            client.send(b"%x\r\n%b\r\n" % (MIB, piece) if chunked else piece)
        if chunked:
            client.send(b"0\r\n\r\n")
        assert client.response("POST").status == 200
    (seen,) = origin.tagged(tag)
    assert seen.body_bytes == BIG and seen.body is not None and seen.chunked is chunked
    assert watch.grown_bytes < 8 * MIB


@pytest.mark.parametrize("size", [1, 1000, 65_536, 65_537, 300_000])
def test_bodies_of_all_sizes_pass_as_they_are(streams: Gateway, origin: Origin, size: int) -> None:
    """By length and chunked, held or streamed; the same bytes, and the connection stays good."""
    body = bytes(range(256)) * (size // 256 + 1)
    body = body[:size]
    with streams.client() as client:
        for chunked in (False, True):
            tag = uuid.uuid4().hex
            if chunked:
                pieces = [body[at : at + 7000] for at in range(0, size, 7000)]
                sent = b"".join(b"%x\r\n%b\r\n" % (len(one), one) for one in pieces) + b"0\r\n\r\n"
                head = f"POST /big/x HTTP/1.1\r\nHost: a\r\nX-Tag: {tag}\r\nTransfer-Encoding: chunked\r\n\r\n"
            else:
                sent, head = body, f"POST /big/x HTTP/1.1\r\nHost: a\r\nX-Tag: {tag}\r\nContent-Length: {size}\r\n\r\n"
            client.send(head.encode() + sent)
            assert client.response("POST").status == 200
            (seen,) = origin.tagged(tag)
            assert seen.body == body
            reply = client.request("GET", f"/big/x?bytes={size}{'&chunked=1' if chunked else ''}")
            assert reply.complete and len(reply.body) == size


def test_answers_without_a_body_keep_the_connection_in_step(streams: Gateway) -> None:
    """HEAD with the length a GET would have, 204 without one, 304."""
    with streams.client() as client:
        reply = client.request("HEAD", "/big/x?bytes=5000")
        assert (reply.status, reply.get("Content-Length")) == (200, "5000")
        reply = client.request("GET", "/big/x?status=204")
        assert reply.status == 204 and reply.get("Content-Length") is None and reply.get("Transfer-Encoding") is None
        assert client.request("GET", "/big/x?status=304").status == 304
        assert client.request("GET", "/big/x").json()["target"] == "/big/x"


def test_an_answer_begins_before_its_end_is_known(streams: Gateway, origin: Origin) -> None:
    """A slow stream of events reaches the client piece by piece."""

    async def events(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(4):
            writer.write(b"8\r\ndata: %d\n\r\n" % number)
            await writer.drain()
            await asyncio.sleep(0.25)
        writer.write(b"0\r\n\r\n")

    origin.on("/big/events", events)
    with streams.tls_client() as client:
        began_s = time.monotonic()
        client.send(b"GET /big/events HTTP/1.1\r\nHost: gw.test\r\n\r\n")
        while b"data: 0" not in client.buffered:
            client.buffered += client.sock.recv(65_536)
        assert time.monotonic() - began_s < 0.2
        reply = client.response()
        assert reply.complete and reply.body.count(b"data") == 4
        assert time.monotonic() - began_s > 0.9


def test_an_answer_before_the_whole_request_ends_the_connection(streams: Gateway, origin: Origin) -> None:
    """The backend refuses after the head: the client gets that answer, whole, and no other request follows."""

    async def early(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 4\r\nConnection: close\r\n\r\nstop")
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    origin.on("/big/early", early)
    with streams.client() as client:
        client.send(b"POST /big/early HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 10000000\r\n\r\n" + b"e" * 100_000)
        reply = client.response("POST")
        assert (reply.status, reply.body, reply.complete) == (403, b"stop", True)
        assert reply.get("Connection") == "close"


def test_a_backend_that_answers_an_upload_and_closes_is_heard(streams: Gateway, origin: Origin) -> None:
    """It closes with what it did not read: a RST, which may be found by a send before the answer is read."""

    async def hasty(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\nConnection: close\r\n\r\nbig")
        await writer.drain()
        writer.close()

    origin.on("/big/hasty", hasty)
    for _ in range(40):
        with streams.client() as client:
            with contextlib.suppress(OSError):
                client.send(
                    b"POST /big/hasty HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 2000000\r\n\r\n" + b"e" * 2_000_000
                )
            reply = client.response("POST")
            assert (reply.status, reply.body, reply.complete) == (413, b"big", True)


BROKEN = {
    "cut by length": (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n" + b"x" * 500, None),
    "cut in chunks": (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n" + b"x" * 500 + b"\r\n", None),
    "garbage in chunks": (
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1f4\r\n" + b"x" * 500 + b"\r\nzz\r\n", 502
    ),
    "cut head": (b"HTTP/1.1 200 OK\r\nContent-Len", 502),
    "garbage": (b"\x16\x03\x01\x02\x00 nonsense\r\n\r\n", 502),
    "nothing": (b"", 502),
    "two lengths": (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nxx", 502),
    "length and chunks": (
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 502
    ),
    "huge head": (b"HTTP/1.1 200 OK\r\nX-Fill: " + b"f" * 100_000 + b"\r\n\r\n", 502),
}  # fmt: skip


@pytest.mark.parametrize("how", BROKEN)
@pytest.mark.parametrize("tls", [False, True])
def test_a_broken_answer_is_never_shown_as_a_whole_one(streams: Gateway, origin: Origin, how: str, tls: bool) -> None:
    """502 while nothing was sent; afterwards the connection is cut, so that the client sees it."""
    data, status = BROKEN[how]

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()
        await asyncio.sleep(0.05)
        writer.close()

    origin.on("/big/broken", script)
    with streams.tls_client() if tls else streams.client() as client:
        reply = client.request("POST", "/big/broken", body=b"once")
        if status is None:
            assert not reply.complete and reply.status == 200
        else:
            assert (reply.status, reply.json()["error"]) == (502, "bad_gateway")
            assert client.request("GET", "/big/x").status == 200, "the client's connection is as good as before"
    entry = streams.entry(reply.get("X-Request-ID"))
    assert entry["error_type"] in ("truncated_response", "invalid_response", "connection_reset")
    assert streams.metric("upstream_failures_total", backend="origin", reason=entry["error_type"]) >= 1


def test_bytes_behind_an_answer_reach_nobody(streams: Gateway, origin: Origin) -> None:
    """A backend that sends two answers to one request: the second poisons its connection, not the next client."""

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n"
        writer.write(one + b"good" + one + b"evil")

    origin.on("/big/twice", script)
    for _ in range(10):
        assert streams.ask("GET", "/big/twice").body == b"good"
        assert b"evil" not in streams.ask("GET", "/big/x").body


def test_a_cut_request_body_never_looks_whole(streams: Gateway, origin: Origin) -> None:
    """The client goes away in the middle: the backend sees its connection end, not a short body."""
    for framing, part in (
        (b"Content-Length: 200000", b"c" * 100_000),
        (b"Transfer-Encoding: chunked", b"%x\r\n%b\r\n" % (100_000, b"c" * 100_000)),
    ):
        tag = uuid.uuid4().hex
        with streams.client() as client:
            client.send(b"POST /big/x HTTP/1.1\r\nHost: a\r\nX-Tag: %b\r\n%b\r\n\r\n" % (tag.encode(), framing) + part)
            streams.until(lambda: origin.tagged(tag))
        streams.until(streams.quiet)
        assert origin.tagged(tag)[0].body is None


def test_pipelined_requests_are_answered_in_order(streams: Gateway) -> None:
    """A slow first one does not let a quick second one past it."""
    with streams.tls_client() as client:
        for number, delay in enumerate((150, 0, 50, 0)):
            client.send(b"GET /big/%d?delay_ms=%d HTTP/1.1\r\nHost: gw.test\r\n\r\n" % (number, delay))
        for number in range(4):
            assert client.response().json()["target"].startswith(f"/big/{number}?")


def test_two_clients_never_see_each_others_answers(streams: Gateway) -> None:
    """Many connections over few of the pool: each answer names its own request."""
    wrong: list[str] = []

    def run(who: int) -> None:
        with Client(streams.http) as client:
            for number in range(40):
                target = f"/big/{who}-{number}"
                if client.request("GET", target).json()["target"] != target:
                    wrong.append(target)

    threads = [threading.Thread(target=run, args=(who,)) for who in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert wrong == []
