"""Tables of fields: what is read, what is refused, what is shown."""

from pathlib import Path
from typing import Any

from attrs import frozen

from apigw.config.fields import Field, Group, Record
from apigw.config.kinds import Milliseconds, Name, Reading, Whole
from apigw.config.nodes import Node, read_tree
from apigw.config.problems import Problems


@frozen
class Thing:
    name: str
    timeout_s: float = 1.0
    depth: int = 3
    owner: str | None = None


FIELDS = (
    Field("name", Name(), required=True),
    Field("timeout_ms", Milliseconds(1, 10_000), "timeout_s"),
    Group("size", (Field("depth", Whole(1, 9)),)),
    Field("owner", Name()),
)
THING = Record(
    Thing, FIELDS, noun="thing", identity="name", lenient=True, elsewhere={"port": "belongs to the listener"}
)


def read(text: str) -> tuple[Any, Reading]:
    reading = Reading("f", Path("/"), Problems())
    node: Node | None = read_tree(text, "f", reading.problems)
    assert node is not None
    return THING.read(node, "things[0]", reading), reading


def messages(reading: Reading) -> list[str]:
    return [str(problem) for problem in reading.problems.in_order()]


def test_keys_become_attributes_and_defaults_fill_the_rest() -> None:
    thing, reading = read("name: a\ntimeout_ms: 250\nsize: {depth: 4}\nowner:\n")
    assert thing == Thing("a", 0.25, 4) and messages(reading) == []
    assert THING.show(thing) == {"name": "a", "timeout_ms": 250, "size": {"depth": 4}, "owner": None}


def test_every_bad_key_is_reported_under_the_name_of_its_record() -> None:
    thing, reading = read("name: a\ntimeout_ms: x\nsize: {colour: 1, depth: 0}\nonwer: b\nport: 1\n")
    assert messages(reading) == [
        "f:2: thing 'a': timeout_ms must be a whole number, 1 to 10000 ms, not the text 'x'",
        "f:3: thing 'a': size.colour is not a known key",
        "f:3: thing 'a': size.depth must be a whole number, 1 to 9, not the number 0",
        "f:4: thing 'a': onwer is not a known key; did you mean 'owner'?",
        "f:5: thing 'a': port belongs to the listener",
    ]
    site = reading.sites[id(thing)][1]
    assert site.bad >= {"timeout_ms", "depth"} and site.lines["timeout_ms"] == 2


def test_a_missing_key_is_reported_where_the_record_begins() -> None:
    thing, reading = read("timeout_ms: 5\n")
    assert messages(reading) == ["f:1: things[0].name is missing"] and thing.name is None


def test_a_group_must_be_a_mapping() -> None:
    assert messages(read("name: a\nsize: 5\n")[1]) == ["f:2: thing 'a': size must be a mapping, not the number 5"]
    assert messages(read("name: a\nsize:\n")[1]) == []


def test_keys_are_listed_for_the_documentation() -> None:
    assert list(THING.keys()) == ["name", "timeout_ms", "size.depth", "owner"]
