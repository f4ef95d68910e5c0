"""What HTTP asks of a request head beyond its grammar."""

import pytest

from apigw.core.http1 import request_head
from apigw.edge.heads import client_request, unparsed
from apigw.errors import BadRequest


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
