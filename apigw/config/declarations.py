"""What teams declare: tiers, backends, routes. Every key, its kind and range; defaults are in model.py."""

from datetime import datetime, timezone
from typing import Any

from attrs import frozen

from apigw.config.addresses import URL, FilePath, Host, Nameserver, Network, Origin
from apigw.config.fields import Field, Record
from apigw.config.kinds import (
    Boolean,
    Choice,
    Kind,
    Many,
    Milliseconds,
    Name,
    Number,
    Reading,
    Refused,
    Text,
    Whole,
    text_of,
)
from apigw.config.matching import Day, Deprecation, Method, Pattern, Prefix, Token, day_start_s
from apigw.config.model import Backend, CircuitBreaker, Discovery, Instance, Route, Tier
from apigw.config.nodes import Node, Scalar

_DAY_S = 86_400
_PORT = Whole(1, 65_535)
_COUNT = Whole(1, 1_000_000)
_TIMEOUT = Number(0, 3600, open_below=True, unit="seconds")


@frozen
class RequestTarget(Kind[str]):
    """What the health check asks for: a path, a query if need be."""

    def read(self, node: Node, name: str, reading: Reading) -> str:
        text = text_of(node, "a path such as /healthz")
        target: str = Token().read(node, name, reading)
        if target[0] != "/" or "#" in target:
            raise Refused("must be a path such as /healthz", "/" + text if text[0] not in "/#" else None)
        return target


@frozen
class PortOrName(Kind[int | str]):
    """A port's number, or its name where the registry has names for them."""

    def read(self, node: Node, name: str, reading: Reading) -> int | str:
        if isinstance(node, Scalar) and isinstance(node.value, str):
            return Name().read(node, name, reading)
        return _PORT.read(node, name, reading)


TIER = Record(
    Tier,
    (
        Field("tier", Name(), required=True),
        Field("limit", Whole(1, 10**12), required=True),
        Field("window_seconds", Whole(1, 31 * _DAY_S, "seconds"), "window_s", required=True),
        Field("per", Choice(("user_id", "api_key", "client_ip", "fingerprint", "global")), required=True),
        Field("mode", Choice(("enforce", "shadow"))),
        Field("fingerprint_network", Boolean()),
    ),
    noun="tier",
    identity="tier",
    lenient=True,
)
TIERS = Many(TIER, at_most=10_000, same=id, keep=True)
CIRCUIT_BREAKER = Record(
    CircuitBreaker,
    (
        Field("error_rate", Number(0, 1, open_below=True)),
        Field("window_seconds", _TIMEOUT, "window_s"),
        Field("min_requests", _COUNT),
        Field("open_seconds", _TIMEOUT, "open_s"),
        Field("close_after_probes", Whole(1, 1000)),
        Field("recovery_steps", Many(Number(0, 1, open_below=True), at_least=1, at_most=100)),
        Field("recovery_seconds", Number(0, 3600, unit="seconds"), "recovery_s"),
        Field("shared", Boolean()),
    ),
    lenient=True,
)
INSTANCE = Record(
    Instance,
    (Field("host", Host(), required=True), Field("port", _PORT, required=True), Field("weight", Whole(1, 1000))),
)
DISCOVERY = Record(
    Discovery,
    (
        Field("type", Choice(("dns", "consul", "etcd", "kubernetes")), required=True),
        Field("service", Text(253), required=True),
        Field("port", PortOrName()),
        Field("nameservers", Many(Nameserver(), at_least=1, at_most=10)),
        Field("url", URL(("https", "http"))),
        Field("endpoints", Many(URL(("https", "http")), at_least=1, at_most=20)),
        Field("prefix", Token()),
        Field("tag", Name()),
        Field("datacenter", Name()),
        Field("namespace", Name()),
        Field("username", Name()),
        Field("password_file", FilePath()),
        Field("token_file", FilePath()),
        Field("ca_file", FilePath()),
        Field("allow_loopback", Boolean()),
        Field("allow_names", Boolean()),
        Field("networks", Many(Network(), at_least=1)),
        Field("empty_after_seconds", Number(0, _DAY_S, unit="seconds"), "empty_after_s"),
    ),
    lenient=True,
)


def _label(instance: Instance) -> str:
    return instance.label


BACKEND = Record(
    Backend,
    (
        Field("name", Name(), required=True),
        Field("owner", Name()),
        Field("instances", Many(INSTANCE, at_most=10_000, same=_label)),
        Field("discovery", DISCOVERY),
        Field("health_check_path", RequestTarget()),
        Field("health_check_interval_ms", Milliseconds(10, _DAY_S * 1000), "health_check_interval_s"),
        Field("unhealthy_after", Whole(1, 1000)),
        Field("healthy_after", Whole(1, 1000)),
        Field("max_connections", Whole(1, 100_000)),
        Field("min_connections", Whole(0, 100_000)),
        Field("idle_timeout_seconds", _TIMEOUT, "idle_timeout_s"),
        Field("max_lifetime_seconds", Number(0, _DAY_S, open_below=True, unit="seconds"), "max_lifetime_s"),
        Field("slow_start_seconds", Number(0, 3600, unit="seconds"), "slow_start_s"),
        Field("max_rps", Number(0, 1e9, open_below=True)),
        Field("circuit_breaker", CIRCUIT_BREAKER),
    ),
    noun="backend",
    identity="name",
    lenient=True,
)


def _route(deprecated: bool | str = False, **given: Any) -> Route:
    """A date of `deprecated` is its epoch second. Leaving one of auth_type and auth_required out is no contradiction:
    what a route says of itself ("none", or false) decides the other."""
    if "auth_type" not in given and given.get("auth_required") is False:
        given["auth_type"] = "none"
    elif "auth_required" not in given and given.get("auth_type") == "none":
        given["auth_required"] = False
    since_s = day_start_s(deprecated) if isinstance(deprecated, str) else None
    return Route(deprecated=bool(deprecated), deprecated_at=since_s, **given)


def _deprecation(route: Route) -> bool | str:
    if route.deprecated_at is None:
        return route.deprecated
    return datetime.fromtimestamp(route.deprecated_at, timezone.utc).date().isoformat()


ROUTE = Record(
    _route,
    (
        Field("route_id", Name(), required=True),
        Field("owner", Name()),
        Field("pattern", Pattern(), required=True),
        Field("methods", Many(Method(), at_least=1), required=True),
        Field("backend_service", Name(), required=True),
        Field("strip_prefix", Prefix()),
        Field("auth_required", Boolean()),
        Field("auth_type", Choice(("jwt", "api_key", "none"))),
        Field("auth_grace_period", Boolean()),
        Field("required_scopes", Many(Token(scope=True))),
        Field("rate_limit_tier", Name()),
        Field("rate_limit_fail_mode", Choice(("open", "closed", "local"))),
        Field("timeout_ms", Milliseconds(1, 3_600_000), "timeout_s"),
        Field("circuit_breaker", Boolean()),
        Field("priority", Choice(("P0", "P1", "P2", "P3"))),
        Field("cors_allowed_origins", Many(Origin())),
        Field("deprecated", Deprecation(), value_of=_deprecation),
        Field("sunset_date", Day()),
        Field("max_body_bytes", Whole(0, 2**40, "bytes")),
        Field("forward_cookies", Boolean()),
        Field("websocket", Boolean()),
    ),
    noun="route",
    identity="route_id",
    lenient=True,
)
