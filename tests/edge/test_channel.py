"""Conversations with one client connection: what is sent, what is answered, when it ends, and what is logged."""

from collections.abc import Iterator

import pytest
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.constants import MAX_PIPELINED_BYTES, WRITE_HIGH_WATER_BYTES
from apigw.errors import GatewayError
from tests.edge.conversation import LIMITS, Conversation, get, post


class Taker:
    """A consumer of a body that writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def body_data(self, data: bytes) -> None:
        self.told.append("data")

    def body_end(self) -> None:
        self.told.append("end")

    def body_failed(self) -> None:
        self.told.append("failed")


@pytest.fixture
def client() -> Iterator[Conversation]:
    """A connection whose exchanges must all have ended, once each, when the test is over."""
    conversation = Conversation()
    yield conversation
    conversation.settled()


def test_a_request_in_any_segmentation_is_answered_and_the_connection_kept(client: Conversation) -> None:
    for byte in get("/now"):
        assert not client.received
        client.send(bytes((byte,)))
    assert client.statuses() == [200]
    assert client.received.endswith(b"\r\n\r\nhello")
    assert client.ended == ""
    assert [ex.status for ex in client.records] == [200]


# -- deadlines


def test_a_connection_that_sends_nothing_is_closed_without_a_word_after_the_header_timeout(
    client: Conversation,
) -> None:
    client.advance(9.9)
    assert client.ended == ""
    client.advance(0.2)
    assert (client.ended, client.received, client.records) == ("closed", b"", [])


def test_the_header_timeout_counts_from_the_first_byte_and_no_later_byte_restarts_it(client: Conversation) -> None:
    client.advance(8)
    client.send(b"GET /now HT")
    client.advance(5)
    client.send(b"TP/1.1\r\n")
    client.advance(4.9)
    assert client.ended == ""
    assert client.advance(0.2).startswith(b"HTTP/1.1 408 Request Timeout\r\n")
    assert client.ended == "closed"
    assert [(ex.status, ex.error_type) for ex in client.records] == [(408, "request_timeout")]


def test_a_byte_now_and_then_does_not_hold_the_head_open(client: Conversation) -> None:
    """Slow loris: one byte a second buys nothing."""
    client.send(b"GET /now HTTP/1.1\r\nX-A: ")
    for _ in range(9):
        client.advance(1)
        client.send(b"a")
    assert client.ended == ""
    client.advance(1.1)
    assert client.statuses() == [408]


def test_an_idle_connection_is_closed_after_the_keepalive_timeout(client: Conversation) -> None:
    client.send(get("/now"))
    client.advance(74.9)
    assert client.ended == ""
    client.advance(0.2)
    assert client.ended == "closed"
    assert len(client.records) == 1


def test_a_request_on_a_kept_connection_has_the_header_timeout_from_its_first_byte(client: Conversation) -> None:
    client.send(get("/now"))
    client.advance(60)
    client.send(b"G")
    client.advance(9.9)
    assert client.ended == ""
    client.advance(0.2)
    assert client.statuses() == [200, 408]


def test_empty_lines_between_requests_leave_the_idle_deadline_in_force(client: Conversation) -> None:
    """A request and a stray CRLF in one segment: the connection is idle, and idle connections end."""
    client.send(get("/now") + b"\r\n")
    client.advance(75.1)
    assert client.ended == "closed"


def test_the_same_behind_a_request_that_took_its_time(client: Conversation) -> None:
    client.send(get("/held") + b"\r\n")
    client.advance(200)
    assert client.ended == ""
    client.request.answer(200, (), b"late")
    client.advance(75.1)
    assert client.ended == "closed"


def test_a_request_in_work_has_no_deadline_here(client: Conversation) -> None:
    client.send(get("/held"))
    client.advance(1000)
    assert client.ended == ""
    client.request.answer(200, (), b"")
    assert client.statuses() == [200]


def test_a_body_that_makes_no_progress_is_a_408(client: Conversation) -> None:
    client.send(post("/echo", "Content-Length: 5000"))
    for _ in range(29):
        client.advance(1)
        client.send(b"b")
    assert client.ended == ""
    assert client.advance(1.1).startswith(b"HTTP/1.1 408 ")
    assert client.ended == "closed"
    assert [(ex.status, ex.request_bytes) for ex in client.records] == [(408, 29)]


def test_a_body_in_progress_may_take_its_time(client: Conversation) -> None:
    client.send(post("/echo", "Content-Length: 5120"))
    for _ in range(10):
        client.advance(29)
        client.send(b"b" * 512)
    assert client.statuses() == [200]
    assert client.ended == ""


def test_framing_bytes_are_no_progress_of_a_chunked_body(client: Conversation) -> None:
    client.send(post("/echo", "Transfer-Encoding: chunked"))
    for _ in range(30):
        client.send(b"1;" + b"x" * 50 + b"\r\nb\r\n")
        client.advance(1)
    client.advance(0.1)
    assert client.statuses() == [408]


def test_a_body_that_the_backend_holds_up_is_not_the_clients_fault(client: Conversation) -> None:
    client.send(post("/held", "Content-Length: 90000"))
    client.channel.pauseProducing()
    client.advance(100)
    assert client.ended == ""
    client.channel.resumeProducing()
    client.advance(31)
    assert client.statuses() == [408]


# -- order and bounds of pipelined requests


def test_pipelined_requests_are_answered_in_order_one_at_a_time(client: Conversation) -> None:
    client.send(get("/held/1") + get("/held/2") + get("/now/3"))
    assert client.targets == [b"/held/1"]
    client.request.answer(200, (), b"first")
    assert client.targets == [b"/held/1", b"/held/2"]
    client.request.answer(404, (), b"second")
    assert client.statuses() == [200, 404, 200]
    assert client.received.index(b"first") < client.received.index(b"second") < client.received.index(b"hello")


def test_reading_pauses_while_too_much_is_pipelined_and_goes_on_afterwards(client: Conversation) -> None:
    client.send(get("/held"))
    one = get("/now")
    count = MAX_PIPELINED_BYTES // len(one) + 10
    client.send(*[one] * count)
    assert not client.wire.reading
    assert len(client.leaf.requests) == 1
    client.request.answer(200, (), b"")
    client.turn()
    assert client.statuses() == [200] * (count + 1)
    assert client.wire.reading


def test_many_requests_in_one_segment_are_answered_over_several_turns(client: Conversation) -> None:
    """2,000 requests in one segment must not hold the loop, for that is what the other connections wait for."""
    client.wire.deliver(get("/now") * 2000)
    assert 0 < len(client.leaf.requests) < 50
    assert not client.wire.reading
    for _ in range(200):
        client.turn()
    assert client.statuses() == [200] * 2000
    assert client.wire.reading


def test_a_client_that_does_not_take_its_answers_is_asked_nothing_more(client: Conversation) -> None:
    """Memory: answers wait for at most the high-water mark, then requests wait instead."""
    client.wire.room = 0
    client.leaf.body = b"a" * 10_000
    client.send(*[get("/now")] * 500)
    assert len(client.wire.waiting) <= WRITE_HIGH_WATER_BYTES + 11_000
    assert len(client.leaf.requests) < 10
    while client.wire.waiting:
        client.wire.take(20_000)
        client.turn()
    assert client.statuses() == [200] * 500


def test_the_same_for_answers_that_come_later(client: Conversation) -> None:
    client.wire.room = 0
    client.send(get("/held") * 20)
    while not client.request.finished:
        client.request.answer(200, (), b"a" * 10_000)
    assert len(client.leaf.requests) < 10
    assert len(client.wire.waiting) <= WRITE_HIGH_WATER_BYTES + 11_000


def test_a_client_that_takes_nothing_of_its_answer_is_cut_off(client: Conversation) -> None:
    client.wire.room = 0
    client.send(get("/now"))
    client.advance(29)
    assert client.ended == ""
    client.advance(1.1)
    assert client.ended == "cut"


def test_a_client_that_takes_its_answer_slowly_is_served(client: Conversation) -> None:
    client.wire.room = 0
    client.leaf.body = b"a" * 5120
    client.send(get("/now"))
    while client.wire.waiting:
        client.advance(29)
        client.wire.take(512)
    assert client.ended != "cut"
    assert client.received.endswith(b"a" * 5120)


# -- bodies


def test_the_request_behind_a_body_is_the_next_one(client: Conversation) -> None:
    client.send(post("/echo/1", body=b"GET /smuggled HTTP/1.1\r\n\r\n") + get("/now/2"))
    assert client.targets == [b"/echo/1", b"/now/2"]
    assert client.statuses() == [200, 200]
    assert b"smuggled" in client.received


@pytest.mark.parametrize("cut", range(0, 41, 5))
def test_the_request_behind_a_body_that_was_answered_from_inside_its_last_piece_is_not_lost(
    client: Conversation, cut: int
) -> None:
    """Whatever the segmentation: a byte lost here would let the rest be read as another request."""
    chunked = post("/echo/1", "Transfer-Encoding: chunked") + b"5\r\nhello\r\n0\r\n\r\n"
    stream = chunked + post("/echo/2", body=b"world") + get("/now/3")
    at = len(chunked) - 20 + cut
    client.send(stream[:at], stream[at:])
    assert client.targets == [b"/echo/1", b"/echo/2", b"/now/3"]
    assert client.statuses() == [200, 200, 200]
    assert client.ended == ""


@pytest.mark.parametrize(
    "bad", [b"5\r\nhelloXX", b"-1\r\n", b"5\nhello", b"0x5\r\n", b"\r\n", b"5\r\nhello\r\n0\r\nbad\r\n"]
)
def test_a_malformed_chunk_is_a_400_and_the_end(client: Conversation, bad: bytes) -> None:
    client.send(post("/echo", "Transfer-Encoding: chunked"), bad, get("/now"))
    assert client.statuses() == [400]
    assert client.ended == "closed"
    assert [ex.status for ex in client.records] == [400]


def test_tiny_chunks_are_taken_apart_in_several_turns_while_reading_pauses(client: Conversation) -> None:
    client.send(post("/held", "Transfer-Encoding: chunked"))
    client.wire.deliver(b"1\r\nb\r\n" * 3000)
    assert client.request.body.received < 1000
    assert not client.wire.reading
    client.turn()
    assert client.request.body.received == 3000
    assert client.wire.reading


def test_a_backends_backpressure_is_not_lifted_by_tiny_chunks(client: Conversation) -> None:
    client.send(post("/held", "Transfer-Encoding: chunked"))
    client.wire.deliver(b"1\r\nb\r\n" * 3000)
    client.channel.pauseProducing()
    client.turn()
    assert client.request.body.received < 1000
    assert not client.wire.reading
    client.channel.resumeProducing()
    client.turn()
    assert client.request.body.received == 3000
    assert client.wire.reading


def test_a_body_larger_than_the_buffer_waits_for_a_taker(client: Conversation) -> None:
    client.send(post("/held", "Content-Length: 100000"), *[b"b" * 10_000] * 10)
    assert not client.wire.reading
    assert client.request.body.held <= LIMITS.buffer_body_bytes + 10_000
    client.request.body.take()
    client.request.body.stream_to(Taker())
    client.channel.body_wanted()
    client.turn()
    assert client.request.body.complete


# -- 100-continue


def test_the_client_is_asked_for_its_body_once_the_stages_let_the_request_pass(client: Conversation) -> None:
    assert client.send(post("/echo", "Content-Length: 5", "Expect: 100-continue")) == b"HTTP/1.1 100 Continue\r\n\r\n"
    assert client.send(b"hello").startswith(b"HTTP/1.1 200 ")
    assert client.ended == ""


@pytest.mark.parametrize(
    ("target", "method", "status"), [("/small/a", "POST", 413), ("/held", "DELETE", 405), ("/a%2fb", "POST", 400)]
)
def test_a_refusal_comes_instead_of_100_continue(client: Conversation, target: str, method: str, status: int) -> None:
    client.send(get(target, "Content-Length: 5000", "Expect: 100-continue", method=method))
    assert b"100 Continue" not in client.received
    assert client.statuses() == [status]
    assert client.ended == "closed"


def test_nobody_is_asked_for_a_body_that_came_already_or_by_http_1_0(client: Conversation) -> None:
    client.send(get("/echo", "Content-Length: 5", "Expect: 100-continue", method="POST", version="1.0"))
    assert client.received == b""
    client.send(b"hello")
    assert b"100 Continue" not in client.received
    assert client.statuses() == [200]


def test_an_unknown_expectation_is_a_400(client: Conversation) -> None:
    client.send(post("/echo", "Expect: the-unexpected", body=b""))
    assert client.statuses() == [400]


# -- limits


def test_a_body_that_announces_too_much_is_refused_before_it_is_read(client: Conversation) -> None:
    client.send(post("/small/a", "Content-Length: 11"))
    assert client.statuses() == [413]
    assert client.ended == "closed"
    assert [(ex.status, ex.request_bytes) for ex in client.records] == [(413, 0)]


def test_a_chunked_body_is_refused_at_the_size_line_that_exceeds_the_limit(client: Conversation) -> None:
    client.send(post("/small/a", "Transfer-Encoding: chunked"), b"8\r\n12345678\r\n")
    assert client.received == b""
    client.send(b"3\r\n")
    assert client.statuses() == [413]
    assert client.ended == "closed"


def test_heads_above_the_limit_are_a_431(client: Conversation) -> None:
    client.send(b"GET /now HTTP/1.1\r\nX: ", b"x" * LIMITS.max_header_bytes)
    assert client.statuses() == [431]
    assert client.ended == "closed"
    assert [ex.status for ex in client.records] == [431]


# -- refusals are final


@pytest.mark.parametrize(
    "bad",
    [
        b"GET /now HTTP/1.1\r\n\r\n",
        b"GET /now HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        b"GET /now HTTP/1.1\nHost: a\n\n",
        b"GET /now HTTP/1.1\r\nHost: a\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
        b"GET http://b/now HTTP/1.1\r\nHost: a\r\n\r\n",
        b"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n",
        b"\x16\x03\x01\x02\x00",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ],
)
def test_no_byte_after_a_refusal_is_ever_parsed(client: Conversation, bad: bytes) -> None:
    client.send(bad + get("/now/1"))
    client.channel.dataReceived(get("/now/2"))
    client.channel.dataReceived(get("/now/3"))
    assert client.targets == []
    assert client.statuses() == [400]
    assert client.ended == "closed"
    assert [(ex.status, ex.route) for ex in client.records] == [(400, None)]


def test_an_answer_while_the_body_still_comes_closes_the_connection(client: Conversation) -> None:
    """What follows could be the body or, to another reader, a request: it is neither."""
    client.send(post("/now", "Content-Length: 50"))
    assert client.statuses() == [200]
    assert b"Connection: close\r\n" in client.received
    assert client.ended == "closed"
    client.channel.dataReceived(get("/now/smuggled"))
    assert client.targets == [b"/now"]


def test_a_refusal_while_the_body_streams_fails_the_body(client: Conversation) -> None:
    taker = Taker()
    client.send(post("/held", "Transfer-Encoding: chunked"))
    client.request.body.stream_to(taker)
    client.send(b"5\r\nhello\r\n", b"zzz\r\n")
    assert taker.told == ["data", "failed"]
    assert client.statuses() == [400]


# -- shapes of answers


def test_head_gets_the_length_and_no_body(client: Conversation) -> None:
    client.send(get("/now", method="HEAD"), get("/now"))
    first, second = client.received.split(b"HTTP/1.1 ")[1:]
    assert b"Content-Length: 5\r\n" in first and first.endswith(b"\r\n\r\n")
    assert second.endswith(b"hello")


@pytest.mark.parametrize("status", [204, 304])
def test_an_answer_without_a_body_has_no_framing(client: Conversation, status: int) -> None:
    client.send(get("/held") + get("/now"))
    client.request.reply_head(status, b"x", b"", None, has_date=False)
    client.request.reply_body(b"never")
    client.request.reply_end()
    first, second = client.received.split(b"HTTP/1.1 ")[1:]
    assert first.endswith(b"\r\n\r\n")
    assert b"ength" not in first and b"chunked" not in first
    assert second.endswith(b"hello")


def test_http_1_0_is_answered_and_closed_and_needs_no_host(client: Conversation) -> None:
    client.send(b"GET /now HTTP/1.0\r\n\r\n")
    assert client.received.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"Connection: close\r\n" in client.received
    assert client.ended == "closed"


def test_a_body_of_unknown_length_is_chunked_for_http_1_1_and_ends_by_closing_for_1_0() -> None:
    for version, end, ended in (("1.1", b"5\r\nhello\r\n0\r\n\r\n", ""), ("1.0", b"\r\n\r\nhello", "closed")):
        client = Conversation()
        client.send(get("/held", version=version))
        client.request.reply_head(200, b"OK", b"", None, has_date=False)
        client.request.reply_body(b"hello")
        client.request.reply_end()
        assert client.received.endswith(end)
        assert client.ended == ended
        client.settled()


@pytest.mark.parametrize("line", ["Connection: close", "Connection: Close", "Connection: x, close"])
def test_connection_close_is_obeyed(client: Conversation, line: str) -> None:
    client.send(get("/now", line) + get("/now/2"))
    assert client.targets == [b"/now"]
    assert b"Connection: close\r\n" in client.received
    assert client.ended == "closed"


@pytest.mark.parametrize("length", [10, None])
@pytest.mark.parametrize("version", ["1.1", "1.0"])
def test_an_answer_that_cannot_be_completed_is_cut(client: Conversation, length: int | None, version: str) -> None:
    """Contract 13.6: no final chunk, too few bytes, or a RST where the end of the connection is the end of the body."""
    client.send(get("/held", version=version))
    client.request.reply_head(200, b"OK", b"", length, has_date=False)
    client.request.reply_body(b"hello")
    client.request.fail(GatewayError("x", status=502, code="bad_gateway"))
    assert client.ended == "cut"
    assert not client.received.endswith(b"0\r\n\r\n")
    assert [(ex.status, ex.error_type, ex.response_bytes) for ex in client.records] == [(200, "bad_gateway", 5)]


def test_an_answer_shorter_than_its_length_is_cut(client: Conversation) -> None:
    client.send(get("/held"))
    client.request.reply_head(200, b"OK", b"", 10, has_date=False)
    client.request.reply_body(b"hello")
    client.request.reply_end()
    assert client.ended == "cut"


# -- drain


def test_drain_closes_idle_connections_after_a_grace_and_lets_busy_ones_finish() -> None:
    idle = Conversation()
    busy = Conversation(site=idle.site, leaf=idle.leaf)
    late = Conversation(site=idle.site, leaf=idle.leaf)
    for one in (idle, late):
        one.send(get("/now"))
    busy.send(get("/held"))
    drained: list[None] = []
    idle.site.drain().addCallback(drained.append)
    late.send(get("/now"))
    assert late.received.count(b"Connection: close\r\n") == 1
    assert late.ended == "closed"
    idle.advance(1)
    assert (idle.ended, busy.ended) == ("closed", "")
    busy.leaf.requests[2].answer(200, (), b"done")
    assert b"Connection: close\r\n" in busy.received
    assert busy.ended == "closed"
    assert drained == []
    for one in (idle, busy, late):
        one.wire.lost()
    assert drained == [None]
    idle.settled()


def test_an_answer_begun_before_the_drain_ends_its_connection_soon_after(client: Conversation) -> None:
    client.send(get("/held"))
    client.request.reply_head(200, b"OK", b"", 5, has_date=False)
    client.request.reply_body(b"hel")
    client.site.drain()
    client.advance(5)
    client.request.reply_body(b"lo")
    client.request.reply_end()
    assert client.ended == ""
    client.advance(1)
    assert client.ended == "closed"


def test_a_handshake_that_ends_during_the_drain_finds_its_connection_closed() -> None:
    client = Conversation()
    other = Conversation(site=client.site)
    other.channel.transport = None  # as before the end of a TLS handshake
    client.site.drain()
    client.advance(1)
    other.wire.ended = ""
    other.channel.makeConnection(other.wire)
    assert other.ended == "cut"
    client.settled()


# -- the client goes


def test_a_client_that_leaves_before_any_request_is_not_logged(client: Conversation) -> None:
    client.wire.leave()
    assert client.records == []


def test_a_client_that_leaves_in_the_middle_of_a_head_is_not_a_request(client: Conversation) -> None:
    client.send(b"GET /no")
    client.wire.leave()
    assert client.records == []


def test_a_client_that_leaves_during_its_body_is_logged_once_as_499(client: Conversation) -> None:
    client.send(post("/echo", "Content-Length: 10"), b"hello")
    client.wire.leave()
    assert [(ex.status, ex.error_type, ex.request_bytes) for ex in client.records] == [(499, "client_gone", 5)]


def test_a_client_that_leaves_while_it_waits_is_logged_once_as_499_and_its_worker_told(client: Conversation) -> None:
    told: list[str] = []
    client.send(get("/held"))
    client.request.on_gone = lambda: told.append("gone")
    client.wire.leave()
    assert told == ["gone"]
    assert [(ex.status, ex.error_type) for ex in client.records] == [(499, "client_gone")]
    client.request.answer(200, (), b"too late")
    client.request.fail(GatewayError())
    assert [(ex.status, ex.error_type) for ex in client.records] == [(499, "client_gone")]
    assert client.received == b""


def test_a_client_that_leaves_in_the_middle_of_its_answer_keeps_its_status(client: Conversation) -> None:
    client.send(get("/held"))
    client.request.reply_head(200, b"OK", b"", 10, has_date=False)
    client.request.reply_body(b"hello")
    client.wire.leave()
    assert [(ex.status, ex.error_type, ex.response_bytes) for ex in client.records] == [(200, "client_gone", 5)]


def test_requests_pipelined_behind_a_client_that_left_are_not_begun(client: Conversation) -> None:
    client.send(get("/held") + get("/now"))
    client.wire.leave()
    client.turn()
    assert client.targets == [b"/held"]
    assert len(client.records) == 1


# -- properties


_PIECES = st.lists(
    st.sampled_from(
        [
            get("/now"),
            get("/now", method="HEAD"),
            post("/echo", body=b""),
            post("/echo", body=b"GET /no HTTP/1.1\r\nHost: a\r\n\r\n"),
            post("/echo", "Transfer-Encoding: chunked") + b"3;e=1\r\nabc\r\n2\r\nde\r\n0\r\nT: 1\r\n\r\n",
            post("/echo", "Transfer-Encoding: chunked") + b"0\r\n\r\n",
        ]
    ),
    min_size=1,
    max_size=6,
)


@given(_PIECES, st.lists(st.integers(1, 60), max_size=40))
@settings(max_examples=150, deadline=None)
def test_segmentation_never_changes_what_was_asked_and_answered(requests: list[bytes], sizes: list[int]) -> None:
    client = Conversation()
    stream, segments = b"".join(requests), []
    for size in sizes:
        segments.append(stream[:size])
        stream = stream[size:]
    client.send(*[segment for segment in [*segments, stream] if segment])
    assert client.statuses() == [200] * len(requests)
    assert len(client.leaf.requests) == len(client.records) == len(requests)
    assert client.ended == ""
    client.settled()


@given(st.lists(st.binary(min_size=1, max_size=40), max_size=10), _PIECES, st.integers(0, 400))
@settings(max_examples=150, deadline=None)
def test_any_bytes_get_answers_or_a_closed_connection_and_exact_books(
    noise: list[bytes], requests: list[bytes], cut: int
) -> None:
    client = Conversation(evolve(LIMITS, max_header_bytes=512))
    client.send(b"".join(requests)[:cut] or b"G", *noise)
    client.advance(120)
    assert client.ended == "closed"
    assert len(client.statuses()) == len(client.records)
    assert [ex.status for ex in client.records] == client.statuses()
    assert 500 not in client.statuses()
    client.settled()
