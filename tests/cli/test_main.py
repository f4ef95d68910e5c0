"""Statuses and sentences: what goes wrong is told once, in one line, with the nearest right answer."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import apigw
from apigw.adapters.key_store import KeyStore
from apigw.cli.main import verbs
from tests.cli.tool import Tool, run


def test_without_a_verb_it_shows_its_help_and_says_wrong_usage() -> None:
    ran = run()
    assert (ran.status, ran.out) == (2, "")
    assert "Usage: apigwctl" in ran.err and "keys" in ran.err


@pytest.mark.parametrize("words", [("--help",), ("keys", "-h"), ("keys", "create", "--help")])
def test_help_is_no_failure(words: tuple[str, ...]) -> None:
    ran = run(*words)
    assert (ran.status, ran.err) == (0, "")
    assert ran.out.startswith("Usage: apigwctl")


def test_it_has_the_gateways_version() -> None:
    assert run("--version").out == f"apigwctl {apigw.__version__}\n"


@pytest.mark.parametrize(
    "words, said",
    [
        (("key",), "no such command 'key'. Did you mean 'keys'? see apigwctl --help"),
        (
            ("keys", "crate"),
            "no such command 'crate'. (Did you mean one of: 'create', 'rotate'?) see apigwctl keys --help",
        ),
        (("keys", "create", "--partnr", "x"), "no such option '--partnr'. Did you mean '--partner'? see apigwctl keys"),
        (("keys", "create"), "missing option '--partner'; see apigwctl keys create --help"),
        (("keys", "show"), "missing argument 'KEY_ID'; see apigwctl keys show --help"),
        (("keys", "show", "a", "b"), "got unexpected extra argument"),
    ],
)
def test_a_command_line_that_means_nothing_is_status_2_and_one_sentence(
    tool: Tool, words: tuple[str, ...], said: str
) -> None:
    assert said in tool.refused(*words, status=2)


def test_a_configuration_that_is_not_there_is_named_with_the_option_for_another_one(tool: Tool) -> None:
    said = tool.refused("keys", "list", write=False)
    assert f"{tool.main_file} does not exist; --config FILE names another configuration" in said


def test_the_configuration_may_be_named_by_the_environment(tool: Tool) -> None:
    tool.run("keys", "list")
    KeyStore(tool.sections["auth"]["api_keys"]["database_url"]).close()
    environment = {**os.environ, "APIGW_CONFIG": str(tool.main_file)}
    command = [sys.executable, "-m", "apigw.cli.main", "keys", "list", "--json"]
    done = subprocess.run(command, env=environment, cwd=Path(__file__).parents[2], capture_output=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"[]\n", b"")


def test_a_reader_that_stops_reading_costs_no_traceback(tool: Tool) -> None:
    tool.run("keys", "list")
    shell = f"{sys.executable} -m apigw.cli.main --config {tool.main_file} keys create --partner a | true"
    done = subprocess.run(["bash", "-c", shell], cwd=Path(__file__).parents[2], capture_output=True, timeout=30)
    assert done.stderr == b""


def test_a_defect_is_one_sentence_with_its_place_and_none_of_its_words(tool: Tool) -> None:
    """Words of an exception may hold a secret."""

    @verbs.command()
    def broken() -> None:
        """Raises."""
        raise RuntimeError("s3cret")

    try:
        said = tool.refused("broken")
    finally:
        del verbs.commands["broken"]
    assert "a defect of apigwctl itself: RuntimeError at " in said and "s3cret" not in said


VERBS = ["keys create --partner a", "keys list", "keys show a", "keys rotate a", "keys revoke a", "tokens revoke"]
VERBS += ["tokens list", "usage --by route", "usage --unauthenticated", "logs", "check", "explain GET", "routes"]
VERBS += ["backends", "status", "reload", "drain", "keys", ""]
WORDS = "--json --partner --tier --scope --expires 90d --state active --jti --user --expires-in 1h - /x -H a:b --from"
WORDS += " --log --since --last 5 --limit --status 5xx --route partner orders:read ../x 10.0.0.0/8 --allow-ip --overlap"
ANY_WORD = st.sampled_from(WORDS.split()) | st.text(st.characters(exclude_characters="\0"), max_size=20)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(verb=st.sampled_from(VERBS), words=st.lists(ANY_WORD, max_size=4))
def test_whatever_is_typed_is_done_refused_or_wrong_usage(tool: Tool, verb: str, words: list[str]) -> None:
    """A sentence for each; no defect."""
    ran = tool.run(*verb.split(), *words)
    assert ran.status in (0, 1, 2)
    assert "defect" not in ran.err and "Traceback" not in ran.err
    assert ran.status == 0 or ran.err or '"valid": false' in ran.out


def test_a_shell_can_complete_verbs(tool: Tool) -> None:
    script = subprocess.run(
        [sys.executable, "-c", "import sys; from apigw.cli.main import main; sys.exit(main())"],
        env={**os.environ, "_APIGWCTL_COMPLETE": "bash_source"},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=30,
    ).stdout
    assert "complete" in script and "apigwctl" in script


def test_every_verb_and_every_option_has_its_help() -> None:
    for path, command in commands(verbs, "apigwctl"):
        assert command.help, path
        for parameter in command.params:
            assert getattr(parameter, "help", "argument"), f"{path} {parameter.name}"


def test_the_page_has_every_verb_and_every_option() -> None:
    page = (Path(__file__).parents[2] / "docs" / "apigwctl.rst").read_text()
    sections = dict(re.findall(r"^(apigwctl [a-z -]+)\n~+\n((?:(?!^apigwctl |^-+$).*\n)*)", page, re.MULTILINE))
    found = {path: command for path, command in commands(verbs, "apigwctl") if not hasattr(command, "commands")}
    assert sections.keys() == found.keys()
    for path, command in found.items():
        for option in (option for parameter in command.params for option in parameter.opts if option[:2] == "--"):
            assert option == "--json" or f"``{option}" in sections[path], f"{path} {option}"


def commands(group, path):  # type: ignore[no-untyped-def]
    """(path, command) of every verb below a group."""
    for name, command in group.commands.items():
        yield f"{path} {name}", command
        if hasattr(command, "commands"):
            yield from commands(command, f"{path} {name}")
