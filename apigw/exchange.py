"""The values of one request: frozen parts, each made by one stage and set once by the runner (pipeline.py).

An `Exchange` has slots, not attrs: evolving a frozen record costs 2.9 us a step, a slot 0.07 (measured).
Bytes are as on the wire, str are decoded and checked.
"""

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from apigw.config.snapshot import CompiledRoute, Snapshot
    from apigw.core.window import Demand
    from apigw.upstream.gate import Gate

Header = tuple[bytes, bytes, bytes]  # (name as sent, name in lower case, value without surrounding blanks)


class ClientRequest:
    """A parsed request head. Made by edge/channel.py; already valid HTTP/1.1 by RFC 9112.

    fields: lower-case name -> value, several lines joined by ", "; a name that may stand once only does.
    content_length: None when absent; chunked: True when Transfer-Encoding is exactly "chunked".
    authority: the Host (or absolute-form's) host[:port]; peer_ip: the TCP peer's address.
    """

    __slots__ = (
        "method",
        "target",
        "headers",
        "fields",
        "content_length",
        "chunked",
        "http10",
        "authority",
        "peer_ip",
        "secure",
        "head_bytes",
        "forwarded",
    )

    def __init__(
        self,
        method: str,
        target: bytes,
        headers: list[Header],
        fields: dict[bytes, bytes],
        *,
        content_length: int | None = None,
        chunked: bool = False,
        http10: bool = False,
        authority: bytes = b"",
        peer_ip: str = "",
        secure: bool = False,
        head_bytes: int = 0,
    ) -> None:
        self.method = method
        self.target = target
        self.headers = headers
        self.fields = fields
        self.content_length = content_length
        self.chunked = chunked
        self.http10 = http10
        self.authority = authority
        self.peer_ip = peer_ip
        self.secure = secure
        self.head_bytes = head_bytes
        self.forwarded: dict[bool, bytes] = {}  # the lines that go to a backend, with and without cookies, once made

    def again(self, target: bytes, head_bytes: int, name: bytes | None = None, value: bytes = b"") -> "ClientRequest":
        """The same head with another target, and with another value of the header of this name, if one is given."""
        other: ClientRequest = ClientRequest.__new__(ClientRequest)
        other.method = self.method
        other.target = target
        if name is None:
            other.headers = self.headers
            other.fields = self.fields
        else:
            other.fields = {**self.fields, name: value}
            other.headers = [header if header[1] != name else (header[0], name, value) for header in self.headers]
        other.content_length = self.content_length
        other.chunked = self.chunked
        other.http10 = self.http10
        other.authority = self.authority
        other.peer_ip = self.peer_ip
        other.secure = self.secure
        other.head_bytes = head_bytes
        other.forwarded = self.forwarded
        return other


class Identity:
    """Who this request is in logs and traces. `trace_headers` go to the backend as they stand."""

    __slots__ = ("request_id", "trace_id", "span_id", "parent_span_id", "sampled", "trace_headers")

    def __init__(
        self,
        request_id: str,
        trace_id: str,
        span_id: str,
        parent_span_id: str | None,
        sampled: bool,
        trace_headers: bytes,
    ) -> None:
        self.request_id = request_id
        self.trace_id = trace_id
        self.span_id = span_id
        self.parent_span_id = parent_span_id
        self.sampled = sampled
        self.trace_headers = trace_headers  # b"traceparent: ...\r\ntracestate: ...\r\n"


class Target(NamedTuple):
    """The canonical path (one spelling, see core/paths.py) and the query string as it came, without "?".

    wire: the path as a backend gets it; it differs from `path` in the case of hex digits at most.
    """

    path: str
    query: str
    wire: str


class Principal:
    """A verified caller. Exactly one of user_id, partner_id is set, or none in a grace period.

    headers: the identity header lines for the backend, b"X-User-ID: ...\r\n...", values already checked.
    tier: an API key's own tier, which overrides the route's.
    counted_by, demand: core/tier_counters.py's memory of which counter its last request was counted on.
    """

    __slots__ = ("user_id", "partner_id", "scopes", "tier", "headers", "key_hash", "counted_by", "demand")

    def __init__(
        self,
        *,
        user_id: str | None = None,
        partner_id: str | None = None,
        scopes: frozenset[str] = frozenset(),
        tier: str | None = None,
        headers: bytes = b"",
        key_hash: str | None = None,
    ) -> None:
        self.user_id = user_id
        self.partner_id = partner_id
        self.scopes = scopes
        self.tier = tier
        self.headers = headers
        self.key_hash = key_hash
        self.counted_by: object = None
        self.demand: "Demand | None" = None


ANONYMOUS = Principal()


class RateVerdict:
    """What the limiter said, for headers and log: the tier nearest to refusing. remaining is never negative."""

    __slots__ = ("limit", "remaining", "reset_epoch_s", "header_lines")

    def __init__(self, limit: int, remaining: int, reset_epoch_s: int) -> None:
        self.limit = limit
        self.remaining = remaining
        self.reset_epoch_s = reset_epoch_s
        self.header_lines = b"X-RateLimit-Limit: %d\r\nX-RateLimit-Remaining: %d\r\nX-RateLimit-Reset: %d\r\n" % (
            limit,
            remaining,
            reset_epoch_s,
        )


class Exchange:
    """One request on its way down and its reply on the way up.

    Parts (set once by the runner, None until then): identity, client_ip, target, route, principal, verdict.
    The rest is the ledger's: times are the reactor's clock in seconds, `wall_s` the epoch second of arrival.
    """

    __slots__ = (
        "snapshot",
        "request",
        "started_s",
        "wall_s",
        # parts
        "identity",
        "client_ip",
        "target",
        "route",
        "principal",
        "verdict",
        # facts for the ledger
        "status",
        "rate_limited",
        "auth_failure",
        "upstream_started_s",
        "upstream_ended_s",
        "instance",
        "request_bytes",
        "response_bytes",
        "error_type",
        "error_message",
        "ended_s",
        # the backend's gate that let it through, with its ticket
        "gate",
        "ticket",
    )

    def __init__(self, snapshot: "Snapshot", request: ClientRequest, started_s: float, wall_s: float) -> None:
        self.snapshot = snapshot
        self.request = request
        self.started_s = started_s
        self.wall_s = wall_s
        self.identity: Identity | None = None
        self.client_ip: str = request.peer_ip
        self.target: Target | None = None
        self.route: "CompiledRoute | None" = None
        self.principal: Principal | None = None
        self.verdict: RateVerdict | None = None
        self.status = 0
        self.rate_limited = False
        self.auth_failure: str | None = None  # machine word, a fixed set: counts auth_failures_total{reason}
        self.upstream_started_s: float | None = None
        self.upstream_ended_s: float | None = None
        self.instance: str | None = None
        self.request_bytes = 0  # body bytes from the client
        self.response_bytes = 0  # body bytes to the client
        self.error_type: str | None = None  # an error code, names.SHED or one of names.UPSTREAM_REASONS
        self.error_message: str | None = None
        self.ended_s = 0.0
        self.gate: "Gate | None" = None
        self.ticket = 0
