"""A cap holds for all workers together, follows where the demand is, and survives Redis."""

from collections.abc import AsyncIterator, Iterator
from typing import Awaitable, Callable

import pytest
import pytest_twisted
from attrs import evolve

from apigw.config.model import Backend, Instance
from apigw.net.poller import PollFailed
from tests.servers import RedisServer, redis_server, until
from tests.upstream.fleet import OneWorker, loop

CAP_RPS = 200.0
USERS = Backend("users", (Instance("10.0.0.1", 80),), max_rps=CAP_RPS)
Hire = Callable[..., Awaitable[OneWorker]]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest_twisted.async_yield_fixture
async def hire(redis: RedisServer) -> AsyncIterator[Hire]:
    hired: list[OneWorker] = []

    async def hire(name: str, backend: Backend = USERS) -> OneWorker:
        worker = OneWorker(redis.port, name, backend)
        hired.append(worker)
        await until(lambda: worker.store.up, loop)
        return worker

    yield hire
    for worker in hired:
        await worker.stop()


def here_rps(worker: OneWorker) -> float:
    pace = worker.circuits.gates["users"].pace
    assert pace is not None
    return pace.rps


async def seconds(demands: dict[OneWorker, int], count: int) -> int:
    """So many seconds with this demand of each worker; how many requests passed in all."""
    passed = 0
    for _ in range(count):
        for worker, demand in demands.items():
            passed += worker.ask(demand, spread_s=1.0)
        for worker in demands:
            await worker.rates.poll()
    return passed


@pytest_twisted.ensureDeferred
async def test_one_worker_alone_has_all_of_it(hire: Hire) -> None:
    one = await hire("gw-1/a")
    passed = await seconds({one: 600}, 5)
    assert 0.97 * 5 * CAP_RPS <= passed <= 1.03 * 5 * CAP_RPS + 20
    assert here_rps(one) == CAP_RPS


@pytest_twisted.ensureDeferred
async def test_three_workers_hold_the_cap_together_and_the_busiest_has_most_of_it(hire: Hire) -> None:
    one, other, quiet = await hire("gw-1/a"), await hire("gw-2/b"), await hire("gw-3/c")
    demands = {one: 600, other: 300, quiet: 5}
    await seconds(demands, 3)
    passed = await seconds(demands, 10)
    assert 0.92 * 10 * CAP_RPS <= passed <= 1.05 * 10 * CAP_RPS
    assert here_rps(one) + here_rps(other) + here_rps(quiet) == pytest.approx(CAP_RPS, rel=0.02)
    assert here_rps(one) > 1.8 * here_rps(other) > here_rps(quiet)


@pytest_twisted.ensureDeferred
async def test_the_parts_follow_the_demand(hire: Hire) -> None:
    one, other = await hire("gw-1/a"), await hire("gw-2/b")
    await seconds({one: 600, other: 0}, 3)
    assert here_rps(one) > 0.9 * CAP_RPS
    passed = await seconds({one: 0, other: 600}, 10)
    assert here_rps(other) > 0.9 * CAP_RPS
    assert 0.75 * 10 * CAP_RPS <= passed <= 1.05 * 10 * CAP_RPS


@pytest_twisted.ensureDeferred
async def test_without_redis_each_keeps_its_last_part(redis: RedisServer, hire: Hire) -> None:
    one, other = await hire("gw-1/a"), await hire("gw-2/b")
    await seconds({one: 600, other: 200}, 4)
    parts = here_rps(one), here_rps(other)
    assert sum(parts) == pytest.approx(CAP_RPS, rel=0.02)
    redis.kill()
    await until(lambda: not one.store.up and not other.store.up, loop)
    for worker in (one, other):
        with pytest.raises(PollFailed, match="each worker keeps its part"):
            await worker.rates.poll()
    assert (here_rps(one), here_rps(other)) == parts
    redis.start()
    await until(lambda: one.store.up and other.store.up, loop)
    await seconds({one: 200, other: 600}, 5)
    assert here_rps(other) > 2 * here_rps(one)


@pytest_twisted.ensureDeferred
async def test_a_reload_that_changes_the_cap_keeps_the_part(hire: Hire) -> None:
    one, other = await hire("gw-1/a"), await hire("gw-2/b")
    await seconds({one: 300, other: 300}, 6)
    one.configure(evolve(USERS, max_rps=2 * CAP_RPS))
    assert here_rps(one) == pytest.approx(CAP_RPS, rel=0.05), "half of the new one"
    one.configure(evolve(USERS, max_rps=None))
    assert one.rates.poll() is None
    assert one.circuits.gates["users"].pace is None


@pytest_twisted.ensureDeferred
async def test_workers_that_are_gone_leave_the_hash(redis: RedisServer, hire: Hire) -> None:
    one = await hire("gw-1/a")
    redis.command("HSET", "rps:users", "gw-9/z", "500.0 1000.0", "junk", "junk")
    await one.rates.poll()
    assert here_rps(one) == CAP_RPS
    await until(lambda: redis.command("HKEYS", "rps:users") == [b"gw-1/a"], loop)
    assert 0 < redis.command("PTTL", "rps:users") <= 120_000
