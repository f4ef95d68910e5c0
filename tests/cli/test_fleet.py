"""Several gateways side by side: two real ones that disagree, one that is not there, and how they are compared."""

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest

from apigw.cli.admin import Admin
from apigw.cli.fleet import Gateway as Asked
from apigw.cli.fleet import asked, compared
from tests.cli.tool import run
from tests.e2e.gateway import Gateway, backend, quiet_port
from tests.e2e.origin import Origin, Seen


async def _sick(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Gateway]]:
    """Two gateways of one backend: to the checks of the second it is sick. It also has a backend of its own."""
    origin = Origin().start(quiet_port())
    origin.on("/sick", _sick)
    gateways = [Gateway(tmp_path_factory.mktemp(name), origin.port) for name in ("gateway-1", "gateway-2")]
    for number, gateway in enumerate(gateways, 1):
        gateway.settings["gateway"]["instance_name"] = f"gateway-{number}"
    gateways[1].settings["backends"] = [
        backend("origin", origin.port, health_check_path="/sick", unhealthy_after=1),
        backend("extra", origin.port),
    ]
    try:
        for gateway in gateways:
            gateway.start()
        gateways[1].until(lambda: not gateways[1].status()["backends"]["origin"]["instances"][0]["up"])
        yield gateways
        for gateway in gateways:
            gateway.stop()
    finally:
        for gateway in gateways:
            gateway.kill()
        origin.remove()


def at(gateways: list[Gateway]) -> list[str]:
    return [word for gateway in gateways for word in ("--admin", f"http://127.0.0.1:{gateway.admin}")]


def test_each_instance_is_up_in_so_many_and_the_others_are_named_with_their_reason(fleet: list[Gateway]) -> None:
    """No configuration is needed for it."""
    ran = run("--config", "/nowhere.yaml", "backends", *at(fleet))
    assert (ran.status, ran.err) == (0, "")
    rows = [line.split() for line in ran.out.splitlines() if line.startswith(("origin", "extra"))]
    circuits, instances = rows[:2], rows[2:]
    assert circuits == [["origin", "closed", "-"], ["extra", "closed", "gateway-1"]]
    instance = instances[0][1]
    assert [row[:5] for row in instances] == [
        ["origin", instance, "1", "of", "2"],
        ["extra", instance, "1", "of", "2"],
    ]
    said = " ".join(instances[0][5:])
    assert said.startswith("gateway-2 for ") and said.endswith(": its health check answered 500 -")
    assert instances[1][5:] == ["-", "gateway-1"]


def test_json_has_the_same_for_programs(fleet: list[Gateway]) -> None:
    said = run("backends", "origin", "--json", *at(fleet)).json()
    assert [(one["gateway"], one["error"]) for one in said["gateways"]] == [("gateway-1", None), ("gateway-2", None)]
    assert list(said["backends"]) == ["origin"]
    assert said["backends"]["origin"]["circuit"] == {"closed": ["gateway-1", "gateway-2"]}
    (one,) = said["backends"]["origin"]["instances"]
    assert one["up"] == ["gateway-1"] and one["unknown_to"] == []
    assert [(out["gateway"], out["why"]) for out in one["out"]] == [("gateway-2", "its health check answered 500")]


def test_who_does_not_answer_is_named_and_the_others_are_shown_all_the_same(fleet: list[Gateway]) -> None:
    silent = f"127.0.0.1:{quiet_port()}"
    ran = run("backends", *at(fleet), "--admin", silent)
    assert ran.status == 1
    assert ran.err == f"apigwctl: 1 of 3 gateways did not answer: {silent}\n"
    assert "1 of 2" in ran.out, "of those that answered"
    assert f"no gateway answers at its admin listener {silent}: Connection refused" in ran.out
    said = run("backends", "--json", "--admin", silent)
    assert said.status == 1 and said.json()["backends"] == {}
    assert said.json()["gateways"][0]["error"].startswith("no gateway answers")


def test_a_backend_that_none_of_them_has(fleet: list[Gateway]) -> None:
    ran = run("backends", "orign", *at(fleet))
    assert (ran.status, ran.out) == (1, "")
    assert "these gateways have no backend 'orign'; did you mean 'origin'?" in ran.err


def test_a_gateway_counts_once_and_those_of_one_name_are_told_apart_by_their_address(fleet: list[Gateway]) -> None:
    first = Admin("127.0.0.1", fleet[0].admin)
    assert [gateway.name for gateway in asked([first, first])] == ["gateway-1"]
    names = [gateway.name for gateway in asked([first, Admin("localhost", fleet[0].admin)])]
    assert names == [f"gateway-1 at 127.0.0.1:{fleet[0].admin}", f"gateway-1 at localhost:{fleet[0].admin}"]


def _said(name: str, **backends: Any) -> Asked:
    return Asked("10.0.0.1:9601", name, {"backends": backends})


def test_instances_that_only_some_know_and_circuits_that_differ() -> None:
    up, other = {"instance": "a:1", "up": True}, {"instance": "b:1", "up": True}
    found = compared(
        [
            _said("one", orders={"circuit": {"state": "closed"}, "instances": [up, other]}),
            _said("two", orders={"circuit": {"state": "open"}, "instances": [up]}),
            _said("three"),
            Asked("10.0.0.9:9601", None, {}, "no gateway answers"),
        ]
    )
    assert found["orders"]["circuit"] == {"closed": ["one"], "open": ["two"]}
    assert found["orders"]["unknown_to"] == ["three"]
    assert [(one["instance"], one["up"], one["unknown_to"]) for one in found["orders"]["instances"]] == [
        ("a:1", ["one", "two"], ["three"]),
        ("b:1", ["one"], ["two", "three"]),
    ]
