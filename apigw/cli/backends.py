"""`apigwctl backends`: each instance of each backend, as the running gateway sees it."""

from typing import Any

import click

from apigw.cli.admin import ask
from apigw.cli.refusals import Refused, nearest
from apigw.cli.settings import Settings
from apigw.cli.show import document, json_option, since, table
from apigw.config.problems import shown


@click.command()
@click.argument("name", required=False, help="Only this backend.")
@json_option
@click.pass_obj
def backends(settings: Settings, name: str | None, as_json: bool) -> None:
    """Which instances are up or out, why and since when, and what they do."""
    found: dict[str, Any] = ask(settings, "/status").get("backends", {})
    if name is not None:
        if name not in found:
            raise Refused(f"the gateway has no backend {shown(name)}{nearest(name, found)}")
        found = {name: found[name]}
    if as_json:
        document(found)
        return
    table(
        ("backend", "owner", "instances", "found by", "connections", "busy", "idle", "waiting", "circuit"),
        [_backend_row(each, backend) for each, backend in found.items()],
        right=("connections", "busy", "idle", "waiting"),
    )
    print()
    table(
        ("backend", "instance", "state", "since", "why", "failures", "weight", "in flight", "check ms"),
        [_instance_row(each, one) for each, backend in found.items() for one in backend.get("instances", ())],
        right=("failures", "weight", "in flight", "check ms"),
    )


def _backend_row(name: str, backend: dict[str, Any]) -> tuple[object, ...]:
    instances, connections = backend.get("instances", ()), backend.get("connections", {})
    up = sum(bool(one.get("up")) for one in instances)
    return (
        name,
        backend.get("owner"),
        f"{up} of {len(instances)} up",
        _found_by(backend.get("discovery")),
        f"{connections.get('open')} of {backend.get('max_connections')}",
        connections.get("busy"),
        connections.get("idle"),
        connections.get("waiting"),
        _circuit(backend.get("circuit")),
    )


def _found_by(discovery: dict[str, Any] | None) -> str | None:
    """`etcd`, or `etcd DOWN, saved list`; nothing for a backend that lists its instances."""
    if discovery is None:
        return None
    kind = str(discovery.get("registry", "")).partition(" ")[0]
    if discovery.get("up"):
        return kind
    state = "DOWN" if discovery.get("up") is False else "not heard yet"
    return f"{kind} {state}, {str(discovery.get('list')).replace('none', 'no')} list"


def _circuit(circuit: dict[str, Any] | None) -> str | None:
    """`open, 12 s left`, or the share of requests that is let through while it closes again."""
    if circuit is None:
        return None
    left_s, share = circuit.get("open_seconds_left"), circuit.get("share", 1.0)
    if left_s is not None:
        return f"{circuit.get('state')}, {left_s:.0f} s left"
    return f"{circuit.get('state')}, {share:.0%} let through" if 0.0 < share < 1.0 else str(circuit.get("state"))


def _instance_row(name: str, instance: dict[str, Any]) -> tuple[object, ...]:
    return (
        name,
        instance.get("instance"),
        ("up, slow" if instance.get("slow") else "up") if instance.get("up") else "OUT",
        since(instance.get("since_seconds")),
        instance.get("why"),
        instance.get("failures"),
        instance.get("weight_now", instance.get("weight")),
        instance.get("in_flight"),
        instance.get("check_ms"),
    )
