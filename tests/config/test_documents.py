"""What may stand in which file, and that docs/configuration.rst explains all of it."""

import re
from pathlib import Path
from typing import Any, Iterator

from apigw.config.documents import MAIN_FILE, PART_FILE, paths_of
from apigw.config.fields import Field, Group, Record
from apigw.config.kinds import Many, Numbers

ROOT = Path(__file__).parent.parent.parent


def keys(fields: tuple[Field | Group, ...]) -> Iterator[str]:
    """Every key of a table and of the tables inside it."""
    for each in fields:
        yield each.key
        if isinstance(each, Group):
            yield from keys(each.fields)
            continue
        kind: Any = each.kind.of if isinstance(each.kind, Many) else each.kind
        if isinstance(kind, Record):
            yield from keys(kind.fields)
        elif isinstance(kind, Numbers):
            yield from kind.defaults


def test_every_key_is_documented() -> None:
    text = (ROOT / "docs" / "configuration.rst").read_text()
    documented = set(re.findall(r"``([A-Za-z0-9_]+)``|^([a-z_]+)\n===", text, flags=re.MULTILINE))
    documented = {key or title for key, title in documented} | set(re.findall(r"\b(P[123]|shed|reject):", text))
    assert set(keys(MAIN_FILE.fields)) - documented == set()


def test_what_an_included_file_may_not_hold_is_what_only_the_main_file_may() -> None:
    parts = {"rate_limits", "owner", "backends", "routes"}
    assert {each.key for each in PART_FILE.fields} == parts
    assert set(PART_FILE.elsewhere) == {each.key for each in MAIN_FILE.fields} - parts


def test_a_main_file_that_names_no_files_names_none() -> None:
    assert paths_of(MAIN_FILE.make(listeners=())) == ()
