"""What verbs print."""

import json

import pytest

from apigw.cli.show import document, facts, moment, plain, since, table


def test_what_steers_a_terminal_is_escaped() -> None:
    assert plain("a\x1b[2Jb\n\u202ec") == "a\\x1b[2Jb\\n\\u202ec"


@pytest.mark.parametrize(
    "value, text",
    [(None, "-"), ("", "-"), ((), "-"), (True, "yes"), (False, "no"), (0, "0"), (("a", "b"), "a, b"), ("é", "é")],
)
def test_a_value_is_one_word(value: object, text: str) -> None:
    assert plain(value) == text


def test_a_table_in_a_pipe_has_one_line_a_row_however_long(capsys: pytest.CaptureFixture[str]) -> None:
    table(("name", "count"), [("x" * 300, 1), ("[red]y[/red]", 22)], right=("count",))
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["name", "count"]
    assert [line.split() for line in lines[2:]] == [["x" * 300, "1"], ["[red]y[/red]", "22"]]


def test_facts_stand_under_each_other(capsys: pytest.CaptureFixture[str]) -> None:
    facts([("a", 1), ("long", None)])
    assert capsys.readouterr().out == "a     1\nlong  -\n"


def test_json_is_ascii_so_that_it_steers_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    document({"agent": "\x1b\u202e"})
    out = capsys.readouterr().out
    assert out.isascii() and "\x1b" not in out and json.loads(out) == {"agent": "\x1b\u202e"}


def test_moments_are_utc_to_the_second() -> None:
    assert moment(1_800_000_000.9) == "2027-01-15T08:00:00Z"
    assert moment(None) is None


@pytest.mark.parametrize("number", [253_402_300_800.0, 1e15, 1e300, -1e300, -1e12, float("inf"), float("nan"), 10**30])
def test_a_number_that_is_no_date_is_shown_as_it_is(number: float) -> None:
    assert moment(number) == str(number)


@pytest.mark.parametrize(
    "seconds, text",
    [(None, None), (0.4, "0 s"), (119, "119 s"), (120, "2 min"), (7199, "119 min"), (7200, "2 h"), (172_800, "2 d")],
)
def test_how_long_ago(seconds: float | None, text: str | None) -> None:
    assert since(seconds) == text
