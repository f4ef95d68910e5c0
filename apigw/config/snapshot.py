"""A configuration made ready to serve: built whole, swapped by one reference, never changed.

Everything that can be computed once a reload instead of once a request is computed here.
"""

import time
from datetime import datetime, timezone
from email.utils import format_datetime
from typing import Callable

from apigw.config.model import SELF, Config, Route, Tier
from apigw.core.client_address import TrustedProxies
from apigw.core.trie import Trie


class CompiledRoute:
    """A route with what its requests need, as the wire wants it. `route` is the record it was made from."""

    __slots__ = (
        "route",
        "route_id",
        "backend",
        "methods",
        "allow",
        "strip",
        "timeout_s",
        "max_body_bytes",
        "auth_required",
        "auth_type",
        "auth_grace_period",
        "required_scopes",
        "tier",
        "fail_mode",
        "priority",
        "cors_origins",
        "cors_methods",
        "static_reply_lines",
        "forward_cookies",
        "circuit_breaker",
    )

    def __init__(self, route: Route, config: Config, tiers: dict[str, Tier]) -> None:
        self.route = route
        self.route_id = route.route_id
        self.backend = None if route.backend_service == SELF else route.backend_service
        self.methods = frozenset(route.methods)
        self.allow = ", ".join(route.methods).encode("ascii")
        self.strip = len(route.strip_prefix.rstrip("/"))
        self.timeout_s = route.timeout_s
        self.max_body_bytes = config.limits.max_body_bytes if route.max_body_bytes is None else route.max_body_bytes
        self.auth_required = route.auth_required
        self.auth_type = route.auth_type
        self.auth_grace_period = route.auth_grace_period
        self.required_scopes = frozenset(route.required_scopes)
        self.tier = tiers.get(route.rate_limit_tier) if route.rate_limit_tier else None
        self.fail_mode = route.rate_limit_fail_mode
        self.priority = route.priority
        self.cors_origins = frozenset(origin.encode("ascii") for origin in route.cors_allowed_origins)
        self.cors_methods = self.allow
        self.static_reply_lines = _lifecycle_lines(route)
        self.forward_cookies = route.forward_cookies
        self.circuit_breaker = route.circuit_breaker


def _lifecycle_lines(route: Route) -> bytes:
    """Deprecation (RFC 9745: a structured Date "@epoch") and Sunset (RFC 8594: an HTTP-date)."""
    lines = b""
    if route.deprecated or route.sunset_date:
        lines += b"Deprecation: @%d\r\n" % (route.deprecated_at or 0)
    if route.sunset_date:
        day = datetime.fromisoformat(route.sunset_date).replace(tzinfo=timezone.utc)
        lines += b"Sunset: " + format_datetime(day, usegmt=True).encode("ascii") + b"\r\n"
    return lines


class Snapshot:
    """One version of the configuration, compiled. `made_s` is the epoch second of its making."""

    def __init__(self, config: Config, wall: Callable[[], float] = time.time) -> None:
        self.config = config
        self.version = config.version
        self.made_s = wall()
        networks = config.gateway.trusted_proxies
        self.trusted_proxies = TrustedProxies(networks) if networks else None
        self.tiers = {tier.tier: tier for tier in config.rate_limits.tiers}
        self.routes: dict[str, CompiledRoute] = {}
        self.trie: Trie[CompiledRoute] = Trie()
        for route in config.routes:
            compiled = CompiledRoute(route, config, self.tiers)
            self.routes[route.route_id] = compiled
            self.trie.add(route.pattern, compiled)
        self.global_tier = self.tiers.get(config.rate_limits.global_tier or "")
        self.unmatched_tier = self.tiers.get(config.rate_limits.unmatched_tier or "")
        failed_auth = config.rate_limits.failed_auth_tier or config.rate_limits.unmatched_tier
        self.failed_auth_tier = self.tiers.get(failed_auth or "")
