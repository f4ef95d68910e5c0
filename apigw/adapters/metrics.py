"""Metrics: plain counters on the request path, text at a scrape.

Labels take their values from the configuration, from fixed sets of words and from status codes, never from what
a client sent: the number of series is bounded by the configurations this process has served.
"""

from bisect import bisect_left
from functools import partial
from typing import Callable, Final, Iterable, Iterator, Sequence

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from twisted.logger import Logger

from apigw.core.exposition import Histogram, Row, header, histogram_samples, samples
from apigw.exchange import Exchange
from apigw.names import (
    DURATION_BUCKETS_S,
    IN_GRACE_PERIOD,
    METHODS,
    METRIC_PREFIX,
    METRICS,
    NO_STATUS,
    OTHER_METHOD,
    OVERHEAD_BUCKETS_S,
    PARSER,
    UNMATCHED,
    UPSTREAM_REASONS,
    Metric,
)
from apigw.ports import LogSink

_ROWS: Final = 100  # some 50 us

Value = Callable[[], float | None]  # None: nothing to say yet, no sample
Rows = Callable[[], Iterable[Row]]

log = Logger()


class _RouteSeries:
    """What is counted for one route label."""

    __slots__ = ("requests", "duration", "overhead")

    def __init__(self) -> None:
        self.requests: dict[tuple[str, int], int] = {}  # (method label, status): count
        self.duration = Histogram(DURATION_BUCKETS_S)
        self.overhead = Histogram(OVERHEAD_BUCKETS_S)


class Metrics:
    """An observer of the ledger (`record`), the counters of other parts, and the exposition of all of it.

    What lives elsewhere is read at the scrape: `watch` takes a callable for a series without labels,
    `watch_labelled` one for a family. Names are those of names.METRICS, without "apigw_".
    """

    def __init__(self, version: str) -> None:
        self._routes: dict[str, _RouteSeries] = {}
        self._upstream: dict[str, Histogram] = {}
        self._counters: dict[str, dict[tuple[str, ...], int]] = {}
        for name, metric in METRICS.items():
            if metric.kind == "counter" and name != "requests_total":
                self._counters[name] = {}
        self._failures = self._counters["upstream_failures_total"]
        self._auth = self._counters["auth_failures_total"]
        self._grace = self._counters["auth_grace_total"]
        self._decisions = self._counters["rate_limit_decisions_total"]
        self._shed = self._counters["shed_total"]
        self._redis = Histogram(OVERHEAD_BUCKETS_S)
        self._watched: dict[str, list[Rows]] = {}
        self._broken: set[str] = set()  # families whose callable failed at the last scrape
        self._process = CollectorRegistry()
        ProcessCollector(namespace=METRIC_PREFIX.rstrip("_"), registry=self._process)
        self.watch_labelled("build_info", ("version",), lambda: [((version,), 1.0)])

    def record(self, ex: Exchange) -> None:
        """Count one exchange that has ended."""
        method = ex.request.method
        route = ex.route
        label = route.route_id if route is not None else UNMATCHED if method else PARSER
        series = self._routes.get(label)
        if series is None:
            series = self._routes[label] = _RouteSeries()
        key = (method if method in METHODS else OTHER_METHOD, ex.status)
        series.requests[key] = series.requests.get(key, 0) + 1
        total_s = ex.ended_s - ex.started_s
        overhead_s = total_s
        if ex.upstream_started_s is not None:
            upstream_s = (ex.upstream_ended_s or ex.ended_s) - ex.upstream_started_s
            overhead_s -= upstream_s
            if route is not None and route.backend is not None:
                self._observe_upstream(route.backend, upstream_s)
        duration, overhead = series.duration, series.overhead  # observe() written out: a call is 0.1 us
        duration.counts[bisect_left(DURATION_BUCKETS_S, total_s)] += 1
        duration.total += total_s
        overhead.counts[bisect_left(OVERHEAD_BUCKETS_S, overhead_s)] += 1
        overhead.total += overhead_s
        if ex.error_type is not None and ex.error_type in UPSTREAM_REASONS and route is not None and route.backend:
            self.upstream_failed(route.backend, ex.error_type)
        if ex.auth_failure is not None:
            _add(self._auth, (ex.auth_failure,))
            if ex.auth_failure == IN_GRACE_PERIOD:
                _add(self._grace, (label,))

    def _observe_upstream(self, backend: str, upstream_s: float) -> None:
        histogram = self._upstream.get(backend)
        if histogram is None:
            histogram = self._upstream[backend] = Histogram(DURATION_BUCKETS_S)
        histogram.observe(upstream_s)

    def upstream_failed(self, backend: str, reason: str) -> None:
        """Count a failure that no exchange will show as its error_type: an attempt that was made again."""
        _add(self._failures, (backend, reason))

    def rate_limit_decided(self, tier: str, decision: str) -> None:
        """Count what a tier said: allowed, rejected, fail_open, fail_closed, fail_local."""
        _add(self._decisions, (tier, decision))

    def shed(self, priority: str) -> None:
        """Count a request refused because of overload."""
        _add(self._shed, (priority,))

    def redis_answered(self, duration_s: float, checks: int) -> None:
        """One batch of `checks` checks took `duration_s` there and back."""
        self._redis.observe(duration_s)

    def watch(self, name: str, value: Value) -> None:
        """Read `value()` at each scrape as the one sample of `name`; None gives no sample.

        Raises ValueError for a name that is not in names.METRICS, is watched already, or has labels.
        """
        self._claim(name, (), again=False)
        self._watched[name] = [lambda: _one_row(value())]

    def watch_labelled(self, name: str, label_names: Sequence[str], rows: Rows) -> None:
        """Read `rows()` at each scrape: (label values, value) of every sample. Several may share a family.

        Raises ValueError for a name that is not in names.METRICS, or for other labels than it has there.
        """
        self._claim(name, tuple(label_names), again=True)
        self._watched.setdefault(name, []).append(rows)

    def _claim(self, name: str, label_names: tuple[str, ...], again: bool) -> None:
        metric = METRICS.get(name)
        if metric is None or metric.kind == "histogram":
            raise ValueError(f"{name!r} is not a metric that can be watched")
        if metric.labels != label_names:
            raise ValueError(f"{name} has the labels {metric.labels}, not {label_names}")
        if not again and name in self._watched:
            raise ValueError(f"{name} is watched already")

    def parts(self) -> Iterator[bytes]:
        """All series as Prometheus' text format, _ROWS lines or a histogram at a time.

        Thousands of routes take longer than the loop may be away, so others may run between two parts; what they count
        is in the parts to come. A failing callable costs its own series only.
        """
        for name, metric in METRICS.items():
            head = header(METRIC_PREFIX + name, metric.kind, metric.help)
            for text in self._family(name, METRIC_PREFIX + name, metric):
                yield f"{head}{text}".encode("utf-8")
                head = ""
        yield generate_latest(self._process)

    def _family(self, name: str, full: str, metric: Metric) -> Iterator[str]:
        if metric.kind == "histogram":
            for value, histogram in self._histograms(name):
                yield histogram_samples(full, metric.labels, value, histogram)
        elif name == "requests_total":
            for route, series in list(self._routes.items()):
                yield samples(full, metric.labels, _request_rows(route, series))
        else:
            yield from _some_at_a_time(full, metric, list(self._counters.get(name, {}).items()))
            for rows in self._watched.get(name, ()):
                yield from self._watched_samples(name, full, metric, rows)

    def _histograms(self, name: str) -> Iterable[tuple[tuple[str, ...], Histogram]]:
        if name == "request_duration_seconds":
            return (((route,), series.duration) for route, series in list(self._routes.items()))
        if name == "gateway_overhead_seconds":
            return (((route,), series.overhead) for route, series in list(self._routes.items()))
        if name == "upstream_duration_seconds":
            return (((backend,), histogram) for backend, histogram in list(self._upstream.items()))
        return [((), self._redis)]

    def _watched_samples(self, name: str, full: str, metric: Metric, rows: Rows) -> Iterator[str]:
        try:
            yield from _some_at_a_time(full, metric, list(rows()))
        except Exception:
            if name not in self._broken:  # once a change of state: scrapes come every few seconds
                self._broken.add(name)
                log.failure("the metric {name} cannot be read", name=name)
            return
        self._broken.discard(name)


def _request_rows(route: str, series: _RouteSeries) -> Iterable[Row]:
    for (method, status), count in series.requests.items():
        yield (route, method, str(status) if status else NO_STATUS), count


def _some_at_a_time(full: str, metric: Metric, rows: list[Row]) -> Iterator[str]:
    for first in range(0, len(rows), _ROWS):
        yield samples(full, metric.labels, rows[first : first + _ROWS])


def watch_access_log(metrics: Metrics, sinks: Sequence[LogSink], sampled_out: Value) -> None:
    """Show the access log's accounts, with which requests_total can be squared."""
    for name, account in (
        ("access_log_written_total", "written"),
        ("access_log_dropped_total", "dropped"),
        ("access_log_errors_total", "errors"),
    ):
        counts = [(sink.name, getattr(sink, account)) for sink in sinks]
        metrics.watch_labelled(name, ("sink",), partial(_sink_rows, counts))
    metrics.watch("access_log_sampled_out_total", sampled_out)


def _sink_rows(counts: Sequence[tuple[str, Callable[[], int]]]) -> Iterable[Row]:
    return [((sink,), count()) for sink, count in counts]


def _add(counter: dict[tuple[str, ...], int], key: tuple[str, ...]) -> None:
    counter[key] = counter.get(key, 0) + 1


def _one_row(value: float | None) -> Iterable[Row]:
    return () if value is None else (((), value),)
