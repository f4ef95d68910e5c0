"""Kinds of values: strict types, ranges, and what is shown is what can be read again."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.config.kinds import (
    Boolean,
    Choice,
    Kind,
    Many,
    Milliseconds,
    Name,
    Number,
    Numbers,
    Reading,
    Refused,
    Reported,
    Secret,
    Text,
    Whole,
)
from apigw.config.nodes import Mapping, Node, Scalar, Sequence
from apigw.config.problems import Problems

SCALARS = [None, True, False, 0, 1, -1, 10, 1.5, float("inf"), float("nan"), "", "10", "true", "a", "a b", "\n"]


def node_of(value: Any) -> Node:
    if isinstance(value, list):
        sequence = Sequence(1)
        sequence.items = [node_of(item) for item in value]
        return sequence
    if isinstance(value, dict):
        mapping = Mapping(1)
        mapping.entries = {key: (1, node_of(item)) for key, item in value.items()}
        return mapping
    return Scalar(1, value)


def read(kind: Kind[Any], value: Any) -> Any:
    """The value read, or the text of all problems."""
    reading = Reading("f", Path("/etc"), Problems())
    try:
        return kind.read(node_of(value), "key", reading)
    except Refused as refused:
        return f"key {refused.message}"
    except Reported:
        return "; ".join(problem.message for problem in reading.problems.in_order())


ACCEPTED: list[tuple[Kind[Any], list[Any]]] = [
    (Boolean(), [True, False]),
    (Whole(0, 10), [0, 1, 10]),
    (Number(0, 10), [0, 1, 10, 1.5]),
    (Number(0, 10, open_below=True), [1, 10, 1.5]),
    (Milliseconds(1, 10), [1, 10]),
    (Text(), ["10", "true", "a", "a b"]),
    (Name(), ["10", "true", "a"]),
    (Choice(("a", "true")), ["a", "true"]),
]


@pytest.mark.parametrize(("kind", "accepted"), ACCEPTED)
def test_types_are_strict(kind: Kind[Any], accepted: list[Any]) -> None:
    """A boolean is no number, a text of digits is no number, a number is no boolean."""
    for value in SCALARS:
        got = read(kind, value)
        is_accepted = any(value is one or (value == one and type(value) is type(one)) for one in accepted)
        assert isinstance(got, str) and got.startswith("key ") or is_accepted, (value, got)
        if is_accepted:
            assert kind.show(got) == value
    assert read(kind, []).startswith("key must be") and read(kind, {}).startswith("key must be")


def test_milliseconds_become_seconds() -> None:
    assert read(Milliseconds(1, 100_000), 250) == 0.25
    assert Milliseconds(1, 100_000).show(0.007) == 7


@given(st.integers(1, 3_600_000))
def test_milliseconds_are_shown_as_they_were_written(value: int) -> None:
    assert Milliseconds(1, 3_600_000).show(read(Milliseconds(1, 3_600_000), value)) == value


def test_a_list_reports_every_bad_item() -> None:
    assert read(Many(Whole(1, 9)), [1, "x", 3, 10]) == (
        "key[1] must be a whole number, 1 to 9, not the text 'x'; "
        "key[3] must be a whole number, 1 to 9, not the number 10"
    )
    assert read(Many(Name()), ["a", "b", "a"]) == "key[2] repeats 'a'"
    assert read(Many(Name(), at_least=1), []) == "key must have at least 1 item"
    assert read(Many(Name(), keep=True), ["a", 1]) == ("a",)


def test_a_mapping_of_numbers_keeps_the_defaults_of_what_is_left_out() -> None:
    kind = Numbers({"P1": 90.0, "P2": 75.0}, Number(0, 100))
    assert read(kind, {"P2": 50}) == {"P1": 90.0, "P2": 50.0}
    assert "key.P0 is unknown" in read(kind, {"P0": 1})


def test_quoted_numbers_are_explained() -> None:
    assert read(Text(), 5) == "key must be text, not the number 5; put it in quotes if it is text"


def test_a_secret_is_read_and_never_shown() -> None:
    read = Secret().read(node_of("s3cret"), "key", Reading("f", Path("/"), Problems()))
    assert read == "s3cret"
    assert Secret().show(read) == "***"
    with pytest.raises(Refused) as refused:
        Secret().read(node_of("s3cret" * 1000), "key", Reading("f", Path("/"), Problems()))
    assert "s3cret" not in refused.value.message
