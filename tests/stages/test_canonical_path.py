"""Stage 3: the path is made canonical once, and what is ambiguous goes no further."""

from typing import Any

import pytest

from apigw.core.paths import AmbiguousPath
from apigw.exchange import Target
from apigw.stages.canonical_path import CanonicalPath


def test_the_target_is_made_canonical_and_its_query_kept(exchange: Any) -> None:
    ex = exchange(target=b"")
    ex.request.target = b"/a/./%62//c%c3%a9?x=%2F"
    assert CanonicalPath().enter(ex) == Target("/a/b/c%C3%A9", "x=%2F", "/a/b/c%c3%a9")


@pytest.mark.parametrize("target", [b"/a%2fb", b"/..", b"/a\\b", b"/%00", b"/%", b"*"])
def test_an_ambiguous_target_is_refused_without_saying_why_to_the_client(exchange: Any, target: bytes) -> None:
    ex = exchange(target=b"")
    ex.request.target = target
    with pytest.raises(AmbiguousPath) as refusal:
        CanonicalPath().enter(ex)
    error = refusal.value
    assert (error.status, error.code, error.reason) == (400, "bad_request", "bad_path")
    assert error.detail and error.detail not in error.message
