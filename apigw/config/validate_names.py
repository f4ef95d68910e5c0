"""Names: each stands for one thing, and what is referred to exists."""

from typing import Callable, Iterable, TypeVar

from apigw.config.model import SELF
from apigw.config.parse import Draft
from apigw.config.problems import shown

R = TypeVar("R")


def check_duplicates(draft: Draft, now_s: float) -> None:
    """Routes, patterns, tiers and backends stand once, over all files."""
    config = draft.config
    _once(draft, config.rate_limits.tiers, "tier", "tier", lambda tier: tier.tier)
    _once(draft, config.backends, "name", "backend", lambda backend: backend.name)
    _once(draft, config.routes, "route_id", "route_id", lambda route: route.route_id)
    patterns: dict[str, object] = {}
    for route in config.routes:
        if not draft.sound(route, "pattern"):
            continue
        first = patterns.setdefault(route.pattern, route)
        if first is not route:
            other = shown(getattr(first, "route_id"))
            place = draft.place(first, "pattern")
            message = f"the pattern {shown(route.pattern)} is also that of route {other} ({place})"
            draft.refuse(route, "pattern", f"{message}; only one of them could ever match")


def _once(draft: Draft, records: Iterable[R], key: str, noun: str, name_of: Callable[[R], str | None]) -> None:
    seen: dict[str, R] = {}
    for record in records:
        name = name_of(record)
        if name is None:
            continue
        first = seen.setdefault(name, record)
        if first is not record:
            draft.refuse(record, key, f"{noun} {shown(name)} stands twice; first at {draft.place(first, key)}")


def check_references(draft: Draft, now_s: float) -> None:
    """Backends, tiers and routes that are named exist. Nothing is said while a file could not be read."""
    if not draft.complete:
        return
    config = draft.config
    limits = config.rate_limits
    tiers = {tier.tier for tier in limits.tiers if tier.tier}
    backends = {backend.name for backend in config.backends if backend.name} | {SELF}
    routes = {route.route_id for route in config.routes if route.route_id}
    for key in ("global_tier", "unmatched_tier", "failed_auth_tier"):
        _known(draft, limits, key, "rate_limits.", getattr(limits, key), tiers, "tier")
    for name in config.config.protected_routes:
        _known(draft, config.config, "protected_routes", "config.", name, routes, "route")
    for route in config.routes:
        prefix = f"route {shown(route.route_id)}: "
        _known(draft, route, "backend_service", prefix, route.backend_service, backends, "backend")
        _known(draft, route, "rate_limit_tier", prefix, route.rate_limit_tier, tiers, "tier")


def _known(draft: Draft, record: object, key: str, prefix: str, name: str | None, names: set[str], noun: str) -> None:
    if name is not None and name not in names:
        nearest = draft.problems.nearest(name, names)
        draft.refuse(record, key, f"{prefix}{key}: there is no {noun} {shown(name)}", nearest)
