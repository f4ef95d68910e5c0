"""Cross-origin requests: origins are compared exactly, and never answered with a star."""

import pytest

from apigw.core.cors import is_preflight, preflight_headers, reply_lines

ALLOWED = frozenset((b"https://app.example.com", b"http://localhost:3000"))


@pytest.mark.parametrize("origin", sorted(ALLOWED))
def test_an_allowed_origin_is_named_and_may_send_credentials(origin: bytes) -> None:
    lines = reply_lines(origin, ALLOWED)
    assert b"Access-Control-Allow-Origin: " + origin + b"\r\n" in lines
    assert b"Access-Control-Allow-Credentials: true\r\n" in lines and b"Vary: Origin\r\n" in lines
    assert b"*" not in lines and lines.endswith(b"\r\n")


@pytest.mark.parametrize(
    "origin",
    [None, b"", b"null", b"*", b"https://app.example.com.evil.test", b"https://evil-app.example.com",
     b"http://app.example.com", b"https://app.example.com:8443", b"HTTPS://APP.EXAMPLE.COM", b"https://app.example.com/",
     b"https://app.example.com, https://evil.test", b"https://user@app.example.com"],
)  # fmt: skip
def test_any_other_origin_is_told_nothing_but_that_the_answer_varies(origin: bytes | None) -> None:
    """Vary also without an Origin: a cache must not give that answer to one that has it."""
    assert reply_lines(origin, ALLOWED) == b"Vary: Origin\r\n"


@pytest.mark.parametrize(
    ("method", "fields", "preflight"),
    [
        ("OPTIONS", {b"origin": b"a", b"access-control-request-method": b"GET"}, True),
        ("OPTIONS", {b"origin": b"a"}, False),
        ("OPTIONS", {b"access-control-request-method": b"GET"}, False),
        ("OPTIONS", {}, False),
        ("GET", {b"origin": b"a", b"access-control-request-method": b"GET"}, False),
    ],
)
def test_a_preflight_is_options_with_both_headers(method: str, fields: dict[bytes, bytes], preflight: bool) -> None:
    assert is_preflight(method, fields) is preflight


def test_a_preflight_of_an_allowed_origin_is_told_methods_and_its_own_headers() -> None:
    fields = {b"origin": b"https://app.example.com", b"access-control-request-headers": b"authorization, x-a"}
    headers = dict(preflight_headers(fields, ALLOWED, b"GET, POST"))
    assert headers[b"Access-Control-Allow-Methods"] == b"GET, POST"
    assert headers[b"Access-Control-Allow-Headers"] == b"authorization, x-a"
    assert int(headers[b"Access-Control-Max-Age"]) > 0


def test_a_preflight_without_headers_is_not_told_any() -> None:
    headers = dict(preflight_headers({b"origin": b"https://app.example.com"}, ALLOWED, b"GET"))
    assert b"Access-Control-Allow-Headers" not in headers


@pytest.mark.parametrize("fields", [{}, {b"origin": b"https://evil.test"}, {b"origin": b"null"}])
def test_a_preflight_of_another_origin_is_told_nothing(fields: dict[bytes, bytes]) -> None:
    assert preflight_headers(fields, ALLOWED, b"GET") == []
