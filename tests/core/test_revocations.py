"""The revocation list: what it refuses, that it only adds up, and when entries leave."""

from hypothesis import given
from hypothesis import strategies as st

from apigw.core.revocations import NOTHING_REVOKED, Revocation, Revocations, RevokedToken, RevokedUser

NAME = st.sampled_from(["a", "b", "c"])
TIME = st.floats(0, 1000)
ENTRY: st.SearchStrategy[Revocation] = st.builds(RevokedToken, NAME, TIME) | st.builds(RevokedUser, NAME, TIME, TIME)


def test_an_empty_list_refuses_nothing() -> None:
    assert not NOTHING_REVOKED.any and not NOTHING_REVOKED.refuses("a", "a", 0.0)


def test_a_token_is_refused_by_its_jti() -> None:
    revocations = Revocations()
    revocations.add([RevokedToken("a", 10.0)])
    assert revocations.any and revocations.refuses("a", None, 5.0) and not revocations.refuses("b", "a", 5.0)
    assert not revocations.refuses(None, None, None)


def test_a_user_is_refused_up_to_the_second_of_issue() -> None:
    revocations = Revocations()
    revocations.add([RevokedUser("u", 50.0, 100.0)])
    assert revocations.refuses(None, "u", 50.0) and not revocations.refuses(None, "u", 50.1)
    assert revocations.refuses(None, "u", None), "a token that does not say when it was issued could be an old one"


@given(st.lists(ENTRY), st.lists(ENTRY), NAME, TIME)
def test_loading_a_list_again_lets_nothing_back_in(
    first: list[Revocation], second: list[Revocation], name: str, issued_s: float
) -> None:
    """In whatever order entries come, what any of them refuses is refused."""
    revocations, other = Revocations(), Revocations()
    revocations.add(first)
    refused = revocations.refuses(name, name, issued_s)
    revocations.add(second)
    other.add(second + first)
    assert revocations.refuses(name, name, issued_s) >= refused
    assert revocations.refuses(name, name, issued_s) == other.refuses(name, name, issued_s)


def test_an_entry_leaves_when_its_tokens_have_expired() -> None:
    revocations = Revocations()
    revocations.add([RevokedToken("a", 10.0), RevokedUser("u", 5.0, 20.0)])
    assert revocations.prune(9.0) == 0 and len(revocations) == 2
    assert revocations.prune(10.0) == 1 and not revocations.refuses("a", None, None)
    assert revocations.prune(20.0) == 1 and not revocations.any
