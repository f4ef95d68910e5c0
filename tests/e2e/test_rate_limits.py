"""Rate limits in Redis, shared and through every way in which it fails."""

import re
import time
from typing import Any, Callable, Iterator

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from tests.e2e.client import Response
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, protected, route
from tests.e2e.identity import bearer
from tests.e2e.load import Load, median
from tests.servers import DelayProxy, RedisServer, redis_server

WINDOW_S = 3600


def tier(name: str, limit: int, per: str, window_s: int = WINDOW_S) -> dict[str, Any]:
    return {"tier": name, "limit": limit, "window_seconds": window_s, "per": per}


def on_redis(port: int, timeout_ms: int = 50) -> Callable[[Gateway], None]:
    """A gateway that counts in this Redis, with a tier and a route of each kind."""

    def change(gateway: Gateway) -> None:
        gateway.settings["redis"] = {"url": f"redis://127.0.0.1:{port}/0", "timeout_ms": timeout_ms}
        gateway.settings["rate_limits"] = {
            "store": "redis",
            "tiers": [
                tier("user", 5, "user_id"),
                tier("ip", 5, "client_ip"),
                tier("many", 100_000, "client_ip"),
                tier("shared", 100, "user_id"),
                tier("all", 1_000_000, "global"),
                tier("quick", 5, "user_id", 1),
            ],
            "global_tier": "all",
        }
        gateway.settings["gateway"]["trusted_proxies"] = ["127.0.0.0/8"]
        gateway.settings["routes"] += [
            protected("user", "/user/*", rate_limit_tier="user"),
            route("ip", "/ip/*", rate_limit_tier="ip"),
            route("many", "/many/*", rate_limit_tier="many"),
            protected("shared", "/shared/*", rate_limit_tier="shared"),
            protected("open", "/open/*", rate_limit_tier="user", rate_limit_fail_mode="open"),
            protected("closed", "/closed/*", rate_limit_tier="user", rate_limit_fail_mode="closed"),
            protected("local", "/local/*", rate_limit_tier="user", rate_limit_fail_mode="local"),
        ]

    return change


def started(launch: Launch, redis: RedisServer, **more: Any) -> Gateway:
    """A gateway that has found its Redis."""
    gateway = launch(on_redis(redis.port, **more))
    gateway.until(lambda: gateway.metric("redis_up") == 1)
    return gateway


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def _statuses(gateway: Gateway, target: str, count: int, *headers: tuple[str, str]) -> list[int]:
    with gateway.client() as client:
        return [client.request("GET", target, headers).status for _ in range(count)]


def test_tiers_count_per_user_per_address_and_for_all(launch: Launch, redis: RedisServer) -> None:
    """Each with a key of its own as the contract spells it, and a TTL of twice the window."""
    gateway = started(launch, redis)
    assert _statuses(gateway, "/user/x", 7, bearer("ann")) == [200] * 5 + [429] * 2
    assert _statuses(gateway, "/user/x", 1, bearer("bea")) == [200]
    assert _statuses(gateway, "/ip/x", 6, ("X-Forwarded-For", "203.0.113.5")) == [200] * 5 + [429]
    v6 = [("X-Forwarded-For", f"2001:db8:1:2::{n}") for n in range(1, 7)]
    assert [gateway.ask("GET", "/ip/x", one).status for one in v6] == [200] * 5 + [429], "IPv6 counts by its /64"
    assert gateway.ask("GET", "/ip/x", ("X-Forwarded-For", "2001:db8:1:3::1")).status == 200
    start = int(time.time()) // WINDOW_S * WINDOW_S
    keys = {key.decode() for key in redis.command("KEYS", "rate:*")}
    for counter in ("user:user:ann", "user:user:bea", "ip:ip:203.0.113.5", "ip:ip:2001-db8-1-2", "all:global:all"):
        key = f"rate:{{{counter}}}:{start}"
        assert key in keys, (key, keys)
        assert WINDOW_S < redis.command("TTL", key) <= 2 * WINDOW_S
    assert redis.command("GET", f"rate:{{user:user:ann}}:{start}") == b"5", "a refused request is not counted"


HOSTILE = [
    "a}:1",
    "{other}",
    "x:user:ann",
    "a b:c",
    "ü" * 100,
    "*",
    "a\\\\b",
    "u" * 256,
    "}}{{::",
    "sha256-" + "0" * 32,
]


def test_a_hostile_user_id_does_not_break_out_of_its_key(launch: Launch, redis: RedisServer) -> None:
    """One counter each, three parts between the braces, nothing of the id's own punctuation."""
    gateway = started(launch, redis)
    passed = 0
    for user in HOSTILE:
        redis.command("FLUSHALL")
        reply = gateway.ask("GET", "/user/x", bearer(user))
        assert reply.status in (200, 401), reply
        if reply.status == 200:
            passed += 1
            keys = [key.decode() for key in redis.command("KEYS", "*") if b"all:global" not in key]
            named = re.fullmatch(r"(?:rate|spread)(:\{user:user:[A-Za-z0-9._@+-]+\}:\d+)", keys[0])
            assert named is not None and named[1].rpartition(":")[0] != ":{user:user:ann}", keys
            assert sorted(keys) == ["rate" + named[1], "spread" + named[1]]
    assert passed >= 4


def test_two_gateways_share_one_limit(launch: Launch, redis: RedisServer) -> None:
    """100 for both together, within 5%, from clients that ask both at once."""
    gateways = [started(launch, redis), started(launch, redis)]
    token = bearer("shared")
    loads = [Load(one.https, one.context(), clients=3, headers=lambda: [token], target="/shared/x") for one in gateways]
    with loads[0], loads[1]:
        loads[0].wait_for(100)
        loads[1].wait_for(100)
    for load in loads:
        assert load.failed(200, 429) == []
    allowed = sum(one.status == 200 for load in loads for one in load.outcomes)
    assert 95 <= allowed <= 105
    assert all(any(one.status == 200 for one in load.outcomes) for load in loads)


def test_counters_survive_a_reload_and_a_restart_of_the_gateway(launch: Launch, redis: RedisServer) -> None:
    """They are Redis', not the process's."""
    gateway = started(launch, redis)
    assert _statuses(gateway, "/user/x", 3, bearer("cas")) == [200] * 3
    gateway.settings["routes"].append(route("new", "/new/*"))
    gateway.reload()
    assert _statuses(gateway, "/user/x", 1, bearer("cas")) == [200]
    other = started(launch, redis)
    assert _statuses(other, "/user/x", 2, bearer("cas")) == [200, 429]


def _dead_by_kill(redis: RedisServer) -> Callable[[], None]:
    redis.kill()
    return redis.start


def _dead_by_freeze(redis: RedisServer) -> Callable[[], None]:
    redis.freeze()
    return redis.thaw


def _dead_by_read_only(redis: RedisServer) -> Callable[[], None]:
    redis.command("REPLICAOF", "127.0.0.1", 1)
    return lambda: redis.command("REPLICAOF", "NO", "ONE")


def _dead_by_memory(redis: RedisServer) -> Callable[[], None]:
    redis.config_set("maxmemory", "1")
    return lambda: redis.config_set("maxmemory", "0")


def _times(gateway: Gateway, count: int) -> list[float]:
    """Seconds of requests one after another on one connection."""
    took = []
    with gateway.client() as client:
        for _ in range(count):
            began_s = time.perf_counter()
            assert client.request("GET", "/many/x").status == 200
            took.append(time.perf_counter() - began_s)
    return took


@pytest.mark.alone
@pytest.mark.parametrize("die", [_dead_by_kill, _dead_by_freeze, _dead_by_read_only, _dead_by_memory])
def test_a_dead_redis_leaves_it_to_the_fail_mode_and_costs_nothing(
    launch: Launch, redis: RedisServer, die: Callable[[RedisServer], Callable[[], None]]
) -> None:
    """open lets through, closed says 503, local counts here; no slower than before; enforced 2 s after the return."""
    gateway = started(launch, redis)
    normal_s = median(_times(gateway, 100))
    heal = die(redis)
    _times(gateway, 5)  # the first failures
    gateway.until(lambda: gateway.metric("redis_up") == 0)
    assert median(_times(gateway, 100)) < normal_s + 0.002
    token = bearer("dora")
    assert _statuses(gateway, "/open/x", 8, token) == [200] * 8
    reply = gateway.ask("GET", "/closed/x", token)
    assert (reply.status, reply.json()["error"]) == (503, "rate_limiter_unavailable") and reply.get("Retry-After")
    assert gateway.entry(reply.get("X-Request-ID"))["error_type"] == "rate_limiter_unavailable"
    assert _statuses(gateway, "/local/x", 7, token) == [200] * 5 + [429] * 2
    assert gateway.metric("rate_limit_decisions_total", tier="user", decision="fail_open") >= 8
    assert gateway.metric("rate_limit_decisions_total", decision="fail_closed") == 1
    assert gateway.metric("rate_limit_decisions_total", decision="fail_local") == 5
    ready = gateway.page("/readyz")
    assert ready.status == 200 and ready.json()["checks"]["redis"]["ok"] is False
    heal()
    healed_s = time.monotonic()
    gateway.until(lambda: gateway.metric("redis_up") == 1, 2.0)
    assert _statuses(gateway, "/user/x", 7, bearer("emil")) == [200] * 5 + [429] * 2
    assert time.monotonic() - healed_s < 2.5
    assert gateway.ask("GET", "/closed/x", bearer("fred")).status == 200


def test_a_redis_restarted_empty_goes_on_without_a_word(launch: Launch, redis: RedisServer) -> None:
    """The script is loaded anew; no request fails."""
    gateway = started(launch, redis)
    with Load(gateway.http, clients=2, target="/many/x", pause_s=0.01) as load:
        load.wait_for(20)
        redis.restart()
        load.wait_for(20)
        gateway.until(lambda: gateway.metric("redis_up") == 1, 2.5)
        redis.command("SCRIPT", "FLUSH")
        load.wait_for(20)
    assert load.failed() == []
    assert _statuses(gateway, "/user/x", 6, bearer("gus")) == [200] * 5 + [429]


@pytest.mark.alone
@pytest_twisted.ensureDeferred
async def test_a_slow_redis_is_a_dead_one(launch: Launch, redis: RedisServer) -> None:
    """Answers 60 ms late against a timeout of 20 ms: requests do not wait for them, and it is asked again by itself."""
    proxy = DelayProxy(reactor, redis.port)

    def slowed() -> None:
        gateway = launch(on_redis(proxy.port, timeout_ms=20))
        gateway.until(lambda: gateway.metric("redis_up") == 1)
        normal_s = median(_times(gateway, 50))
        proxy.delay_s = 0.06
        _times(gateway, 3)
        gateway.until(lambda: gateway.metric("redis_up") == 0)
        assert median(_times(gateway, 50)) < normal_s + 0.002
        assert gateway.ask("GET", "/closed/x", bearer()).status == 503
        proxy.delay_s = 0.0
        gateway.until(lambda: gateway.metric("redis_up") == 1, 2.0)
        assert _statuses(gateway, "/user/x", 6, bearer("hal")) == [200] * 5 + [429]
        gateway.stop()

    await deferToThread(slowed)
    await proxy.close()


def test_redis_down_at_the_start(launch: Launch, redis: RedisServer) -> None:
    """It serves by the fail modes and finds its Redis when that comes."""
    redis.kill()
    gateway = launch(on_redis(redis.port))
    assert gateway.ask("GET", "/open/x", bearer()).status == 200
    assert gateway.ask("GET", "/closed/x", bearer()).status == 503
    redis.start()
    gateway.until(lambda: gateway.ask("GET", "/closed/x", bearer()).status == 200, 2.5)


def test_the_memory_store_limits_by_itself(launch: Launch) -> None:
    """The embedded default: also the global tier, unmatched paths, and a window that ends."""

    def change(gateway: Gateway) -> None:
        gateway.settings["rate_limits"] = {
            "store": "memory",
            "tiers": [
                tier("quick", 5, "client_ip", 1),
                tier("unauthenticated", 4, "client_ip"),
                tier("all", 30, "global"),
            ],
            "global_tier": "all",
        }
        gateway.settings["routes"].append(route("quick", "/quick/*", rate_limit_tier="quick"))

    gateway = launch(change)
    assert _statuses(gateway, "/nowhere/x", 6) == [404] * 4 + [429] * 2
    statuses = _statuses(gateway, "/quick/x", 12)
    assert 200 in statuses and 429 in statuses

    def comes_back() -> Response | None:
        reply = gateway.ask("GET", "/quick/x")
        if reply.status == 429:
            assert 1 <= int(reply.get("Retry-After") or 0) <= 2
            return None
        return reply

    gateway.until(comes_back, 3)
    assert 429 in _statuses(gateway, "/pub/x", 31)


def guarded(port: int) -> Callable[[Gateway], None]:
    """A gateway with tiers in shadow mode, per fingerprint, and for wrong credentials."""

    def change(gateway: Gateway) -> None:
        on_redis(port)(gateway)
        limits = gateway.settings["rate_limits"]
        limits["tiers"] += [
            {**tier("watched", 3, "user_id"), "mode": "shadow"},
            {**tier("all_watched", 12, "global"), "mode": "shadow"},
            tier("bots", 4, "fingerprint"),
            {**tier("near_bots", 4, "fingerprint"), "fingerprint_network": True},
            tier("door", 4, "client_ip"),
        ]
        limits["global_tier"] = "all_watched"
        limits["failed_auth_tier"] = "door"
        gateway.settings["routes"] += [
            protected("watched", "/watched/*", rate_limit_tier="watched"),
            route("bots", "/bots/*", rate_limit_tier="bots"),
            route("near", "/near/*", rate_limit_tier="near_bots"),
        ]

    return change


def _from(ip: str) -> tuple[str, str]:
    return "X-Forwarded-For", ip


def _counted(redis: RedisServer, counter: str) -> int:
    """What Redis has of a counter in all windows."""
    keys = [key for key in redis.command("KEYS", "rate:*") if key.startswith(b"rate:{" + counter.encode() + b"}")]
    return sum(int(redis.command("GET", key)) for key in keys)


def test_a_tier_in_shadow_mode_refuses_nobody_and_says_what_it_would_have(launch: Launch, redis: RedisServer) -> None:
    """No header of it; counted as if enforced; told in the daemon's log with the user and nothing secret."""
    gateway = launch(guarded(redis.port))
    gateway.until(lambda: gateway.metric("redis_up") == 1)
    with gateway.client() as client:
        replies = [client.request("GET", "/watched/x", [bearer("ann")]) for _ in range(8)]
    assert [reply.status for reply in replies] == [200] * 8
    assert [reply.get("X-RateLimit-Limit") for reply in replies] == [None] * 8
    about = {"tier": "watched"}
    gateway.until(lambda: gateway.metric("rate_limit_decisions_total", decision="shadow_rejected", **about) == 5)
    assert gateway.metric("rate_limit_decisions_total", decision="shadow_allowed", **about) == 3
    assert gateway.metric("rate_limit_decisions_total", **about) == 8
    assert _counted(redis, "watched:user:ann") == 3, "what would be refused is not counted"
    assert _counted(redis, "all_watched:global:all") == 8
    entry = gateway.entry(replies[-1].get("X-Request-ID"))
    assert (entry["rate_limited"], entry["rate_limit_remaining"], entry["error_type"]) == (False, None, None)
    output = gateway.output.read_text()
    assert "tier watched (shadow) would refuse: rate:{watched:user:ann} on route watched" in output
    assert output.count("(shadow) would refuse") < 5


def test_an_exhausted_shadow_leaves_the_enforced_tier_as_it_is(launch: Launch, redis: RedisServer) -> None:
    """The global shadow would refuse everybody; the user's own limit still counts, refuses, and is in the headers."""
    gateway = launch(guarded(redis.port))
    gateway.until(lambda: gateway.metric("redis_up") == 1)
    assert _statuses(gateway, "/many/x", 15) == [200] * 15
    with gateway.client() as client:
        replies = [client.request("GET", "/user/x", [bearer("ann")]) for _ in range(7)]
    assert [reply.status for reply in replies] == [200] * 5 + [429] * 2
    assert [reply.get("X-RateLimit-Remaining") for reply in replies] == ["4", "3", "2", "1", "0", "0", "0"]
    assert _counted(redis, "user:user:ann") == 5
    assert _counted(redis, "all_watched:global:all") == 12


def test_a_bot_that_rotates_its_address_is_met_by_its_fingerprint(launch: Launch, redis: RedisServer) -> None:
    """One limit for the program wherever it calls from; another program has its own."""
    gateway = launch(guarded(redis.port))
    gateway.until(lambda: gateway.metric("redis_up") == 1)
    bot = ("User-Agent", "bot/1.0")
    around = [gateway.ask("GET", "/bots/x", bot, _from(f"203.0.{n}.7")).status for n in range(6)]
    assert around == [200] * 4 + [429] * 2
    assert gateway.ask("GET", "/bots/x", ("User-Agent", "curl/8"), _from("203.0.1.7")).status == 200
    assert gateway.ask("GET", "/bots/x", _from("203.0.1.7"), bot).status == 200, "another order of headers"
    near = [gateway.ask("GET", "/near/x", bot, _from(f"203.0.113.{n}")).status for n in range(6)]
    assert near == [200] * 4 + [429] * 2
    assert gateway.ask("GET", "/near/x", bot, _from("203.0.114.1")).status == 200, "another network"
    keys = [key.decode() for key in redis.command("KEYS", "rate:{*bots:*")]
    assert keys and all(re.fullmatch(r"rate:\{(near_)?bots:fingerprint:[0-9a-f]{32}\}:\d+", key) for key in keys)


def test_guessing_is_slow_and_a_good_caller_behind_the_same_address_does_not_notice(
    launch: Launch, redis: RedisServer
) -> None:
    """401 up to the tier's limit, then 429; tokens that are good pass all the time, other addresses start anew."""
    gateway = launch(guarded(redis.port))
    gateway.until(lambda: gateway.metric("redis_up") == 1)
    nat, good = _from("203.0.113.5"), bearer("ann")
    wrong = ("Authorization", good[1][:-8] + "AAAAAAAA")
    replies = []
    for _ in range(8):
        replies.append(gateway.ask("GET", "/api/x", nat, wrong))
        assert gateway.ask("GET", "/api/x", nat, good).status == 200
    assert [reply.status for reply in replies] == [401] * 4 + [429] * 4
    assert [reply.get("X-RateLimit-Remaining") for reply in replies] == ["3", "2", "1", "0", "0", "0", "0", "0"]
    assert all(0 < int(reply.get("Retry-After") or 0) <= 2 * WINDOW_S for reply in replies[4:])
    assert gateway.ask("GET", "/api/x", nat).status == 401, "no credential is no guess"
    expired = bearer("ann", exp=int(time.time()) - 100)
    assert gateway.ask("GET", "/api/x", nat, expired).status == 401, "its client must learn to fetch a new one"
    assert gateway.ask("GET", "/api/x", nat, bearer("new", kid="k1")).status == 200, "never seen before"
    assert gateway.ask("GET", "/api/x", _from("203.0.113.6"), wrong).status == 401
    assert _counted(redis, "door:ip:203.0.113.5") == 4
    entry = gateway.entry(replies[-1].get("X-Request-ID"))
    assert (entry["status"], entry["error_type"], entry["rate_limited"]) == (429, "rate_limit_exceeded", True)
    redis.kill()
    gateway.until(lambda: gateway.metric("redis_up") == 0)
    statuses = [gateway.ask("GET", "/api/x", _from("203.0.113.7"), wrong).status for _ in range(6)]
    assert statuses == [401] * 4 + [429] * 2, "never open, never 5xx, and as slow: the worker counts for itself"
    assert gateway.ask("GET", "/api/x", _from("203.0.113.7"), good).status == 200


def test_only_a_trusted_proxy_says_who_the_client_is(launch: Launch, redis: RedisServer) -> None:
    """A client that writes X-Forwarded-For itself counts by the address it has."""

    def change(gateway: Gateway) -> None:
        on_redis(redis.port)(gateway)
        gateway.settings["gateway"]["trusted_proxies"] = ["192.0.2.0/24"]

    gateway = launch(change)
    gateway.until(lambda: gateway.metric("redis_up") == 1)
    statuses = [gateway.ask("GET", "/ip/x", _from(f"203.0.113.{n}")).status for n in range(7)]
    assert statuses == [200] * 5 + [429] * 2
    assert _counted(redis, "ip:ip:127.0.0.1") == 5


def _info(redis: RedisServer) -> tuple[int, int]:
    """(script calls, reads from clients) so far."""
    text = (redis.command("INFO", "commandstats") + redis.command("INFO", "stats")).decode()
    calls = re.search(r"cmdstat_evalsha:calls=(\d+)", text)
    reads = re.search(r"total_reads_processed:(\d+)", text)
    assert calls and reads
    return int(calls[1]), int(reads[1])


@pytest.mark.parametrize("second", ["client_ip", "global"])
def test_two_tiers_cost_one_round_trip_a_request(launch: Launch, redis: RedisServer, second: str) -> None:
    """Redis reads once for each request and runs one script, whether the second tier is asked or counted here."""

    def change(gateway: Gateway) -> None:
        on_redis(redis.port)(gateway)
        gateway.settings["rate_limits"]["tiers"].append(tier("second", 1_000_000, second))
        gateway.settings["rate_limits"]["global_tier"] = "second"

    gateway = launch(change)
    gateway.until(lambda: gateway.metric("redis_up") == 1)
    calls, reads = _info(redis)
    assert _statuses(gateway, "/many/x", 50) == [200] * 50
    after_calls, after_reads = _info(redis)
    assert after_calls - calls == 50
    assert after_reads - reads <= 50 + 6, "the questions of this test are six at most"
