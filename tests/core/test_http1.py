"""Heads and chunked bodies: by a corpus, against a small reference, split anywhere, and in bounded time."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.constants import MAX_HEADERS
from apigw.core import http1
from apigw.core.http1 import ChunkDecoder, Head, MalformedMessage, impossible, request_head, response_head
from tests.corpus.http1_requests import CHUNKED, HEADS, INCOMPLETE, Verdict


def framing(head: Head) -> Verdict:
    if head.chunked:
        assert head.content_length is None
        return "chunked"
    return head.content_length or 0


@pytest.mark.parametrize(("data", "verdict", "why"), HEADS, ids=[why for *_, why in HEADS])
def test_every_request_head_of_the_corpus_has_its_verdict(data: bytes, verdict: Verdict, why: str) -> None:
    if verdict is None:
        with pytest.raises(MalformedMessage):
            request_head(data)
    else:
        assert framing(request_head(data)) == verdict


@pytest.mark.parametrize("data", [data for data, verdict, _ in HEADS if verdict is not None])
def test_no_beginning_of_a_good_head_is_called_impossible(data: bytes) -> None:
    """Else a slow client's good request would be refused. The channel looks at each piece as it comes."""
    for end in range(len(data) - 3):
        assert not impossible(data[:end], 0)
        assert not impossible(data[:end], max(0, end - 1))


@pytest.mark.parametrize(
    "data",
    [
        b"GET / HTTP/1.1\n",
        b"GET / HTTP/1.1\r\nHost: a\n",
        b"GET / HTTP/1.1\rX",
        b"GET / HTTP/1.1\r\nA: b\r\rX",
        b"GET /\x00",
        b"\x16\x03\x01",
        b"GET / HTTP/1.1\r\nA: \x7f",
        b"GET / HTTP/3.1\r\n",
        b"GET /a b HTTP/1.1\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"hello\r\n",
    ],
)
def test_what_can_never_become_a_head_is_known_before_it_ends(data: bytes) -> None:
    assert impossible(data, 0)
    assert any(impossible(data[:end], max(0, end - 1)) for end in range(1, len(data) + 1))


def test_the_corpus_is_large() -> None:
    assert len({data for data, *_ in HEADS}) == len(HEADS) >= 120
    assert len({data for data, *_ in CHUNKED}) == len(CHUNKED) >= 60


def test_a_head_is_taken_apart() -> None:
    head = request_head(
        b"POST /a?b HTTP/1.1\r\nHost: gw.test\r\nX-A:  b \t\r\nx-a:\r\nX-a: c\r\nCookie: d=e\r\ncookie: f=g\r\n"
        b"Content-Length: 12\r\n\r\n"
    )
    assert (head.method, head.target, head.http10, head.content_length) == ("POST", b"/a?b", False, 12)
    assert head.headers == [
        (b"Host", b"host", b"gw.test"),
        (b"X-A", b"x-a", b"b"),
        (b"x-a", b"x-a", b""),
        (b"X-a", b"x-a", b"c"),
        (b"Cookie", b"cookie", b"d=e"),
        (b"cookie", b"cookie", b"f=g"),
        (b"Content-Length", b"content-length", b"12"),
    ]
    assert head.fields[b"x-a"] == b"b, , c" and head.fields[b"cookie"] == b"d=e; f=g"


# -- against a reference that reads byte by byte

TOKEN = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
VALUE = frozenset(range(0x20, 0x7F)) | frozenset(range(0x80, 0x100)) | {0x09}
METHODS = frozenset((b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"TRACE"))
ONCE = {b"host", b"content-length", b"transfer-encoding", b"authorization", b"x-api-key", b"expect", b"content-type"}


def reference(data: bytes) -> list[tuple[bytes, bytes]] | None:
    """The header lines of an acceptable head, or None; the grammar of RFC 9112 and the house's table, no regex."""
    if not data.endswith(b"\r\n\r\n"):
        return None
    first, *lines = data[:-4].split(b"\r\n")
    parts = first.split(b" ")
    if len(parts) != 3 or parts[0] not in METHODS or parts[2] not in (b"HTTP/1.0", b"HTTP/1.1"):
        return None
    if parts[1][:1] != b"/" or any(not 0x21 <= octet <= 0x7E for octet in parts[1]):
        return None
    found: list[tuple[bytes, bytes]] = []
    for one in lines:
        name, colon, value = one.partition(b":")
        if not colon or not name or set(name) - TOKEN or set(value) - VALUE:
            return None
        found.append((name, value.strip(b" \t")))
    return found if acceptable(found, parts[2]) else None


def acceptable(found: list[tuple[bytes, bytes]], version: bytes) -> bool:
    names = [name.lower() for name, _ in found]
    if len(found) > MAX_HEADERS or any(names.count(name) > 1 for name in ONCE):
        return False
    fields = {name.lower(): value for name, value in found}
    coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
    if coding is not None and (length is not None or coding.lower() != b"chunked" or version == b"HTTP/1.0"):
        return False
    return length is None or (0 < len(length) <= 18 and not set(length) - set(b"0123456789"))


names = st.sampled_from(
    [b"Host", b"Content-Length", b"content-length", b"Transfer-Encoding", b"X-A", b"A", b"Accept", b"Connection",
     b"Expect", b"X-API-Key", b"A b", b"", b"A ", b"\x80", b"Upgrade", b"Keep-Alive", b"Proxy-Connection"]
)  # fmt: skip
values = st.one_of(
    st.sampled_from([b"", b"0", b"5", b"chunked", b"Chunked", b"close", b"keep-alive", b"gzip, chunked", b"1, 1", b"-1",
                     b"gw.test", b"a:b", b"\t x \t", b"\xe9", b"\x85", b"\x00", b"a\rb", b"a\nb", b"upgrade",
                     b"a\r\n b"]),
    st.binary(max_size=5),
)  # fmt: skip
header_lines = st.lists(
    st.tuples(names, st.sampled_from([b":", b": ", b":\t", b" :", b""]), values).map(b"".join), max_size=5
)
request_lines = st.one_of(
    st.sampled_from([b"GET / HTTP/1.1", b"POST /a HTTP/1.1", b"PUT /a HTTP/1.0", b"GET  / HTTP/1.1"]),
    st.tuples(
        st.sampled_from([b"GET", b"POST", b"HEAD", b"FOO", b"G T", b""]),
        st.sampled_from([b" ", b" ", b"  ", b"\t"]),
        st.binary(max_size=4).map(lambda rest: b"/" + rest),
        st.sampled_from([b" ", b" ", b"  "]),
        st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"http/1.1", b"HTTP/1.1 "]),
    ).map(b"".join),
)
heads = st.tuples(request_lines, header_lines).map(lambda head: b"\r\n".join((head[0], *head[1])) + b"\r\n\r\n")


@settings(max_examples=300)
@given(heads)
def test_a_head_is_accepted_exactly_when_the_reference_accepts_it_and_read_alike(data: bytes) -> None:
    try:
        head = request_head(data)
    except MalformedMessage:
        assert reference(data) is None
    else:
        assert [(name, value) for name, _, value in head.headers] == reference(data)


@settings(max_examples=500)
@given(st.one_of(st.binary(max_size=60), heads), st.data())
def test_no_bytes_raise_anything_but_malformed(data: bytes, draw: st.DataObject) -> None:
    """Also a good head with some byte changed."""
    if data:
        at = draw.draw(st.integers(0, len(data) - 1))
        data = data[:at] + draw.draw(st.binary(max_size=2)) + data[at + 1 :]
    for parse in (request_head, lambda data: response_head(data, False)):
        try:
            parse(data)
        except MalformedMessage as error:
            assert str(error)
    impossible(data, 0)


# -- answers

OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("data", "to_head", "expected"),
    [
        (OK + b"Content-Length: 5\r\n\r\n", False, 5),
        (OK + b"Content-Length: 5\r\n\r\n", True, 0),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", False, "chunked"),
        (OK + b"Transfer-Encoding: chunked\r\n\r\n", True, 0),
        (OK + b"\r\n", False, "to the end"),
        (b"HTTP/1.0 200 OK\r\n\r\n", False, "to the end"),
        (b"HTTP/1.1 200\r\nContent-Length: 1\r\n\r\n", False, 1),
        (b"HTTP/1.1 200 \r\nContent-Length: 1\r\n\r\n", False, 1),
        (b"HTTP/1.1 204 No Content\r\n\r\n", False, 0),
        (b"HTTP/1.1 204 No Content\r\nTransfer-Encoding: chunked\r\n\r\n", False, 0),
        (b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", False, 0),
        (b"HTTP/1.1 100 Continue\r\n\r\n", False, 0),
        (b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", False, 0),
        (b"HTTP/1.1 599 Own\r\nContent-Length: 0\r\n\r\n", False, 0),
        (OK + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\n", False, 3),
        (OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\n", False, None),
        (OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", False, None),
        (OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n", False, None),
        (OK + b"Content-Length: 0x5\r\n\r\n", False, None),
        (b"HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", False, None),
        (b"HTTP/1.1 200 OK\nA: b\r\n\r\n", False, None),
        (OK + b"A: b\r\n c\r\n\r\n", False, None),
        (OK + b"A : b\r\n\r\n", False, None),
        (OK + b"A: b\x00\r\n\r\n", False, None),
        (OK + b"A: b\rC: d\r\n\r\n", False, None),
        (b"HTTP/1.1 20 OK\r\n\r\n", False, None),
        (b"HTTP/1.1 2000 OK\r\n\r\n", False, None),
        (b"HTTP/1.1 099 OK\r\n\r\n", False, None),
        (b"HTTP/1.1 600 OK\r\n\r\n", False, None),
        (b"HTTP/1.1 2x0 OK\r\n\r\n", False, None),
        (b"HTTP/1.1  200 OK\r\n\r\n", False, None),
        (b"HTTP/2 200\r\n\r\n", False, None),
        (b"http/1.1 200 OK\r\n\r\n", False, None),
        (b"ICY 200 OK\r\n\r\n", False, None),
        (b"HTTP/1.1 200 O\x07K\r\n\r\n", False, None),
        (b"SSH-2.0-x\r\n\r\n", False, None),
        (b"\r\n\r\n", False, None),
        (OK + b"A:\r\n" * 16_000 + b"\r\n", False, None),
    ],
)
def test_an_answer_is_framed_by_its_head_alone(data: bytes, to_head: bool, expected: object) -> None:
    if expected is None:
        with pytest.raises(MalformedMessage):
            response_head(data, to_head)
        return
    head = response_head(data, to_head)
    assert (head.chunked, head.content_length) == {
        "chunked": (True, None),
        "to the end": (False, None),
    }.get(expected, (False, expected))  # type: ignore[call-overload]


def test_lines_that_a_backend_repeats_are_remembered_within_bounds() -> None:
    """Each answer of it has lines of its own besides, and some are long."""
    for number in range(3000):
        long = b"X-Long: " + b"%d" % number * 200
        head = response_head(b"HTTP/1.1 200 OK\r\nServer:  x \r\nX-Id: %d\r\n%b\r\n\r\n" % (number, long), False)
        assert head.headers[:2] == [(b"Server", b"server", b"x"), (b"X-Id", b"x-id", b"%d" % number)]
    assert len(http1._lines) <= 1024 and max(map(len, http1._lines)) <= 128


def test_status_and_reason_are_kept() -> None:
    head = response_head(b"HTTP/1.1 418 I'm a \xe9 teapot\r\n\r\n", False)
    assert (head.status, head.reason) == (418, b"I'm a \xe9 teapot")


# -- chunked bodies


def decode(pieces: list[bytes]) -> tuple[bytes | str | None, bytes]:
    """(payload or verdict, rest): pieces behind the end of the body belong to the rest."""
    decoder = ChunkDecoder()
    payload: list[bytes] = []
    rest = b""
    try:
        for piece in pieces:
            if decoder.done:
                rest += piece
                continue
            payload += decoder.feed(piece)
            while decoder.more:
                payload += decoder.feed(b"")
            if decoder.done:
                rest = decoder.rest
    except MalformedMessage:
        return None, b""
    return (b"".join(payload), rest) if decoder.done else (INCOMPLETE, b"")


def split(data: bytes, cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [data[start:end] for start, end in zip(edges, edges[1:])]


@pytest.mark.parametrize(("data", "payload", "rest", "why"), CHUNKED, ids=[why for *_, why in CHUNKED])
def test_every_chunked_body_of_the_corpus_has_its_verdict(
    data: bytes, payload: bytes | str | None, rest: bytes, why: str
) -> None:
    """Whole, byte by byte, and cut in two at each place."""
    assert decode([data]) == (payload, rest)
    if len(data) < 10_000:
        assert decode([data[at : at + 1] for at in range(len(data))]) == (payload, rest)
    if len(data) < 500:
        for cut in range(len(data)):
            assert decode([data[:cut], data[cut:]]) == (payload, rest)


chunk_pieces = st.lists(
    st.sampled_from(
        [b"0", b"1", b"5", b"a", b"F", b"\r\n", b"\r\n", b"\r", b"\n", b";", b"x=y", b"hello", b"A: b", b" ", b"\t",
         b":", b"\x00", b"\xff", b"0\r\n\r\n", b"5\r\nhello\r\n", b"1\r\na\r\n", b"000000000000000", b"-",
         b"g", b"q" * 280]
    ),
    max_size=12,
).map(b"".join)  # fmt: skip


@settings(max_examples=1000)
@given(chunk_pieces, st.lists(st.integers(0, 10_000), max_size=8))
def test_the_verdict_does_not_depend_on_how_the_bytes_come(data: bytes, cuts: list[int]) -> None:
    assert decode(split(data, cuts)) == decode([data])


@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=300), st.sampled_from([b"", b";a=b", b" ; x"])), max_size=20),
    st.lists(st.sampled_from([b"A: b", b"X-User-ID: 1", b"C:"]), max_size=3),
    st.binary(max_size=20),
    st.lists(st.integers(0, 100_000), max_size=8),
)
def test_what_was_chunked_comes_back(
    chunks: list[tuple[bytes, bytes]], trailers: list[bytes], rest: bytes, cuts: list[int]
) -> None:
    data = b"".join(b"%X%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk, extension in chunks)
    data += b"0\r\n" + b"".join(trailer + b"\r\n" for trailer in trailers) + b"\r\n" + rest
    assert decode(split(data, cuts)) == (b"".join(chunk for chunk, _ in chunks), rest)


def test_a_declared_size_is_known_before_its_bytes_come() -> None:
    """So that a body above the route's limit is refused at its size line."""
    decoder = ChunkDecoder()
    decoder.feed(b"5\r\nhello\r\nFFFFFF\r\n")
    assert decoder.declared_bytes == 5 + 0xFFFFFF


def test_tiny_chunks_cannot_hold_the_loop_they_are_taken_in_turns() -> None:
    decoder = ChunkDecoder()
    data = b"1\r\nx\r\n" * 10_000 + b"0\r\n\r\nrest"
    payload = decoder.feed(data)
    assert decoder.more and len(payload) == 500
    turns = 1
    while decoder.more:
        payload += decoder.feed(b"")
        turns += 1
    assert turns == 21 and b"".join(payload) == b"x" * 10_000
    assert decoder.done and decoder.rest == b"rest"


def test_framing_may_not_outweigh_the_body_without_bound() -> None:
    """One-byte chunks pass; one-byte chunks with long extensions end after 16 KiB."""
    assert decode([b"1\r\nx\r\n" * 50_000 + b"0\r\n\r\n"])[0] == b"x" * 50_000
    decoder = ChunkDecoder()
    fed = 0
    with pytest.raises(MalformedMessage):
        while fed < 1_000_000:
            fed += 41
            decoder.feed(b"1;" + b"a" * 34 + b"\r\nx\r\n")
    assert fed < 64_000


HOSTILE_HEADS = [
    b"GET / HTTP/1.1\r\n" + b"a:\r\n" * 2040 + b"\r\n",
    b"GET / HTTP/1.1\r\n" + b"a:" + b"b" * 8100 + b"\x01\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a" * 8100 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"a: \t" * 2000 + b"\r\n\r\n",
    b"GET /" + b"a" * 8100 + b"\r\n\r\n",
    b"A" * 8180 + b"\r\n\r\n",
    b"GET / HTTP/1.1\r\n" + b"".join(b"a%d: b\r\n" % n for n in range(99)) + b"\r\n",
]


@pytest.mark.parametrize("data", HOSTILE_HEADS, ids=range(len(HOSTILE_HEADS)))
def test_no_head_of_8_kib_takes_long(data: bytes) -> None:
    """Measured 0.3 ms at the most. CPU time, the best of three."""

    def cost_s() -> float:
        started_s = time.process_time()
        impossible(data, 0)
        try:
            request_head(data)
        except MalformedMessage:
            pass
        return time.process_time() - started_s

    assert min(cost_s() for _ in range(3)) < 0.005


def test_one_feed_of_64_kib_does_not_take_long() -> None:
    """Measured 0.7 ms, tiny chunks and trailers alike."""
    for body in (b"1\r\nx\r\n" * 11_000, b"0\r\n" + b"a:\r\n" * 2040, b"1;aaaaaaaa\r\nx\r\n" * 4000):
        costs = []
        for _ in range(3):
            started_s = time.process_time()
            ChunkDecoder().feed(body[:65_536])
            costs.append(time.process_time() - started_s)
        assert min(costs) < 0.005
