"""Which header lines pass: no client's line is ever taken for the gateway's, in any spelling."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.core import headers
from apigw.core.headers import (
    CORS_REPLY,
    GATEWAY_ONLY,
    HOP_BY_HOP,
    REPLY_OWN,
    nominated,
    passes,
    reply_line,
    reply_lines,
    request_lines,
)
from apigw.exchange import Header


def line(name: bytes, value: bytes = b"v") -> Header:
    return name, name.lower(), value


def replied(sent: list[Header], connection: bytes | None, own: frozenset[bytes]) -> list[bytes]:
    """The lines that reach the client."""
    passing = b"".join([reply_line(header) for header in sent])
    return reply_lines(sent, passing, connection, own).splitlines(keepends=True)


def names_of(lines: list[bytes]) -> list[bytes]:
    assert all(one.endswith(b"\r\n") and one.count(b"\n") == 1 for one in lines)
    return [one.partition(b":")[0] for one in lines]


BY_PREFIX = {b"x-forwarded-for", b"x-forwarded-anything", b"x-b3-traceid"}
PROTECTED = sorted(GATEWAY_ONLY | HOP_BY_HOP | BY_PREFIX | {b"cookie"})


@pytest.mark.parametrize("name", PROTECTED)
def test_a_protected_name_passes_in_no_spelling(name: bytes) -> None:
    """A backend that reads CGI variables cannot tell X_User_ID or X.User.ID from X-User-ID."""
    for spelling in (name, name.replace(b"-", b"_"), name.replace(b"-", b"."), name.replace(b"-", b"_", 1)):
        for cased in (spelling, spelling.upper(), spelling.title()):
            assert request_lines([line(cased)], None, False) == []


@settings(max_examples=500)
@given(st.sampled_from(PROTECTED), st.data())
def test_no_mixture_of_case_dash_underscore_and_dot_passes(name: bytes, data: st.DataObject) -> None:
    spelled = b"".join(
        data.draw(st.sampled_from([b"-", b"_", b"."]))
        if octet == 0x2D
        else data.draw(st.sampled_from([bytes((octet,)), bytes((octet,)).upper()]))
        for octet in name
    )
    assert request_lines([line(spelled)], None, data.draw(st.booleans()) and name != b"cookie") == []
    assert not passes(spelled.lower())


@settings(max_examples=500)
@given(st.from_regex(rb"[!#$%&'*+.^_`|~0-9a-z-]{1,30}", fullmatch=True))
def test_nothing_whose_loose_form_is_protected_ever_passes(lower: bytes) -> None:
    loose = lower.replace(b"_", b"-").replace(b".", b"-")
    protected = loose in PROTECTED or loose.startswith((b"x-forwarded-", b"x-b3-"))
    assert passes(lower) is not protected
    assert passes(lower) is not protected  # nor when it was judged before


@pytest.mark.parametrize(
    "name",
    [b"Accept", b"User-Agent", b"Idempotency-Key", b"X-User-IDs", b"X-User", b"Content-Type", b"Accept-Encoding",
     b"If-None-Match", b"Range", b"X-Custom_Name", b"Origin", b"Via", b"X-Forwarded"],
)  # fmt: skip
def test_what_is_the_clients_business_passes_untouched(name: bytes) -> None:
    assert request_lines([line(name, b" v;w=\xe9")], None, False) == [name + b":  v;w=\xe9\r\n"]


def test_order_and_repetition_are_kept() -> None:
    sent = [line(b"A", b"1"), line(b"B", b"2"), line(b"a", b"3"), line(b"X-User-ID"), line(b"A", b"")]
    assert request_lines(sent, None, False) == [b"A: 1\r\n", b"B: 2\r\n", b"a: 3\r\n", b"A: \r\n"]


def test_a_cookie_passes_only_where_the_route_says_so_and_only_by_its_name() -> None:
    sent = [line(b"Cookie", b"a=b"), line(b"cookie", b"c=d"), line(b"Cook_ie"), line(b"COOKIE", b"e=f")]
    assert names_of(request_lines(sent, None, False)) == [b"Cook_ie"]
    assert names_of(request_lines(sent, None, True)) == [b"Cookie", b"cookie", b"Cook_ie", b"COOKIE"]
    assert request_lines([line(b"Cookie")], b"cookie", True) == []


@pytest.mark.parametrize(
    ("connection", "names"),
    [
        (None, set()),
        (b"", set()),
        (b"close", set()),
        (b"Keep-Alive", set()),
        (b"X-A", {b"x-a"}),
        (b"x-a, X-B ,\tx-c", {b"x-a", b"x-b", b"x-c"}),
        (b"close,x-a,,", {b"x-a"}),
        (b"upgrade, HTTP2-Settings", {b"upgrade", b"http2-settings"}),
    ],
)
def test_connection_nominates_names(connection: bytes | None, names: set[bytes]) -> None:
    assert nominated(connection) == names


def test_what_connection_nominates_stops_here_both_ways() -> None:
    sent = [line(b"X-A"), line(b"X-B"), line(b"x-a")]
    assert names_of(request_lines(sent, b"close, X-a", False)) == [b"X-B"]
    assert names_of(replied(sent, b"close, X-a", frozenset())) == [b"X-B"]


@pytest.mark.parametrize("name", sorted(HOP_BY_HOP | REPLY_OWN))
def test_a_backend_speaks_neither_for_the_connection_nor_for_the_gateway(name: bytes) -> None:
    assert replied([line(name.title())], None, frozenset()) == []


def test_cors_lines_of_a_backend_pass_unless_the_gateway_answers_for_the_route() -> None:
    sent = [line(name) for name in sorted(CORS_REPLY)]
    assert names_of(replied(sent, None, frozenset())) == sorted(CORS_REPLY)
    assert replied(sent, None, CORS_REPLY) == []


def test_other_lines_of_a_backend_pass_as_they_are() -> None:
    sent = [line(b"Set-Cookie", b"a=b"), line(b"Set-Cookie", b"c=d"), line(b"ETag", b'"x"'), line(b"Date")]
    assert names_of(replied(sent, None, frozenset())) == [b"Set-Cookie", b"Set-Cookie", b"ETag", b"Date"]


def test_names_from_clients_do_not_fill_the_memory() -> None:
    """A few thousand short names are remembered; long ones and later ones are judged each time, and rightly."""
    for number in range(5000):
        passes(b"x-flood-%d" % number)
        passes(b"x-user-id" + b"-" * 500 + b"%d" % number)
    assert len(headers._passes) <= headers._MEMO_MAX
    assert max(map(len, headers._passes)) <= headers._MEMO_NAME_BYTES
    assert passes(b"x-never-seen") and not passes(b"x_forwarded_never-seen")


def test_eight_kib_of_nominated_names_do_not_take_long() -> None:
    """Measured 0.4 ms."""
    sent = [line(b"N%d" % number) for number in range(100)]
    for connection in (b"," * 8000, b",".join(b"n%d" % number for number in range(1400))):
        costs = []
        for _ in range(3):
            started_s = time.process_time()
            request_lines(sent, connection, False)
            costs.append(time.process_time() - started_s)
        assert min(costs) < 0.005
