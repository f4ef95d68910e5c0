"""`apigwctl check`: what the daemon would say of a configuration, without one."""

from pathlib import Path

from tests.cli.tool import Tool, run


def test_a_valid_configuration(tool: Tool) -> None:
    ran = tool.run("check")
    assert (ran.status, ran.err) == (0, "")
    assert f"{tool.main_file}: valid, version " in ran.out and "1 routes" in ran.out
    said = tool.run("check", "--json").json()
    assert said["valid"] is True and said["version"] in ran.out and said["problems"] == []


def test_every_problem_with_its_place_and_what_was_meant(tool: Tool) -> None:
    tool.sections["routes"][0]["rate_limit_tier"] = "partnr"
    tool.sections["admin"] = {"prot": 9601}
    ran = tool.run("check")
    assert (ran.status, ran.out) == (1, "")
    lines = ran.err.splitlines()
    assert len(lines) == 2 and all(line.startswith(f"{tool.main_file}:") for line in lines)
    assert "did you mean 'partner'?" in ran.err and "did you mean 'port'?" in ran.err
    said = tool.run("check", "--json")
    assert said.status == 1 and said.json()["valid"] is False
    assert {one["suggestion"] for one in said.json()["problems"]} == {"partner", "port"}


def test_another_file_may_be_named(tool: Tool, tmp_path: Path) -> None:
    other = tmp_path / "other.yaml"
    other.write_text("listeners: []\n")
    ran = tool.run("check", str(other))
    assert ran.status == 1 and ran.err.startswith(f"{other}:1: ")
    missing = run("check", str(tmp_path / "missing.yaml"))
    assert missing.status == 1 and "does not exist" in missing.err


def test_the_packaged_configuration_is_valid() -> None:
    checkout = Path(__file__).parents[2]
    assert run("check", str(checkout / "etc" / "apigw.yaml")).status == 0
