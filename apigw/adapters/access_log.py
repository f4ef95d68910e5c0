"""The access log: one JSON line a request, to every sink, after the answer.

requests_total = entries written + dropped + sampled out (contract invariant 9): a success that sampling leaves
out is counted in `sampled_out`, an entry that a sink could not keep in the sink's `dropped()`.
"""

import re
import time
from typing import Any, Callable, Final, Sequence

import orjson

from apigw.constants import MAX_LOG_ENTRY_BYTES, MAX_LOG_FIELD_CHARS
from apigw.core.redaction import redacted_query, redacted_target
from apigw.exchange import Exchange
from apigw.names import IN_GRACE_PERIOD
from apigw.ports import LogSink

# Raw in valid JSON, but ends a line or steers a terminal for some readers: DEL, C1 controls, U+2028, U+2029,
# and the marks that reverse the direction of text. As UTF-8, found in the finished line.
_UNSAFE: Final = re.compile(b"\x7f|\xc2[\x80-\x9f]|\xe2\x80[\x8e\x8f\xa8-\xae]|\xe2\x81[\xa6-\xa9]")
_HARDER_CUTS: Final = (512, 256, 128, 64, 32)  # 26 fields of 32 escaped characters (6 bytes each) fit for certain


class AccessLog:
    """An observer of the ledger: `record(ex)` makes the entry and gives it to each sink. Never waits.

    `version` is the gateway's own; `draw` gives a random number in [0, 1) for sampling.
    """

    def __init__(self, sinks: Sequence[LogSink], version: str, draw: Callable[[], float]) -> None:
        self.sinks = tuple(sinks)
        self.sampled_out = 0
        self._version = version
        self._draw = draw
        self._second = -1
        self._second_text = ""
        self._window_start_s = 0.0
        self._window_count = 0
        self._last_rps = 0.0

    def record(self, ex: Exchange) -> None:
        """Log the exchange, unless it is a success that sampling leaves out."""
        if self._left_out(ex):
            self.sampled_out += 1
            return
        line = self.entry(ex)
        for sink in self.sinks:
            sink.write(line)

    def _left_out(self, ex: Exchange) -> bool:
        """True for a success that sampling drops. The rate is measured over the last second, errors included.

        Who passes without credentials in a grace period is never left out: the report of them must be whole.
        """
        now_s = ex.ended_s
        elapsed_s = now_s - self._window_start_s
        if elapsed_s >= 1.0:
            self._last_rps = self._window_count / elapsed_s
            self._window_start_s = now_s
            self._window_count = 0
        self._window_count += 1
        policy = ex.snapshot.config.access_log
        if policy.success_sample_rate >= 1.0 or not 0 < ex.status < 400 or ex.auth_failure is not None:
            return False
        if self._last_rps <= policy.sample_above_rps and self._window_count <= policy.sample_above_rps:
            return False
        return self._draw() >= policy.success_sample_rate

    def entry(self, ex: Exchange) -> bytes:
        """The exchange as one JSON object and a newline: names.LOG_FIELDS in order, at most 8 KiB, no secrets."""
        fields = self._fields(ex)
        try:
            line = orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE)
        except TypeError:  # a lone surrogate: a str that is not text
            line = _dumps({name: _text(value) for name, value in fields.items()})
        if not line.isascii() or b"\x7f" in line:
            line = _UNSAFE.sub(_escaped, line)
        return line if len(line) <= MAX_LOG_ENTRY_BYTES else _cut(fields)

    def _fields(self, ex: Exchange) -> dict[str, Any]:
        """The entry before JSON. One literal: it is a tenth of the gateway's own work on a request."""
        request, route, identity, principal = ex.request, ex.route, ex.identity, ex.principal
        total_s = ex.ended_s - ex.started_s
        total_ms = _ms(max(0.0, total_s))
        upstream_s = _upstream_s(ex)
        path, query = _target(ex)
        agent = request.fields.get(b"user-agent")
        user_id = principal.user_id if principal is not None else None
        message = ex.error_message
        if ex.auth_failure == IN_GRACE_PERIOD and ex.error_type is not None:  # let in, and then something else
            message = f"{IN_GRACE_PERIOD}: {message}" if message else IN_GRACE_PERIOD
        second, millisecond = divmod(int(ex.wall_s * 1000.0 + 0.01), 1000)  # .042 may be stored as .0419999
        if second != self._second:
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(second))
            self._second = second
        return {
            "timestamp": f"{self._second_text}{millisecond:03d}Z",
            "request_id": identity.request_id if identity is not None else None,
            "method": request.method[:64] or None,
            "path": path,
            "query_string": query,
            "status": ex.status or None,
            "client_ip": ex.client_ip or None,
            "user_agent": agent[:MAX_LOG_FIELD_CHARS].decode("utf-8", "replace") if agent is not None else None,
            "user_id": user_id[:MAX_LOG_FIELD_CHARS] if user_id is not None else None,
            "partner_id": principal.partner_id if principal is not None else None,
            "backend_service": route.backend if route is not None else None,
            "backend_instance": ex.instance,
            "route_id": route.route_id if route is not None else None,
            "total_latency_ms": total_ms,
            "gateway_overhead_ms": total_ms if upstream_s is None else _ms(max(0.0, total_s - upstream_s)),
            "upstream_latency_ms": _ms(upstream_s) if upstream_s is not None else None,
            "rate_limit_remaining": ex.verdict.remaining if ex.verdict is not None else None,
            "rate_limited": ex.rate_limited,
            "request_bytes": ex.request_bytes,
            "response_bytes": ex.response_bytes,
            "error_type": ex.error_type or ex.auth_failure,
            "error_message": message[:MAX_LOG_FIELD_CHARS] if message else None,
            "gateway_instance": ex.snapshot.config.gateway.instance_name,
            "gateway_version": self._version,
            "trace_id": identity.trace_id if identity is not None else None,
            "config_version": ex.snapshot.version,
        }

    def start(self) -> None:
        """Open the sinks and start their threads; after any fork."""
        for sink in self.sinks:
            sink.start()

    def reopen(self) -> None:
        """SIGUSR1: each sink opens its destination again. Returns at once."""
        for sink in self.sinks:
            sink.reopen()

    def close(self, timeout_s: float) -> bool:
        """Flush and stop the sinks, each in its share of `timeout_s`; blocks. True when every entry was written."""
        flushed = [bool(sink.close(timeout_s / len(self.sinks))) for sink in self.sinks]
        return all(flushed)


def _ms(duration_s: float) -> float:
    """Milliseconds with three decimals; round() takes twice as long."""
    return int(duration_s * 1e6 + 0.5) / 1e3


def _upstream_s(ex: Exchange) -> float | None:
    """Seconds that a backend had the request; up to now when it never ended; None when none had it."""
    if ex.upstream_started_s is None:
        return None
    return (ex.upstream_ended_s or ex.ended_s) - ex.upstream_started_s


def _target(ex: Exchange) -> tuple[str | None, str | None]:
    """(path, query) without secrets: the canonical path, else the raw target; the query is cut before it is read."""
    target = ex.target
    if target is not None:
        query = target.query
        return target.path[:MAX_LOG_FIELD_CHARS], redacted_query(query[:MAX_LOG_FIELD_CHARS]) if query else ""
    raw = ex.request.target
    return redacted_target(raw.decode("latin-1"), MAX_LOG_FIELD_CHARS) if raw else (None, None)


def _escaped(match: "re.Match[bytes]") -> bytes:
    return b"\\u%04x" % ord(match[0].decode("utf-8"))


def _text(value: Any) -> Any:
    """`value` with lone surrogates replaced, so that it can be UTF-8."""
    return value.encode("utf-8", "replace").decode("utf-8") if isinstance(value, str) else value


def _dumps(fields: dict[str, Any]) -> bytes:
    return _UNSAFE.sub(_escaped, orjson.dumps(fields, option=orjson.OPT_APPEND_NEWLINE))


def _cut(fields: dict[str, Any]) -> bytes:
    """The entry with every text cut until it fits: escapes make six bytes of one character."""
    line = b""
    for chars in _HARDER_CUTS:
        cut = {name: _text(value)[:chars] if isinstance(value, str) else value for name, value in fields.items()}
        line = _dumps(cut)
        if len(line) <= MAX_LOG_ENTRY_BYTES:
            break
    return line
