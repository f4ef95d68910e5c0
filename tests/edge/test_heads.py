"""What HTTP asks of a request head beyond its grammar."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.http1 import MalformedMessage, request_head
from apigw.edge.heads import HeadReader, client_request, unparsed
from apigw.errors import BadRequest
from apigw.exchange import ClientRequest


def made(start: bytes, *lines: bytes) -> object:
    data = b"\r\n".join([start, *lines, b"", b""])
    return client_request(request_head(data), len(data), "192.0.2.7", True)


@pytest.mark.parametrize(
    ("start", "lines", "authority", "target"),
    [
        (b"GET /a HTTP/1.1", [b"Host: a.example"], b"a.example", b"/a"),
        (b"GET /a HTTP/1.1", [b"Host: [::1]:8443"], b"[::1]:8443", b"/a"),
        (b"GET http://a.example/b?c HTTP/1.1", [b"Host: A.example"], b"A.example", b"/b?c"),
        (b"GET http://a.example HTTP/1.0", [], b"a.example", b"/"),
        (b"GET /a HTTP/1.0", [], b"", b"/a"),
    ],
)
def test_authority_and_target(start: bytes, lines: list[bytes], authority: bytes, target: bytes) -> None:
    request = made(start, *lines)
    assert (request.authority, request.target) == (authority, target)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("start", "lines"),
    [
        (b"GET /a HTTP/1.1", []),
        (b"GET /a HTTP/1.1", [b"Host: "]),
        (b"GET /a HTTP/1.1", [b"Host: a b"]),
        (b"GET /a HTTP/1.1", [b"Host: user@a"]),
        (b"GET /a HTTP/1.1", [b"Host: a:99999"]),
        (b"GET http://b/a HTTP/1.1", [b"Host: a"]),
        (b"GET ftp://a/a HTTP/1.1", [b"Host: a"]),
        (b"GET * HTTP/1.1", [b"Host: a"]),
        (b"GET /a HTTP/1.1", [b"Host: a", b"Expect: something"]),
    ],
)
def test_what_two_servers_could_read_differently_is_refused(start: bytes, lines: list[bytes]) -> None:
    with pytest.raises(BadRequest):
        made(start, *lines)


def test_what_did_not_become_a_request_has_a_peer_and_nothing_else() -> None:
    request = unparsed("192.0.2.7", False)
    assert (request.peer_ip, request.method, request.fields, request.secure) == ("192.0.2.7", "", {}, False)


def block(*lines: bytes) -> bytes:
    return b"\r\n".join([b"Host: a.example", *lines, b"", b""])


TARGETS = [b"/", b"/a", b"/a/b?c=d", b"/a%20b", b"/a//b", b"http://a.example/x", b"*", b"/a[1]", b"/%", b"/a?x=%zz"]
STARTS = st.tuples(st.sampled_from([b"GET", b"HEAD", b"POST", b"get", b"FOO"]), st.sampled_from(TARGETS),
                   st.sampled_from([b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2"]))  # fmt: skip
BLOCKS = st.sampled_from(
    [
        block(),
        block(b"Accept: */*"),
        *(
            block(b"Authorization: " + token, b"Accept: */*")
            for token in (b"Bearer a", b"Bearer bb", b"", b" x", b"x ")
        ),
        *(block(b"Authorization: " + token, b"Accept: */*") for token in (b"a\tb", b"a\xe9", b"a\x01", b"a\r\nX: y")),
        block(b"Authorization: Bearer a", b"Authorization: Bearer b", b"Accept: */*"),
        block(b"authorization: Bearer a", b"X-A: b"),
        *(
            block(b"X-API-Key: " + key, b"Accept: */*")
            for key in (b"a", b"bb", b"", b" x", b"a,b", b"a\tb", b"a\r\nX: y")
        ),
        block(b"X-API-Key: a", b"X-API-Key: b", b"Accept: */*"),
        block(b"X-API-Key: a", b"Authorization: Bearer a", b"Accept: */*"),
        block(b"X-API-Key: a", b"Authorization: Bearer b", b"Accept: */*"),
        block(b"X-API-Key: b", b"Authorization: Bearer a", b"Accept: */*"),
        block(b"Authorization: Bearer a", b"x-api-key: b", b"Accept: */*"),
        block(b"X_API_Key: a", b"X-API-Key: b", b"Accept: */*"),
        block(b"X-A: b", b"Authorization: Bearer a"),
        block(b"Content-Length: 5"),
        block(b"Transfer-Encoding: chunked"),
        block(b"Connection: close"),
        block(b"Expect: 100-continue"),
        block(b"Bad Name: x"),
        block(b"X-Long: " + b"x" * 3000),
    ]
)


def seen(request: object) -> tuple[object, ...]:
    """All that a request says, its memo of forwarded lines apart."""
    return tuple(getattr(request, name) for name in ClientRequest.__slots__ if name != "forwarded")


@given(st.lists(st.tuples(STARTS, BLOCKS), min_size=2, max_size=8))
def test_a_connection_reads_each_head_as_if_it_were_its_first(heads: list[tuple[tuple[bytes, ...], bytes]]) -> None:
    """Whatever came before: the memory of the last head changes no request and no refusal."""
    reader = HeadReader()
    for start, lines in heads:
        data = b" ".join(start) + b"\r\n" + lines
        outcomes = []
        for one in (reader, HeadReader()):
            try:
                outcomes.append(seen(one.read(data, "192.0.2.7", True)))
            except (MalformedMessage, BadRequest) as refusal:
                outcomes.append((type(refusal), str(refusal)))
        assert outcomes[0] == outcomes[1]


def test_the_same_header_block_is_parsed_once() -> None:
    """The next request with it shares the lists; another method, version or block does not."""
    reader = HeadReader()
    first = reader.read(b"GET /a HTTP/1.1\r\n" + block(), "192.0.2.7", True)
    again = reader.read(b"GET /b HTTP/1.1\r\n" + block(), "192.0.2.7", True)
    assert again.headers is first.headers and again.target == b"/b"
    token = reader.read(b"GET /a HTTP/1.1\r\n" + block(b"Authorization: Bearer a"), "192.0.2.7", True)
    other = reader.read(b"GET /b HTTP/1.1\r\n" + block(b"Authorization: Bearer bb"), "192.0.2.7", True)
    assert other.fields[b"authorization"] == b"Bearer bb" and token.fields[b"authorization"] == b"Bearer a"
    assert other.headers[1] == (b"Authorization", b"authorization", b"Bearer bb")
    assert other.forwarded is token.forwarded
    key = reader.read(b"GET /a HTTP/1.1\r\n" + block(b"X-API-Key: a"), "192.0.2.7", True)
    other = reader.read(b"GET /b HTTP/1.1\r\n" + block(b"X-API-Key: bb"), "192.0.2.7", True)
    assert (key.fields[b"x-api-key"], other.fields[b"x-api-key"]) == (b"a", b"bb")
    assert other.headers[1] == (b"X-API-Key", b"x-api-key", b"bb") and other.forwarded is key.forwarded
    assert reader.read(b"HEAD /b HTTP/1.1\r\n" + block(), "192.0.2.7", True).headers is not first.headers


def test_a_large_header_block_is_not_kept() -> None:
    """An idle connection holds at most 2 KiB of its last head."""
    reader = HeadReader()
    data = b"GET /a HTTP/1.1\r\n" + block(b"X-Long: " + b"x" * 3000)
    assert reader.read(data, "192.0.2.7", True).headers is not reader.read(data, "192.0.2.7", True).headers
