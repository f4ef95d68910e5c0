"""`apigwctl status`: whether the gateway is well, and what it runs."""

from typing import Any

import click

from apigw.cli.admin import ask
from apigw.cli.settings import Settings
from apigw.cli.show import document, facts, json_option


@click.command()
@json_option
@click.pass_obj
def status(settings: Settings, as_json: bool) -> None:
    """The running gateway: ready or why not, its configuration, its load. --json is /status as it is."""
    found = ask(settings, "/status")
    if as_json:
        document(found)
        return
    facts(_facts(found))


def _facts(found: dict[str, Any]) -> list[tuple[str, object]]:
    config, load = found.get("config", {}), found.get("load") or {}
    backends = found.get("backends", {})
    healthy = sum(any(one.get("up") for one in each.get("instances", ())) for each in backends.values())
    rows: list[tuple[str, object]] = [
        ("instance", found.get("instance")),
        ("version", found.get("version")),
        ("process", found.get("pid")),
        ("ready", _ready(found)),
        ("configuration", f"{config.get('version')}, {config.get('routes')} routes"),
        ("reloads", f"{config.get('reloads_applied')} applied, {config.get('reloads_rejected')} refused"),
        ("listeners", found.get("listeners")),
        ("connections", found.get("connections")),
        ("in flight", found.get("in_flight")),
        ("loop lag", f"{found.get('event_loop_lag_ms')} ms"),
        ("load", f"{load.get('load_percent')} % of CPU, {load.get('memory_percent')} % of memory"),
        ("shedding", load.get("state")),
        ("backends", f"{healthy} of {len(backends)} have a healthy instance"),
    ]
    store = found.get("shared_store")
    if store:
        rows.append(("redis", "up" if store.get("up") else f"down: {store.get('last_error')}"))
    revoked, keys = found.get("revocations"), found.get("api_keys")
    if revoked:
        whole = "" if revoked.get("complete") else ", the list is not complete: Redis was not there since the start"
        rows.append(("revocations", f"{sum(revoked.get('entries', {}).values())} in force{whole}"))
    if keys:
        rows.append(("API keys", "database up" if keys.get("database_up") else "database DOWN"))
    if config.get("last_reload_error"):
        rows.append(("last reload", f"refused: {str(config['last_reload_error']).splitlines()[0]}"))
    return rows


def _ready(found: dict[str, Any]) -> str:
    """yes, or no with what decides; what does not decide is named too when it is not well."""
    checks = found.get("checks", {})
    bad = [f"{name}: {check.get('detail')}" for name, check in checks.items() if not check.get("ok")]
    return ("yes" if found.get("ready") else "no") + (f" ({'; '.join(bad)})" if bad else "")
