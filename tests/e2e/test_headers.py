"""What reaches a backend and what comes back to a client (contract section 5)."""

import re
import uuid

import pytest

from tests.e2e.client import Response
from tests.e2e.conftest import Launch
from tests.e2e.gateway import APP, Gateway
from tests.e2e.identity import bearer
from tests.e2e.origin import Origin, Seen

_UUID4 = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"

Fields = tuple[str, str]


def exchange(
    gateway: Gateway, origin: Origin, target: str, *headers: Fields, method: str = "GET", body: bytes | None = None
) -> tuple[Seen, Response]:
    """One request and what the backend saw of it."""
    tag = uuid.uuid4().hex
    reply = gateway.ask(method, target, ("X-Tag", tag), *headers, body=body)
    (seen,) = origin.tagged(tag)
    return seen, reply


# -- to the backend


def test_no_spelling_of_an_identity_header_reaches_the_backend(gateway: Gateway, origin: Origin) -> None:
    """Any case, "_" and "." for "-", repeated; also on a route without authentication."""
    names = []
    for name in ("X-User-ID", "X-User-Scopes", "X-Partner-ID", "X-API-Key", "X-Real-IP", "X-Forwarded-Host"):
        names += [name, name.lower(), name.upper(), name.replace("-", "_"), name.replace("-", ".")]
        names += [name.replace("-", "_", 1), name.swapcase()]
    names = [name for name in names if name.lower() != "x-api-key"] + ["X-API-Key"]  # twice is refused
    seen, reply = exchange(gateway, origin, "/pub/x", *[(name, "evil") for name in names])
    assert reply.status == 200
    assert "evil" not in str(seen.headers), seen.headers
    seen, reply = exchange(gateway, origin, "/api/x", *[(name, "evil") for name in names], bearer("alice", "read"))
    assert (seen.all("X-User-ID"), seen.all("X-User-Scopes")) == (["alice"], ["read"])
    assert "evil" not in str(seen.headers), seen.headers


def test_a_verified_token_becomes_user_and_scopes_and_is_not_passed_on(gateway: Gateway, origin: Origin) -> None:
    """X-User-ID, X-User-Scopes separated by spaces; the prefix is stripped; the token stays here."""
    seen, _ = exchange(gateway, origin, "/api/orders/7?a=b", bearer("bob", "read write"))
    assert seen.target == "/orders/7?a=b"
    assert seen.get("X-User-ID") == "bob"
    assert sorted((seen.get("X-User-Scopes") or "").split(" ")) == ["read", "write"]
    assert "authorization" not in seen.names


def test_hop_by_hop_headers_and_those_that_connection_names_stop_here(gateway: Gateway, origin: Origin) -> None:
    """RFC 9110 7.6.1, in both directions; end-to-end headers pass as they came."""
    seen, _ = exchange(
        gateway,
        origin,
        "/pub/x",
        ("Connection", "keep-alive, X-Secret-Hop"),
        ("X-Secret-Hop", "1"),
        ("Keep-Alive", "timeout=5"),
        ("Proxy-Authorization", "Basic eA=="),
        ("TE", "trailers"),
        ("Upgrade", "websocket"),
        ("Accept-Language", "de"),
        ("Idempotency-Key", "Key-1:Ä".encode().decode("latin-1")),
    )
    assert seen.names.isdisjoint({"x-secret-hop", "keep-alive", "proxy-authorization", "te", "upgrade"})
    assert seen.get("Accept-Language") == "de"
    assert seen.get("Idempotency-Key") == "Key-1:Ä".encode().decode("latin-1")


def test_connection_cannot_nominate_away_what_the_gateway_adds(gateway: Gateway, origin: Origin) -> None:
    """`Connection: X-User-ID` must not strip the identity that the backend trusts."""
    for name in ("X-User-ID", "X-Request-ID", "X-Forwarded-For", "Host", "Content-Length"):
        seen, reply = exchange(
            gateway, origin, "/api/x", ("Connection", name), bearer("carol"), method="POST", body=b"12"
        )
        assert reply.status == 200
        assert seen.get("X-User-ID") == "carol" and seen.body == b"12"
        assert {"x-request-id", "x-forwarded-for", "host"} <= seen.names


def test_forwarded_headers_of_an_untrusted_peer_are_replaced(gateway: Gateway, origin: Origin) -> None:
    """X-Forwarded-For is the peer, whatever it says of itself; Forwarded goes."""
    seen, reply = exchange(
        gateway,
        origin,
        "/pub/x",
        ("X-Forwarded-For", "10.1.2.3"),
        ("X-Forwarded-Proto", "https"),
        ("X-Forwarded-Host", "evil.test"),
        ("X-Forwarded-Port", "1"),
        ("Forwarded", "for=10.1.2.3"),
    )
    assert seen.all("X-Forwarded-For") == ["127.0.0.1"]
    assert seen.all("X-Forwarded-Proto") == ["http"] and seen.all("X-Forwarded-Host") == ["gw.test"]
    assert seen.names.isdisjoint({"forwarded", "x-forwarded-port"})
    assert gateway.entry(reply.get("X-Request-ID"))["client_ip"] == "127.0.0.1"


def test_the_chain_of_a_trusted_proxy_is_continued(launch: Launch, origin: Origin) -> None:
    """Appended to, and the client is the first address from the right that is no proxy of ours."""

    def trusting(gateway: Gateway) -> None:
        gateway.settings["gateway"]["trusted_proxies"] = ["127.0.0.0/8", "10.0.0.0/8"]

    gateway = launch(trusting)
    chain = ("X-Forwarded-For", "6.6.6.6, 203.0.113.9, 10.0.0.7")
    seen, reply = exchange(gateway, origin, "/pub/x", chain, ("X-Forwarded-Proto", "https"))
    assert seen.get("X-Forwarded-For") == "6.6.6.6, 203.0.113.9, 10.0.0.7, 127.0.0.1"
    assert seen.get("X-Forwarded-Proto") == "https"
    assert gateway.entry(reply.get("X-Request-ID"))["client_ip"] == "203.0.113.9"
    seen, _ = exchange(gateway, origin, "/pub/x", ("X-Forwarded-For", "1.1.1.1"), ("X-Forwarded-For", "2.2.2.2"))
    assert seen.get("X-Forwarded-For") == "1.1.1.1, 2.2.2.2, 127.0.0.1"


def test_a_valid_trace_is_continued_with_a_span_of_our_own(gateway: Gateway, origin: Origin) -> None:
    """Same trace id, new parent, tracestate as it came; the log has the trace id."""
    seen, reply = exchange(
        gateway, origin, "/pub/x", ("traceparent", f"00-{TRACE}-{SPAN}-01"), ("tracestate", "a=1,b=2")
    )
    match = re.fullmatch(rf"00-{TRACE}-([0-9a-f]{{16}})-01", seen.get("traceparent") or "")
    assert match is not None and match[1] != SPAN
    assert seen.get("tracestate") == "a=1,b=2"
    assert gateway.entry(reply.get("X-Request-ID"))["trace_id"] == TRACE


@pytest.mark.parametrize(
    "value",
    [f"00-{'0' * 32}-{SPAN}-01", f"00-{TRACE}-{'0' * 16}-01", f"ff-{TRACE}-{SPAN}-01", f"00-{TRACE.upper()}-{SPAN}-01",
     f"00-{TRACE}-{SPAN}-01-more", "rubbish", f"00-{TRACE}-{SPAN}"],
)  # fmt: skip
def test_an_invalid_trace_is_replaced_and_its_state_dropped(gateway: Gateway, origin: Origin, value: str) -> None:
    """W3C Trace Context 3.2, 3.3."""
    seen, _ = exchange(gateway, origin, "/pub/x", ("traceparent", value), ("tracestate", "a=1"))
    parent = seen.get("traceparent") or ""
    assert re.fullmatch(r"00-[0-9a-f]{32}-[0-9a-f]{16}-0[01]", parent) and TRACE not in parent
    assert "tracestate" not in seen.names


def test_b3_in_both_forms_is_continued(gateway: Gateway, origin: Origin) -> None:
    """The trace goes on as B3 and as traceparent; the parent span is the caller's."""
    several = (("X-B3-TraceId", TRACE), ("X-B3-SpanId", SPAN), ("X-B3-Sampled", "1"))
    for sent in (several, (("b3", f"{TRACE}-{SPAN}-1"),)):
        seen, _ = exchange(gateway, origin, "/pub/x", *sent)
        assert (seen.get("traceparent") or "").startswith(f"00-{TRACE}-")
        assert seen.all("X-B3-TraceId") == [TRACE] and seen.get("X-B3-ParentSpanId") == SPAN
        assert seen.get("X-B3-SpanId") not in (None, SPAN) and seen.get("X-B3-Sampled") == "1"
    seen, _ = exchange(gateway, origin, "/pub/x", ("X-B3-TraceId", "zz"), ("X-B3-SpanId", SPAN))
    assert "zz" not in str(seen.headers)


def test_cookies_pass_only_where_the_route_says_so(gateway: Gateway, origin: Origin) -> None:
    """forward_cookies."""
    seen, _ = exchange(gateway, origin, "/pub/x", ("Cookie", "a=1"), ("Cookie2", "x"))
    assert "cookie" not in seen.names
    seen, _ = exchange(gateway, origin, "/cookies/x", ("Cookie", "a=1; b=2"))
    assert seen.all("Cookie") == ["a=1; b=2"]


# -- to the client


@pytest.mark.parametrize("given", ["a", "A-b_c.d:e-9", "x" * 128])
def test_a_valid_request_id_is_kept(gateway: Gateway, origin: Origin, given: str) -> None:
    """1..128 of [A-Za-z0-9._:-], to the backend, to the client and in the log."""
    seen, reply = exchange(gateway, origin, "/pub/x", ("X-Request-ID", given))
    assert seen.all("X-Request-ID") == [given] and reply.all("X-Request-ID") == [given]
    assert gateway.entry(given)["status"] == 200


@pytest.mark.parametrize("given", ["", "x" * 129, "a b", "a,b", "ä", "a;b", "<script>"])
def test_an_invalid_request_id_is_replaced_by_a_uuid4(gateway: Gateway, origin: Origin, given: str) -> None:
    """So is one that came twice."""
    seen, reply = exchange(gateway, origin, "/pub/x", ("X-Request-ID", given))
    assert _UUID4.fullmatch(reply.get("X-Request-ID") or "")
    assert seen.all("X-Request-ID") == reply.all("X-Request-ID")


def test_every_answer_has_its_id_and_time_and_the_gateway_alone_says_them(gateway: Gateway, origin: Origin) -> None:
    """On successes, errors and refusals alike, once; what the backend says of them is dropped."""

    async def script(seen: Seen, reader: object, writer: object) -> None:
        writer.write(  # type: ignore[attr-defined]
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nX-Request-ID: backend\r\nX-Response-Time-Ms: 9\r\n"
            b"X-RateLimit-Limit: 1\r\nSet-Cookie: a=1\r\nSet-Cookie: b=2\r\nKeep-Alive: 1\r\nConnection: X-Hop\r\n"
            b"X-Hop: 1\r\n\r\n"
        )

    origin.on("/pub/liar", script)
    _, reply = exchange(gateway, origin, "/pub/liar")
    assert len(reply.all("X-Request-ID")) == len(reply.all("X-Response-Time-Ms")) == 1
    assert "backend" not in (reply.get("X-Request-ID") or "")
    assert reply.get("X-RateLimit-Limit") is None and reply.get("X-Hop") is None and reply.get("Keep-Alive") is None
    assert reply.all("Set-Cookie") == ["a=1", "b=2"]
    for target in ("/pub/x", "/nowhere", "/api/x", "/dead/x", "/%zz", "/healthz", "/self"):
        reply = gateway.ask("GET", target)
        assert len(reply.all("X-Request-ID")) == 1, (target, reply)
        assert int(reply.get("X-Response-Time-Ms") or "x") >= 0, (target, reply)


def test_response_time_is_the_time_until_the_answer(gateway: Gateway, origin: Origin) -> None:
    """Milliseconds, whole."""
    _, reply = exchange(gateway, origin, "/pub/x?delay_ms=120")
    assert 115 <= int(reply.get("X-Response-Time-Ms") or 0) < 400


def test_a_deprecated_route_says_so_and_until_when(gateway: Gateway, origin: Origin) -> None:
    """Deprecation is a structured Date (RFC 9745), Sunset an HTTP-date (RFC 8594)."""
    _, reply = exchange(gateway, origin, "/old/x")
    assert re.fullmatch(r"@\d+", reply.get("Deprecation") or ""), reply
    assert reply.get("Sunset") == "Mon, 01 Jun 2099 00:00:00 GMT"
    _, reply = exchange(gateway, origin, "/pub/x")
    assert reply.get("Deprecation") is None and reply.get("Sunset") is None


def test_a_preflight_of_an_allowed_origin_is_answered_here(gateway: Gateway) -> None:
    """204 with the route's methods, never "*" with credentials, and Vary."""
    asked = (("Access-Control-Request-Method", "PUT"), ("Access-Control-Request-Headers", "x-a, authorization"))
    reply = gateway.ask("OPTIONS", "/cors/x", ("Origin", APP), *asked)
    assert reply.status == 204 and reply.body == b""
    assert reply.get("Access-Control-Allow-Origin") == APP
    assert reply.get("Access-Control-Allow-Credentials") == "true"
    assert "PUT" in (reply.get("Access-Control-Allow-Methods") or "")
    assert "authorization" in (reply.get("Access-Control-Allow-Headers") or "").lower()
    assert "Origin" in (reply.get("Vary") or "")


@pytest.mark.parametrize("stranger", ["https://evil.test", "null", APP + ".evil.test", APP.upper(), APP + ":8443"])
def test_a_preflight_of_another_origin_gets_no_permission(gateway: Gateway, stranger: str) -> None:
    """The browser refuses then; the answer still varies by Origin."""
    reply = gateway.ask("OPTIONS", "/cors/x", ("Origin", stranger), ("Access-Control-Request-Method", "PUT"))
    assert reply.get("Access-Control-Allow-Origin") is None and reply.get("Access-Control-Allow-Methods") is None
    assert "Origin" in (reply.get("Vary") or "")


def test_simple_requests_get_cors_headers_by_their_origin(gateway: Gateway, origin: Origin) -> None:
    """Allowed, disallowed and none; on errors too, so that scripts can read them; Vary always."""
    _, reply = exchange(gateway, origin, "/cors/x", ("Origin", APP))
    assert reply.all("Access-Control-Allow-Origin") == [APP]
    assert "X-Request-ID" in (reply.get("Access-Control-Expose-Headers") or "")
    _, reply = exchange(gateway, origin, "/cors/x", ("Origin", "https://evil.test"))
    assert reply.get("Access-Control-Allow-Origin") is None and "Origin" in (reply.get("Vary") or "")
    _, reply = exchange(gateway, origin, "/cors/x?status=500", ("Origin", APP))
    assert reply.status == 500 and reply.get("Access-Control-Allow-Origin") == APP
    _, reply = exchange(gateway, origin, "/pub/x", ("Origin", APP))
    assert reply.get("Access-Control-Allow-Origin") is None and reply.get("Vary") is None
    reply = gateway.ask("DELETE", "/cors/x", ("Origin", APP))
    assert reply.status == 405 and "Origin" in (reply.get("Vary") or ""), reply


def test_rate_limit_headers_stand_where_a_tier_applied(gateway: Gateway, origin: Origin) -> None:
    """Limit, remaining, and the epoch second at which the window ends."""
    _, first = exchange(gateway, origin, "/wide/x")
    _, second = exchange(gateway, origin, "/wide/x?status=500")
    assert first.get("X-RateLimit-Limit") == "100000"
    assert int(first.get("X-RateLimit-Remaining") or 0) - int(second.get("X-RateLimit-Remaining") or 0) == 1
    assert int(first.get("X-RateLimit-Reset") or 1) % 3600 == 0
    _, reply = exchange(gateway, origin, "/pub/x")
    assert reply.get("X-RateLimit-Limit") is None
