"""The bytes that a backend gets of a request."""

from ipaddress import IPv4Network
from typing import Any

import pytest
from attrs import evolve

from apigw.config.snapshot import Snapshot
from apigw.exchange import ClientRequest, Exchange
from apigw.testing import ended_exchange, small_snapshot
from apigw.upstream.outgoing import request_bytes

PEER = "203.0.113.42"


def exchange(*headers: tuple[bytes, bytes], trusted: tuple[IPv4Network, ...] = (), **about: Any) -> Exchange:
    """A request with these headers, of a client whose address the gateway trusts or not."""
    config = small_snapshot().config
    snapshot = Snapshot(evolve(config, gateway=evolve(config.gateway, trusted_proxies=trusted)))
    ex = ended_exchange(snapshot)
    fields = {name.lower(): value for name, value in headers}
    ex.request = ClientRequest(
        about.pop("method", "GET"),
        b"/users/me",
        [(name, name.lower(), value) for name, value in headers],
        fields,
        peer_ip=PEER,
        authority=b"api.example.com",
        **about,
    )
    return ex


def lines(ex: Exchange, held: bytes = b"", streaming: bool = False) -> tuple[list[bytes], bytes]:
    head, _, rest = request_bytes(ex, "10.0.0.7:9001", held, streaming).partition(b"\r\n\r\n")
    return head.split(b"\r\n"), rest


def test_it_has_the_instance_as_its_host_and_says_where_it_came_from() -> None:
    head, rest = lines(exchange((b"X-Own", b"kept"), (b"Authorization", b"secret")))
    assert head[:2] == [b"GET /users/me?page=2 HTTP/1.1", b"Host: 10.0.0.7:9001"]
    assert {b"X-Own: kept", b"X-Request-ID: req-abc123", b"X-Forwarded-For: 203.0.113.42"} <= {*head}
    assert {b"X-Forwarded-Proto: http", b"X-Forwarded-Host: api.example.com"} <= {*head}
    assert not any(b"secret" in line for line in head) and rest == b""


FORWARDED = (
    (b"X-Forwarded-For", b"198.51.100.9"),
    (b"X-Forwarded-Proto", b"https"),
    (b"X-Forwarded-Host", b"www.example.com"),
)


def test_a_trusted_proxys_chain_goes_on_and_a_strangers_does_not() -> None:
    believed, _ = lines(exchange(*FORWARDED, trusted=(IPv4Network(f"{PEER}/32"),)))
    assert b"X-Forwarded-For: 198.51.100.9, 203.0.113.42" in believed
    assert {b"X-Forwarded-Proto: https", b"X-Forwarded-Host: www.example.com"} <= {*believed}
    stranger, _ = lines(exchange(*FORWARDED))
    assert b"X-Forwarded-For: 203.0.113.42" in stranger and b"X-Forwarded-Proto: http" in stranger
    assert not any(b"198.51" in line or b"www.example" in line for line in stranger)


@pytest.mark.parametrize(
    ("about", "held", "streaming", "framing", "rest"),
    [
        ({}, b"", False, None, b""),
        ({"content_length": 0}, b"", False, b"Content-Length: 0", b""),
        ({"content_length": 4}, b"body", False, b"Content-Length: 4", b"body"),
        ({"chunked": True}, b"body", False, b"Content-Length: 4", b"body"),
        ({"content_length": 9}, b"body", True, b"Content-Length: 9", b"body"),
        ({"chunked": True}, b"body", True, b"Transfer-Encoding: chunked", b"4\r\nbody\r\n"),
        ({"chunked": True}, b"", True, b"Transfer-Encoding: chunked", b""),
    ],
)
def test_its_framing_fits_the_bytes_at_hand(
    about: dict[str, Any], held: bytes, streaming: bool, framing: bytes | None, rest: bytes
) -> None:
    """A body that is whole has its length, however it came; one that still comes keeps the client's framing."""
    head, found = lines(exchange(method="POST", **about), held, streaming)
    assert [line for line in head if line.startswith((b"Content-Length", b"Transfer-Encoding"))] == (
        [] if framing is None else [framing]
    )
    assert found == rest
