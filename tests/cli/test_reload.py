"""`apigwctl reload` of a real gateway: the outcome is waited for and told."""

from tests.cli.tool import run
from tests.e2e.gateway import Gateway, route


def test_a_good_configuration_is_in_force_when_it_returns(gateway: Gateway) -> None:
    gateway.settings["routes"].append(route("fresh", "/fresh/*"))
    gateway.write()
    ran = run("--config", str(gateway.main_file), "reload")
    try:
        assert (ran.status, ran.err) == (0, "")
        assert ran.out == f"configuration {gateway.status()['config']['version']} is in force\n"
        assert gateway.ask("GET", "/fresh/x").status == 200
    finally:
        gateway.settings["routes"].pop()
        gateway.write()
        assert run("--config", str(gateway.main_file), "reload").status == 0


def test_a_refused_one_is_told_problem_by_problem_and_the_old_one_serves(gateway: Gateway) -> None:
    version = gateway.status()["config"]["version"]
    gateway.settings["routes"].append(route("bad", "/bad/*", "orign"))
    gateway.write()
    ran = run("--config", str(gateway.main_file), "reload")
    try:
        assert ran.status == 1 and ran.out == ""  # the backend is named in a file that apigwctl need not like
        assert "did you mean 'origin'?" in ran.err
        assert f"the new configuration is refused, {version} stays in force" in ran.err
        assert gateway.ask("GET", "/pub/x").status == 200
    finally:
        gateway.settings["routes"].pop()
        gateway.write()
        assert run("--config", str(gateway.main_file), "reload").status == 0


def test_a_wait_that_is_too_short_says_so(gateway: Gateway) -> None:
    ran = run("--config", str(gateway.main_file), "reload", "--wait", "0")
    assert ran.status in (0, 1) and (ran.status == 0 or "has not finished within 0 s" in ran.err)
    assert run("--config", str(gateway.main_file), "reload").status == 0
