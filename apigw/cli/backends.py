"""`apigwctl backends`: each instance of each backend, as the running gateway sees it, or as several do."""

from typing import Any

import click

from apigw.cli import fleet
from apigw.cli.admin import Admin, ask
from apigw.cli.kinds import AdminListener
from apigw.cli.refusals import Refused, nearest
from apigw.cli.settings import Settings
from apigw.cli.show import document, json_option, since, table
from apigw.config.problems import shown


@click.command()
@click.argument("name", required=False, help="Only this backend.")
@click.option(
    "--admin", "admins", type=AdminListener(), multiple=True, help="Ask this gateway instead; repeat for a fleet."
)
@json_option
@click.pass_obj
def backends(settings: Settings, name: str | None, admins: tuple[Admin, ...], as_json: bool) -> None:
    """Which instances are up or out, why and since when, and what they do. Of a fleet: in how many gateways."""
    if admins:
        _fleet(fleet.asked(admins), name, as_json)
        return
    found = _only(name, ask(settings, "/status").get("backends", {}), "the gateway has")
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


def _only(name: str | None, found: dict[str, Any], who_has: str) -> dict[str, Any]:
    if name is None:
        return found
    if name not in found:
        raise Refused(f"{who_has} no backend {shown(name)}{nearest(name, found)}")
    return {name: found[name]}


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


# -- a fleet


def _fleet(gateways: list[fleet.Gateway], name: str | None, as_json: bool) -> None:
    """What they say, then Refused if one of them said nothing."""
    silent = [gateway for gateway in gateways if gateway.error is not None]
    answered = len(gateways) - len(silent)
    found = fleet.compared(gateways)
    if answered:
        found = _only(name, found, "these gateways have")
    if as_json:
        document({"gateways": [_gateway(gateway) for gateway in gateways], "backends": found})
    else:
        _show(gateways, found, answered)
    if silent:
        which = ", ".join(gateway.admin for gateway in silent)
        raise Refused(f"{len(silent)} of {len(gateways)} gateways did not answer: {which}")


def _gateway(gateway: fleet.Gateway) -> dict[str, Any]:
    return {
        "admin": gateway.admin,
        "gateway": gateway.name,
        "ready": gateway.status.get("ready"),
        "config_version": gateway.status.get("config", {}).get("version"),
        "error": gateway.error,
    }


def _show(gateways: list[fleet.Gateway], found: dict[str, Any], answered: int) -> None:
    columns = ("admin", "gateway", "ready", "config_version", "error")
    table([each.replace("_", " ") for each in columns], [[*_gateway(gateway).values()] for gateway in gateways])
    if not answered:
        return
    print()
    table(
        ("backend", "circuit", "unknown to"),
        [(each, _states(backend["circuit"]), backend["unknown_to"] or None) for each, backend in found.items()],
    )
    print()
    table(
        ("backend", "instance", "up", "out at", "unknown to"),
        [
            (each, one["instance"], f"{len(one['up'])} of {answered}", "; ".join(map(_out, one["out"])))
            + (one["unknown_to"] or None,)
            for each, backend in found.items()
            for one in backend["instances"]
        ],
    )


def _states(circuits: dict[str, list[str]]) -> str:
    """`closed`; where gateways differ: the commonest state, and who is in another."""
    common, *others = sorted(circuits, key=lambda state: -len(circuits[state]))
    return "; ".join([common, *(f"{state} at {', '.join(circuits[state])}" for state in others)])


def _out(one: dict[str, Any]) -> str:
    """`gateway-3 for 5 min: connection refused: nothing listens there`"""
    return f"{one['gateway']} for {since(one['since_seconds'])}: {one['why']}"
