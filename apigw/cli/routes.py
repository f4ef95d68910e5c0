"""`apigwctl routes`: the route table that the running gateway serves."""

from typing import Any

import click

from apigw.cli.admin import ask
from apigw.cli.settings import Settings
from apigw.cli.show import document, json_option, table


@click.command()
@click.option("--backend", metavar="NAME", help="Only routes to this backend.")
@click.option("--owner", metavar="OWNER", help="Only routes of this owner.")
@json_option
@click.pass_obj
def routes(settings: Settings, backend: str | None, owner: str | None, as_json: bool) -> None:
    """The routes in force, by pattern. --json has every key with its default written out."""
    found = [
        one
        for one in ask(settings, "/config").get("routes", ())
        if (backend is None or one.get("backend_service") == backend) and (owner is None or one.get("owner") == owner)
    ]
    found.sort(key=lambda one: str(one.get("pattern")))
    if as_json:
        document(found)
        return
    columns = ("pattern", "methods", "route", "backend", "authentication", "tier", "timeout", "priority", "owner")
    table(columns, [_row(one) for one in found], right=("timeout",))


def _row(route: dict[str, Any]) -> tuple[object, ...]:
    return (
        route.get("pattern"),
        tuple(route.get("methods", ())),
        route.get("route_id"),
        route.get("backend_service"),
        _authentication(route),
        route.get("rate_limit_tier"),
        f"{route.get('timeout_ms')} ms",
        route.get("priority"),
        route.get("owner"),
    )


def _authentication(route: dict[str, Any]) -> str:
    """`jwt orders:read`; with a grace period, that."""
    if not route.get("auth_required", True) or route.get("auth_type") == "none":
        return "none"
    words = [str(route.get("auth_type")), *route.get("required_scopes", ())]
    return " ".join(words) + (" (grace period)" if route.get("auth_grace_period") else "")
