"""Every name that an operator, a client or a backend sees: headers, log fields, metrics, reasons.

A name is spelled here once. What each log field and metric means at 2 AM is in docs/observability.rst,
which a test holds to these tables.
"""

from typing import Final, NamedTuple

# --- Headers, as sent; compare in lower case.

X_REQUEST_ID: Final = b"X-Request-ID"
X_RESPONSE_TIME_MS: Final = b"X-Response-Time-Ms"
X_USER_ID: Final = b"X-User-ID"
X_USER_SCOPES: Final = b"X-User-Scopes"
X_PARTNER_ID: Final = b"X-Partner-ID"
X_API_KEY: Final = b"X-API-Key"
X_FORWARDED_FOR: Final = b"X-Forwarded-For"
X_FORWARDED_PROTO: Final = b"X-Forwarded-Proto"
X_FORWARDED_HOST: Final = b"X-Forwarded-Host"
TRACEPARENT: Final = b"traceparent"
TRACESTATE: Final = b"tracestate"

# --- Redis: what gateways share of API keys. Rate counters have their own (core/window.py).

API_KEYS_CHANNEL: Final = "apigw:apikeys"  # {"key_id": ID}: forget what you know of this key


def api_key_record(digest: str) -> str:
    """Of a checked key: apikey:{SHA-256 of the whole key, in hex}, without braces."""
    return f"apikey:{digest}"


def api_key_digests(key_id: str) -> str:
    """The SET of digests under which keys of this id have records: "apikeys:{3f9aK2mPq8Rz1LwX}", with braces."""
    return f"apikeys:{{{key_id}}}"


# --- Redis: revoked JWTs. How entries and messages are spelled: core/revocation_codec.py.

REVOCATIONS_CHANNEL: Final = "apigw:revocations"  # {"jti": "7f0c", "until_s": 1700003600}: one more is revoked
REVOKED_TOKENS: Final = "revoked:tokens"  # ZSET of jti, "7f0c"; the score is the epoch second at which it may leave
REVOKED_USERS: Final = "revoked:users"  # ZSET of issued-until and user, "1700000000:u-7"; the score likewise


# --- Redis: what gateways share of backends. What stands there: core/circuit_record.py, core/rate_shares.py.


def circuit_record(backend: str) -> str:
    """The last change of a backend's circuit: "circuit:payment-service"."""
    return f"circuit:{backend}"


def rate_shares(backend: str) -> str:
    """The HASH of what each worker's clients ask of a backend with max_rps: "rps:payment-service"."""
    return f"rps:{backend}"


# --- The access log: exactly these keys, in this order (contract section 11).

LOG_FIELDS: Final = (
    "timestamp",
    "request_id",
    "method",
    "path",
    "query_string",
    "status",
    "client_ip",
    "user_agent",
    "user_id",
    "partner_id",
    "backend_service",
    "backend_instance",
    "route_id",
    "total_latency_ms",
    "gateway_overhead_ms",
    "upstream_latency_ms",
    "rate_limit_remaining",
    "rate_limited",
    "request_bytes",
    "response_bytes",
    "error_type",
    "error_message",
    "gateway_instance",
    "gateway_version",
    "trace_id",
    "config_version",
)

# --- Reasons: what went wrong between the gateway and a backend; error_type of the log, `reason` of
# upstream_failures_total. A 5xx that the backend itself answered is data, not one of these.

UPSTREAM_REASONS: Final = {
    "connection_refused": "the instance refused the connection: nothing listens there",
    "connect_timeout": "the connection was not made in time: host down or packets dropped",
    "unreachable": "no way to the instance's address",
    "unresolved": "the instance's name has no address",
    "connection_reset": "the connection ended before the answer began",
    "invalid_response": "the answer is not valid HTTP/1.1, or its head is too large",
    "truncated_response": "the connection ended in the middle of the answer",
    "upstream_timeout": "connected, but no answer within the route's timeout",
    "pool_full": "all connections to the backend stayed busy, or too many requests waited for one",
    "no_healthy_instance": "no instance of the backend is in rotation",
    "gateway_exhausted": "this gateway has no file descriptor, port or memory left for a connection",
    "circuit_open": "the backend failed too often: it is not asked now, or gets a part of its requests",
    "max_rps": "more requests a second for the backend than its max_rps",
}

# --- The reason of a refusal for overload: error_type of the log, while the code to the client is overloaded.

SHED: Final = "shed"

# --- The reason of a request that was ended for its client's pace, while others waited for the connection that it held.

SLOW_CLIENT: Final = "slow_client"  # error_type of a cut answer; before an answer error_message of a 408 begins with it

# --- Reasons: why a request was not let in; `reason` of auth_failures_total and begins error_message. The client
# never learns which: its answer is the same for all of them that share a status.

IN_GRACE_PERIOD: Final = "missing_in_grace_period"  # in the log: error_type, or what error_message begins with

AUTH_REASONS: Final = {
    "missing_credentials": "no Authorization header, or no X-API-Key where a key is wanted",
    IN_GRACE_PERIOD: "no credential, let through by the route's auth_grace_period",
    "bad_authorization": "the Authorization header is not the word Bearer, a space and one token",
    "too_long": "the token is longer than 8192 bytes",
    "malformed": "not three base64url segments of JSON objects and a signature",
    "bad_header": "the token's header has crit or b64, or a member of the wrong type",
    "wrong_type": "typ says that this is another kind of token",
    "wrong_algorithm": "alg is not in auth.jwt.algorithms, or not what the key is for",
    "missing_kid": "no kid, and not exactly one key that fits alg",
    "unknown_key": "no key with this kid, also after a refresh where one was due",
    "bad_signature": "the signature was not made by this key over this token",
    "bad_time": "exp is missing, or exp, nbf or iat is not a sensible number",
    "expired": "exp is past, clock_skew_seconds allowed for",
    "not_yet_valid": "nbf or iat is in the future, clock_skew_seconds allowed for",
    "wrong_issuer": "iss is not auth.jwt.issuer",
    "wrong_audience": "aud does not name auth.jwt.audience",
    "revoked": "the token, or all of its user's older ones, are on the revocation list",
    "bad_user_id": "the user id claim is missing, malformed, or contradicted by a claim user_id",
    "bad_scopes": "more scopes than X-User-Scopes may carry",
    "insufficient_scope": "the credential is good but lacks a scope that the route requires",
    "key_malformed": "X-API-Key is not one key of the form pk_live_ID_SECRET",
    "key_unknown": "no API key has this id",
    "key_wrong": "the secret is not that of the API key with this id",
    "key_expired": "the API key has expired",
    "key_revoked": "the API key was revoked",
    "ip_not_allowed": "the API key is good, but not from this address",
    "key_unverifiable": "an unknown API key, and no database or no time to check it with",
    "keys_unavailable": "no verification keys: never loaded, or older than jwks_cache_ttl_seconds",
    "not_configured": "the route wants a kind of credential that this gateway has no section for",
    "error": "an exception inside the verification: a defect of the gateway",
}

# --- Labels with a fixed set of values.

METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"})
OTHER_METHOD: Final = "OTHER"  # label of every method that is not in METHODS
UNMATCHED: Final = "unmatched"  # route label of requests that match no route
PARSER: Final = "parser"  # route label of requests that the parser refused
NO_STATUS: Final = "none"  # status label of a request whose connection ended without an answer


class Metric(NamedTuple):
    """One family: its Prometheus type, its labels, and its help text with the unit."""

    kind: str  # counter | gauge | histogram
    labels: tuple[str, ...]
    help: str


METRIC_PREFIX: Final = "apigw_"

METRICS: Final[dict[str, Metric]] = {
    "requests_total": Metric("counter", ("route", "method", "status"), "Requests that ended, refused ones too."),
    "request_duration_seconds": Metric("histogram", ("route",), "From a request's first byte to its answer's last."),
    "gateway_overhead_seconds": Metric("histogram", ("route",), "Request duration without the time upstream."),
    "upstream_duration_seconds": Metric("histogram", ("backend",), "From a request given to a backend to its end."),
    "upstream_failures_total": Metric("counter", ("backend", "reason"), "Exchanges that failed behind the gateway."),
    "rate_limit_decisions_total": Metric("counter", ("tier", "decision"), "What the rate limits said, fail modes too."),
    "auth_failures_total": Metric("counter", ("reason",), "Credentials refused, or missing in a grace period."),
    "auth_grace_total": Metric("counter", ("route",), "Requests without credentials let through by auth_grace_period."),
    "api_key_hits_total": Metric("counter", ("layer",), "Good API keys by what knew them: memory, redis, database."),
    "api_key_checks": Metric("gauge", ("state",), "bcrypt checks; state is running or queued."),
    "api_key_waiting": Metric("gauge", (), "Requests whose API key is looked into, or whose refusal waits its time."),
    "api_key_turned_away_total": Metric("counter", (), "API keys not looked into because too many were."),
    "api_key_unconfirmed_total": Metric("counter", (), "Known API keys let in while nobody could say of revocations."),
    "api_key_database_up": Metric("gauge", (), "1 when the database of API keys answered its last question, else 0."),
    "api_key_changes_age_seconds": Metric("gauge", (), "Since when changes of API keys were not heard of."),
    "circuit_state": Metric("gauge", ("backend",), "0 closed, 1 half open, 2 open, 3 recovering by a ramp."),
    "circuit_openings_total": Metric("counter", ("backend",), "How often the circuit opened; failed probes are none."),
    "backend_instance_up": Metric("gauge", ("backend", "instance"), "1 when the instance is in rotation, else 0."),
    "backend_instance_weight": Metric("gauge", ("backend", "instance"), "What it weighs now; 0 when out of rotation."),
    "backend_instance_failures": Metric("gauge", ("backend", "instance"), "Checks and connects failed in a row."),
    "backend_instance_check_seconds": Metric("gauge", ("backend", "instance"), "What its last health check took."),
    "backend_instance_in_flight": Metric("gauge", ("backend", "instance"), "Requests that hold a connection to it."),
    "registry_up": Metric("gauge", (), "1 when every registry of instances answers well, else 0."),
    "discovery_up": Metric("gauge", ("backend", "type"), "1 when the last answer of a backend's registry was good."),
    "discovery_instances": Metric("gauge", ("backend", "type"), "Instances in force, as discovered."),
    "discovery_skipped": Metric("gauge", ("backend", "type"), "Entries of the last answer that are not used."),
    "discovery_last_success_timestamp_seconds": Metric(
        "gauge", ("backend", "type"), "Epoch second of the last good answer of a backend's registry."
    ),
    "in_flight_requests": Metric("gauge", (), "Requests begun and not ended."),
    "connections": Metric("gauge", (), "Open client connections."),
    "shed_total": Metric("counter", ("priority",), "Requests refused because of overload, by the route's priority."),
    "shed_share": Metric("gauge", ("priority",), "Share of requests that load shedding refuses now, 0 to 1."),
    "load_percent": Metric("gauge", (), "The smoothed load that load shedding goes by."),
    "memory_percent": Metric("gauge", (), "Memory in use, of what the worker may use."),
    "redis_up": Metric("gauge", (), "1 when Redis answers rate limit checks in time, else 0."),
    "redis_duration_seconds": Metric("histogram", (), "Round trip of one batch of rate limit checks."),
    "shared_store_up": Metric("gauge", (), "1 when Redis answers what is no rate limit check, else 0."),
    "shared_store_listening": Metric("gauge", (), "1 while messages of other gateways are heard, else 0."),
    "revocations": Metric("gauge", ("kind",), "Entries of the revocation list in force; kind is token or user."),
    "revocations_age_seconds": Metric("gauge", (), "Since when the revocation list was not compared with Redis."),
    "config_info": Metric("gauge", ("version",), "1 for the configuration version that serves."),
    "config_last_reload_successful": Metric("gauge", (), "1 when the last reload was applied, 0 when it was refused."),
    "tls_certificate_expiry_timestamp_seconds": Metric("gauge", ("host",), "Epoch second at which it expires."),
    "jwks_last_success_timestamp_seconds": Metric("gauge", (), "Epoch second of the last good key refresh."),
    "jwks_refresh_failures_total": Metric("counter", (), "Key refreshes that failed."),
    "access_log_written_total": Metric("counter", ("sink",), "Access log entries handed to the sink's destination."),
    "access_log_dropped_total": Metric("counter", ("sink",), "Access log entries lost: buffer full, or unwritten."),
    "access_log_sampled_out_total": Metric("counter", (), "Successes not logged because of sampling at high rates."),
    "access_log_errors_total": Metric("counter", ("sink",), "Failed attempts to open or write the sink."),
    "observer_failures_total": Metric("counter", ("observer",), "Exceptions of access log or metrics; requests go on."),
    "slow_clients_total": Metric("counter", ("backend",), "Requests ended since others waited for their connection."),
    "upstream_connections": Metric("gauge", ("backend", "state"), "Pooled connections; state is idle or busy."),
    "event_loop_lag_seconds": Metric("gauge", (), "How late the event loop ran its last timer."),
    "build_info": Metric("gauge", ("version",), "1 for the running version of the gateway."),
}

# Upper bounds in seconds. A request lasts 0.5 ms (answered here) to 30 s (the longest sane route timeout).
DURATION_BUCKETS_S: Final = (
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0,
)  # fmt: skip
# The gateway's own share and a Redis round trip are tenths of a millisecond; the goal for the p99 is 10 ms.
OVERHEAD_BUCKETS_S: Final = (
    0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0,
)  # fmt: skip
