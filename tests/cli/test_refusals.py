"""Sentences of refusal."""

import click
import pytest

from apigw.cli.refusals import nearest, usage_sentence, warn


def test_the_nearest_name_is_offered_and_nothing_where_none_is_near() -> None:
    assert nearest("standart", {"standard", "premium"}) == "; did you mean 'standard'?"
    assert nearest("zzz", {"standard", "premium"}) == nearest("a", set()) == ""


def test_a_usage_error_is_one_sentence_with_the_place_of_its_help() -> None:
    context = click.Context(click.Command("keys"), info_name="apigwctl keys")
    assert usage_sentence(click.UsageError("Missing option.", context)) == "missing option; see apigwctl keys --help"
    assert usage_sentence(click.UsageError("No x. Did you mean y?")) == "no x. Did you mean y? see apigwctl --help"


def test_warnings_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    warn("done, but late")
    assert capsys.readouterr() == ("", "apigwctl: done, but late\n")
