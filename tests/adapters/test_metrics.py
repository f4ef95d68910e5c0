"""What is counted of a request and what a scrape reads; labels never come from clients."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from twisted.logger import globalLogPublisher

from apigw.adapters.log_sinks import FileSink
from apigw.adapters.metrics import Metrics, watch_access_log
from apigw.exchange import ClientRequest
from apigw.names import METRICS, UPSTREAM_REASONS
from apigw.testing import ended_exchange

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def scraped(metrics: Metrics) -> Samples:
    """Every sample by name and sorted labels."""
    families = text_string_to_metric_families(b"".join(metrics.parts()).decode())
    return {(s.name, tuple(sorted(s.labels.items()))): s.value for family in families for s in family.samples}


def value(metrics: Metrics, name: str, **labels: str) -> float | None:
    return scraped(metrics).get((f"apigw_{name}", tuple(sorted(labels.items()))))


def test_a_proxied_request_counts_by_route_method_and_status_with_its_three_durations() -> None:
    metrics = Metrics("0.1.0")
    metrics.record(ended_exchange())
    metrics.record(ended_exchange(status=502))
    assert value(metrics, "requests_total", route="route-users", method="GET", status="200") == 1
    assert value(metrics, "requests_total", route="route-users", method="GET", status="502") == 1
    for name, label, sum_s in (
        ("request_duration_seconds", {"route": "route-users"}, 0.084),
        ("gateway_overhead_seconds", {"route": "route-users"}, 0.008),
        ("upstream_duration_seconds", {"backend": "users"}, 0.076),
    ):
        assert value(metrics, f"{name}_count", **label) == 2
        assert value(metrics, f"{name}_sum", **label) == pytest.approx(sum_s)
        assert value(metrics, f"{name}_bucket", le="+Inf", **label) == 2
    assert value(metrics, "request_duration_seconds_bucket", route="route-users", le="0.025") == 0
    assert value(metrics, "request_duration_seconds_bucket", route="route-users", le="0.05") == 2


def test_a_request_without_a_backend_has_no_upstream_duration_and_is_all_overhead() -> None:
    metrics = Metrics("0.1.0")
    metrics.record(ended_exchange(upstream_started_s=None, upstream_ended_s=None))
    assert value(metrics, "upstream_duration_seconds_count", backend="users") is None
    assert value(metrics, "gateway_overhead_seconds_sum", route="route-users") == pytest.approx(0.042)


def test_what_has_no_route_is_counted_as_unmatched_or_as_the_parsers() -> None:
    metrics = Metrics("0.1.0")
    metrics.record(ended_exchange(route=None, status=404))
    metrics.record(ended_exchange(route=None, status=400, request=ClientRequest("", b"", [], {})))
    metrics.record(ended_exchange(route=None, status=0))
    assert value(metrics, "requests_total", route="unmatched", method="GET", status="404") == 1
    assert value(metrics, "requests_total", route="parser", method="OTHER", status="400") == 1
    assert value(metrics, "requests_total", route="unmatched", method="GET", status="none") == 1


@given(st.lists(st.text(min_size=1)))
def test_invented_methods_share_one_label(methods: list[str]) -> None:
    metrics = Metrics("0.1.0")
    for method in methods:
        metrics.record(ended_exchange(method=method + "-INVENTED"))
    assert (value(metrics, "requests_total", route="route-users", method="OTHER", status="200") or 0) == len(methods)


def test_upstream_failures_count_by_reason_but_a_refusal_of_the_gateway_does_not() -> None:
    metrics = Metrics("0.1.0")
    for reason in UPSTREAM_REASONS:
        metrics.record(ended_exchange(error_type=reason, status=502))
    metrics.record(ended_exchange(error_type="rate_limit_exceeded", status=429))
    metrics.upstream_failed("users", "connection_refused")
    assert value(metrics, "upstream_failures_total", backend="users", reason="connection_refused") == 2
    assert value(metrics, "upstream_failures_total", backend="users", reason="upstream_timeout") == 1
    assert value(metrics, "upstream_failures_total", backend="users", reason="rate_limit_exceeded") is None


def test_counters_of_other_parts() -> None:
    metrics = Metrics("0.1.0")
    metrics.record(ended_exchange(auth_failure="expired", status=401))
    metrics.rate_limit_decided("standard", "rejected")
    metrics.rate_limit_decided("standard", "rejected")
    metrics.shed("P3")
    metrics.redis_answered(0.0007, 12)
    assert value(metrics, "auth_failures_total", reason="expired") == 1
    assert value(metrics, "auth_grace_total", route="route-users") is None
    metrics.record(ended_exchange(auth_failure="missing_in_grace_period"))
    assert value(metrics, "auth_grace_total", route="route-users") == 1
    assert value(metrics, "auth_failures_total", reason="missing_in_grace_period") == 1
    assert value(metrics, "rate_limit_decisions_total", tier="standard", decision="rejected") == 2
    assert value(metrics, "shed_total", priority="P3") == 1
    assert value(metrics, "redis_duration_seconds_bucket", le="0.0005") == 0
    assert value(metrics, "redis_duration_seconds_bucket", le="0.001") == 1
    assert value(metrics, "build_info", version="0.1.0") == 1


def test_watched_series_are_read_at_each_scrape() -> None:
    metrics = Metrics("0.1.0")
    held = {"in_flight": 3.0}
    metrics.watch("in_flight_requests", lambda: held["in_flight"])
    metrics.watch("jwks_last_success_timestamp_seconds", lambda: None)  # never yet
    metrics.watch_labelled("backend_instance_up", ("backend", "instance"), lambda: [(("users", "[::1]:80"), 1)])
    metrics.watch_labelled("backend_instance_up", ("backend", "instance"), lambda: [(("orders", 'a"b\\'), 0)])
    assert value(metrics, "in_flight_requests") == 3
    held["in_flight"] = 0.0
    assert value(metrics, "in_flight_requests") == 0
    assert value(metrics, "jwks_last_success_timestamp_seconds") is None
    assert value(metrics, "backend_instance_up", backend="users", instance="[::1]:80") == 1
    assert value(metrics, "backend_instance_up", backend="orders", instance='a"b\\') == 0


def test_a_raising_callable_costs_its_own_series_and_is_logged_once_until_it_works_again() -> None:
    events: list[dict[str, object]] = []

    def observe(event: dict[str, object]) -> None:
        if event.get("log_namespace") == "apigw.adapters.metrics":
            events.append(event)

    metrics = Metrics("0.1.0")
    works = False

    def redis_up() -> float:
        if not works:
            raise RuntimeError("no such thing")
        return 1

    metrics.watch("redis_up", redis_up)
    metrics.watch("connections", lambda: 7)
    globalLogPublisher.addObserver(observe)
    try:
        for works in (False, False, True, False):
            assert value(metrics, "redis_up") == (1 if works else None)
            assert value(metrics, "connections") == 7
    finally:
        globalLogPublisher.removeObserver(observe)
    assert len(events) == 2


def test_a_wrong_watch_is_refused_when_the_gateway_is_put_together() -> None:
    metrics = Metrics("0.1.0")
    with pytest.raises(ValueError, match="not a metric"):
        metrics.watch("in_flight_request", lambda: 1)
    with pytest.raises(ValueError, match="not a metric"):
        metrics.watch("redis_duration_seconds", lambda: 1)
    with pytest.raises(ValueError, match="has the labels"):
        metrics.watch("backend_instance_up", lambda: 1)
    with pytest.raises(ValueError, match="has the labels"):
        metrics.watch_labelled("backend_instance_up", ("instance", "backend"), lambda: [])
    metrics.watch("redis_up", lambda: 1)
    with pytest.raises(ValueError, match="already"):
        metrics.watch("redis_up", lambda: 1)


def test_every_name_and_kind_is_the_tables(tmp_path: Path) -> None:
    metrics = Metrics("0.1.0")
    metrics.record(ended_exchange(error_type="connection_reset", auth_failure="expired"))
    metrics.rate_limit_decided("standard", "allowed")
    metrics.shed("P3")
    metrics.redis_answered(0.001, 1)
    watch_access_log(metrics, [FileSink(tmp_path / "log", 10)], lambda: 0)
    for name, metric in METRICS.items():
        if metric.kind != "histogram" and f"apigw_{name} " not in b"".join(metrics.parts()).decode():
            if metric.labels:
                metrics.watch_labelled(name, metric.labels, lambda metric=metric: [(metric.labels, 1)])  # type: ignore[misc]
            else:
                metrics.watch(name, lambda: 1)
    families = {f.name: f for f in text_string_to_metric_families(b"".join(metrics.parts()).decode())}
    for name, metric in METRICS.items():
        family = families["apigw_" + name.removesuffix("_total")]
        assert family.type == metric.kind
        assert family.samples, name
    assert all(name.startswith("apigw_") for name in families)
    assert "apigw_process_cpu_seconds" in families


def test_the_access_logs_accounts_are_shown_so_that_requests_can_be_squared(tmp_path: Path) -> None:
    metrics = Metrics("0.1.0")
    sink = FileSink(tmp_path / "log", 1)
    watch_access_log(metrics, [sink], lambda: 5)
    sink.write(b"{}\n")
    sink.write(b"{}\n")
    label = f"file:{tmp_path / 'log'}"
    assert value(metrics, "access_log_dropped_total", sink=label) == 1
    assert value(metrics, "access_log_written_total", sink=label) == 0
    assert value(metrics, "access_log_errors_total", sink=label) == 0
    assert value(metrics, "access_log_sampled_out_total") == 5
