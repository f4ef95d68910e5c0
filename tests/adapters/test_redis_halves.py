"""A check in two halves decides and counts as the whole one does."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred

from apigw.adapters.redis_halves import ask_in_halves, halves_of
from apigw.adapters.redis_link import pack
from apigw.adapters.redis_script import LOAD, Check, packed, read, settlements
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown
from tests.servers import RedisServer, redis_server

START_S = 1_707_264_000


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        server.packed_command(LOAD)
        yield server


def run(command: bytes, ask: Any) -> Any:
    """What the check came to: its reply's meaning, or the error."""
    heard: list[Any] = []
    asker: Deferred[Counted] = Deferred()
    asker.addBoth(heard.append)
    check = Check(asker, command, 1, lambda check, reply: check.fail(f"refused {reply}"))
    halves = halves_of(command)
    assert halves is not None
    Deferred.fromCoroutine(ask_in_halves(check, halves, ask))
    return heard[0]


def redis_is_there(*_: Any) -> None:
    raise AssertionError("nobody is sent elsewhere")


@settings(max_examples=60, deadline=None)
@given(
    previous=st.integers(0, 9),
    current=st.integers(0, 6),
    following=st.integers(0, 2),
    limit=st.integers(0, 9),
    elapsed_s=st.floats(0, 59.9),
    at_s=st.floats(0, 59.9),
)
def test_as_the_whole_script(
    redis: RedisServer, previous: int, current: int, following: int, limit: int, elapsed_s: float, at_s: float
) -> None:
    """Same verdict, same counts, same keys, same time to live; on the very border too."""
    now_s = START_S + elapsed_s
    redis.command("FLUSHALL")
    for name in ("whole", "halves"):
        one = Demand("standard", f"rate:{{standard:user:{name}}}", limit, 60)
        for count, when_s in ((previous, at_s - 60), (current, at_s), (following, at_s + 60)):
            for told in settlements(one, count, START_S + when_s, redis_is_there) if count else ():
                redis.packed_command(told.command)
    whole = redis.packed_command(packed([Demand("standard", "rate:{standard:user:whole}", limit, 60)], now_s))

    async def ask(key: str, command: bytes) -> Any:
        return redis.packed_command(command)

    command = packed([Demand("standard", "rate:{standard:user:halves}", limit, 60)], now_s)
    expected = read(whole, 1)
    assert expected is not None and run(command, ask)[:2] == expected[:2]
    for kind in ("rate", "spread"):
        if whole[0]:
            assert 118 <= redis.command("TTL", f"{kind}:{{standard:user:halves}}:{START_S}") <= 120
        kept = [redis.command("GET", f"{kind}:{{standard:user:{name}}}:{START_S}") for name in ("whole", "halves")]
        assert kept[0] == kept[1]


def test_what_has_no_halves() -> None:
    demand = Demand("standard", "rate:{standard:user:a}", 1, 60)
    assert halves_of(packed([demand], 0.0)) is not None
    assert halves_of(packed([demand, demand], 0.0)) is None
    assert halves_of(pack("INCRBY", "a", 1)) is None
    assert halves_of(pack("SET", *"abcdefg")) is None


def test_a_half_that_fails_fails_the_check() -> None:
    """Whichever; so does an answer that is none."""
    command = packed([Demand("standard", "rate:{standard:user:a}", 1, 60)], 0.0)

    async def nothing(key: str, command: bytes) -> Any:
        raise CounterStoreDown("down")

    async def half(key: str, command: bytes) -> Any:
        if b"GET" not in command[:20]:
            raise CounterStoreDown("down by now")
        return b"nonsense"

    async def odd(key: str, command: bytes) -> Any:
        return b"1"

    for ask, reason in ((nothing, "down"), (half, "down by now"), (odd, "a check's answer is not the script's")):
        failure = run(command, ask)
        assert failure.check(CounterStoreDown) and failure.getErrorMessage() == reason
