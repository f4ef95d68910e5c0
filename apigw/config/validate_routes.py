"""Routes: what a route says must be able to happen."""

from datetime import datetime, timezone

from apigw.config.matching import day_start_s
from apigw.config.model import Route, Tier
from apigw.config.parse import Draft
from apigw.config.problems import shown

# The public listeners answer this path themselves, before the route table is asked.
PUBLIC_HEALTH_PATH = "/healthz"


def check_routes(draft: Draft, now_s: float) -> None:
    """Each route by itself, and against the sections it needs."""
    tiers = {tier.tier: tier for tier in draft.config.rate_limits.tiers if draft.sound(tier, "tier", "per")}
    today = datetime.fromtimestamp(now_s, timezone.utc).date().isoformat()
    for route in draft.config.routes:
        _check_path(draft, route)
        _check_authentication(draft, route)
        _check_dates(draft, route, today)
        tier = tiers.get(route.rate_limit_tier or "")
        if tier is not None:
            _check_tier(draft, route, tier)


def _refuse(draft: Draft, route: Route, key: str, message: str) -> None:
    draft.refuse(route, key, f"route {shown(route.route_id)}: {message}")


def _check_path(draft: Draft, route: Route) -> None:
    if not draft.sound(route, "pattern"):
        return
    path = route.pattern.removesuffix("/*")
    prefix = route.strip_prefix
    if draft.sound(route, "strip_prefix") and prefix and path != prefix and not path.startswith(prefix + "/"):
        message = (
            f"strip_prefix {shown(prefix)} is unreachable: the pattern {shown(route.pattern)} does not begin with it"
        )
        _refuse(draft, route, "strip_prefix", message)
    if route.pattern == PUBLIC_HEALTH_PATH and draft.sound(route, "methods"):
        if not {"GET", "HEAD"}.isdisjoint(route.methods):
            message = f"the pattern {PUBLIC_HEALTH_PATH} cannot match GET and HEAD, the gateway answers them itself"
            _refuse(draft, route, "pattern", message)


def _check_authentication(draft: Draft, route: Route) -> None:
    if not draft.sound(route, "auth_type", "auth_required"):
        return
    config = draft.config
    if route.auth_type == "none" and route.auth_required:
        _refuse(draft, route, "auth_type", "auth_type none contradicts auth_required: true")
    elif route.required_scopes and not route.auth_required:
        _refuse(draft, route, "required_scopes", "required_scopes are never checked on a route without authentication")
    whole = draft.sound(config, "auth")
    if route.auth_type == "jwt" and config.jwt is None and whole and draft.sound(config, "jwt"):
        _refuse(draft, route, "auth_type", "auth_type jwt needs the section auth.jwt, which is missing")
    if route.auth_type == "api_key" and config.api_keys is None and whole and draft.sound(config, "api_keys"):
        _refuse(draft, route, "auth_type", "auth_type api_key needs the section auth.api_keys, which is missing")


def _check_dates(draft: Draft, route: Route, today: str) -> None:
    if route.sunset_date is None or not draft.sound(route, "sunset_date"):
        return
    if route.sunset_date < today:
        message = f"sunset_date {route.sunset_date} is in the past (today is {today}): move it, or remove the route"
        _refuse(draft, route, "sunset_date", message)
    elif route.deprecated_at is not None and day_start_s(route.sunset_date) < route.deprecated_at:
        _refuse(draft, route, "sunset_date", f"sunset_date {route.sunset_date} is before the date of deprecated")


def _check_tier(draft: Draft, route: Route, tier: Tier) -> None:
    """A tier that could never tell this route's callers apart is a mistake, not a limit."""
    if not draft.sound(route, "auth_type", "auth_required"):
        return
    kind = route.auth_type if route.auth_required else "none"
    name = f"rate_limit_tier {shown(tier.tier)} counts per {tier.per}"
    if tier.per == "user_id" and kind != "jwt":
        reason = "has no authentication" if kind == "none" else "identifies partners by their key, not users"
        message = f"{name}, but the route {reason}: it could never identify a user; use a tier per client_ip"
        _refuse(draft, route, "rate_limit_tier", message if kind == "none" else message.replace("client_ip", "api_key"))
    elif tier.per == "api_key" and kind != "api_key":
        message = f"{name}, but no API key is asked for on this route; use a tier per user_id or client_ip"
        _refuse(draft, route, "rate_limit_tier", message)
