"""Golden files: a configuration in, the list of its problems out, with lines and suggestions.

tests/golden/NAME.yaml is loaded at 2026-06-01T12:00:00Z; NAME.errors is what the loader must say, with "FOLDER" for
the absolute path of tests/golden.
"""

import os
from pathlib import Path

import pytest

from apigw.config.files import load
from apigw.errors import ConfigurationError

GOLDEN = Path(__file__).parent.parent / "golden"


@pytest.mark.parametrize("name", sorted(path.stem for path in GOLDEN.glob("*.yaml")))
def test_a_configuration_has_exactly_these_problems(name: str, now_s: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(GOLDEN)
    try:
        load(Path(f"{name}.yaml"), hostname="host", now_s=now_s)
        found = ""
    except ConfigurationError as error:
        found = f"{error}\n".replace(os.getcwd(), "FOLDER")
    assert found == (GOLDEN / f"{name}.errors").read_text()


def test_every_golden_list_has_its_configuration() -> None:
    assert {path.stem for path in GOLDEN.glob("*.errors")} == {path.stem for path in GOLDEN.glob("*.yaml")}
