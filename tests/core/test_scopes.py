"""What a scopes claim grants; the hostile spellings inside whole tokens are in tests/corpus."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.scopes import TooManyScopes, granted, is_scope

_VISIBLE = st.characters(codec="ascii", min_codepoint=0x21, max_codepoint=0x7E, exclude_characters='"\\')
_SCOPE = st.text(_VISIBLE, min_size=1)
_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
)


@given(st.lists(_SCOPE.filter(lambda text: len(text) < 15), max_size=50))
def test_a_list_and_a_string_of_scopes_grant_the_same(scopes: list[str]) -> None:
    assert granted(scopes) == granted(" ".join(scopes))
    assert granted(scopes)[0] == frozenset(scopes)


@given(_ANY)
def test_whatever_the_claim_only_scopes_are_granted_and_the_header_says_the_same(claim: object) -> None:
    try:
        scopes, text = granted(claim)
    except TooManyScopes:
        return
    assert all(is_scope(scope) for scope in scopes)
    assert frozenset(text.split(" ") if text else ()) == scopes
    assert text.isascii() and text.isprintable()


@given(st.lists(st.text(max_size=6), max_size=8))
def test_nothing_is_granted_that_no_item_of_the_list_says(items: list[str]) -> None:
    assert granted(items)[0] == {item for item in items if is_scope(item)}


TOO_MUCH = ["s " * 256 + "s", ["s"] * 257, "s" * 4097, ["s" * 2048, "t" * 2048], ["s" * 4097, 1]]


@pytest.mark.parametrize("claim", TOO_MUCH)
def test_more_than_a_header_may_carry_is_refused(claim: object) -> None:
    with pytest.raises(TooManyScopes):
        granted(claim)


@pytest.mark.parametrize("claim", [" ".join(["s"] * 256), ["s"] * 256, "s" * 4096])
def test_the_bounds_themselves_are_good(claim: object) -> None:
    assert granted(claim)[0]
