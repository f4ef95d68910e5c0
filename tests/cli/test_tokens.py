"""`apigwctl tokens` on a real Redis: what is written, who hears of it, what is refused."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import redis as redis_py

from apigw.core.revocation_codec import from_message
from apigw.core.revocations import Revocations, RevokedToken, RevokedUser
from tests.cli.tool import Tool
from tests.e2e.identity import ISSUER, token
from tests.servers import RedisServer, free_port

HOUR_S = 3600


@pytest.fixture
def listed(tool: Tool, redis: RedisServer) -> Tool:
    """A tool with an empty revocation list."""
    redis.command("FLUSHALL")
    tool.sections["redis"] = {"url": redis.url}
    tool.sections["auth"]["jwt"] = {"issuer": ISSUER, "audience": "a", "jwks_url": "http://127.0.0.1:1/"}
    tool.sections["auth"]["jwt"]["clock_skew_seconds"] = 20
    return tool


@pytest.fixture
def heard(redis: RedisServer) -> Iterator[Any]:
    """heard() gives the next message on the channel of revocations."""
    client = redis_py.Redis(port=redis.port)
    listening = client.pubsub()
    listening.subscribe("apigw:revocations")
    assert (listening.get_message(timeout=5) or {})["type"] == "subscribe"
    yield lambda: from_message((listening.get_message(timeout=5) or {})["data"])
    listening.close()
    client.close()


def test_a_token_is_revoked_by_what_it_says_until_it_could_not_be_taken_any_more(
    listed: Tool, redis: RedisServer, heard: Any
) -> None:
    exp_s = int(time.time()) + HOUR_S
    ran = listed.run("tokens", "revoke", token(jti="j-1", exp=exp_s), "--json")
    assert ran.status == 0 and ran.err == ""
    assert ran.json()["jti"] == "j-1" and ran.json()["heard_by"] == 1
    assert redis.command("ZRANGE", "revoked:tokens", 0, -1, "WITHSCORES") == [b"j-1", str(exp_s + 20).encode()]
    assert heard() == RevokedToken("j-1", exp_s + 20)


@pytest.mark.parametrize("exp_s", [99_999_999_980, 99_999_999_999, 100_000_000_000])
def test_the_latest_token_that_gateways_take_can_be_revoked(
    listed: Tool, redis: RedisServer, heard: Any, exp_s: int
) -> None:
    """The skew would put its entry's end past the last time that there is."""
    assert listed.run("tokens", "revoke", token(jti="j", exp=exp_s)).status == 0
    assert heard() == RevokedToken("j", 1e11)
    assert [one["jti"] for one in listed.run("tokens", "list", "--json").json()] == ["j"]


@pytest.mark.parametrize("written", ["{}", "{}\n", "Bearer {}\n"])
def test_a_token_may_come_by_standard_input(listed: Tool, redis: RedisServer, written: str) -> None:
    assert listed.run("tokens", "revoke", "-", stdin=written.format(token(jti="j-2"))).status == 0
    assert redis.command("ZCARD", "revoked:tokens") == 1


def test_a_jti_is_revoked_for_as_long_as_tokens_live(listed: Tool, heard: Any) -> None:
    assert listed.run("tokens", "revoke", "--jti", "j-3", "--expires-in", "24h").status == 0
    said = heard()
    assert said.jti == "j-3" and said.until_s == pytest.approx(time.time() + 86_400 + 20, abs=10)


def test_a_users_tokens_are_revoked_up_to_a_moment(listed: Tool, heard: Any) -> None:
    words = ("tokens", "revoke", "--user", "alice", "--expires-in", "2h")
    before_s = time.time()
    listed.run(*words)
    after_s = time.time()
    said = heard()
    assert isinstance(said, RevokedUser) and said.user_id == "alice"
    assert before_s <= said.issued_until_s <= after_s
    assert said.until_s == pytest.approx(time.time() + 7220, abs=10)
    listed.run(*words, "--issued-before", "2026-01-01T00:00:00Z")
    said = heard()
    assert said.issued_until_s == 1_767_225_600
    assert said.until_s == pytest.approx(time.time() + 7220, abs=10), "never shorter than from now"


@pytest.mark.parametrize("until", [(), ("--issued-before", "now")])
def test_until_now_is_until_this_very_moment_and_the_next_second_is_good(
    listed: Tool, heard: Any, until: tuple[str, ...]
) -> None:
    """An iat may have a fraction (NumericDate, RFC 7519 2); one without stands for all of its second."""
    issued_s = time.time()
    listed.run("tokens", "revoke", "--user", "alice", "--expires-in", "2h", *until)
    after_s = time.time()
    revocations = Revocations()
    revocations.add([heard()])
    assert revocations.refuses(None, "alice", issued_s)
    assert revocations.refuses(None, "alice", int(issued_s))
    assert not revocations.refuses(None, "alice", int(after_s) + 1)


def test_the_longer_of_two_ends_stays(listed: Tool, redis: RedisServer) -> None:
    for lifetime in ("2h", "1h"):
        listed.run("tokens", "revoke", "--jti", "j-4", "--expires-in", lifetime)
    assert float(redis.command("ZSCORE", "revoked:tokens", "j-4")) > time.time() + 1.5 * HOUR_S


def test_what_is_over_leaves_the_list_with_the_next_entry(listed: Tool, redis: RedisServer) -> None:
    for key, member in (("revoked:tokens", "old"), ("revoked:users", "1000:old")):
        redis.command("ZADD", key, int(time.time()) - 120, member)
    listed.run("tokens", "revoke", "--jti", "new", "--expires-in", "1h")
    assert redis.command("ZRANGE", "revoked:tokens", 0, -1) == [b"new"]
    assert redis.command("EXISTS", "revoked:users") == 0


def test_the_list_shows_what_is_in_force_and_counts_what_makes_no_sense(listed: Tool, redis: RedisServer) -> None:
    listed.run("tokens", "revoke", "--jti", "j-5", "--expires-in", "1h")
    listed.run("tokens", "revoke", "--user", "bob", "--expires-in", "1h", "--issued-before", "2026-01-01")
    redis.command("ZADD", "revoked:users", int(time.time()) + 60, "no number:eve")
    redis.command("ZADD", "revoked:tokens", int(time.time()) - 5, "over")
    ran = listed.run("tokens", "list", "--json")
    first, second = ran.json()
    assert first["jti"] == "j-5" and second["user_id"] == "bob" and second["issued_before"] == "2026-01-01T00:00:00Z"
    assert ran.err.startswith("apigwctl: 1 entries of revoked:tokens and revoked:users make no sense")
    assert "bob" in listed.run("tokens", "list").out


def test_nobody_listening_is_worth_a_word(listed: Tool) -> None:
    ran = listed.run("tokens", "revoke", "--jti", "j-6", "--expires-in", "1h")
    assert ran.status == 0 and "no gateway listens at the moment" in ran.err


def test_a_token_that_has_expired_needs_no_revocation(listed: Tool, redis: RedisServer) -> None:
    ran = listed.run("tokens", "revoke", token(jti="j", exp=int(time.time()) - 60), "--json")
    assert ran.status == 0 and ran.json() == {"revoked": False, "heard_by": None}
    assert "nothing to do: the token expired at" in ran.err
    assert redis.command("EXISTS", "revoked:tokens") == 0


def test_an_exp_that_is_no_date_is_told_as_the_number_that_it_is(listed: Tool) -> None:
    ran = listed.run("tokens", "revoke", "-", stdin=token(jti="j", exp=-1e300))
    assert ran.status == 0 and "nothing to do: the token expired at -1e+300" in ran.err


def test_a_token_of_another_issuer_is_revoked_and_worth_a_word(listed: Tool) -> None:
    ran = listed.run("tokens", "revoke", token(jti="j", iss="https://other.test"))
    assert ran.status == 0 and "iss is not auth.jwt.issuer" in ran.err


@pytest.mark.parametrize(
    "claims, said",
    [
        ({"jti": None}, "has no jti, by which it could be told from others; --user ID"),
        ({"jti": 5}, "has no jti"),
        ({"jti": "x" * 600}, "no gateway could read that: a jti is 1 to 512 bytes"),
        ({"jti": "x", "exp": "2099"}, "has no exp, so gateways refuse it anyway"),
        ({"jti": "x", "exp": 100_000_000_001}, "no gateway could read that: a time is epoch seconds"),
        ({"jti": "x", "exp": 1e15}, "no gateway could read that: a time is epoch seconds"),
    ],
)
def test_a_token_that_cannot_be_revoked_by_itself_says_why(listed: Tool, claims: dict[str, Any], said: str) -> None:
    secret = token(**claims)
    told = listed.refused("tokens", "revoke", secret)
    assert said in told and secret not in told


@pytest.mark.parametrize("text", ["", "a.b", "a.b.c", "a.!!.c", "a.W10.c", "x" * 9000, "a.\udcff.c"])
def test_what_is_no_token_is_refused_without_repeating_it(listed: Tool, text: str) -> None:
    assert "that is no JWT" in listed.refused("tokens", "revoke", text)


@pytest.mark.parametrize(
    "words, said",
    [
        ((), "give one of TOKEN (or -), --jti and --user"),
        (("x", "--jti", "y"), "give one of TOKEN"),
        (("--jti", "y"), "give --expires-in: how long tokens of the identity service live at most"),
        (("--user", "y"), "give --expires-in"),
        (("a.b.c", "--expires-in", "1h"), "the token says itself when it expires"),
        (("--jti", "y", "--expires-in", "1h", "--issued-before", "now"), "--issued-before is for --user"),
        (("--jti", "y", "--expires-in", "soon"), "is no duration"),
    ],
)
def test_what_means_nothing_is_wrong_usage(listed: Tool, words: tuple[str, ...], said: str) -> None:
    assert said in listed.refused("tokens", "revoke", *words, status=2)


def test_a_user_that_no_token_can_name_is_refused(listed: Tool) -> None:
    assert "visible ASCII" in listed.refused("tokens", "revoke", "--user", "a b", "--expires-in", "1h")


def test_without_redis_it_says_why_that_is_needed(tool: Tool) -> None:
    for words in (("revoke", "--jti", "j", "--expires-in", "1h"), ("list",)):
        assert "has no section redis: revocations of tokens are kept there" in tool.refused("tokens", *words)


def test_redis_down_is_a_failure_since_nothing_else_keeps_the_list(listed: Tool) -> None:
    listed.sections["redis"] = {"url": f"redis://:s3cret@127.0.0.1:{free_port()}/0"}
    said = listed.refused("tokens", "revoke", "--jti", "j", "--expires-in", "1h")
    assert "Redis does not answer" in said and "s3cret" not in said
