"""Patterns, prefixes, methods, dates."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.config.kinds import Kind, Reading, Refused
from apigw.config.matching import Day, Deprecation, Method, Pattern, Prefix, Token, day_start_s
from apigw.config.nodes import Scalar
from apigw.config.problems import Problems
from apigw.core.paths import canonical
from apigw.core.trie import Trie


def read(kind: Kind[Any], value: Any) -> Any:
    try:
        return kind.read(Scalar(1, value), "key", Reading("f", Path("/"), Problems()))
    except Refused as refused:
        return refused


@pytest.mark.parametrize("text", ["/", "/*", "/a", "/a/", "/a/*", "/a/b.c/~d", "/a%20b", "/caf%C3%A9/*", "/a:b/@c"])
def test_canonical_patterns_are_accepted(text: str) -> None:
    assert read(Pattern(), text) == text


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [
        ("/a//b", "/a/b"),
        ("/a/./b", "/a/b"),
        ("/a/../b", "/b"),
        ("/a/..", "/"),
        ("/a//*", "/a/*"),
        ("//*", "/*"),
        ("/%41", "/A"),
        ("/%c3%a9", "/%C3%A9"),
        ("/é", "/%C3%A9"),
        ("/a b", "/a%20b"),
        ("a/b", "/a/b"),
        ("*", "/*"),
    ],
)
def test_a_pattern_in_another_spelling_cannot_match_and_the_right_one_is_named(text: str, suggestion: str) -> None:
    refused = read(Pattern(), text)
    assert isinstance(refused, Refused) and refused.suggestion == suggestion
    assert read(Pattern(), suggestion) == suggestion


@pytest.mark.parametrize(
    "text", ["/a*", "/*/a", "/**", "/a?b", "/a#b", "/%2f", "/%", "/..", "/%00", "/a\\b", "", "/" * 2000]
)
def test_patterns_that_cannot_match(text: str) -> None:
    assert isinstance(read(Pattern(), text), Refused)


@given(st.text(alphabet=st.sampled_from("/ab.*%2Fé é;\\?#c"), max_size=12).map(lambda text: "/" + text))
def test_an_accepted_pattern_matches_a_request_for_its_own_path(text: str) -> None:
    if isinstance(read(Pattern(), text), Refused):
        return
    trie: Trie[str] = Trie()
    trie.add(text, "here")
    path = text[:-1] + "x" if text.endswith("/*") else text
    assert trie.match(canonical(path.encode())[0]) == "here"


def test_prefixes_lose_their_last_slash() -> None:
    assert read(Prefix(), "/api/v2/") == "/api/v2" and read(Prefix(), "/") == "" and read(Prefix(), "") == ""
    assert isinstance(read(Prefix(), "api"), Refused) and isinstance(read(Prefix(), "/api/*"), Refused)
    assert isinstance(read(Prefix(), "/a//b"), Refused)


def test_methods_are_known_words_in_upper_case() -> None:
    assert read(Method(), "PATCH") == "PATCH"
    refused = read(Method(), "get")
    assert isinstance(refused, Refused) and refused.suggestion == "GET"
    assert isinstance(read(Method(), "CONNECT"), Refused) and isinstance(read(Method(), "FETCH"), Refused)


def test_tokens_have_no_blanks_and_scopes_no_quotes() -> None:
    assert read(Token(), 'a"b') == 'a"b' and isinstance(read(Token(), "a b"), Refused)
    assert read(Token(scope=True), "read:users") == "read:users"
    assert isinstance(read(Token(scope=True), 'a"b'), Refused) and isinstance(read(Token(scope=True), "é"), Refused)


def test_days_exist() -> None:
    assert read(Day(), "2028-02-29") == "2028-02-29" and day_start_s("1970-01-02") == 86_400
    for text in ("2027-02-29", "2027-2-1", "20270201", "2027-02-01T00:00:00", "tomorrow", "0001-01-01", 2027):
        assert isinstance(read(Day(), text), Refused), text


def test_deprecation_is_a_boolean_or_a_day() -> None:
    assert read(Deprecation(), True) is True and read(Deprecation(), "2026-01-01") == "2026-01-01"
    assert isinstance(read(Deprecation(), "yes"), Refused) and isinstance(read(Deprecation(), 1), Refused)
