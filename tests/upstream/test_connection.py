"""What a backend may answer, as transcripts of one connection: believed, refused, cut, kept or closed."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from apigw.config.model import Backend, Instance
from apigw.constants import MAX_RESPONSE_HEADER_BYTES
from apigw.core.http1 import Head
from apigw.net.deadlines import Deadlines
from apigw.testing import MemoryConnector, MemoryTransport
from apigw.upstream.connection import INVALID, RESET, TRUNCATED, UpstreamConnection
from apigw.upstream.pool import Pool

OK = b"HTTP/1.1 200 OK\r\n"
HELLO = OK + b"Content-Length: 5\r\n\r\nhello"
CHUNKED = OK + b"Transfer-Encoding: chunked\r\n\r\n"


class Sink:
    """A request: `told` is what it heard, in order."""

    timeout_s = 5.0
    guarded = True

    def __init__(self) -> None:
        self.connection: UpstreamConnection | None = None
        self.body = b""
        self.told: list[str] = []
        self.status = 0
        self.pauses = False

    def pool_ready(self, connection: UpstreamConnection) -> None:
        self.connection = connection

    def pool_failed(self, reason: str, detail: str, instance: str | None) -> None:
        self.told.append(reason)

    def reply_head(self, head: Head) -> None:
        assert self.told == []
        self.status = head.status
        self.told.append("head")

    def reply_body(self, data: bytes) -> None:
        assert self.told == ["head"]
        self.body += data
        if self.pauses:
            assert self.connection is not None
            self.connection.pause(True)

    def reply_flush(self) -> None:
        assert self.told == ["head"]

    def reply_end(self) -> None:
        assert self.told == ["head"]
        self.told.append("end")

    def reply_failed(self, reason: str, detail: str) -> None:
        assert self.told in ([], ["head"])
        self.told.append(reason)

    @property
    def ended(self) -> bool:
        return self.told[-1:] not in ([], ["head"])


class Talk:
    """One connection in a pool of one, and the requests on it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.connector = MemoryConnector()
        backend = Backend("users", (Instance("10.0.0.1", 80),), max_connections=1)
        deadlines = Deadlines(self.clock)
        self.pool = Pool(self.clock, deadlines, self.connector, backend)  # type: ignore[arg-type]

    def ask(self, to_head: bool = False, whole: bool = True) -> Sink:
        sink = Sink()
        self.pool.acquire(sink)
        if sink.connection is None:
            self.connector.attempts[0].succeed()
        assert sink.connection is not None
        sink.connection.begin(sink, to_head, b"request", whole)
        return sink

    @property
    def transport(self) -> MemoryTransport:
        return self.connector.transports[-1]

    def says(self, *pieces: bytes) -> None:
        for piece in pieces:
            if not self.transport.dead:
                self.transport.arrive(piece)

    def turns(self, count: int = 50) -> None:
        for _ in range(count):
            self.clock.advance(0)


def test_an_answer_by_length_is_handed_on_and_the_connection_kept() -> None:
    talk = Talk()
    for _ in range(3):
        sink = talk.ask()
        talk.says(HELLO)
        assert (sink.status, sink.body, sink.told) == (200, b"hello", ["head", "end"])
    assert len(talk.connector.transports) == 1


@given(st.lists(st.integers(1, 30), max_size=30), st.sampled_from(["length", "chunked", "interim"]))
@settings(deadline=None)
def test_segmentation_changes_nothing(sizes: list[int], kind: str) -> None:
    answer = {
        "length": HELLO,
        "chunked": CHUNKED + b"3;x=y\r\nhel\r\n2\r\nlo\r\n0\r\nTrailer: dropped\r\n\r\n",
        "interim": b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: a\r\n\r\n" + HELLO,
    }[kind]
    talk = Talk()
    for _ in range(2):
        sink, rest = talk.ask(), answer
        for size in sizes:
            talk.says(rest[:size]) if rest[:size] else None
            rest = rest[size:]
        talk.says(rest) if rest else None
        assert (sink.status, sink.body, sink.told) == (200, b"hello", ["head", "end"])
    assert len(talk.connector.transports) == 1


@pytest.mark.parametrize(
    ("to_head", "answer"),
    [
        (True, OK + b"Content-Length: 5\r\n\r\n"),
        (True, CHUNKED),
        (True, OK + b"\r\n"),
        (False, b"HTTP/1.1 204 No Content\r\n\r\n"),
        (False, b"HTTP/1.1 204 No Content\r\nContent-Length: 5\r\n\r\n"),
        (False, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n"),
        (False, OK + b"Content-Length: 0\r\n\r\n"),
    ],
)
def test_an_answer_without_a_body_ends_with_its_head(to_head: bool, answer: bytes) -> None:
    talk = Talk()
    sink = talk.ask(to_head)
    talk.says(answer)
    assert (sink.body, sink.told) == (b"", ["head", "end"])
    assert talk.pool.idle == 1


@pytest.mark.parametrize(
    ("to_head", "answer"),
    [
        (False, HELLO + b"!"),
        (False, HELLO + HELLO),
        (True, HELLO),
        (False, b"HTTP/1.1 204 No Content\r\n\r\nbody"),
        (False, b"HTTP/1.1 304 Not Modified\r\nContent-Length: 4\r\n\r\nbody"),
        (False, CHUNKED + b"0\r\n\r\nHTTP/1.1 200 OK\r\n"),
    ],
)
def test_bytes_behind_an_answer_end_its_connection(to_head: bool, answer: bytes) -> None:
    """They would be the answer to the next request."""
    talk = Talk()
    sink = talk.ask(to_head)
    talk.says(answer)
    assert sink.told == ["head", "end"]
    assert (talk.transport.dead, talk.pool.open) == (True, 0)


def test_bytes_that_nobody_asked_for_end_an_idle_connection() -> None:
    talk = Talk()
    talk.ask()
    talk.says(HELLO)
    talk.says(HELLO)
    assert (talk.transport.dead, talk.pool.open) == (True, 0)


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH\r\n",
        b"\x15\x03\x01\x00\x02\x02P",
        b"HTTP/2 200 OK\r\n\r\n",
        b"HTTP/1.1 99 x\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\nConnection: upgrade\r\n\r\n",
        b"HTTP/1.1 100 Continue\r\n\r\n" * 17 + HELLO,
        OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello",
        OK + b"Content-Length: 5, 5\r\n\r\nhello",
        OK + b"Content-Length: +5\r\n\r\nhello",
        OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        OK + b"X: a\x00b\r\n\r\n",
        OK + b"X : a\r\n\r\n",
        OK + b"X: a\r\n folded\r\n\r\n",
        b"HTTP/1.1 200 OK\nContent-Length: 5\n\nhello",
        OK + b"X: " + b"a" * MAX_RESPONSE_HEADER_BYTES + b"\r\n\r\n",
    ],
)
def test_what_is_no_answer_is_refused_before_anything_of_it_is_shown(answer: bytes) -> None:
    talk = Talk()
    sink = talk.ask()
    talk.says(answer)
    if not talk.transport.dead:  # bare LF: no end of the head in sight
        talk.transport.end()
    assert sink.told in ([INVALID], [RESET])
    assert (talk.transport.dead, talk.pool.open) == (True, 0)


@pytest.mark.parametrize("bad", [b"zz\r\n", b"5\r\nhelloX", b"-5\r\n", b"5\nhello", b"0\r\nbad\r\n", b"f" * 17])
def test_a_malformed_chunk_is_a_broken_answer(bad: bytes) -> None:
    talk = Talk()
    sink = talk.ask()
    talk.says(CHUNKED, bad)
    assert sink.told == ["head", INVALID]
    assert talk.transport.dead


@pytest.mark.parametrize("clean", [True, False])
@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        (b"", [RESET]),
        (b"HTTP/1.1 20", [RESET]),
        (b"HTTP/1.1 100 Continue\r\n\r\n", [RESET]),
        (OK + b"Content-Length: 5\r\n\r\n", ["head", TRUNCATED]),
        (OK + b"Content-Length: 5\r\n\r\nhell", ["head", TRUNCATED]),
        (CHUNKED, ["head", TRUNCATED]),
        (CHUNKED + b"5\r\nhello\r\n", ["head", TRUNCATED]),
        (CHUNKED + b"5\r\nhello\r\n0\r\n", ["head", TRUNCATED]),
    ],
)
def test_an_end_in_the_middle_is_never_an_end_of_the_answer(said: bytes, outcome: list[str], clean: bool) -> None:
    talk = Talk()
    sink = talk.ask()
    talk.says(said) if said else None
    talk.transport.end(clean)
    assert sink.told == outcome
    assert (talk.pool.open, talk.pool.busy) == (0, 0)


@pytest.mark.parametrize(("clean", "outcome"), [(True, "end"), (False, TRUNCATED)])
def test_a_body_to_the_end_of_the_connection_ends_with_fin_and_not_with_rst(clean: bool, outcome: str) -> None:
    talk = Talk()
    sink = talk.ask()
    talk.says(OK + b"\r\nhel", b"lo")
    talk.transport.end(clean)
    assert (sink.body, sink.told) == (b"hello", ["head", outcome])


@pytest.mark.parametrize(
    "answer",
    [
        OK + b"Connection: close\r\nContent-Length: 5\r\n\r\nhello",
        OK + b"Connection: x, Close\r\nContent-Length: 5\r\n\r\nhello",
        b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nhello",
    ],
)
def test_a_backend_that_will_close_is_not_asked_again(answer: bytes) -> None:
    talk = Talk()
    sink = talk.ask()
    talk.says(answer)
    assert sink.told == ["head", "end"]
    assert talk.transport.dead


def test_an_answer_before_the_request_was_whole_ends_the_connection() -> None:
    """The rest of the body would be the start of the next request."""
    talk = Talk()
    sink = talk.ask(whole=False)
    talk.says(HELLO)
    assert sink.told == ["head", "end"]
    assert talk.transport.dead


def test_what_came_before_a_send_that_failed_may_be_an_answer_to_what_was_sent_and_to_nothing_else() -> None:
    """A 408 for an idle connection is none to the request whose first byte its backend never got."""
    talk = Talk()
    connection = talk.ask(whole=False).connection
    assert connection is not None
    for waiting, heard in ((len(b"request"), False), (len(b"request") - 1, True), (0, True)):
        talk.transport.buffered_bytes = lambda count=waiting: count  # type: ignore[method-assign,misc]
        assert connection.hears_last_words is heard
    connection.more(b"body", False)
    for waiting, heard in ((len(b"requestbody"), False), (len(b"body"), True)):
        talk.transport.buffered_bytes = lambda count=waiting: count  # type: ignore[method-assign,misc]
        assert connection.hears_last_words is heard


def test_an_answer_while_the_request_still_waits_to_be_sent_ends_the_connection() -> None:
    talk = Talk()
    sink = talk.ask()
    talk.transport.buffered_bytes = lambda: 1  # type: ignore[method-assign]
    talk.says(HELLO)
    assert sink.told == ["head", "end"]
    assert talk.transport.dead


def test_tiny_chunks_are_taken_apart_in_several_turns_while_nothing_is_read() -> None:
    talk = Talk()
    sink = talk.ask()
    talk.says(CHUNKED, b"1\r\nb\r\n" * 5000)
    assert 0 < len(sink.body) < 1000
    assert not talk.transport.reading
    talk.says(b"0\r\n\r\n")
    talk.turns()
    talk.says(b"") if talk.transport.unread else None
    assert (sink.body, sink.told) == (b"b" * 5000, ["head", "end"])
    assert talk.transport.reading


def test_what_is_left_of_a_read_is_handed_on_when_a_slow_client_wants_more() -> None:
    """Its last chunk came long ago, so that no further read will wake it."""
    talk = Talk()
    sink = talk.ask()
    sink.pauses = True
    talk.says(CHUNKED, b"1\r\nb\r\n" * 3000 + b"0\r\n\r\n")
    talk.turns()
    assert not sink.ended
    sink.pauses = False
    assert sink.connection is not None
    sink.connection.pause(False)
    talk.turns()
    assert (sink.body, sink.told) == (b"b" * 3000, ["head", "end"])
    assert (talk.pool.idle, talk.transport.reading) == (1, True)


def test_a_paused_answer_is_not_read_and_the_next_request_is() -> None:
    talk = Talk()
    sink = talk.ask()
    talk.says(OK + b"Content-Length: 5\r\n\r\nhel")
    assert sink.connection is not None
    sink.connection.pause(True)
    talk.says(b"lo")
    assert sink.body == b"hel"
    sink.connection.pause(False)
    talk.says(b"")
    assert sink.told == ["head", "end"]
    again = talk.ask()
    talk.says(HELLO)
    assert again.body == b"hello"


def test_a_detached_answer_is_read_by_nobody_and_the_next_one_by_its_own() -> None:
    talk = Talk()
    sink = talk.ask()
    assert sink.connection is not None
    sink.connection.detach()
    talk.says(HELLO)
    assert sink.told == []
    again = talk.ask()
    talk.says(OK + b"Content-Length: 5\r\n\r\nworld")
    assert (again.body, len(talk.connector.transports)) == (b"world", 1)


@pytest.mark.parametrize(("whole", "said"), [(False, b""), (True, OK + b"Content-Length: 5\r\n\r\nhel")])
def test_half_a_request_or_half_an_answer_is_cut_when_nobody_waits(whole: bool, said: bytes) -> None:
    talk = Talk()
    sink = talk.ask(whole=whole)
    talk.says(said) if said else None
    assert sink.connection is not None
    sink.connection.detach()
    assert (talk.transport.dead, sink.ended, talk.pool.open) == (True, False, 0)


def test_detached_answers_add_up_one_by_one() -> None:
    """The limit of an answer that nobody waits for is of one answer, not of a connection's life."""
    talk = Talk()
    for _ in range(4):
        sink = talk.ask()
        assert sink.connection is not None
        sink.connection.detach()
        talk.says(OK + b"Content-Length: 100000\r\n\r\n", b"a" * 100_000)
    assert len(talk.connector.transports) == 1


@given(
    st.lists(st.one_of(st.binary(min_size=1, max_size=40), st.sampled_from([OK, CHUNKED, HELLO, b"5\r\nhello\r\n"])))
)
@settings(max_examples=300, deadline=None)
def test_any_bytes_give_one_outcome_and_exact_books(said: list[bytes]) -> None:
    talk = Talk()
    sink: Any = talk.ask()
    talk.says(*said)
    talk.turns(3)
    if not talk.transport.dead:
        talk.transport.end()
    assert sink.ended
    assert (talk.pool.open, talk.pool.busy, talk.pool.idle) == (0, 0, 0)
