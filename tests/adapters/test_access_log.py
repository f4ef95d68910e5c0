"""The entry: exactly the contract's keys, one line, bounded, without secrets; sampling and its accounts."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.adapters.access_log import AccessLog
from apigw.config.model import AccessLog as AccessLogSection
from apigw.exchange import ClientRequest, Principal, Target
from apigw.names import LOG_FIELDS
from apigw.testing import ended_exchange, small_snapshot


class ListSink:
    """A sink that keeps its lines."""

    def __init__(self, name: str = "list") -> None:
        self.name = name
        self.lines: list[bytes] = []
        self.calls: list[str] = []

    def start(self) -> None:
        self.calls.append("start")

    def write(self, line: bytes) -> None:
        self.lines.append(line)

    def reopen(self) -> None:
        self.calls.append("reopen")

    def dropped(self) -> int:
        return 0

    def written(self) -> int:
        return len(self.lines)

    def errors(self) -> int:
        return 0

    def close(self, timeout_s: float) -> bool:
        self.calls.append(f"close {timeout_s}")
        return True


def make_log(*sinks: ListSink, draw: float = 0.5) -> AccessLog:
    return AccessLog(sinks, "0.1.0", lambda: draw)


def parsed(**facts: Any) -> dict[str, Any]:
    return checked(make_log().entry(ended_exchange(**facts)))


def checked(line: bytes) -> dict[str, Any]:
    """The entry of `line`, which must be what the contract promises of any."""
    assert line.endswith(b"\n") and line.count(b"\n") == 1
    assert len(line) <= 8192
    text = line.decode("utf-8")
    assert len(text.splitlines()) == 1  # for readers that take U+2028 and the like for an end of line
    entry: dict[str, Any] = json.loads(text)
    assert tuple(entry) == LOG_FIELDS
    return entry


def test_a_proxied_request_shows_every_fact() -> None:
    assert parsed() == {
        "timestamp": "2025-02-06T14:30:00.042Z",
        "request_id": "req-abc123",
        "method": "GET",
        "path": "/users/me",
        "query_string": "page=2",
        "status": 200,
        "client_ip": "203.0.113.42",
        "user_agent": "MyApp/2.1 iOS/17.2",
        "user_id": "user_789",
        "partner_id": None,
        "backend_service": "users",
        "backend_instance": "127.0.0.1:9001",
        "route_id": "route-users",
        "total_latency_ms": 42.0,
        "gateway_overhead_ms": 4.0,
        "upstream_latency_ms": 38.0,
        "rate_limit_remaining": 53,
        "rate_limited": False,
        "request_bytes": 256,
        "response_bytes": 1024,
        "error_type": None,
        "error_message": None,
        "gateway_instance": "gateway-1",
        "gateway_version": "0.1.0",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "config_version": "v1",
    }


def test_what_does_not_apply_to_a_request_that_the_parser_refused_is_null() -> None:
    request = ClientRequest("", b"", [], {}, peer_ip="203.0.113.9")
    entry = parsed(
        request=request, target=None, route=None, principal=None, verdict=None, identity=None, instance=None,
        upstream_started_s=None, upstream_ended_s=None, status=400, error_type="bad_request",
    )  # fmt: skip
    for name in ("method", "path", "query_string", "user_agent", "route_id", "upstream_latency_ms", "request_id"):
        assert entry[name] is None, name
    assert entry["status"] == 400
    assert entry["gateway_overhead_ms"] == entry["total_latency_ms"] == 42.0


def test_a_connection_that_ended_without_an_answer_has_no_status() -> None:
    assert parsed(status=0)["status"] is None


def test_a_request_that_never_came_back_from_upstream_counts_until_its_end() -> None:
    entry = parsed(upstream_ended_s=None, status=499)
    assert (entry["upstream_latency_ms"], entry["gateway_overhead_ms"]) == (40.0, 2.0)


def test_a_refused_path_is_shown_raw_and_without_credentials() -> None:
    request = ClientRequest("GET", b"/a/%2e%2e/\xff?token=S3CRET&x=1", [], {}, peer_ip="203.0.113.9")
    entry = parsed(request=request, target=None)
    assert entry["path"] == "/a/%2e%2e/\xff"
    assert entry["query_string"] == "token=***&x=1"


def test_a_grace_period_pass_is_visible_in_the_log() -> None:
    assert parsed(auth_failure="missing_in_grace_period")["error_type"] == "missing_in_grace_period"


@pytest.mark.parametrize(
    "error_type, message, shown",
    [
        ("connection_refused", "nobody there", "missing_in_grace_period: nobody there"),
        ("client_gone", None, "missing_in_grace_period"),
    ],
)
def test_a_grace_period_pass_that_failed_otherwise_is_visible_too(
    error_type: str, message: str | None, shown: str
) -> None:
    entry = parsed(auth_failure="missing_in_grace_period", error_type=error_type, error_message=message)
    assert (entry["error_type"], entry["error_message"]) == (error_type, shown)


def test_sampling_leaves_out_nobody_who_passes_in_a_grace_period() -> None:
    snapshot = small_snapshot(access_log=AccessLogSection(success_sample_rate=0.0, sample_above_rps=0))
    sink = ListSink()
    log = make_log(sink, draw=0.99)
    log.record(ended_exchange(snapshot=snapshot))
    log.record(ended_exchange(snapshot=snapshot, auth_failure="missing_in_grace_period"))
    assert (len(sink.lines), log.sampled_out) == (1, 1)


def test_control_characters_and_bad_utf8_cannot_leave_their_field() -> None:
    fields = {b"user-agent": b'x\r\n{"status":200}\x1b[2J\x7f\xff\xc2\x9b\xe2\x80\xa8\xe2\x80\xae'}
    request = ClientRequest("GET", b"/", [], fields)
    line = make_log().entry(ended_exchange(request=request))
    entry = checked(line)
    assert entry["user_agent"] == 'x\r\n{"status":200}\x1b[2J\x7f\ufffd\x9b\u2028\u202e'
    assert not {b"\x1b", b"\x7f", b"\xc2\x9b", b"\xe2\x80\xa8", b"\xe2\x80\xae"} & {
        line[i : i + n] for n in (1, 2, 3) for i in range(len(line))
    }


@pytest.mark.parametrize(
    ("wall_s", "text"),
    [
        (0.0, "1970-01-01T00:00:00.000Z"),
        (1738852200.0419999, "2025-02-06T14:30:00.042Z"),
        (1738852199.9999, "2025-02-06T14:29:59.999Z"),
        (4102444800.5, "2100-01-01T00:00:00.500Z"),
    ],
)
def test_timestamps_are_rfc_3339_in_utc_with_milliseconds(wall_s: float, text: str) -> None:
    assert parsed(wall_s=wall_s)["timestamp"] == text


_ANY_TEXT = st.text(st.characters(), max_size=9000)  # surrogates too
_WIDE_TEXT = st.sampled_from(["\x00", "\u2028", "\U0001f600", "\x9b", '"', "\ud800"]).map(lambda c: c * 9000)
_TEXT = st.one_of(st.none(), _ANY_TEXT, _WIDE_TEXT)


@settings(max_examples=150, deadline=None)
@given(
    method=st.one_of(st.just("GET"), _ANY_TEXT),
    raw=st.binary(max_size=9000),
    agent=st.one_of(st.binary(max_size=9000), st.sampled_from([b"\x01", b"\xff"]).map(lambda c: c * 9000)),
    path=_WIDE_TEXT | _ANY_TEXT,
    query=_WIDE_TEXT | _ANY_TEXT,
    canonical=st.booleans(),
    user_id=_TEXT,
    message=_TEXT,
    kind=_TEXT,
    client_ip=_ANY_TEXT,
)
def test_any_entry_is_one_line_of_valid_json_with_exactly_the_keys_in_8_kib(
    method: str, raw: bytes, agent: bytes, path: str, query: str, canonical: bool,
    user_id: str | None, message: str | None, kind: str | None, client_ip: str,
) -> None:  # fmt: skip
    request = ClientRequest(method, raw, [], {b"user-agent": agent})
    ex = ended_exchange(
        request=request, target=Target(path, query, path) if canonical else None, principal=Principal(user_id=user_id),
        error_message=message, error_type=kind, client_ip=client_ip,
    )  # fmt: skip
    checked(make_log().entry(ex))


def test_every_sink_gets_the_entry_and_is_started_reopened_and_closed() -> None:
    one, two = ListSink("one"), ListSink("two")
    access_log = make_log(one, two)
    access_log.start()
    access_log.record(ended_exchange())
    access_log.reopen()
    assert access_log.close(4.0)
    assert one.lines == two.lines and len(one.lines) == 1
    assert one.calls == ["start", "reopen", "close 2.0"]


def recorded(rate: float, above_rps: float, *, draw: float, requests: int, status: int = 200) -> tuple[int, int]:
    """(written, sampled out) of `requests` within one second."""
    sink = ListSink()
    access_log = make_log(sink, draw=draw)
    snapshot = small_snapshot(AccessLogSection(success_sample_rate=rate, sample_above_rps=above_rps))
    for number in range(requests):
        access_log.record(ended_exchange(snapshot, ended_s=100.0 + number / requests, status=status))
    return len(sink.lines), access_log.sampled_out


def test_below_the_rate_every_success_is_logged() -> None:
    assert recorded(0.1, 100, draw=0.5, requests=100) == (100, 0)


def test_above_the_rate_successes_are_sampled_and_counted() -> None:
    assert recorded(0.1, 100, draw=0.5, requests=150) == (100, 50)
    assert recorded(0.1, 100, draw=0.05, requests=150) == (150, 0)


@pytest.mark.parametrize("status", [400, 404, 429, 499, 500, 503, 0])
def test_errors_are_logged_at_any_rate(status: int) -> None:
    assert recorded(0.0, 10, draw=0.5, requests=100, status=status) == (100, 0)


def test_sampling_goes_on_in_the_seconds_after_and_ends_when_the_rate_falls() -> None:
    sink = ListSink()
    access_log = make_log(sink, draw=0.5)
    snapshot = small_snapshot(AccessLogSection(success_sample_rate=0.1, sample_above_rps=10))
    for number in range(100):  # 50 a second for two seconds
        access_log.record(ended_exchange(snapshot, ended_s=100.0 + number / 50))
    assert len(sink.lines) == 10
    for second in range(5):
        access_log.record(ended_exchange(snapshot, ended_s=110.0 + second))
    assert len(sink.lines) == 15
