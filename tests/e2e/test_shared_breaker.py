"""Two daemons and one Redis: what one opens the other opens, both recover together, and one cap holds for both."""

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, backend, quiet_port, route
from tests.e2e.limited import Limited
from tests.e2e.load import Load
from tests.e2e.origin import Origin, Seen
from tests.e2e.queued import Queued
from tests.servers import RedisServer, redis_server

QUICK = {"window_seconds": 4, "min_requests": 10, "open_seconds": 3, "recovery_seconds": 4}


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def sick() -> Iterator[Origin]:
    """A backend that answers /sick/x with sick.status."""
    origin = Origin().start(quiet_port())

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 %d Said\r\nContent-Length: 2\r\n\r\nok" % origin.status)

    origin.status = 200
    origin.on("/sick/x", script)
    try:
        yield origin
    finally:
        origin.remove()


def pair(launch: Launch, redis: RedisServer, sick: Origin, **more: Any) -> tuple[Gateway, Gateway]:
    def change(gateway: Gateway) -> None:
        gateway.settings["redis"] = {"url": redis.url, "timeout_ms": 100}
        gateway.settings["circuit_breaker"] = QUICK
        gateway.settings["backends"].append(backend("sick", sick.port, **more))
        gateway.settings["routes"].append(route("sick", "/sick/*", "sick", circuit_breaker=True))

    one, other = launch(change), launch(change)
    for gateway in (one, other):
        gateway.until(lambda gateway=gateway: gateway.metric("shared_store_up") == 1)
    return one, other


def state(gateway: Gateway) -> float:
    return gateway.metric("circuit_state", backend="sick")


def ask(gateway: Gateway, count: int) -> list[int]:
    with gateway.client() as client:
        return [client.request("GET", "/sick/x").status for _ in range(count)]


def test_what_one_opens_the_other_opens_and_they_recover_together(
    launch: Launch, redis: RedisServer, sick: Origin
) -> None:
    one, other = pair(launch, redis, sick)
    assert ask(other, 5) == [200] * 5
    sick.status = 500
    assert 503 in ask(one, 11)
    took_s = other.until(lambda: state(other) == 2, 5)
    assert took_s < 2.5, "read each second"
    reply = other.ask("GET", "/sick/x")
    assert reply.status == 503 and 1 <= int(reply.get("Retry-After") or 0) <= 3
    sick.status = 200
    one.until(lambda: state(one) == 1, 6)
    assert ask(one, 2) == [200, 200]
    assert state(one) == 3
    other.until(lambda: state(other) == 3, 2.5)
    for gateway in (one, other):
        gateway.until(lambda gateway=gateway: state(gateway) == 0, 8)
    assert ask(other, 5) == ask(one, 5) == [200] * 5
    assert "as e2e/" in other.output.read_text(), "its log says by whose word"


def test_without_redis_each_decides_for_itself(launch: Launch, redis: RedisServer, sick: Origin) -> None:
    one, other = pair(launch, redis, sick)
    redis.kill()
    for gateway in (one, other):
        gateway.until(lambda gateway=gateway: gateway.metric("shared_store_up") == 0, 5)
    sick.status = 500
    assert 503 in ask(one, 11)
    time.sleep(1.5)  # more than a look at Redis: nothing could be told
    assert state(other) == 0 and ask(other, 3) == [500] * 3
    assert 503 in ask(other, 11)


@pytest.mark.alone
@pytest.mark.slow
def test_one_cap_holds_for_both(launch: Launch, redis: RedisServer, sick: Origin) -> None:
    one, other = pair(launch, redis, sick, max_rps=100)

    def passed() -> float:
        return sum(gateway.metric("requests_total", route="sick", status="200") for gateway in (one, other))

    busy = Load(one.http, clients=4, target="/sick/x", pause_s=0.01)
    less = Load(other.http, clients=2, target="/sick/x", pause_s=0.01)
    with busy, less:
        time.sleep(4)
        before, began_s = passed(), time.monotonic()
        time.sleep(8)
        rate = (passed() - before) / (time.monotonic() - began_s)
        here = [gateway.status()["backends"]["sick"]["max_rps_here"] for gateway in (one, other)]
        refused = [gateway.status()["backends"]["sick"]["refused_at_max_rps"] for gateway in (one, other)]
    assert all(refused), "the clients ask for more than the cap"
    assert 88 <= rate <= 106
    assert sum(here) == pytest.approx(100, rel=0.1)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_retry_storm_on_two_gateways_is_survived_by_one_recovery_of_both(launch: Launch, redis: RedisServer) -> None:
    """As test_breaker.py has it of one: the queues of both come back to a backend that can carry 1.5 times what both
    bring it normally. The circuit opens once in the fleet, both ramp at the same time, and it does not open again."""
    normal_rps = 20.0  # of each
    weak = Limited(quiet_port(), 1.5 * 2 * normal_rps)

    def change(gateway: Gateway) -> None:
        settings = {"window_seconds": 3, "min_requests": 10, "open_seconds": 1, "recovery_seconds": 6}
        gateway.settings["redis"] = {"url": redis.url, "timeout_ms": 1000}
        gateway.settings["backends"].append(backend("sick", weak.port, circuit_breaker=settings))
        gateway.settings["routes"].append(route("weak", "/weak/*", "sick", circuit_breaker=True, timeout_ms=700))

    try:
        one, other = launch(change), launch(change)
        one.until(weak.ready)
        with Queued(one.http, "/weak/x", normal_rps) as here, Queued(other.http, "/weak/x", normal_rps) as there:
            one.until(lambda: min(here.statuses[200], there.statuses[200]) >= 5 * normal_rps, 20)
            weak.tell("/fail")
            one.until(lambda: min(here.waiting, there.waiting) >= 7 * normal_rps, 30)
            assert state(one) in (1, 2) and state(other) in (1, 2)
            weak.tell("/recover")
            one.until(lambda: 3 in (state(one), state(other)), 10)
            one.until(lambda: state(one) == state(other) == 3, 2.5)
            one.until(lambda: state(one) == state(other) == 0, 90)
            one.until(lambda: max(here.waiting, there.waiting) < normal_rps, 10)
        for gateway in (one, other):
            assert gateway.metric("circuit_openings_total", backend="sick") == 1, gateway.output.read_text()
    finally:
        weak.remove()
