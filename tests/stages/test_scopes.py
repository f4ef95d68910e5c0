"""Required scopes: all of them, letter for letter. Grace periods are in test_authentication.py."""

from types import SimpleNamespace
from typing import Any

import pytest

from apigw.exchange import ClientRequest, Exchange, Principal
from apigw.stages.scopes import InsufficientScope, RequiredScopes


def scoped(granted: set[str], required: set[str]) -> Any:
    ex: Any = Exchange(SimpleNamespace(), ClientRequest("GET", b"/", [], {}), 0.0, 0.0)
    ex.route = SimpleNamespace(required_scopes=frozenset(required))
    ex.principal = Principal(user_id="alice", scopes=frozenset(granted))
    return ex


@pytest.mark.parametrize(("granted", "required"), [(set(), set()), ({"a"}, set()), ({"a", "b"}, {"a"}), ({"a"}, {"a"})])
def test_who_has_every_required_scope_passes(granted: set[str], required: set[str]) -> None:
    ex = scoped(granted, required)
    assert RequiredScopes().enter(ex) is None
    assert ex.auth_failure is None


@pytest.mark.parametrize("granted", [set(), {"a"}, {"A", "b"}, {"administrator"}, {"adm"}, {"a:b"}, {"*"}])
def test_who_lacks_one_is_refused_and_told_which_are_needed(granted: set[str]) -> None:
    ex = scoped(granted, {"a", "b"})
    with pytest.raises(InsufficientScope) as caught:
        RequiredScopes().enter(ex)
    error = caught.value
    assert (error.status, error.code, ex.auth_failure) == (403, "insufficient_scope", "insufficient_scope")
    challenge = b'Bearer realm="apigw", error="insufficient_scope", scope="a b"'
    assert error.headers == ((b"WWW-Authenticate", challenge),)
