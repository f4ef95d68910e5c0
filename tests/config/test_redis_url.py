"""Where Redis is, in one line: what is understood, what is refused in which words, and that secrets stay in it."""

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from apigw.config.kinds import Reading, Refused
from apigw.config.nodes import Scalar
from apigw.config.problems import Problems
from apigw.config.redis_url import CLUSTER, SENTINEL, SINGLE, RedisURL, RedisURLText, redacted_redis_url


@pytest.mark.parametrize(
    ("text", "understood"),
    [
        ("redis://127.0.0.1", RedisURL(SINGLE, False, (("127.0.0.1", 6379),))),
        ("redis://cache:7000/0", RedisURL(SINGLE, False, (("cache", 7000),))),
        ("REDIS://Cache/3", RedisURL(SINGLE, False, (("cache", 6379),), database=3)),
        ("redis://:p%40ss@cache", RedisURL(SINGLE, False, (("cache", 6379),), password="p@ss")),
        ("redis://:a:b@cache", RedisURL(SINGLE, False, (("cache", 6379),), password="a:b")),
        ("rediss://gw:p@[::1]:6380/1", RedisURL(SINGLE, True, (("::1", 6380),), "gw", "p", 1)),
        ("rediss://[0:0::1]", RedisURL(SINGLE, True, (("::1", 6379),))),
        ("redis+sentinel://a,b:1/main", RedisURL(SENTINEL, False, (("a", 26379), ("b", 1)), master="main")),
        (
            "rediss+sentinel://gw:p@a:1,[::1]:2/my.master-1/2",
            RedisURL(SENTINEL, True, (("a", 1), ("::1", 2)), "gw", "p", 2, "my.master-1"),
        ),
        ("redis+cluster://a,b:7001/", RedisURL(CLUSTER, False, (("a", 6379), ("b", 7001)))),
        ("rediss+cluster://:p@a/0", RedisURL(CLUSTER, True, (("a", 6379),), None, "p")),
    ],
)
def test_what_a_url_says(text: str, understood: RedisURL) -> None:
    assert RedisURL.of(text) == understood


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is not a valid URL"),
        ("redis://a b", "is not a valid URL"),
        ("cache:6379", "must begin with redis://, rediss://, redis+sentinel://, rediss+sentinel://"),
        ("http://:secret@cache", "must begin with"),
        ("redis:cache", "must begin with"),
        ("redis://", "names no host"),
        ("redis+cluster://a,", "a comma too many"),
        ("redis://secret@cache", "a user and no password"),
        ("redis://user:@cache", "a user and no password"),
        ("redis://:secret%4@cache", "a % itself is written %25"),
        ("redis://:sec/ret@cache", "a / of a password is written %2F"),
        ("redis://:sec#ret@cache", "written %3F and %23"),
        ("redis://:secret@cache/x", "as in HOST:6379/0"),
        ("redis://:secret@cache/0/1", "as in HOST:6379/0"),
        ("redis://:secret@cache/-1", "as in HOST:6379/0"),
        ("redis://cache/0?ssl=true", "has a query or a fragment"),
        ("redis://a:1,b:1", "names several hosts, which only"),
        ("redis+sentinel://a:1,a:1/m", "names a host twice"),
        ("redis+cluster://" + ",".join(f"h{n}" for n in range(33)), "more than 32 hosts"),
        ("redis+sentinel://:secret@a", "must name the master after its sentinels"),
        ("redis+sentinel://a/m m", "is not a valid URL"),
        ("redis+sentinel://a/m:m", "must name the master"),
        ("redis+sentinel://a/m/x", "as in /mymaster/0"),
        ("redis+cluster://:secret@a/1", "a cluster has only number 0"),
        ("redis://a:0", "a port that is not a number from 1 to 65535"),
        ("redis://a:65536", "a port that is not"),
        ("redis://a:", "a port that is not"),
        ("redis://a:1_0", "a port that is not"),
        ("redis://::1", "IPv6 addresses are written [ADDRESS]:PORT"),
        ("redis://[::1", "not written [ADDRESS]:PORT"),
        ("redis://[::1]6379", "not written [ADDRESS]:PORT"),
        ("redis://[127.0.0.1]", "an IPv4 address in brackets"),
        ("redis://[::1%25eth0]", "IP address"),
        ("redis://256.1.1.1", "an IP address that is none"),
        ("redis://-a", "neither a name nor an IP address"),
        ("redis://" + "a" * 64, "neither a name nor an IP address"),
    ],
)
def test_what_is_no_such_url(text: str, why: str) -> None:
    """In a sentence that never quotes what may hold a password."""
    with pytest.raises(ValueError) as refused:
        RedisURL.of(text)
    assert why in str(refused.value)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("redis://cache:7000/1", "redis://cache:7000/1"),
        ("redis://:secret@cache:7000/1", "redis://:***@cache:7000/1"),
        ("rediss+sentinel://gw:secret@a:1,b:2/main", "rediss+sentinel://gw:***@a:1,b:2/main"),
        ("redis+cluster://gw:secret@a:1,b:2", "redis+cluster://gw:***@a:1,b:2"),
        ("redis://secret@cache", "***"),
        ("secret", "***"),
    ],
)
def test_shown_without_its_password(text: str, shown: str) -> None:
    assert redacted_redis_url(text) == shown
    assert RedisURLText().show(text) == shown
    assert "secret" not in repr(RedisURL(SINGLE, False, (), "gw", "secret"))


@given(st.text(st.sampled_from("redis+sentinelcluster:/@,[]%.0123456789?#-_ab"), max_size=60))
def test_any_text_is_understood_or_refused(text: str) -> None:
    """Nothing but ValueError leaves, whatever follows the scheme."""
    for scheme in ("redis", "rediss+sentinel", "redis+cluster"):
        try:
            url = RedisURL.of(f"{scheme}://{text}")
        except ValueError:
            continue
        assert url.hosts and all(host and 0 < port < 65_536 for host, port in url.hosts)


def test_in_a_configuration_file() -> None:
    """A scheme that was probably meant is suggested."""

    def read(value: Any) -> str | Refused:
        try:
            return RedisURLText().read(Scalar(1, value), "url", Reading("f", Path("/"), Problems()))
        except Refused as refused:
            return refused

    assert read("redis+cluster://a,b") == "redis+cluster://a,b"
    typo = read("redis+sentinal://a/m")
    assert isinstance(typo, Refused) and typo.suggestion == "redis+sentinel"
    nothing = read(None)
    assert isinstance(nothing, Refused)
