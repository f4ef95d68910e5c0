"""What is made of another gateway's word on a circuit, and of nonsense."""

from typing import Any

import orjson
import pytest
from attrs import evolve
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.breaker import CLOSED, HALF_OPEN, OPEN, RECOVERING
from apigw.core.circuit_record import MAX_BYTES, CircuitRecord, Follow, decoded, encoded, judged

NOW = 1_707_264_490.0
OPENED = CircuitRecord(OPEN, NOW - 10, "gateway-2/aa", NOW + 20, None, 25, NOW - 10)
BACK = OPENED.recovering(NOW - 5)


def judge(record: CircuitRecord | None, state: str, **facts: Any) -> Follow | None:
    given: dict[str, Any] = {"me": "gateway-1/bb", "known": None, "opened_at": 0.0, **facts}
    return judged(record, NOW, state=state, **given)


def test_a_record_is_json_as_the_design_has_it_and_comes_back() -> None:
    said = orjson.loads(encoded(OPENED))
    assert said["state"] == "open" and said["failure_count"] == 25
    assert said["opened_at"] == said["last_failure_at"] == NOW - 10
    read = decoded(encoded(OPENED))
    assert read is not None and read.outage == OPENED.outage and read.until == OPENED.until
    again = decoded(encoded(BACK))
    assert again is not None and (again.state, again.since, again.outage) == (RECOVERING, NOW - 5, OPENED.outage)


@pytest.mark.parametrize("state", [CLOSED, HALF_OPEN, OPEN, RECOVERING])
def test_what_another_opened_is_open_here_for_what_is_left(state: str) -> None:
    assert judge(OPENED, state) == Follow(OPEN, 20.0)
    assert judge(OPENED, state, known=OPENED.outage) is None, "it was followed once"
    assert judge(evolve(OPENED, by="gateway-1/bb"), state) is None, "its own"
    assert judge(evolve(OPENED, until=NOW), state) is None, "over"


@pytest.mark.parametrize("state", [OPEN, HALF_OPEN])
def test_what_recovers_there_recovers_here_from_where_that_one_is(state: str) -> None:
    assert judge(BACK, state, known=BACK.outage, opened_at=NOW - 1) == Follow(RECOVERING, 5.0)
    assert judge(BACK, state, opened_at=NOW - 6) == Follow(RECOVERING, 5.0), (
        "another outage that ended after ours began"
    )
    assert judge(BACK, state, opened_at=NOW - 4) is None, "opened here after that ramp began"
    own = evolve(BACK, by="gateway-1/bb")
    assert judge(own, state, known=own.outage) == Follow(RECOVERING, 5.0), "opened here, recovered by another"


def test_a_ramp_that_was_missed_is_joined_and_one_that_was_left_is_not() -> None:
    assert judge(BACK, CLOSED) == Follow(RECOVERING, 5.0)
    assert judge(BACK, CLOSED, known=BACK.outage) is None
    assert judge(BACK, RECOVERING) is None
    assert judge(BACK.recovering(NOW + 3), CLOSED) == Follow(RECOVERING, 0.0), "a clock that is ahead"


def test_nothing_follows_from_nothing() -> None:
    assert judge(None, CLOSED) is None


@pytest.mark.parametrize(
    "value",
    [
        None,
        7,
        [],
        b"",
        b"open",
        b"[]",
        b'{"state":"open"}',
        b'{"state":"shut","opened_at":1,"until":2,"by":"x"}',
        b'{"state":"open","opened_at":true,"until":2,"by":"x"}',
        b'{"state":"open","opened_at":1,"until":"2","by":"x"}',
        b'{"state":"open","opened_at":1,"until":2,"by":""}',
        b'{"state":"open","opened_at":1,"until":2,"by":7}',
        b'{"state":"recovering","opened_at":1,"until":2,"by":"x","since":null}',
        b'{"state":"open","opened_at":1e999,"until":2,"by":"x"}',
        encoded(evolve(OPENED, by="x" * MAX_BYTES)),
    ],
)
def test_nonsense_in_redis_says_nothing(value: object) -> None:
    assert decoded(value) is None


@given(st.binary(max_size=200) | st.recursive(st.none() | st.floats() | st.text(), st.lists).map(orjson.dumps))
def test_no_bytes_of_redis_raise(value: bytes) -> None:
    decoded(value)
