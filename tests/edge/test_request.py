"""A request and its answer: how errors become bytes, what waits, and that it ends exactly once."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from apigw.edge.request import Request
from apigw.errors import Answered, GatewayError, Unauthorized
from apigw.exchange import RateVerdict
from tests.edge.conversation import Conversation, get, post


class Leaf:
    """Does what the test asks of it when a request arrives."""

    def __init__(self) -> None:
        self.requests: list[Request] = []
        self.does: Any = None

    def render(self, request: Request) -> int:
        self.requests.append(request)
        self.does(request)
        return 1


@pytest.fixture
def client() -> Iterator[Conversation]:
    conversation = Conversation(leaf=Leaf(), cors_allowed_origins=("https://app.example.com",), deprecated=True)
    yield conversation
    conversation.settled()


def raising(error: BaseException) -> Any:
    def does(request: Request) -> None:
        raise error

    return does


def test_an_error_is_json_with_the_request_id_and_nothing_of_its_detail(client: Conversation) -> None:
    client.leaf.does = raising(
        GatewayError(
            "The backend is not available.",
            status=503,
            code="service_unavailable",
            retry_after_s=5,
            detail="10.0.0.7 refused",
            reason="no_healthy_instance",
            extra={"backend": "users"},
        )
    )
    head, body = client.send(get("/a", "X-Request-ID: abc-1", "Origin: https://app.example.com")).split(b"\r\n\r\n")
    assert json.loads(body) == {
        "error": "service_unavailable",
        "message": "The backend is not available.",
        "request_id": "abc-1",
        "backend": "users",
    }
    lines = head.split(b"\r\n")
    assert lines[0] == b"HTTP/1.1 503 Service Unavailable"
    for line in (
        b"Content-Type: application/json",
        b"Cache-Control: no-store",
        b"Retry-After: 5",
        b"X-Request-ID: abc-1",
        b"Content-Length: %d" % len(body),
        b"Access-Control-Allow-Origin: https://app.example.com",
    ):
        assert line in lines
    assert any(line.startswith(b"Deprecation: ") for line in lines)
    assert any(line.startswith(b"X-Response-Time-Ms: ") for line in lines)
    assert any(line.startswith(b"Date: ") for line in lines)
    assert b"10.0.0.7" not in client.received
    (ex,) = client.records
    assert (ex.status, ex.error_type, ex.error_message) == (503, "no_healthy_instance", "10.0.0.7 refused")


def test_a_refusal_for_overload_is_shed_in_the_log_and_overloaded_to_the_client(client: Conversation) -> None:
    client.leaf.does = raising(
        GatewayError("Overloaded.", status=503, code="overloaded", detail="P3, load 70% by CPU", reason="shed")
    )
    body = client.send(get("/a")).split(b"\r\n\r\n")[1]
    assert json.loads(body)["error"] == "overloaded" and b"P3" not in client.received
    (ex,) = client.records
    assert (ex.error_type, ex.error_message) == ("shed", "P3, load 70% by CPU")


def test_what_nobody_foresaw_is_a_500_that_tells_nothing_and_a_log_entry_that_tells_all(client: Conversation) -> None:
    client.leaf.does = raising(ValueError("secret"))
    answer = client.send(get("/a"))
    assert answer.startswith(b"HTTP/1.1 500 Internal Server Error\r\n")
    assert b"secret" not in answer
    assert json.loads(answer.split(b"\r\n\r\n")[1])["error"] == "internal_error"
    assert client.records[0].error_message == "ValueError: secret"
    assert client.ended == ""


def test_a_stage_may_answer(client: Conversation) -> None:
    client.leaf.does = raising(Answered(204, ((b"X-A", b"1"),)))
    assert b"\r\nX-A: 1\r\n" in client.send(get("/a"))
    assert client.statuses() == [204]


@pytest.mark.parametrize(
    ("error", "status"),
    [(Unauthorized(), 401), (Answered(200, (), b"x"), 200), (RuntimeError("boom"), 500)],
)
def test_what_a_stage_waits_for_may_end_in_an_error(client: Conversation, error: Exception, status: int) -> None:
    waited: Deferred[Any] = Deferred()
    client.leaf.does = lambda request: request.wait(waited, lambda value, request: None)
    client.send(get("/a"))
    assert client.received == b""
    waited.errback(error)
    assert client.statuses() == [status]


@pytest.mark.parametrize("waited", [succeed(7), fail(Unauthorized())])
def test_what_is_at_hand_already_is_not_waited_for(client: Conversation, waited: "Deferred[Any]") -> None:
    client.leaf.does = lambda request: request.wait(
        waited, lambda value, request: request.answer(200, (), b"%d" % value)
    )
    client.send(get("/a"))
    assert client.statuses() in ([200], [401])


def test_an_error_after_the_wait_becomes_the_answer(client: Conversation) -> None:
    waited: Deferred[Any] = Deferred()
    client.leaf.does = lambda request: request.wait(waited, lambda value, request: raising(ValueError("x"))(request))
    client.send(get("/a"))
    waited.callback(None)
    assert client.statuses() == [500]


def test_a_client_that_leaves_cancels_what_is_waited_for_and_nothing_goes_on(client: Conversation) -> None:
    cancelled: list[object] = []
    went_on: list[object] = []
    waited: Deferred[Any] = Deferred(cancelled.append)
    client.leaf.does = lambda request: request.wait(waited, lambda value, request: went_on.append(value))
    client.send(get("/a"))
    client.wire.leave()
    assert (len(cancelled), went_on) == (1, [])
    assert [ex.status for ex in client.records] == [499]


def test_a_body_that_breaks_while_a_stage_waits_ends_both(client: Conversation) -> None:
    """The 400 is the one answer; the verdict that comes later finds nobody."""
    waited: Deferred[Any] = Deferred(lambda _: None)
    went_on: list[object] = []
    client.leaf.does = lambda request: request.wait(waited, lambda value, request: went_on.append(value))
    client.send(post("/a", "Transfer-Encoding: chunked"), b"zz\r\n")
    assert client.statuses() == [400]
    assert went_on == []
    assert len(client.records) == 1


def test_headers_of_the_rate_limit_and_of_no_backend_twice(client: Conversation) -> None:
    def does(request: Request) -> None:
        request.exchange.verdict = RateVerdict(100, 53, 1738852260)
        request.reply_head(200, b"Fine", b"Date: then\r\n", 0, has_date=True)
        request.reply_end()

    client.leaf.does = does
    answer = client.send(get("/a"))
    assert answer.startswith(b"HTTP/1.1 200 Fine\r\n")
    assert answer.count(b"Date:") == 1
    assert b"X-RateLimit-Limit: 100\r\nX-RateLimit-Remaining: 53\r\nX-RateLimit-Reset: 1738852260\r\n" in answer


def test_a_head_waits_for_its_first_body_bytes_and_goes_out_with_them(client: Conversation) -> None:
    client.leaf.does = lambda request: request.reply_head(200, b"OK", b"", None, has_date=True)
    client.send(get("/a"))
    assert client.received == b""
    client.request.flush()
    assert client.received.endswith(b"\r\n\r\n")
    client.request.reply_body(b"hello")
    client.request.reply_body(b"")
    client.request.reply_end()
    assert client.received.endswith(b"\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
    assert client.records[0].response_bytes == 5


def test_a_request_without_an_identity_gets_one_for_its_refusal(client: Conversation) -> None:
    client.send(b"nonsense\r\n\r\n")
    body = json.loads(client.received.split(b"\r\n\r\n")[1])
    assert body["request_id"] == client.records[0].identity.request_id  # type: ignore[union-attr]
