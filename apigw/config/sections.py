"""The sections of the main file: every key, its kind and range, the attribute it becomes. Defaults are in model.py.

docs/configuration.rst explains each key; a test holds the two together.
"""

from typing import Any

from attrs import frozen

from apigw.config.addresses import URL, DatabaseURL, FilePath, IPAddress, Network
from apigw.config.declarations import TIERS
from apigw.config.fields import Field, Group, Record
from apigw.config.kinds import (
    Boolean,
    Choice,
    Kind,
    Many,
    Milliseconds,
    Name,
    Number,
    Numbers,
    Reading,
    Refused,
    Secret,
    Text,
    Whole,
)
from apigw.config.matching import Token
from apigw.config.model import (
    AccessLog,
    AdminSection,
    APIKeysSection,
    Canary,
    Certificate,
    ConfigSection,
    GatewaySection,
    JWTSection,
    Limits,
    Listener,
    LoadShedding,
    RateLimits,
    RedisSection,
    Sink,
    TLSSection,
    Tracing,
)
from apigw.config.nodes import Node, Scalar
from apigw.config.redis_url import RedisURLText

_DAY_S = 86_400
_HTTP = ("https", "http")
_PORT = Whole(1, 65_535)
_COUNT = Whole(1, 1_000_000)
_RATE = Number(0, 1)
_TIMEOUT = Number(0, 3600, open_below=True, unit="seconds")
_DURATION = Number(0, 30 * _DAY_S, open_below=True, unit="seconds")


@frozen
class Workers(Kind[int]):
    """A number of processes; "auto" (one per CPU) is 0 in the model."""

    def read(self, node: Node, name: str, reading: Reading) -> int:
        if isinstance(node, Scalar) and node.value == "auto":
            return 0
        try:
            return Whole(1, 1024).read(node, name, reading)
        except Refused as refused:
            raise Refused(f'{refused.message}; or "auto"') from None

    def show(self, value: int) -> object:
        return value or "auto"


def _gateway(instance_name: str = "", **given: Any) -> GatewaySection:
    return GatewaySection(instance_name=instance_name, **given)  # the host's name is put in by parse.assemble


GATEWAY = Record(
    _gateway,
    (
        Field("instance_name", Name()),
        Field("workers", Workers()),
        Field("state_dir", FilePath()),
        Field("trusted_proxies", Many(Network())),
        Field("drain_timeout_seconds", _TIMEOUT, "drain_timeout_s"),
        Field("max_in_flight", _COUNT),
    ),
)
CERTIFICATE = Record(
    Certificate,
    (Field("cert_file", FilePath(), required=True), Field("key_file", FilePath(), required=True)),
)


def _cert_file(certificate: Certificate) -> str:
    return str(certificate.cert_file)


TLS = Record(
    TLSSection,
    (
        Field("certificates", Many(CERTIFICATE, at_least=1, same=_cert_file), required=True),
        Field("min_version", Choice(("TLSv1.2", "TLSv1.3"))),
    ),
)
LISTENER = Record(
    Listener,
    (
        Field("address", IPAddress(), required=True),
        Field("port", _PORT, required=True),
        Field("tls", TLS),
        Field("allow_plaintext", Boolean()),
    ),
    lenient=True,
)
ADMIN = Record(AdminSection, (Field("address", IPAddress()), Field("port", _PORT)), lenient=True)
LIMITS = Record(
    Limits,
    (
        Field("header_timeout_seconds", _TIMEOUT, "header_timeout_s"),
        Field("body_timeout_seconds", _TIMEOUT, "body_timeout_s"),
        Field("keepalive_timeout_seconds", _TIMEOUT, "keepalive_timeout_s"),
        Field("max_header_bytes", Whole(512, 262_144, "bytes")),
        Field("max_body_bytes", Whole(0, 2**40, "bytes")),
        Field("buffer_body_bytes", Whole(0, 16 * 2**20, "bytes")),
        Field("max_connections", _COUNT),
        Field("max_connections_per_ip", _COUNT),
    ),
    lenient=True,
)
JWT = Record(
    JWTSection,
    (
        Field("issuer", Text(), required=True),
        Field("audience", Text(), required=True),
        Field("algorithms", Many(Token(), at_least=1)),
        Field("jwks_url", URL(_HTTP)),
        Field("jwks_file", FilePath()),
        Field("jwks_cache_ttl_seconds", _DURATION, "jwks_cache_ttl_s"),
        Field("jwks_refresh_seconds", _DURATION, "jwks_refresh_s"),
        Field("clock_skew_seconds", Number(0, 300, unit="seconds"), "clock_skew_s"),
        Field("user_id_claim", Token()),
        Field("scopes_claim", Token()),
    ),
    lenient=True,
)
API_KEYS = Record(
    APIKeysSection,
    (
        Field("database_url", DatabaseURL(), required=True),
        Field("cache_ttl_seconds", Number(0, _DAY_S, unit="seconds"), "cache_ttl_s"),
        Field("rotation_overlap_days", Whole(0, 365, "days")),
    ),
    lenient=True,
)
AUTH = Group("auth", (Field("jwt", JWT), Field("api_keys", API_KEYS)))
REDIS = Record(
    RedisSection,
    (
        Field("url", RedisURLText(), required=True),
        Field("timeout_ms", Milliseconds(1, 10_000), "timeout_s"),
        Field("ca_file", FilePath()),
        Field("cert_file", FilePath()),
        Field("key_file", FilePath()),
        Field("sentinel_user", Secret()),
        Field("sentinel_password", Secret()),
    ),
    lenient=True,
)
RATE_LIMITS = Record(
    RateLimits,
    (
        Field("store", Choice(("memory", "redis"))),
        Field("tiers", TIERS),
        Field("global_tier", Name()),
        Field("unmatched_tier", Name()),
        Field("failed_auth_tier", Name()),
    ),
    lenient=True,
)
_SHED = LoadShedding()
LOAD_SHEDDING = Record(
    LoadShedding,
    (
        Field("cpu_percent", Numbers(_SHED.cpu_percent, Number(0, 100, open_below=True, unit="%"))),
        Field("memory_percent", Numbers(_SHED.memory_percent, Number(0, 100, open_below=True, unit="%"))),
    ),
    lenient=True,
)
SINK = Record(
    Sink,
    (
        Field("type", Choice(("file", "stdout", "kafka")), required=True),
        Field("path", FilePath()),
        Field("brokers", Token()),
        Field("topic", Token()),
    ),
    lenient=True,
)


def _destination(sink: Sink) -> str:
    return f"{sink.type} {sink.path or sink.topic or ''}".strip()


ACCESS_LOG = Record(
    AccessLog,
    (
        Field("sinks", Many(SINK, at_most=10, same=_destination, keep=True)),
        Field("success_sample_rate", _RATE),
        Field("sample_above_rps", Number(0, 1e9)),
        Field("buffer_entries", Whole(1, 10_000_000)),
    ),
    lenient=True,
)
TRACING = Record(Tracing, (Field("otlp_endpoint", URL(_HTTP)), Field("sample_rate", _RATE)))
CANARY = Record(
    Canary,
    (
        Field("enabled", Boolean()),
        Field("bake_seconds", _TIMEOUT, "bake_s"),
        Field("max_error_rate_increase", _RATE),
        Field("max_latency_increase", Number(0, 100)),
        Field("min_requests", _COUNT),
    ),
)
CONFIG = Record(
    ConfigSection,
    (
        Field("source", Choice(("files", "etcd", "consul"))),
        Field("include", Many(Text())),
        Field("poll_seconds", Number(0.1, 3600, unit="seconds"), "poll_s"),
        Group(
            "etcd", (Field("endpoints", Many(URL(_HTTP)), "etcd_endpoints"), Field("prefix", Token(), "etcd_prefix"))
        ),
        Group("consul", (Field("url", URL(_HTTP), "consul_url"), Field("prefix", Token(), "consul_prefix"))),
        Field("canary", CANARY),
        Field("protected_routes", Many(Name(), at_most=100_000)),
    ),
    lenient=True,
)
