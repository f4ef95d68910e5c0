"""Revocations there and back again, and all that is none."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.core.revocation_codec import MAX_JTI_BYTES, from_member, from_message, key, member, message
from apigw.core.revocations import Revocation, RevokedToken, RevokedUser
from apigw.names import REVOKED_TOKENS, REVOKED_USERS

TIME = st.floats(1.0, 1e11) | st.integers(1, 10**11).map(float)
JTI = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=MAX_JTI_BYTES // 4)
USER = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=256)
ENTRY: st.SearchStrategy[Revocation] = st.builds(RevokedToken, JTI, TIME) | st.builds(RevokedUser, USER, TIME, TIME)
NOT_A_TIME = (0.0, -1.0, 1e11 + 1, 1.8e12, float("nan"), float("inf"), float("-inf"))


@given(ENTRY)
def test_a_revocation_is_the_same_after_redis_and_after_the_channel(revocation: Revocation) -> None:
    """To the last bit of its times."""
    assert from_member(key(revocation), member(revocation), revocation.until_s) == revocation
    assert from_message(message(revocation)) == revocation


def test_how_they_are_spelled() -> None:
    """What apigwctl writes and an operator sees in redis-cli; a user id may have colons."""
    token, user = RevokedToken("a:b", 1_700_003_600.0), RevokedUser("u:7", 1_700_000_000.25, 1_700_003_600)
    assert (key(token), member(token)) == ("revoked:tokens", b"a:b")
    assert (key(user), member(user)) == ("revoked:users", b"1700000000.25:u:7")
    assert member(user._replace(issued_until_s=1_700_000_000.0)) == b"1700000000:u:7"
    assert message(token) == b'{"jti":"a:b","until_s":1700003600.0}'
    assert orjson.loads(message(user)) == {
        "user_id": "u:7",
        "issued_until_s": 1_700_000_000.25,
        "until_s": 1_700_003_600,
    }


@given(st.binary(max_size=60), st.floats(), st.sampled_from([REVOKED_TOKENS, REVOKED_USERS, "apikeys:x"]))
def test_a_member_is_a_revocation_in_its_one_spelling_or_none(entry: bytes, until_s: float, name: str) -> None:
    try:
        revocation = from_member(name, entry, until_s)
    except ValueError:
        return
    assert member(revocation) == entry and key(revocation) == name


@pytest.mark.parametrize(
    "entry",
    [b"", b"u", b":u", b"1:", b"1.0:u", b"01:u", b"1e9:u", b"1.2.3:u", b"-1:u", b"0:u", b"nan:u", b" 1:u", b"1:u u",
     b"1:u\n", b"1:\xff", b"1:" + b"u" * 257, b"9" * 20 + b":u"],
)  # fmt: skip
def test_no_member_of_users(entry: bytes) -> None:
    with pytest.raises(ValueError):
        from_member(REVOKED_USERS, entry, 5.0)


@pytest.mark.parametrize("entry", [b"", b"\xff", b"\xed\xa0\x80", b"j" * (MAX_JTI_BYTES + 1)])
def test_no_member_of_tokens(entry: bytes) -> None:
    with pytest.raises(ValueError):
        from_member(REVOKED_TOKENS, entry, 5.0)


@pytest.mark.parametrize(
    "said",
    [None, [], "x", 7, {}, {"jti": "a"}, {"until_s": 5}, {"jti": "a", "until_s": 5, "more": 1},
     {"jti": 7, "until_s": 5}, {"jti": None, "until_s": 5}, {"jti": "", "until_s": 5}, {"jti": "a", "until_s": "5"},
     {"jti": "a", "until_s": True}, {"jti": "a", "until_s": None}, {"jti": "a", "until_s": 0},
     {"jti": "a", "until_s": 10**400}, {"jti": "a", "until_s": -5}, {"jti": "a" * 5000, "until_s": 5},
     {"user_id": "u", "until_s": 5}, {"user_id": "u v", "issued_until_s": 5, "until_s": 5},
     {"user_id": "u", "issued_until_s": "5", "until_s": 5}, {"user_id": "ü", "issued_until_s": 5, "until_s": 5},
     {"jti": "a", "user_id": "u", "issued_until_s": 5, "until_s": 5}],
)  # fmt: skip
def test_no_message(said: Any) -> None:
    with pytest.raises(ValueError):
        from_message(json.dumps(said).encode())


@pytest.mark.parametrize(
    "data", [b"", b"{", b"\xff", b'{"jti": "\\ud800", "until_s": 5}', b'{"jti":"a","until_s":NaN}']
)
def test_no_json(data: bytes) -> None:
    with pytest.raises(ValueError):
        from_message(data)


@pytest.mark.parametrize("until_s", NOT_A_TIME)
def test_a_time_that_is_none_is_neither_written_nor_read(until_s: float) -> None:
    for revocation in (RevokedToken("a", until_s), RevokedUser("u", 5.0, until_s), RevokedUser("u", until_s, 5.0)):
        for write in (member, message):
            with pytest.raises(ValueError):
                write(revocation)
    for name, entry in ((REVOKED_TOKENS, b"a"), (REVOKED_USERS, b"5:u")):
        with pytest.raises(ValueError):
            from_member(name, entry, until_s)


def test_names_that_no_gateway_would_read_are_not_written() -> None:
    for revocation in (RevokedToken("", 5.0), RevokedToken("\ud800", 5.0), RevokedUser("a b", 5.0, 5.0)):
        with pytest.raises(ValueError):
            member(revocation)
