"""Stage 2: every request has an identity, whatever it brought along."""

from typing import Any

from apigw.core.trace import Randomness
from apigw.stages.identity import RequestIdentity


def test_a_valid_request_id_is_kept_and_an_invalid_one_replaced(exchange: Any) -> None:
    stage = RequestIdentity(Randomness())
    assert stage.enter(exchange(fields={b"x-request-id": b"req-1"})).request_id == "req-1"
    assert stage.enter(exchange(fields={b"x-request-id": b"no id"})).request_id != "no id"


def test_two_requests_have_two_identities(exchange: Any) -> None:
    stage = RequestIdentity(Randomness())
    first, second = stage.enter(exchange()), stage.enter(exchange())
    assert first.request_id != second.request_id and first.trace_id != second.trace_id
