"""Requests through the gateway to scripted backends, on real sockets: what each side sees when the other misbehaves."""

import itertools
import json
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import pytest_twisted
from attrs import evolve
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread

from apigw.upstream.slow_clients import PATIENCE_S
from tests.edge.conversation import LIMITS, get, post
from tests.servers import turns, until
from tests.upstream.origin import OK, TIMEOUT_S, Answer, Caller, Client, Gateway, Origin, reply

reactor: Any = installed_reactor
CLOSE = "Connection: close"
Started = Callable[..., Gateway]


@pytest.fixture
def stage() -> Iterator[Callable[..., tuple[Gateway, Origin]]]:
    """stage(script, **gateway): a backend with this script and a gateway before it."""
    opened: list[tuple[Gateway, Origin]] = []

    def make(script: Any, **fields: Any) -> tuple[Gateway, Origin]:
        origin = script if isinstance(script, Origin) else Origin(script)
        gateway = Gateway(origin.port, **fields)
        opened.append((gateway, origin))
        return gateway, origin

    yield make
    for gateway, origin in opened:
        gateway.stop()
        origin.close()
        assert origin.errors == []


def saying(*pieces: bytes, reset: bool = False) -> Callable[[Caller], None]:
    """Reads one request, says all pieces, and closes."""

    def script(caller: Caller) -> None:
        caller.body(caller.head())
        for piece in pieces:
            caller.say(piece)
        if reset:
            caller.reset()

    return script


def echo(head: bytes, body: bytes) -> bytes:
    return reply(head.split(b" ")[1] + b" " + body)


# -- what passes


@pytest_twisted.ensureDeferred
async def test_a_request_and_its_answer_pass_and_the_connection_is_used_again(stage: Any) -> None:
    gateway, origin = stage(Origin.answering(echo))

    def talk() -> list[Answer]:
        client = gateway.client()
        answers = []
        for n in range(5):
            client.say(post(f"/a/{n}?q", "X-User-ID: evil", "Authorization: secret", "X-Own: kept", body=b"body"))
            answers.append(client.answer())
        client.leave()
        return answers

    answers = await deferToThread(talk)
    assert [answer.body for answer in answers] == [b"/a/%d?q body" % n for n in range(5)]
    assert origin.connections == 1
    (kept,) = gateway.pool.members[0].idle
    assert kept.transport._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) == 30
    head = origin.requests[0][0].lower()
    assert b"evil" not in head and b"secret" not in head
    assert b"x-own: kept" in head
    assert b"x-forwarded-for: 127.0.0.1" in head
    assert b"x-forwarded-host: api.example.com" in head
    assert b"host: 127.0.0.1:%d" % origin.port in head
    assert [ex.instance for ex in gateway.records] == [f"127.0.0.1:{origin.port}"] * 5
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_many_clients_share_few_connections_and_each_gets_its_own_answer(stage: Any) -> None:
    """Contract 13.5 and 13.8, with pipelines: 16 clients, 400 requests, 3 connections."""
    gateway, origin = stage(Origin.answering(echo), max_connections=3)
    highest = 0

    def watch() -> None:
        nonlocal highest
        assert gateway.pool.open == gateway.pool.idle + gateway.pool.busy
        highest = max(highest, gateway.pool.open)
        reactor.callLater(0, watch) if gateway.records is not None and len(gateway.records) < 400 else None

    def talk(number: int) -> bool:
        client = gateway.client()
        for turn in range(5):
            targets = [f"/{number}/{turn}/{n}" for n in range(5)]
            client.say(b"".join(post(target, body=target.encode()) for target in targets))
            data = b""
            while data.count(b"HTTP/1.1 200") < 5 or not data.endswith(f"{targets[-1]} {targets[-1]}".encode()):
                piece = client.sock.recv(65_536)
                assert piece
                data += piece
            bodies = [part.partition(b"\r\n\r\n")[2] for part in data.split(b"HTTP/1.1 200")[1:]]
            assert bodies == [f"{target} {target}".encode() for target in targets]
        client.leave()
        return True

    watch()
    talks = [deferToThread(talk, number) for number in range(16)]
    assert [await one for one in talks] == [True] * 16
    assert highest <= 3
    assert origin.connections <= 3
    gateway.books_balance()


@pytest.mark.parametrize("size", [0, 1, 65_536, 65_537, 90_000])
@pytest.mark.parametrize("chunked", [False, True])
@pytest_twisted.ensureDeferred
async def test_bodies_of_all_sizes_pass_whole(stage: Any, size: int, chunked: bool) -> None:
    gateway, origin = stage(Origin.answering(lambda head, body: reply(body)))
    payload = bytes(range(256)) * (size // 256 + 1)
    payload = payload[:size]
    if chunked:
        pieces = [payload[at : at + 9999] for at in range(0, size, 9999)]
        body = b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces) + b"0\r\n\r\n"
        request = post("/a", "Transfer-Encoding: chunked", CLOSE) + body
    else:
        request = post("/a", CLOSE, body=payload)
    answer = await gateway.ask(request)
    assert (answer.status, answer.body == payload) == (200, True)
    assert [len(body) for _, body in origin.requests] == [size]
    assert gateway.records[0].request_bytes == size
    gateway.books_balance()


@pytest.mark.parametrize(
    ("method", "said", "status", "body"),
    [
        ("GET", OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n", 200, b"5\r\nhello\r\n0\r\n\r\n"),
        ("GET", OK + b"\r\nhello", 200, b"5\r\nhello\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.0 200 OK\r\n\r\nhello", 200, b"5\r\nhello\r\n0\r\n\r\n"),
        ("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early\r\n\r\n" + reply(), 200, b"hello"),
        ("HEAD", OK + b"Content-Length: 77\r\n\r\n", 200, b""),
        ("GET", b"HTTP/1.1 204 No Content\r\n\r\nbody", 204, b""),
        ("GET", reply() + reply(b"extra"), 200, b"hello"),
    ],
)
@pytest_twisted.ensureDeferred
async def test_every_framing_of_a_whole_answer_passes(
    stage: Any, method: str, said: bytes, status: int, body: bytes
) -> None:
    gateway, _ = stage(saying(said))
    answer = await gateway.ask(get("/a", CLOSE, method=method))
    assert (answer.status, answer.body, answer.ended) == (status, body, "fin")
    if method == "HEAD":
        assert b"Content-Length: 77" in answer.head
    await until(lambda: gateway.pool.open == 0, reactor)
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_instances_that_come_and_go_all_the_time_cost_no_request(stage: Any) -> None:
    """The list changes a hundred times a second, as discovery might, under 8 clients that GET and POST."""
    origins = [Origin.answering(echo) for _ in range(4)]
    gateway = Gateway(*(origin.port for origin in origins), max_connections=6)
    everyone = gateway.pool.backend.instances
    changes = 0

    def change() -> None:
        nonlocal changes, timer
        kept = tuple(one for n, one in enumerate(everyone) if n not in (changes % 4, changes // 4 % 4))
        gateway.pool.update(evolve(gateway.pool.backend, instances=kept))
        changes += 1
        timer = reactor.callLater(0.01, change)

    def talk(number: int) -> list[int]:
        client = gateway.client()
        statuses = []
        for n in itertools.count():
            if n >= 150 and changes > 20:
                break
            assert n < 20_000
            target = f"/{number}/{n}"
            client.say(post(target, body=b"x") if n % 2 else get(target))
            answer = client.answer()
            statuses.append(answer.status)
            assert answer.body == target.encode() + (b" x" if n % 2 else b" ")
        client.leave()
        return statuses

    timer: Any = None
    change()
    talks = [deferToThread(talk, number) for number in range(8)]
    statuses = [status for one in talks for status in await one]
    timer.cancel()
    assert set(statuses) == {200} and len(statuses) >= 1200
    assert changes > 20 and all(len(origin.requests) > 50 for origin in origins)
    gateway.books_balance()
    gateway.stop()
    for origin in origins:
        origin.close()


# -- answers that are none, or not whole


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        (b"", "connection_reset"),
        (b"HTTP/1.1 200", "connection_reset"),
        (b"garbage\r\n\r\n", "invalid_response"),
        (b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: x\r\n\r\n", "invalid_response"),
        (OK + b"Content-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n", "invalid_response"),
    ],
)
@pytest.mark.parametrize("reset", [False, True])
@pytest_twisted.ensureDeferred
async def test_no_valid_answer_is_a_502_that_names_the_backend_alone(
    stage: Any, said: bytes, reason: str, reset: bool
) -> None:
    gateway, origin = stage(saying(*[said] if said else [], reset=reset))
    answer = await gateway.ask(post("/a", CLOSE, body=b"x"))
    members = json.loads(answer.body)
    assert (answer.status, members["error"], members["backend"]) == (502, "bad_gateway", "users")
    assert b"127.0.0.1" not in answer.data
    assert gateway.records[0].error_type in (reason, "connection_reset")
    assert origin.connections == 1
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_a_refused_connection_is_a_502(stage: Any) -> None:
    with socket.socket() as unheard:
        unheard.bind(("127.0.0.1", 0))
        gateway = Gateway(unheard.getsockname()[1])
        answer = await gateway.ask(get("/a", CLOSE))
        assert answer.status == 502
        assert gateway.records[0].error_type == "connection_refused"
        gateway.books_balance()
        gateway.stop()


@pytest.mark.parametrize("version", ["1.1", "1.0"])
@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize(
    "said",
    [
        OK + b"Content-Length: 10\r\n\r\nhello",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n",
        OK + b"Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
    ],
)
@pytest_twisted.ensureDeferred
async def test_a_broken_answer_is_cut_for_every_client(stage: Any, said: bytes, reset: bool, version: str) -> None:
    """Contract 13.6: fewer bytes than announced, no final chunk, or a RST instead of a FIN."""
    told = threading.Event()

    def script(caller: Caller) -> None:
        caller.body(caller.head())
        caller.say(said[:-4])
        told.wait(TIMEOUT_S)
        caller.say(said[-4:])
        if reset:
            caller.reset()

    gateway, _ = stage(script)
    client = await deferToThread(gateway.client)
    await deferToThread(client.say, get("/a", version=version))
    data = await deferToThread(client.sock.recv, 65_536)  # the head is through: only a cut can tell now
    told.set()
    answer = await deferToThread(client.to_the_end, data)
    assert answer.status == 200
    assert answer.ended == "rst"
    assert not answer.body.endswith(b"0\r\n\r\n")
    assert gateway.records[0].error_type in ("truncated_response", "invalid_response")
    gateway.books_balance()
    client.leave()


@pytest_twisted.ensureDeferred
async def test_an_unframed_answer_that_ends_with_rst_is_cut_for_every_client(stage: Any) -> None:
    for version in ("1.1", "1.0"):
        told = threading.Event()

        def script(caller: Caller, told: threading.Event = told) -> None:
            caller.head()
            caller.say(OK + b"\r\nhello")
            told.wait(TIMEOUT_S)
            caller.reset()

        gateway, _ = stage(script)
        client = await deferToThread(gateway.client)
        await deferToThread(client.say, get("/a", version=version))
        data = await deferToThread(client.sock.recv, 65_536)
        told.set()
        answer = await deferToThread(client.to_the_end, data)
        assert answer.ended == "rst"
        gateway.books_balance()
        client.leave()


# -- the one replay


def closing_the_second(caller: Caller) -> None:
    """The first connection answers once and hangs up on its second request; later connections answer all."""
    requests = 0
    while True:
        head = caller.head()
        caller.body(head)
        requests += 1
        if caller.number == 0 and requests == 2:
            return
        caller.say(reply(b"%d" % caller.number))


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest_twisted.ensureDeferred
async def test_a_get_on_a_connection_that_the_backend_closes_as_it_comes_is_sent_once_more(
    stage: Any, method: str
) -> None:
    gateway, origin = stage(closing_the_second)
    assert (await gateway.ask(get("/a", CLOSE))).body == b"0"
    answer = await gateway.ask(get("/a", CLOSE, method=method))
    assert answer.status == 200
    assert origin.connections == 2
    assert len(gateway.records) == 2
    gateway.books_balance()


@pytest.mark.parametrize("method", ["POST", "PUT"])
@pytest_twisted.ensureDeferred
async def test_no_other_request_is_ever_sent_twice(stage: Any, method: str) -> None:
    gateway, origin = stage(closing_the_second)
    assert (await gateway.ask(get("/a", CLOSE))).body == b"0"
    answer = await gateway.ask(get("/a", CLOSE, "Content-Length: 0", method=method))
    assert answer.status == 502
    assert origin.connections == 1
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_a_get_is_sent_again_once_and_only_once(stage: Any) -> None:
    heads: list[int] = []

    def script(caller: Caller) -> None:
        caller.head()
        heads.append(caller.number)
        if caller.number == 0:
            caller.say(reply())
            caller.head()
            heads.append(caller.number)

    gateway, _ = stage(script)
    await gateway.ask(get("/a", CLOSE))
    answer = await gateway.ask(get("/a", CLOSE))
    assert answer.status == 502
    assert heads == [0, 0, 1]
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_a_get_that_got_a_byte_of_its_answer_is_not_sent_again(stage: Any) -> None:
    def script(caller: Caller) -> None:
        caller.head()
        caller.say(reply())
        caller.head()
        caller.say(b"H")

    gateway, origin = stage(script)
    await gateway.ask(get("/a", CLOSE))
    answer = await gateway.ask(get("/a", CLOSE))
    assert (answer.status, origin.connections) == (502, 1)


@pytest.mark.parametrize("poison", [b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison", b""])
@pytest_twisted.ensureDeferred
async def test_what_an_idle_connection_was_told_answers_nobody(stage: Any, poison: bytes) -> None:
    """Both a stray answer and a FIN: found before the connection is given away, by POST as by GET."""
    gateway, origin = stage(Origin.answering(echo))
    await gateway.ask(get("/a", CLOSE))
    (connection,) = gateway.pool.members[0].idle
    held = connection.transport
    held.pauseProducing()  # as in the turn in which the bytes arrive: not read yet

    def stray() -> None:
        sock = origin._socks[0]
        sock.sendall(poison) if poison else sock.shutdown(socket.SHUT_WR)

    await deferToThread(stray)
    await until(held.stale, reactor)
    answer = await gateway.ask(post("/mine", CLOSE, body=b"x"))
    assert (answer.status, answer.body) == (200, b"/mine x")
    assert origin.connections == 2


# -- time


@pytest_twisted.ensureDeferred
async def test_a_timeout_is_a_504_at_once_and_the_late_answer_leaves_the_connection_good(stage: Any) -> None:
    late = threading.Event()

    def script(caller: Caller) -> None:
        while True:
            head = caller.head()
            if b"/slow" in head:
                late.wait(TIMEOUT_S)
            caller.say(reply(head.split(b" ")[1]))

    gateway, origin = stage(script, timeout_s=0.2)
    began_s = reactor.seconds()
    answer = await gateway.ask(get("/slow", CLOSE))
    assert answer.status == 504
    assert json.loads(answer.body)["error"] == "upstream_timeout"
    assert 0.2 <= reactor.seconds() - began_s < 1.0
    assert (gateway.pool.busy, gateway.pool.open) == (1, 1)
    late.set()
    await until(lambda: gateway.pool.idle == 1, reactor)
    assert (await gateway.ask(get("/quick", CLOSE))).body == b"/quick"
    assert origin.connections == 1
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_a_timeout_in_the_middle_of_an_answer_cuts_it_on_both_sides(stage: Any) -> None:
    ends: list[str] = []

    def script(caller: Caller) -> None:
        caller.head()
        caller.say(OK + b"Content-Length: 10\r\n\r\nhello")
        ends.append(caller.wait_for_end())

    gateway, _ = stage(script, timeout_s=0.2)
    answer = await gateway.ask(get("/a"))
    assert (answer.status, answer.body, answer.ended) == (200, b"hello", "rst")
    assert gateway.records[0].error_type == "upstream_timeout"
    await until(lambda: ends, reactor)
    assert ends == ["rst"]
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_an_answer_that_keeps_coming_may_take_longer_than_the_timeout(stage: Any) -> None:
    """As long as it makes progress: 512 bytes a timeout."""

    def script(caller: Caller) -> None:
        caller.head()
        caller.say(OK + b"Content-Length: 3000\r\n\r\n")
        for _ in range(5):
            threading.Event().wait(0.25)
            caller.say(b"a" * 600)

    gateway, _ = stage(script, timeout_s=0.8)
    answer = await gateway.ask(get("/a", CLOSE))
    assert answer.body == b"a" * 3000
    assert gateway.records[0].error_type is None
    gateway.books_balance()


@pytest.mark.parametrize("first", [b"", b"a" * 100_000])
@pytest_twisted.ensureDeferred
async def test_an_answer_that_drips_is_cut(stage: Any, first: bytes) -> None:
    """A byte now and then is no progress, whatever came before: within two timeouts the connection is free again."""

    def script(caller: Caller) -> None:
        caller.head()
        caller.say(OK + b"Content-Length: 200000\r\n\r\n" + first)
        while True:
            threading.Event().wait(0.05)
            caller.say(b"a")

    gateway, _ = stage(script, timeout_s=0.4)
    began_s = reactor.seconds()
    answer = await gateway.ask(get("/a"))
    assert (answer.status, answer.ended) == (200, "rst")
    assert 0.4 <= reactor.seconds() - began_s < (2.0 if first else 1.2)
    record = gateway.records[0]
    assert record.error_type == "upstream_timeout" and "less than 512 bytes a 400 ms" in record.error_message
    assert gateway.pool.open == 0
    gateway.books_balance()


@pytest.mark.parametrize("drop", [b"X: a\r\n", b"HTTP/1.1 103 Early Hints\r\n\r\n"])
@pytest_twisted.ensureDeferred
async def test_a_head_that_drips_is_no_answer(stage: Any, drop: bytes) -> None:
    """Nor are interim answers: the timeout counts until the final head is whole."""

    def script(caller: Caller) -> None:
        caller.head()
        caller.say(OK if drop.startswith(b"X") else b"")
        while True:
            caller.say(drop)
            threading.Event().wait(0.05)

    gateway, _ = stage(script, timeout_s=0.3)
    began_s = reactor.seconds()
    answer = await gateway.ask(get("/a", CLOSE))
    assert answer.status == 504 and 0.3 <= reactor.seconds() - began_s < 1.2
    gateway.pool.close()


@pytest_twisted.ensureDeferred
async def test_a_client_that_reads_slowly_is_not_taken_for_a_backend_that_drips(stage: Any) -> None:
    """The backend is held up by the client for many timeouts; then it goes on."""
    size = 12_000_000
    gateway, _ = stage(saying(OK + b"Content-Length: %d\r\n\r\n" % size, b"a" * size), timeout_s=0.2)

    def talk() -> Answer:
        client = gateway.client(receive_buffer_bytes=65_536)
        client.say(get("/a", CLOSE))
        data = b""
        for _ in range(5):
            data += client.sock.recv(1000)
            threading.Event().wait(0.3)
        return client.to_the_end(data)

    answer = await deferToThread(talk)
    assert len(answer.body) == size
    assert gateway.records[0].error_type is None


@pytest_twisted.ensureDeferred
async def test_a_client_that_sends_slowly_is_not_the_backends_timeout(stage: Any) -> None:
    """The body timeout is the client's; a 504 would count against a backend that did nothing wrong."""
    gateway, origin = stage(Origin.answering(lambda head, body: reply(b"%d" % len(body))), timeout_s=0.1)

    def talk() -> Answer:
        client = gateway.client()
        client.say(post("/a", "Content-Length: 90000", CLOSE) + b"a" * 70_000)
        threading.Event().wait(0.4)
        client.say(b"a" * 20_000)
        return client.to_the_end()

    answer = await deferToThread(talk)
    assert (answer.status, answer.body) == (200, b"90000")


@pytest.mark.parametrize("chunked", [False, True])
@pytest_twisted.ensureDeferred
async def test_an_upload_that_dawdles_is_cut_on_both_sides_for_one_that_waits(stage: Any, chunked: bool) -> None:
    """The client has its 408, the backend half a request that never looks whole, the other its answer."""
    cut: list[BaseException] = []

    def script(caller: Caller) -> None:
        head = caller.head()
        try:
            caller.say(reply(b"%d" % len(caller.body(head))))
        except (EOFError, OSError) as error:
            cut.append(error)

    gateway, origin = stage(script, timeout_s=8.0, max_connections=1)

    def dawdle() -> Answer:
        client = gateway.client()
        framing = "Transfer-Encoding: chunked" if chunked else "Content-Length: 90000"
        client.say(post("/slow", framing) + (b"11170\r\n" if chunked else b"") + b"a" * 70_000)
        return client.to_the_end()

    slow = deferToThread(dawdle)
    await until(lambda: gateway.pool.busy == 1, reactor)
    other = await gateway.ask(get("/other", CLOSE))
    answer = await slow
    assert (other.status, answer.status) == (200, 408)
    assert b'"request_timeout"' in answer.body and b"Connection: close" in answer.head
    await until(lambda: bool(cut), reactor)
    ended, _ = gateway.records
    assert (ended.error_type, ended.status) == ("request_timeout", 408)
    assert str(ended.error_message).startswith("slow_client: ")
    assert gateway.pool.slow_clients.ended == 1 and not gateway.pool.slow_clients
    gateway.pool.close()
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_an_upload_whose_backend_dawdles_is_not_cut_however_many_wait(stage: Any) -> None:
    """The client has sent what there was room for, and has no next move; its backend has the route's timeout."""
    size, go_on = 30_000_000, threading.Event()

    def script(caller: Caller) -> None:
        if caller.number == 0:
            head = caller.head()
            go_on.wait(TIMEOUT_S)
            caller.say(reply(b"%d" % len(caller.body(head))))
        else:
            caller.head()
            caller.say(reply())

    limits = evolve(LIMITS, max_body_bytes=size)
    gateway, _ = stage(script, timeout_s=9.0, max_connections=1, limits=limits)

    def upload() -> Answer:
        client = gateway.client()
        client.say(post("/big", CLOSE, body=b"a" * size))
        return client.to_the_end()

    big = deferToThread(upload)
    await until(lambda: gateway.pool.busy == 1, reactor)
    waiting = [gateway.ask(get("/other", CLOSE)) for _ in range(3)]
    others = [ensureDeferred(one) for one in waiting]
    await turns(reactor, PATIENCE_S + 1.5)
    assert gateway.pool.waiting == 3 and gateway.pool.slow_clients.ended == 0
    go_on.set()
    answer = await big
    assert (answer.status, answer.body) == (200, b"%d" % size)
    assert [(await other).status for other in others] == [200] * 3
    assert gateway.pool.slow_clients.ended == 0
    gateway.pool.close()


@pytest_twisted.ensureDeferred
async def test_an_answer_that_the_backend_dawdles_with_is_not_cut_however_many_wait(stage: Any) -> None:
    """Nor a request whose answer has not begun: those have the route's timeout."""
    go_on = threading.Event()

    def script(caller: Caller) -> None:
        body = caller.body(caller.head())
        if caller.number == 0:
            caller.say(OK + b"Content-Length: 9\r\n\r\nhalf")
            go_on.wait(TIMEOUT_S)
            caller.say(b" more")
        else:
            caller.say(reply(b"%d" % len(body)))

    gateway, _ = stage(script, timeout_s=9.0, max_connections=1)
    half = ensureDeferred(gateway.ask(post("/half", CLOSE, body=b"a" * 90_000)))
    await until(lambda: gateway.pool.busy == 1, reactor)
    other = ensureDeferred(gateway.ask(get("/other", CLOSE)))
    await turns(reactor, PATIENCE_S + 1.5)
    assert gateway.pool.waiting == 1 and gateway.pool.slow_clients.ended == 0
    go_on.set()
    assert ((await half).body, (await other).status) == (b"half more", 200)
    gateway.pool.close()


@pytest_twisted.ensureDeferred
async def test_waiting_for_a_connection_counts_in_the_timeout(stage: Any) -> None:
    gateway, _ = stage(lambda caller: caller.wait_for_end(), timeout_s=0.2, max_connections=1)
    first, second = await gateway.ask(get("/a", CLOSE)), await gateway.ask(get("/b", CLOSE))
    assert (first.status, second.status) == (504, 504)
    assert gateway.pool.waiting == 0


# -- the client goes


@pytest.mark.parametrize("how", ["fin", "rst"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_before_the_answer_does_not_disturb_the_backend(stage: Any, how: str) -> None:
    go_on, got = threading.Event(), threading.Event()

    def script(caller: Caller) -> None:
        while True:
            caller.head()
            got.set()
            go_on.wait(TIMEOUT_S)
            caller.say(reply())

    gateway, origin = stage(script)
    client = await deferToThread(gateway.client)
    await deferToThread(client.say, get("/a"))
    await deferToThread(got.wait, TIMEOUT_S)
    client.leave(how)
    await until(lambda: gateway.records, reactor)
    assert [ex.status for ex in gateway.records] == [499]
    assert gateway.pool.busy == 1
    go_on.set()
    await until(lambda: gateway.pool.idle == 1, reactor)
    assert (await gateway.ask(get("/b", CLOSE))).status == 200
    assert origin.connections == 1
    gateway.books_balance()


@pytest.mark.parametrize("framing", ["Content-Length: 90000", "Transfer-Encoding: chunked"])
@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_during_its_body_never_looks_whole_to_the_backend(stage: Any, framing: str) -> None:
    whole: list[bytes] = []
    ends: list[str] = []

    def script(caller: Caller) -> None:
        head = caller.head()
        try:
            whole.append(caller.body(head))
        except (EOFError, OSError) as error:
            ends.append(type(error).__name__)

    gateway, _ = stage(script)

    def talk() -> None:
        client = gateway.client()
        body = b"a" * 80_000
        client.say(post("/a", framing) + (b"%x\r\n%b\r\n" % (len(body), body) if "chunked" in framing else body))
        threading.Event().wait(0.1)
        client.leave()

    await deferToThread(talk)
    await until(lambda: ends or whole, reactor)
    assert (whole, ends) == ([], ["ConnectionResetError"])
    assert [(ex.status, ex.error_message) for ex in gateway.records] == [
        (499, "the client left in the middle of its body")
    ]
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_a_client_that_leaves_in_the_middle_of_its_answer_ends_the_backends_connection(stage: Any) -> None:
    ends: list[str] = []

    def script(caller: Caller) -> None:
        caller.head()
        caller.say(OK + b"Content-Length: 10\r\n\r\nhello")
        ends.append(caller.wait_for_end())

    gateway, _ = stage(script)
    client = await deferToThread(gateway.client)
    await deferToThread(client.say, get("/a"))
    await deferToThread(client.sock.recv, 65_536)
    client.leave()
    await until(lambda: ends, reactor)
    assert ends == ["rst"]
    assert [(ex.status, ex.error_type) for ex in gateway.records] == [(200, "client_gone")]
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_clients_that_leave_the_queue_leave_no_trace(stage: Any) -> None:
    gateway, _ = stage(lambda caller: caller.wait_for_end(), max_connections=1)
    clients = [await deferToThread(gateway.client) for _ in range(10)]
    for client in clients:
        client.say(get("/a"))
    await until(lambda: gateway.pool.waiting == 9, reactor)
    for client in clients[1:]:
        client.leave("rst")
    await until(lambda: gateway.pool.waiting == 0, reactor)
    assert [ex.status for ex in gateway.records] == [499] * 9
    assert {ex.error_message for ex in gateway.records} == {"the client left before a connection was free or made"}
    clients[0].leave()


# -- answers before the end of the body


@pytest_twisted.ensureDeferred
async def test_an_answer_before_the_whole_body_reaches_the_client_and_ends_both_connections(stage: Any) -> None:
    def script(caller: Caller) -> None:
        caller.head()
        caller.say(b"HTTP/1.1 413 Content Too Large\r\nContent-Length: 2\r\n\r\nno")
        caller.wait_for_end()

    gateway, _ = stage(script)

    def talk() -> Answer:
        client = gateway.client()
        client.say(post("/a", "Content-Length: 99000") + b"a" * 70_000)
        return client.to_the_end()

    answer = await deferToThread(talk)
    assert (answer.status, answer.body) == (413, b"no")
    assert b"Connection: close" in answer.head
    await until(lambda: gateway.pool.open == 0, reactor)
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_a_chunked_body_above_the_limit_is_cut_at_the_backend_and_refused_to_the_client(stage: Any) -> None:
    ends: list[str] = []

    def script(caller: Caller) -> None:
        caller.head()
        ends.append(caller.wait_for_end())

    gateway, _ = stage(script, limits=evolve(LIMITS, max_body_bytes=100_000))

    def talk() -> Answer:
        client = gateway.client()
        client.say(post("/a", "Transfer-Encoding: chunked") + b"11170\r\n" + b"a" * 70_000 + b"\r\n")
        threading.Event().wait(0.05)
        client.say(b"ffff\r\n")
        return client.to_the_end()

    answer = await deferToThread(talk)
    assert answer.status == 413
    assert "left" not in (gateway.records[0].error_message or "")
    await until(lambda: ends, reactor)
    assert ends == ["rst"]
    gateway.books_balance()


# -- bounds


@pytest_twisted.ensureDeferred
async def test_a_slow_client_holds_the_backend_up_and_its_answer_waits_for_it(stage: Any) -> None:
    """20 MB to a client that does not read: the gateway takes from the backend what fits its buffers, no more."""
    size = 20_000_000
    sent = 0

    def script(caller: Caller) -> None:
        nonlocal sent
        caller.head()
        caller.say(OK + b"Content-Length: %d\r\n\r\n" % size)
        while sent < size:
            caller.say(b"a" * 100_000)
            sent += 100_000

    gateway, _ = stage(script, timeout_s=0.3)
    client = await deferToThread(gateway.client)
    await deferToThread(client.say, get("/a", CLOSE))
    before = -1
    while sent > before:
        before = sent
        await deferToThread(threading.Event().wait, 0.5)
    (channel,) = gateway.site.channels
    assert channel.transport.buffered_bytes() <= 65_536 + 65_536
    assert sent < size
    assert gateway.records == []
    answer = await deferToThread(client.to_the_end)
    assert len(answer.body) == size
    gateway.books_balance()
    client.leave()


@pytest.mark.parametrize("piece", [65_536, 7])
@pytest_twisted.ensureDeferred
async def test_a_slow_backend_holds_the_client_up_however_it_chunks(stage: Any, piece: int) -> None:
    size = 20_000_000 if piece > 1000 else 10_000_000
    go_on = threading.Event()

    def script(caller: Caller) -> None:
        head = caller.head()
        go_on.wait(TIMEOUT_S)
        caller.say(reply(b"%d" % len(caller.body(head))))

    gateway, _ = stage(script, timeout_s=10.0, limits=evolve(LIMITS, max_body_bytes=50_000_000))
    sent = 0

    def talk() -> Answer:
        nonlocal sent
        client = gateway.client()
        client.say(post("/a", "Transfer-Encoding: chunked", CLOSE))
        burst = (b"%x\r\n" % piece + b"a" * piece + b"\r\n") * max(1, 70_000 // piece)
        while sent < size:
            client.say(burst)
            sent += piece * max(1, 70_000 // piece)
        client.say(b"0\r\n\r\n")
        return client.to_the_end()

    talking = deferToThread(talk)
    highest, before = 0, -1
    while sent > before or sent == 0:
        before = sent
        await deferToThread(threading.Event().wait, 0.4)
        for channel in gateway.site.channels:
            connection = channel._request and channel._request.body._consumer._connection  # type: ignore[union-attr]
            if connection:
                highest = max(highest, connection.transport.buffered_bytes())
    assert 0 < highest <= 65_536 + 2 * 65_536 + 8192
    go_on.set()
    answer = await talking
    assert (answer.status, answer.body) == (200, b"%d" % sent)
    gateway.books_balance()


@pytest_twisted.ensureDeferred
async def test_a_backend_of_tiny_chunks_does_not_hold_the_loop(stage: Any) -> None:
    """300,000 chunks of one byte, as fast as they come; meanwhile the loop turns."""
    gateway, _ = stage(saying(OK + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n" * 300_000 + b"0\r\n\r\n"))
    longest, last = 0.0, reactor.seconds()

    def tick() -> None:
        nonlocal longest, last
        now_s = reactor.seconds()
        longest, last = max(longest, now_s - last), now_s
        if not gateway.records:
            reactor.callLater(0, tick)

    tick()
    answer = await gateway.ask(get("/a", CLOSE))
    assert answer.body.endswith(b"0\r\n\r\n")
    assert gateway.records[0].response_bytes == 300_000
    assert longest < 0.25  # 5 ms by the contract; tests share their processors
    gateway.books_balance()


def test_the_client_helper_reads_what_a_cut_left() -> None:
    """The tests above rest on it: data before a RST is not lost."""
    near, far = socket.socketpair()
    near.sendall(b"HTTP/1.1 200 OK\r\n\r\nhel")
    near.close()
    client = Client.__new__(Client)
    client.sock = far
    assert client.to_the_end().body == b"hel"
    far.close()
