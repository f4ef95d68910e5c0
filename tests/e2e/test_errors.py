"""Every refusal: its status, its JSON, its headers, and that log and metrics say the same (contract section 4)."""

import uuid
from typing import Any

import pytest

from apigw.names import LOG_FIELDS
from tests.e2e.client import Response
from tests.e2e.gateway import Gateway
from tests.e2e.identity import bearer

CHALLENGE = "Bearer"


def check(gateway: Gateway, reply: Response, status: int, code: str, **log: Any) -> dict[str, Any]:
    """The shape that all errors share, and the log entry that belongs to it."""
    assert reply.status == status, reply
    body = reply.json()
    assert body["error"] == code, body
    assert body["message"].endswith(".") and "\n" not in body["message"]
    assert body["request_id"] == reply.get("X-Request-ID")
    assert reply.get("Content-Type") == "application/json" and reply.get("Cache-Control") == "no-store"
    assert reply.get("X-Response-Time-Ms") is not None
    assert "127.0.0.1" not in reply.body.decode() and "Traceback" not in reply.body.decode()
    entry = gateway.entry(body["request_id"])
    assert tuple(entry) == LOG_FIELDS
    assert entry["status"] == status and entry["error_type"], entry
    assert "backend" in body or entry["error_type"] == code, entry
    for name, value in log.items():
        assert entry[name] == value, (name, entry)
    extra: dict[str, Any] = {name: body[name] for name in body.keys() - {"error", "message", "request_id"}}
    return extra


def test_400_for_an_ambiguous_path(gateway: Gateway) -> None:
    """Bad escapes, encoded slashes, NUL, and .. above the root."""
    for target in ("/pub/%zz", "/pub/a%2fb", "/pub/%00", "/pub/%5c", "/../etc", "/pub/%2e%2e/%2e%2e/x"):
        assert check(gateway, gateway.ask("GET", target), 400, "bad_request") == {}


def test_400_for_a_malformed_request_closes_the_connection(gateway: Gateway) -> None:
    """It is logged and counted as one of the parser's."""
    before = gateway.metric("requests_total", route="parser", status="400")
    with gateway.client() as client:
        client.send(b"GET /pub/x HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /pub/x HTTP/1.1\r\nHost: gw.test\r\n\r\n")
        reply = client.response()
        check(gateway, reply, 400, "bad_request", route_id=None)
        assert reply.get("Connection") == "close" and client.ended(2)
    assert gateway.metric("requests_total", route="parser", status="400") == before + 1


def test_401_without_and_with_a_bad_token(gateway: Gateway) -> None:
    """A challenge by RFC 6750; which check failed is for log and metric only."""
    before = gateway.metric("auth_failures_total", reason="missing_credentials")
    reply = gateway.ask("GET", "/api/x")
    check(gateway, reply, 401, "missing_credentials", route_id="api", error_type="missing_credentials")
    assert reply.get("WWW-Authenticate") == 'Bearer realm="apigw"'
    assert gateway.metric("auth_failures_total", reason="missing_credentials") == before + 1
    bodies = set()
    for header, reason in (
        (("Authorization", "Bearer a.b.c"), None),
        (("Authorization", "Basic eDp5"), "bad_authorization"),
        (bearer(exp=1), "expired"),
        (bearer(aud="other"), "wrong_audience"),
        (bearer(iss="other"), "wrong_issuer"),
        (bearer(kid="unheard"), "unknown_key"),
    ):
        reply = gateway.ask("GET", "/api/x", header)
        check(gateway, reply, 401, "invalid_token")
        entry = gateway.entry(reply.get("X-Request-ID"))
        assert reason is None or entry["error_message"].startswith(reason + ": "), entry
        assert 'error="invalid_token"' in (reply.get("WWW-Authenticate") or "")
        bodies.add((reply.json()["message"], reply.get("WWW-Authenticate")))
    assert len(bodies) == 1, bodies


def test_403_names_no_more_than_the_scope(gateway: Gateway) -> None:
    """insufficient_scope, with RFC 6750's challenge."""
    reply = gateway.ask("GET", "/admin/x", bearer("alice", "read"))
    check(gateway, reply, 403, "insufficient_scope", user_id="alice", error_type="insufficient_scope")
    assert 'error="insufficient_scope"' in (reply.get("WWW-Authenticate") or "")
    assert gateway.ask("GET", "/admin/x", bearer("alice", "read admin")).status == 200


def test_404_and_405(gateway: Gateway) -> None:
    """405 says which methods there are."""
    check(gateway, gateway.ask("GET", "/nowhere"), 404, "route_not_found", route_id=None)
    reply = gateway.ask("PATCH", "/pub/x")
    check(gateway, reply, 405, "method_not_allowed")
    assert set((reply.get("Allow") or "").split(", ")) == {"GET", "HEAD", "POST", "PUT", "DELETE"}


def test_413_by_length_before_the_body_is_read(gateway: Gateway) -> None:
    """Even with Expect: 100-continue no 100 comes; by the route's limit and by the gateway's."""
    with gateway.client() as client:
        client.send(b"POST /small/x HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 1001\r\nExpect: 100-continue\r\n\r\n")
        reply = client.response("POST")
        check(gateway, reply, 413, "payload_too_large", route_id="small")
        assert reply.get("Connection") == "close" and client.ended(3)
    with gateway.client() as client:
        client.send(b"POST /pub/x HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 1000001\r\n\r\n")
        check(gateway, client.response("POST"), 413, "payload_too_large", route_id="pub")


def test_413_for_chunks_that_add_up(gateway: Gateway, origin: Any) -> None:
    """A chunked body is counted as it comes; the backend never sees it as whole."""
    tag = uuid.uuid4().hex
    with gateway.client() as client:
        client.send(
            f"POST /small/x HTTP/1.1\r\nHost: gw.test\r\nTransfer-Encoding: chunked\r\nX-Tag: {tag}\r\n\r\n".encode()
        )
        client.send(b"1f4\r\n" + b"x" * 500 + b"\r\n1f5\r\n" + b"x" * 501 + b"\r\n0\r\n\r\n")
        check(gateway, client.response("POST"), 413, "payload_too_large", route_id="small")
    assert all(seen.body is None for seen in origin.tagged(tag))


def test_429_says_when_to_come_back(gateway: Gateway) -> None:
    """retry_after in the body is Retry-After; the log says rate_limited; the metric counts the tier."""
    user = uuid.uuid4().hex
    for left in (2, 1, 0):
        reply = gateway.ask("GET", "/tiny/x", bearer(user))
        assert reply.status == 200 and reply.get("X-RateLimit-Remaining") == str(left)
    reply = gateway.ask("GET", "/tiny/x", bearer(user))
    extra = check(gateway, reply, 429, "rate_limit_exceeded", rate_limited=True, user_id=user, rate_limit_remaining=0)
    assert extra == {"retry_after": int(reply.get("Retry-After") or 0)} and extra["retry_after"] >= 1
    assert (reply.get("X-RateLimit-Limit"), reply.get("X-RateLimit-Remaining")) == ("3", "0")
    assert reply.get("X-RateLimit-Reset") is not None
    assert gateway.metric("rate_limit_decisions_total", tier="tiny", decision="rejected") >= 1
    assert gateway.ask("GET", "/tiny/x", bearer(user + "2")).status == 200


def test_431_for_headers_above_the_limit(gateway: Gateway) -> None:
    """And the connection is closed."""
    with gateway.client() as client:
        client.send(b"GET /pub/x HTTP/1.1\r\nHost: gw.test\r\nX-Long: " + b"x" * 9000 + b"\r\n\r\n")
        reply = client.response()
        check(gateway, reply, 431, "headers_too_large")
        assert reply.get("Connection") == "close"


def test_502_for_a_dead_backend_names_the_backend_only(gateway: Gateway) -> None:
    """Quickly; log error_type and upstream_failures_total have the reason."""
    before = gateway.metric("upstream_failures_total", backend="dead", reason="connection_refused")
    reply = gateway.ask("GET", "/dead/x")
    extra = check(gateway, reply, 502, "bad_gateway", error_type="connection_refused", backend_service="dead")
    assert extra == {"backend": "dead"} and int(reply.get("X-Response-Time-Ms") or 999) < 100
    assert gateway.metric("upstream_failures_total", backend="dead", reason="connection_refused") == before + 1


def test_504_for_a_slow_backend(gateway: Gateway) -> None:
    """upstream_timeout in body, log and metric."""
    before = gateway.metric("upstream_failures_total", backend="origin", reason="upstream_timeout")
    reply = gateway.ask("GET", "/short/x?delay_ms=500")
    extra = check(gateway, reply, 504, "upstream_timeout", error_type="upstream_timeout", backend_service="origin")
    assert extra == {"backend": "origin"}
    assert gateway.metric("upstream_failures_total", backend="origin", reason="upstream_timeout") == before + 1
    gateway.until(gateway.quiet, 3)


@pytest.mark.parametrize("status", [200, 404, 500, 503])
def test_a_backends_status_is_data(gateway: Gateway, status: int) -> None:
    """It passes as it is, and the log has no error of ours."""
    reply = gateway.ask("GET", f"/pub/x?status={status}")
    assert reply.status == status and "error" not in reply.json()
    entry = gateway.entry(reply.get("X-Request-ID"))
    assert (entry["status"], entry["error_type"], entry["error_message"]) == (status, None, None)


def test_a_head_request_gets_the_errors_headers_without_its_body(gateway: Gateway) -> None:
    """The connection stays in step."""
    with gateway.client() as client:
        reply = client.request("HEAD", "/nowhere")
        assert reply.status == 404 and int(reply.get("Content-Length") or 0) > 50
        assert client.request("GET", "/pub/x").status == 200
