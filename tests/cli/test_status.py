"""`apigwctl status` of a real gateway, and of statuses that it may have."""

from typing import Any

from apigw.cli.status import _facts
from tests.cli.tool import run
from tests.e2e.gateway import Gateway


def test_a_gateway_that_is_well(gateway: Gateway) -> None:
    gateway.until(lambda: not gateway.status()["backends"]["dead"]["instances"][0]["up"])
    ran = run("--config", str(gateway.main_file), "status")
    assert ran.status == 0
    shown = dict(line.split(maxsplit=1) for line in ran.out.splitlines())
    assert gateway.process is not None
    assert (shown["instance"], shown["process"], shown["ready"]) == ("e2e", str(gateway.process.pid), "yes")
    assert shown["backends"] == "1 of 2 have a healthy instance"
    said = run("--config", str(gateway.main_file), "status", "--json").json()
    assert said["pid"] == gateway.process.pid and said["ready"] is True


def facts(**status: Any) -> dict[str, object]:
    return dict(_facts({"ready": True, "checks": {}, "config": {}, "backends": {}, **status}))


def test_why_it_is_not_ready_and_what_is_down_all_the_same() -> None:
    checks = {"backends": {"ok": False, "detail": "0 of 1"}, "loop": {"ok": True, "detail": "lag"}}
    assert facts(ready=False, checks=checks)["ready"] == "no (backends: 0 of 1)"
    assert facts(checks={"redis": {"ok": False, "detail": "down"}})["ready"] == "yes (redis: down)"
    assert facts(shared_store={"up": False, "last_error": "refused"})["redis"] == "down: refused"
    assert facts(shared_store={"up": True})["redis"] == "up"
    assert "redis" not in facts(shared_store=None)


def test_what_credentials_are_checked_with() -> None:
    entries = {"token": 2, "user": 1}
    assert facts(revocations={"entries": entries, "complete": True})["revocations"] == "3 in force"
    assert "3 in force, the list is not complete" in str(
        facts(revocations={"entries": entries, "complete": False})["revocations"]
    )
    assert facts(api_keys={"database_up": False})["API keys"] == "database DOWN"
    assert not {"revocations", "API keys"} & facts(revocations=None, api_keys=None).keys()


def test_a_refused_reload_is_told_by_its_first_problem() -> None:
    assert facts(config={"last_reload_error": "a:1: x\nb:2: y"})["last reload"] == "refused: a:1: x"
