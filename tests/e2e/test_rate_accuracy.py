"""Four gateways on one Redis, and on a cluster, against an exact log of what they let through."""

import threading
import time
from collections import Counter
from datetime import datetime
from random import Random
from typing import Any, Callable, Iterator

import pytest

from tests.core.test_window import Reference, most_in_a_stretch
from tests.e2e.client import Closed
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, protected
from tests.e2e.identity import bearer
from tests.redis_cluster import ClusterSet, cluster_set
from tests.servers import RedisServer, redis_server

pytestmark = pytest.mark.alone

WINDOW_S, LIMIT, EXCESS, LASTS_S, GATEWAYS = 1, 100, 2.0, 4.2, 4
RATE = EXCESS * LIMIT / WINDOW_S / GATEWAYS  # requests a second of each client
SHAPES: dict[str, Callable[[Random], float]] = {  # gaps in seconds
    "steady": lambda random: random.uniform(0.5, 1.5) / RATE,
    "random": lambda random: random.expovariate(RATE),
    "bursts": lambda random: random.expovariate(RATE / 10) if random.random() < 0.1 else 0.0,
}
# The log says when a request came, its limit when it was asked: a little later, on a busy machine. Requests that the
# limit saw more than a window apart may stand in the log by so much less.
QUEUED_S = 0.01


@pytest.fixture(params=[redis_server, cluster_set])
def redis(request: pytest.FixtureRequest) -> Iterator[RedisServer | ClusterSet]:
    with request.param() as server:
        yield server


def _settings(redis: RedisServer | ClusterSet) -> Callable[[Gateway], None]:
    def change(gateway: Gateway) -> None:
        gateway.settings["redis"] = {"url": redis.url, "timeout_ms": 200}
        gateway.settings["rate_limits"] = {
            "store": "redis",
            "tiers": [
                {"tier": "user", "limit": LIMIT, "window_seconds": WINDOW_S, "per": "user_id"},
                {"tier": "all", "limit": 1_000_000, "window_seconds": WINDOW_S, "per": "global"},
            ],
            "global_tier": "all",
        }
        gateway.settings["routes"].append(protected("user", "/user/*", rate_limit_tier="user"))

    return change


def _ask(gateway: Gateway, shape: str, seed: str, until_s: float) -> None:
    """One client: its own schedule, whatever the answers."""
    random, token = Random(seed), bearer(shape)
    due_s = time.monotonic()
    with gateway.client() as client:
        while due_s < until_s:
            due_s += SHAPES[shape](random)
            time.sleep(max(0.0, due_s - time.monotonic()))
            try:
                client.request("GET", "/user/x", [token])
            except Closed:
                return


def _entries(gateways: list[Gateway]) -> dict[str, list[tuple[float, int]]]:
    """(epoch second of arrival, status) of each user's requests, in their order."""
    found: dict[str, list[tuple[float, int]]] = {shape: [] for shape in SHAPES}
    for gateway in gateways:
        for entry in gateway.entries():
            if entry["user_id"] in found:
                at = datetime.fromisoformat(entry["timestamp"])
                found[entry["user_id"]].append((at.timestamp(), entry["status"]))
    return {shape: sorted(entries) for shape, entries in found.items()}


def test_four_gateways_hold_one_limit_against_an_exact_log(launch: Launch, redis: RedisServer | ClusterSet) -> None:
    """No stretch of a window's length has more than 5% over the limit, wherever it begins, and all together what one
    counter alone would let through."""
    gateways = [launch(_settings(redis)) for _ in range(GATEWAYS)]
    for gateway in gateways:
        gateway.until(lambda gateway=gateway: gateway.metric("redis_up") == 1)
    until_s = time.monotonic() + LASTS_S
    clients = [
        threading.Thread(target=_ask, args=(gateway, shape, f"{shape}-{number}", until_s))
        for number, gateway in enumerate(gateways)
        for shape in SHAPES
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join(LASTS_S + 20)
    for gateway in gateways:
        gateway.assert_quiet()
        gateway.assert_accounts()
    measured: dict[str, Any] = {}
    for shape, entries in _entries(gateways).items():
        exact = [at_s for at_s, status in entries if status == 200]
        alone = Reference(LIMIT, WINDOW_S)
        for at_s, _ in entries:
            alone.take(at_s)
        windows = Counter(int(at_s // WINDOW_S) for at_s in exact)
        stretch = most_in_a_stretch(exact, WINDOW_S - QUEUED_S)
        measured[shape] = (len(entries), len(exact), len(alone.log), max(windows.values()), stretch)
        assert {status for _, status in entries} == {200, 429}, measured
        assert max(windows.values()) <= 1.05 * LIMIT, measured
        assert 0.95 * len(alone.log) <= len(exact) <= 1.05 * len(alone.log), measured
        assert stretch <= 1.05 * LIMIT, measured
    print(measured)
    assert all(gateway.metric("rate_limit_decisions_total", decision="fail_open") == 0 for gateway in gateways)
