"""The configuration as verbs read it: what stands in the way and what does not."""

from tests.cli.tool import Tool


def include(tool: Tool, text: str) -> None:
    tool.sections["config"] = {"include": ["team.yaml"]}
    (tool.main_file.parent / "team.yaml").write_text(text)


def test_a_teams_file_with_an_error_does_not_stand_in_the_way_of_a_revocation(tool: Tool) -> None:
    key_id = tool.run("keys", "create", "--partner", "acme", "--json").json()["key_id"]
    include(tool, "routes: [{pattern: 7}]")
    assert tool.run("keys", "revoke", key_id).status == 0


def test_a_tier_cannot_be_judged_while_a_file_has_an_error(tool: Tool) -> None:
    include(tool, "routes: [{pattern: 7}]")
    said = tool.refused("keys", "create", "--partner", "acme", "--tier", "elsewhere")
    assert "whether there is a tier 'elsewhere' is not known: the configuration has errors" in said


def test_an_error_in_the_main_file_is_told_with_its_line_and_how_many_more_there_are(tool: Tool) -> None:
    tool.main_file.write_text("admin: {prt: 9601}\nlisteners: 7\n")
    said = tool.refused("keys", "list", write=False)
    assert f"{tool.main_file}:1: " in said and "'port'" in said and "and 1 more, see apigwctl check" in said


def test_without_a_section_for_keys_it_says_which_one_is_missing(tool: Tool) -> None:
    del tool.sections["auth"]
    assert "has no section auth.api_keys" in tool.refused("keys", "list")
