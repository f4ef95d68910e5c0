"""/healthz on the public listeners."""

from typing import Any

import pytest

from apigw.errors import Answered
from apigw.stages.public_health import PublicHealth


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize(("ready", "status"), [(True, 200), (False, 503)])
def test_it_says_yes_or_no_and_nothing_else(exchange: Any, method: str, ready: bool, status: int) -> None:
    with pytest.raises(Answered) as answer:
        PublicHealth(lambda: ready).enter(exchange(method, b"/healthz?verbose=1"))
    assert answer.value.status == status
    assert answer.value.body == b'{"ready":%b}' % (b"true" if ready else b"false")
    assert (b"Cache-Control", b"no-store") in answer.value.headers
    assert (b"Retry-After" in dict(answer.value.headers)) is not ready


@pytest.mark.parametrize(
    ("method", "target"),
    [("POST", b"/healthz"), ("GET", b"/healthz/"), ("GET", b"/healthz/x"), ("GET", b"/a/healthz"), ("GET", b"/Health")],
)
def test_everything_else_is_not_its_business(exchange: Any, method: str, target: bytes) -> None:
    def never() -> bool:
        raise AssertionError("readiness was asked for")

    PublicHealth(never).enter(exchange(method, target))


def test_another_spelling_of_the_path_is_the_same_path(exchange: Any) -> None:
    with pytest.raises(Answered):
        PublicHealth(lambda: True).enter(exchange("GET", b"/x/..//%68ealthz"))
