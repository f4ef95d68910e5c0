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
    """With the whole minute that it belongs to; what is over by then is not taken any more."""
    revocations = Revocations()
    assert revocations.add([RevokedToken("a", 60.0), RevokedToken("b", 60.5), RevokedUser("u", 5.0, 120.0)])
    assert revocations.prune(59.9) and len(revocations) == 3 and revocations.pruned_s == 0.0
    assert revocations.prune(119.9) and revocations.counts() == {"token": 1, "user": 1}
    assert not revocations.refuses("a", None, None) and revocations.refuses("b", None, None)
    assert revocations.pruned_s == 60.0 and not revocations.add([RevokedToken("a", 60.0)])
    assert revocations.prune(180.0) and not revocations.any and len(revocations) == 0


def test_an_entry_that_was_made_to_last_longer_stays_as_long() -> None:
    revocations = Revocations()
    for until_s in (50.0, 100.0, 55.0):
        revocations.add([RevokedToken("a", until_s), RevokedUser("u", until_s, until_s)])
    assert revocations.prune(60.0) and revocations.refuses("a", None, None) and revocations.refuses(None, "u", 100.0)
    assert revocations.prune(120.0) and not revocations.any


def test_pruning_goes_by_slices() -> None:
    """Of those that leave together; the next slice goes on where the last one ended."""
    revocations = Revocations()
    revocations.add(RevokedToken(str(number), 30.0) for number in range(10))
    assert [revocations.prune(60.0, 4) for _ in range(3)] == [False, False, True]
    assert len(revocations) == 0


@given(st.lists(ENTRY), st.lists(TIME, max_size=4), st.integers(1, 5))
def test_what_is_left_is_what_ends_after_the_last_pruning(
    entries: list[Revocation], times: list[float], at_most: int
) -> None:
    """Which is what another count of the same entries is compared with."""
    revocations = Revocations()
    for now_s in times:
        revocations.add(entries)
        while not revocations.prune(now_s, at_most):
            pass
    revocations.add(entries)
    left = {(type(one), one[0]) for one in entries if one.until_s > revocations.pruned_s}
    assert len(revocations) == len(left) and revocations.any is bool(left)
    assert revocations.pruned_s == (times[-1] // 60 * 60 if times else 0.0)


@given(st.lists(ENTRY))
def test_a_list_says_whether_it_learned_anything_and_copies_all_of_it(entries: list[Revocation]) -> None:
    revocations, other = Revocations(), Revocations()
    assert revocations.add(entries) is bool([one for one in entries if one.until_s > 0])
    assert not revocations.add(entries)
    tokens, users = revocations.kept()
    other.add(RevokedToken(jti, until_s) for jti, until_s in tokens.items())
    other.add(RevokedUser(user, *times) for user, times in users.items())
    assert other.kept() == (tokens, users) and other.counts() == {"token": len(tokens), "user": len(users)}


def test_a_full_list_keeps_what_it_has_and_counts_what_it_leaves_out() -> None:
    revocations = Revocations(most=2)
    revocations.add([RevokedToken("a", 10.0), RevokedUser("u", 5.0, 10.0)])
    assert not revocations.add([RevokedToken("b", 10.0), RevokedUser("v", 5.0, 10.0)])
    assert revocations.add([RevokedToken("a", 20.0)]) and revocations.add([RevokedUser("u", 6.0, 10.0)])
    assert (len(revocations), revocations.left_out) == (2, 2) and not revocations.refuses("b", "v", 1.0)
