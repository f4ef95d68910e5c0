"""The list as it lies in Redis: what apigwctl writes, gateways read; what it reads, they believe."""

import time

import pytest

from apigw.cli.refusals import Refused
from apigw.cli.revocation_store import in_force, put
from apigw.config.model import RedisSection
from apigw.core.revocations import RevokedToken, RevokedUser
from apigw.errors import StoreDown
from tests.servers import RedisServer, free_port


@pytest.fixture
def section(redis: RedisServer) -> RedisSection:
    redis.command("FLUSHALL")
    return RedisSection(redis.url)


def test_what_is_put_is_in_force_until_its_time(section: RedisSection) -> None:
    now_s = float(int(time.time()))
    token, user = RevokedToken("a b\u00e9", now_s + 60), RevokedUser("alice", now_s - 5, now_s + 120.5)
    assert put(section, token, now_s) == put(section, user, now_s) == 0, "nobody listens"
    assert in_force(section, now_s) == [token, user]
    assert in_force(section, now_s + 61) == [user]
    assert in_force(section, now_s + 121) == []


def test_what_is_over_is_dropped_a_minute_later_since_clocks_differ(section: RedisSection, redis: RedisServer) -> None:
    now_s = time.time()
    put(section, RevokedToken("old", now_s + 1), now_s)
    put(section, RevokedToken("new", now_s + 600), now_s + 30)
    assert redis.command("ZCARD", "revoked:tokens") == 2
    put(section, RevokedToken("new", now_s + 600), now_s + 62)
    assert redis.command("ZRANGE", "revoked:tokens", 0, -1) == [b"new"]


def test_what_no_gateway_would_read_is_not_written(section: RedisSection, redis: RedisServer) -> None:
    for revocation in (RevokedToken("", time.time()), RevokedUser("a b", 1.0, 2.0), RevokedToken("x", float("nan"))):
        with pytest.raises(Refused, match="no gateway could read that"):
            put(section, revocation, time.time())
    assert redis.command("DBSIZE") == 0


def test_redis_that_is_down_is_told() -> None:
    section = RedisSection(f"redis://127.0.0.1:{free_port()}")
    for ask in (lambda: put(section, RevokedToken("x", time.time()), 0.0), lambda: in_force(section, 0.0)):
        with pytest.raises(StoreDown):
            ask()
