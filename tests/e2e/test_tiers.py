"""Several tiers at once, through real daemons on a real Redis: which decides, what the headers say, who pays."""

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from apigw.adapters.key_store import KeyStore
from tests.e2e import surge
from tests.e2e.client import Response
from tests.e2e.conftest import Change, Launch
from tests.e2e.gateway import Gateway, backend, protected, route
from tests.e2e.identity import bearer
from tests.servers import RedisServer, redis_server

WINDOW_S = 3600
DAY_S = 86_400.0
GLOBAL = 4000  # the least limit of which a worker counts a share by itself


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def tier(name: str, limit: int, per: str) -> dict[str, Any]:
    return {"tier": name, "limit": limit, "window_seconds": WINDOW_S, "per": per}


def limited(redis: RedisServer, *tiers: dict[str, Any], routes: tuple[dict[str, Any], ...], **more: str) -> Change:
    """A gateway with these tiers and routes. Behind a trusted proxy."""

    def change(gateway: Gateway) -> None:
        gateway.settings["gateway"]["trusted_proxies"] = ["127.0.0.0/8"]
        gateway.settings["redis"] = {"url": redis.url, "timeout_ms": 200}
        gateway.settings["rate_limits"] = {"store": "redis", "tiers": list(tiers), **more}
        gateway.settings["routes"] += routes

    return change


def started(launch: Launch, change: Change) -> Gateway:
    gateway = launch(change)
    gateway.until(lambda: gateway.metric("redis_up") == 1)
    return gateway


def counted(redis: RedisServer, counter: str) -> int:
    """What Redis has of a counter in all windows."""
    keys = [key for key in redis.command("KEYS", "rate:*") if key.startswith(f"rate:{{{counter}}}".encode())]
    return sum(int(redis.command("GET", key)) for key in keys)


def headers(response: Response) -> tuple[int, str | None, str | None]:
    return response.status, response.get("X-RateLimit-Limit"), response.get("X-RateLimit-Remaining")


def test_the_stricter_of_two_tiers_decides_and_the_headers_are_of_the_one_nearest_to_refusing(
    launch: Launch, redis: RedisServer
) -> None:
    """What the global tier refuses is not counted on the user's own, and the other way round."""
    tiers = (tier("own", 5, "user_id"), tier("all", 8, "global"))
    change = limited(redis, *tiers, routes=(protected("own", "/own/*", rate_limit_tier="own"),), global_tier="all")
    gateway = started(launch, change)

    def ask(user: str) -> tuple[int, str | None, str | None]:
        return headers(gateway.ask("GET", "/own/x", bearer(user)))

    assert [ask("ann") for _ in range(4)] == [(200, "5", str(left)) for left in (4, 3, 2, 1)]
    assert [ask("bea") for _ in range(3)] == [(200, "8", str(left)) for left in (3, 2, 1)]
    assert ask("ann") == (200, "5", "0"), "both are used up: her own is told first"
    assert ask("cas") == (429, "8", "0"), "everybody's, though he asked never before"
    assert ask("ann") == (429, "5", "0")
    assert [counted(redis, f"own:user:{user}") for user in ("ann", "bea", "cas")] == [5, 3, 0]
    assert counted(redis, "all:global:all") == 8
    assert gateway.metric("rate_limit_decisions_total", tier="all", decision="rejected") >= 1


def test_unmatched_paths_methods_and_credentials_count_on_one_counter_of_the_address(
    launch: Launch, redis: RedisServer, tmp_path: Path
) -> None:
    """Tokens and API keys alike; then all of them are 429 from there, IPv6 by its /64, and what is good goes on."""
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    store = KeyStore(url, cost=4)
    key = store.create("acme")
    store.close()

    def change(gateway: Gateway) -> None:
        routes = (protected("keyed", "/keyed/*", auth_type="api_key"), route("get", "/get/*", methods=["GET"]))
        limited(redis, tier("door", 4, "client_ip"), routes=routes, unmatched_tier="door")(gateway)
        gateway.settings["auth"]["api_keys"] = {"database_url": url}

    gateway = started(launch, change)
    good, wrong = ("X-API-Key", key.presented), ("X-API-Key", key.presented[:-4] + "0000")
    guesses = [
        ("GET", "/nowhere/x", []),
        ("DELETE", "/get/x", []),
        ("GET", "/api/x", [("Authorization", bearer()[1][:-8] + "AAAAAAAA")]),
        ("GET", "/keyed/x", [wrong]),
    ]

    def ask(address: str, method: str, target: str, fields: list[tuple[str, str]]) -> int:
        return gateway.ask(method, target, ("X-Forwarded-For", address), *fields).status

    first = [ask("2001:db8:1:2::1", *guess) for guess in guesses]
    assert first == [404, 405, 401, 401]
    assert counted(redis, "door:ip:2001-db8-1-2") == 4
    assert [ask("2001:db8:1:2:9::9", *guess) for guess in guesses] == [429] * 4, "the same /64"
    assert ask("2001:db8:1:2::1", "GET", "/keyed/x", [good]) in (200, 429), "not seen before by this worker"
    assert ask("2001:db8:1:3::1", "GET", "/keyed/x", [good]) == 200
    for method, target, fields in (("GET", "/keyed/x", [good]), ("GET", "/api/x", [bearer()]), ("GET", "/get/x", [])):
        assert ask("2001:db8:1:2::1", method, target, fields) == 200, target
    assert [ask("2001:db8:1:3::1", *guess) for guess in guesses] == first, "another /64 starts anew"


def test_a_rotated_key_works_for_seven_days_beside_its_successor(
    launch: Launch, redis: RedisServer, tmp_path: Path
) -> None:
    """The rotation was almost seven days ago by the clock of the one who made it; each key has counters of its own."""
    url = f"sqlite:///{tmp_path / 'keys.db'}"
    then = KeyStore(url, wall=lambda: time.time() - 7 * DAY_S + 4.0, cost=4)
    old = then.create("acme", tier="three")
    successor = then.rotate(old.record.key_id, 7 * DAY_S)
    then.close()
    change = limited(
        redis,
        tier("three", 3, "api_key"),
        routes=(protected("keyed", "/keyed/*", auth_type="api_key"),),
    )

    def keyed(gateway: Gateway) -> None:
        change(gateway)
        gateway.settings["auth"]["api_keys"] = {"database_url": url}

    gateway = started(launch, keyed)

    def ask(presented: str) -> int:
        return gateway.ask("GET", "/keyed/x", ("X-API-Key", presented)).status

    assert [ask(old.presented) for _ in range(3)] == [200] * 3
    assert [ask(successor.presented) for _ in range(4)] == [200, 200, 200, 429]
    gateway.until(lambda: ask(old.presented) == 401, 10)
    assert ask(successor.presented) == 429


@pytest.mark.slow
def test_four_daemons_hold_the_global_tier_within_five_percent(
    launch: Launch, redis: RedisServer, quick_backend: int
) -> None:
    """Each counts a little by itself; Redis is asked for one request in some, and knows of nearly all of them."""

    def change(gateway: Gateway) -> None:
        quick = route("quick", "/quick/*", backend="quick")
        limited(redis, tier("all", GLOBAL, "global"), routes=(quick,), global_tier="all")(gateway)
        gateway.settings["backends"].append(backend("quick", quick_backend))

    gateways = [started(launch, change) for _ in range(4)]
    for number, gateway in enumerate(gateways, 1):
        assert [gateway.ask("GET", "/quick/x").status for _ in range(5)] == [200] * 5
        gateway.until(
            lambda number=number: counted(redis, "all:global:all") == 5 * number, 2.0
        )  # a second, by a poller
    clients = [
        surge.clients(port=gateway.http, target="/quick/x", rate=400, connections=20, seconds=3.5)
        for gateway in gateways
    ]
    seen = [surge.summary(process, 60) for process in clients]
    passed = sum(one.statuses[200] for one in seen)
    assert all(one.statuses.keys() <= {200, 429} for one in seen)
    assert sum(len(one.answers) for one in seen) > 1.2 * GLOBAL
    assert GLOBAL <= passed + 20 <= 1.05 * GLOBAL
    gateways[0].until(lambda: counted(redis, "all:global:all") == passed + 20, 2.0)
    calls = redis.command("INFO", "commandstats").decode()
    asked = int(calls.partition("cmdstat_evalsha:calls=")[2].partition(",")[0])
    assert asked < 0.7 * passed + sum(one.statuses[429] for one in seen)
