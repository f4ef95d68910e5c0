"""`apigwctl backends` of a real gateway."""

import pytest

from apigw.cli.backends import _backend_row, _found_by, _instance_row, _states
from tests.cli.tool import run
from tests.e2e.gateway import Gateway


def test_each_instance_is_up_or_out(gateway: Gateway) -> None:
    gateway.until(lambda: not gateway.status()["backends"]["dead"]["instances"][0]["up"])
    ran = run("--config", str(gateway.main_file), "backends")
    assert ran.status == 0
    rows = {tuple(line.split()[:1]) + tuple(line.split()[2:3]) for line in ran.out.splitlines() if ":" in line}
    assert rows == {("origin", "up"), ("dead", "OUT")}
    assert "team-dead" in ran.out and "0 of 1 up" in ran.out


def test_json_is_what_the_gateway_says_of_it(gateway: Gateway) -> None:
    said = run("--config", str(gateway.main_file), "backends", "origin", "--json").json()
    assert list(said) == ["origin"] and said["origin"]["instances"][0]["up"] is True


def test_an_unknown_backend_is_told_with_the_nearest_name(gateway: Gateway) -> None:
    ran = run("--config", str(gateway.main_file), "backends", "orign")
    assert (ran.status, ran.out) == (1, "")
    assert "the gateway has no backend 'orign'; did you mean 'origin'?" in ran.err


def test_why_and_since_when() -> None:
    instance = {"instance": "a:1", "up": False, "since_seconds": 300, "why": "status 500", "failures": 3, "weight": 2}
    assert _instance_row("b", {**instance, "weight_now": 0, "in_flight": 1}) == (
        "b", "a:1", "OUT", "5 min", "status 500", 3, 0, 1, None
    )  # fmt: skip
    assert _instance_row("b", {"up": True, "slow": True})[2] == "up, slow"


@pytest.mark.parametrize(
    "circuit, shown",
    [
        (None, None),
        ({"state": "closed", "open_seconds_left": None, "share": 1.0}, "closed"),
        ({"state": "open", "open_seconds_left": 12.3, "share": 0.0}, "open, 12 s left"),
        ({"state": "recovering", "open_seconds_left": None, "share": 0.25}, "recovering, 25% let through"),
    ],
)
def test_a_circuit_says_what_it_lets_through(circuit: dict[str, object] | None, shown: str | None) -> None:
    assert _backend_row("b", {"circuit": circuit})[-1] == shown


@pytest.mark.parametrize(
    "discovery, shown",
    [
        (None, None),
        ({"registry": "etcd http://10.0.0.5:2379 /services/b/", "up": True, "list": "live"}, "etcd"),
        ({"registry": "dns b.test SRV", "up": False, "list": "saved"}, "dns DOWN, saved list"),
        ({"registry": "consul http://c b", "up": None, "list": "none"}, "consul not heard yet, no list"),
    ],
)
def test_who_names_the_instances(discovery: dict[str, object] | None, shown: str | None) -> None:
    assert _found_by(discovery) == shown


@pytest.mark.parametrize(
    "circuits, shown",
    [
        ({"closed": ["a", "b"]}, "closed"),
        ({"open": ["c"], "closed": ["a", "b"], "half open": ["d"]}, "closed; open at c; half open at d"),
    ],
)
def test_the_circuits_of_a_fleet_are_told_by_the_commonest_and_by_who_differs(
    circuits: dict[str, list[str]], shown: str
) -> None:
    assert _states(circuits) == shown
