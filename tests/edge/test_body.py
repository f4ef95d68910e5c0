"""A request's body: counted, held while small, handed on while large, never whole when it is not."""

import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.http1 import MalformedMessage
from apigw.edge.body import RequestBody, TooLarge

NO_LIMIT = 1 << 40


class Taker:
    """A consumer that writes down what it gets."""

    def __init__(self) -> None:
        self.data = b""
        self.ends: list[str] = []

    def body_data(self, data: bytes) -> None:
        assert not self.ends
        assert data
        self.data += data

    def body_end(self) -> None:
        self.ends.append("end")

    def body_failed(self) -> None:
        self.ends.append("failed")


def chunked(pieces: list[bytes]) -> bytes:
    return b"".join(b"%x\r\n%b\r\n" % (len(piece), piece) for piece in pieces if piece) + b"0\r\n\r\n"


def test_no_length_or_a_length_of_zero_is_complete_at_once() -> None:
    assert RequestBody(None, False).complete
    assert RequestBody(0, False).complete
    assert not RequestBody(1, False).complete
    assert not RequestBody(None, True).complete


@given(st.binary(max_size=300), st.binary(max_size=50), st.integers(0, 300), st.integers(1, 40), st.booleans())
def test_every_byte_comes_once_in_order_and_what_follows_is_given_back(
    payload: bytes, after: bytes, taken_after: int, step: int, as_chunks: bool
) -> None:
    """Whenever a consumer takes over: what was held and what it gets are the payload; the rest is not touched."""
    body = RequestBody(None if as_chunks else len(payload), as_chunks)
    stream = (chunked([payload[:7], payload[7:]]) if as_chunks else payload) + after
    taker, held, rest = Taker(), None, b""
    at = 0
    while not body.complete:
        if at >= taken_after and held is None:
            held = body.take()
            body.stream_to(taker)
        segment, at = stream[at : at + step], at + step
        rest = body.receive(segment, NO_LIMIT)
    assert (held if held is not None else body.take()) + taker.data == payload
    assert rest + stream[at:] == after if payload or as_chunks else True
    assert taker.ends == (["end"] if held is not None else [])
    assert body.received == len(payload)
    assert body.held == 0


def test_ready_at_once_for_a_complete_body_or_one_announced_as_larger() -> None:
    called: list[str] = []
    RequestBody(0, False).when_ready(10, lambda: called.append("empty"))
    RequestBody(11, False).when_ready(10, lambda: called.append("large"))
    RequestBody(10, False).when_ready(10, lambda: called.append("small"))
    assert called == ["empty", "large"]


def test_ready_once_when_a_small_body_is_whole() -> None:
    called: list[bytes] = []
    body = RequestBody(5, False)
    body.when_ready(10, lambda: called.append(body.take()))
    body.receive(b"he", NO_LIMIT)
    assert called == []
    assert body.receive(b"lloGET", NO_LIMIT) == b"GET"
    assert called == [b"hello"]


def test_ready_once_when_a_chunked_body_outgrows_the_buffer() -> None:
    called: list[int] = []
    body = RequestBody(None, True)
    body.when_ready(10, lambda: called.append(body.held))
    body.receive(b"8\r\n12345678\r\n", NO_LIMIT)
    assert called == []
    body.receive(b"8\r\n12345678\r\n", NO_LIMIT)
    body.receive(b"8\r\n12345678\r\n", NO_LIMIT)
    assert called == [16]


def test_a_size_line_beyond_the_limit_is_refused_before_its_bytes_come() -> None:
    body = RequestBody(None, True)
    body.receive(b"8\r\n12345678\r\n", 10)
    with pytest.raises(TooLarge):
        body.receive(b"3\r\n", 10)


def test_a_malformed_chunk_raises() -> None:
    with pytest.raises(MalformedMessage):
        RequestBody(None, True).receive(b"zz\r\n", NO_LIMIT)


def test_a_body_that_fails_tells_its_consumer_once_and_never_says_end() -> None:
    body, taker = RequestBody(5, False), Taker()
    body.stream_to(taker)
    body.receive(b"he", NO_LIMIT)
    body.fail()
    body.fail()
    body.receive(b"llo", NO_LIMIT)
    assert (taker.data, taker.ends) == (b"he", ["failed"])


def test_a_stopped_body_is_counted_and_kept_nowhere_once_taken() -> None:
    called: list[None] = []
    body = RequestBody(5, False)
    body.receive(b"he", NO_LIMIT)
    body.when_ready(10, lambda: called.append(None))
    body.stop()
    body.receive(b"llo", NO_LIMIT)
    assert (body.received, called) == (5, [])
    assert body.complete


def test_tiny_chunks_are_taken_in_portions() -> None:
    body, taker = RequestBody(None, True), Taker()
    body.stream_to(taker)
    body.receive(b"1\r\nb\r\n" * 1200 + b"0\r\n\r\n", NO_LIMIT)
    portions = 1
    while body.more:
        body.receive(b"", NO_LIMIT)
        portions += 1
    assert portions > 1
    assert (taker.data, taker.ends) == (b"b" * 1200, ["end"])


def test_a_held_body_takes_its_size_however_small_the_segments_were() -> None:
    body = RequestBody(60_000, False)
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(30_000):
            body.receive(bytes((number % 256, 7)), NO_LIMIT)
        held = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert held < 2 * 60_000
    assert body.take() == b"".join(bytes((number % 256, 7)) for number in range(30_000))
