"""The script in Lua says what the rule in Python says, and leaves what the contract names."""

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from apigw.adapters import redis_script
from apigw.adapters.memory_counters import MemoryCounters
from apigw.adapters.redis_link import pack
from apigw.adapters.redis_script import LOAD, SHA, about_one_key, cured_by_new_connection, keys_of, packed, read
from apigw.core.window import Demand
from tests.servers import RedisServer, redis_server

NOW_S = 1_707_264_012.5


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        server.packed_command(LOAD)
        yield server


def demand(name: str, limit: int, window_s: int) -> Demand:
    return Demand("standard", f"rate:{{standard:user:{name}}}", limit, window_s)


steps_of_two_users = st.lists(
    st.tuples(st.sampled_from("ab"), st.sampled_from([0.0, 0.1, 1 / 3, 1.0, 2.5, 3.0, 7.0]), st.booleans()),
    min_size=5,
    max_size=25,
)


@settings(max_examples=40, deadline=None)
@given(steps=steps_of_two_users, limit=st.sampled_from([1, 2, 3, 4, 50, 120]), unique=st.uuids())
def test_redis_decides_as_memory_does(redis: RedisServer, steps: Any, limit: int, unique: Any) -> None:
    """Counts and verdicts agree at every step, on the very border too: floats reach Lua unrounded."""
    memory = MemoryCounters()
    redis.command("FLUSHALL")
    now_s = NOW_S
    for name, gap_s, both in [step for step in steps for _ in range(1 + limit // 10)]:
        now_s += gap_s
        demands = [demand(f"{unique}{name}", limit, 3)] + ([demand(str(unique), 5, 7)] if both else [])
        counted = read(redis.packed_command(packed(demands, now_s)), len(demands))
        expected = memory.take(demands, now_s)
        assert counted is not None and counted[:2] == expected[:2]
        assert [[*map(list, spread)] for spread in counted.spreads] == [[*map(list, one)] for one in expected.spreads]


@given(
    times_s=st.lists(st.floats(0, 1e10), min_size=1, max_size=8),
    limit=st.integers(0, 1 << 53),
    window_s=st.integers(1, 86_400),
    name=st.text("abc$019", max_size=8),
)
def test_a_call_that_is_remembered_is_what_it_would_be_made_anew(
    times_s: list[float], limit: int, window_s: int, name: str
) -> None:
    """In whatever order its windows come, alone and together with others."""
    asked = (demand(name, limit, window_s), demand(name + "x", 7, 60), demand("y", limit, 3600))
    for now_s in times_s:
        for counters in (1, 2, 3):
            keys: list[str] = []
            rules: list[int | bytes] = []
            for one in asked[:counters]:
                start_s = int(now_s // one.window_s) * one.window_s
                keys += keys_of(one.key, start_s, one.window_s)
                share = b"%.17g" % (1.0 - (now_s - start_s) / one.window_s)
                rules += (one.limit, share, 2 * one.window_s)
            anew = pack(b"EVALSHA", SHA, 5 * counters, *keys, *rules)
            assert packed(asked[:counters], now_s) == anew


def test_calls_of_counters_without_end_are_not_all_remembered() -> None:
    for number in range(10_000):
        packed([demand(str(number), 5, 60)], NOW_S)
    assert len(redis_script._calls) <= 4096


def test_a_counter_lives_for_two_windows(redis: RedisServer) -> None:
    """Long enough to be the previous one until the next window ends; its spread likewise."""
    redis.packed_command(packed([demand("ttl", 5, 60)], NOW_S))
    for kind in ("rate", "spread"):
        assert 118 <= redis.command("TTL", f"{kind}:{{standard:user:ttl}}:1707264000") <= 120


def test_nonsense_in_a_counter_reads_as_nothing(redis: RedisServer) -> None:
    """The script itself never fails on somebody else's value; only counting on it does."""
    redis.command("SET", "rate:{standard:user:odd}:1707263940", "nonsense")
    assert redis.packed_command(packed([demand("odd", 5, 60)], NOW_S)) == [1, 0, 1, 0]
    for spread in ("x", "y" * 1000):
        redis.command("SET", "rate:{standard:user:odd}:1707263940", 9)
        redis.command("SET", "spread:{standard:user:odd}:1707263940", spread)
        assert redis.packed_command(packed([demand("odd", 90, 60)], NOW_S))[:2] == [1, 9]


def test_what_a_gateway_with_a_fast_clock_counted_already_counts_here(redis: RedisServer) -> None:
    """In the window that is the next one here."""
    for _ in range(3):
        redis.packed_command(packed([demand("fast", 5, 60)], 1_707_264_060.001))
    answers = [redis.packed_command(packed([demand("fast", 5, 60)], 1_707_264_059.999)) for _ in range(3)]
    assert [answer[:3] for answer in answers] == [[1, 0, 4], [1, 0, 5], [0, 0, 5]]


def test_an_answer_that_is_none_is_none() -> None:
    assert read([1, 0, 1, 0], 1) == (True, [(0, 1, 0)], ())
    assert read([0, 4, 5, 4, b"\1\0\0\0\0\7\0\0\0\3", b""], 1) == (False, [(4, 5, 4)], [((1, 0, 7, 3), ())])
    for odd in (None, b"OK", [], [1], [1, 0, 1], [0, 0, 1, 0], [1, 0, 1, 0, b"", b""], [2, 0, 1, 0]):
        assert read(odd, 1) is None


@pytest.mark.parametrize(
    ("error", "one_key", "new_connection"),
    [
        ("WRONGTYPE Operation against a key holding the wrong kind of value", True, False),
        ("ERR value is not an integer or out of range", True, False),
        ("READONLY You can't write against a read only replica.", False, True),
        ("ERR Error running script (call to f_1): @user_script:14: -READONLY You can't write", False, True),
        ("NOAUTH Authentication required.", False, True),
        ("OOM command not allowed when used memory > 'maxmemory'.", False, False),
        ("LOADING Redis is loading the dataset in memory", False, False),
    ],
)
def test_errors_are_about_one_key_the_connection_or_the_server(error: str, one_key: bool, new_connection: bool) -> None:
    """Also when Redis before 7 wraps them."""
    assert about_one_key(error) is one_key
    assert cured_by_new_connection(error) is new_connection
