"""What one gateway finds out of a backend, all know: through a real Redis, without it, and with one that forgets."""

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any, Awaitable, Callable

import pytest
import pytest_twisted
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.task import Clock

from apigw.config.model import Backend, CircuitBreaker, Instance
from apigw.core.breaker import CLOSED, HALF_OPEN, OPEN, RECOVERING
from apigw.net.poller import PollFailed
from apigw.testing import MemoryStore, ended_exchange, small_snapshot
from apigw.upstream.circuits import Circuits
from apigw.upstream.gate import record
from apigw.upstream.shared_circuits import SharedCircuits
from tests.servers import RedisServer, redis_server, until
from tests.upstream.fleet import OneWorker, loop

USERS = Backend("users", (Instance("10.0.0.1", 80),))
KEY = "circuit:users"
Hire = Callable[..., Awaitable[OneWorker]]


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest_twisted.async_yield_fixture
async def hire(redis: RedisServer) -> AsyncIterator[Hire]:
    hired: list[OneWorker] = []

    async def hire(name: str, *backends: Backend, **more: Any) -> OneWorker:
        worker = OneWorker(redis.port, name, *(backends or (USERS,)), **more)
        hired.append(worker)
        await until(lambda: worker.store.up, loop)
        return worker

    yield hire
    for worker in hired:
        await worker.stop()


async def written(redis: RedisServer, state: str) -> dict[str, Any]:
    """The record, once it says this."""

    def says() -> bool:
        value = redis.command("GET", KEY)
        return value is not None and json.loads(value)["state"] == state

    await until(says, loop)
    found: dict[str, Any] = json.loads(redis.command("GET", KEY))
    return found


@pytest_twisted.ensureDeferred
async def test_what_one_opens_the_others_open_at_their_next_look(redis: RedisServer, hire: Hire) -> None:
    one, other = await hire("gw-1/a"), await hire("gw-2/b")
    one.ask(20, status=500)
    assert (one.state, other.state) == (OPEN, CLOSED)
    said = await written(redis, "open")
    assert said["by"] == "gw-1/a" and said["failure_count"] == 20
    assert said["opened_at"] == pytest.approx(said["until"] - 30, abs=0.1)
    assert 30_000 < redis.command("PTTL", KEY) <= 35_000
    await other.shared.poll()
    assert other.state == OPEN and other.ask(5) == 0 and other.shared.followed == 1
    assert 28 <= other.circuits.gates["users"].breaker.retry_after_s(other.clock.seconds()) <= 30


@pytest_twisted.ensureDeferred
async def test_the_first_with_good_probes_brings_all_into_the_same_ramp(redis: RedisServer, hire: Hire) -> None:
    one, other, third = await hire("gw-1/a"), await hire("gw-2/b"), await hire("gw-3/c")
    one.ask(20, status=500)
    await written(redis, "open")
    for worker in (other, third):
        await worker.shared.poll()
    for worker in (one, other, third):
        worker.clock.advance(31.0)
    other.ask(2)
    assert other.state == RECOVERING
    said = await written(redis, "recovering")
    assert said["by"] == "gw-1/a", "it is still the outage that the first found"
    for worker in (one, third):
        await worker.shared.poll()
        assert worker.state == RECOVERING
    for worker in (one, other, third):
        worker.clock.advance(120.0)
        worker.circuits.poll()
        await worker.shared.poll()
        assert worker.state == CLOSED


@pytest_twisted.ensureDeferred
async def test_one_bad_probe_and_one_bad_ramp_open_it_for_all(redis: RedisServer, hire: Hire) -> None:
    one, other = await hire("gw-1/a"), await hire("gw-2/b")
    one.ask(20, status=500)
    await written(redis, "open")
    await other.shared.poll()
    for worker in (one, other):
        worker.clock.advance(31.0)
    other.ask(1)
    assert other.state == HALF_OPEN
    one.ask(1, status=500)
    await until(lambda: not one.shared._known["users"].unsaid, loop)
    await other.shared.poll()
    assert other.state == OPEN
    for worker in (one, other):
        worker.clock.advance(31.0)
    other.ask(2)
    await written(redis, "recovering")
    await one.shared.poll()
    assert one.state == RECOVERING
    one.ask(2000, status=500)
    assert one.state == OPEN
    await written(redis, "open")
    await other.shared.poll()
    assert other.state == OPEN


@pytest_twisted.ensureDeferred
async def test_a_gateway_that_starts_meanwhile_opens_and_joins(redis: RedisServer, hire: Hire) -> None:
    one = await hire("gw-1/a")
    one.ask(20, status=500)
    await written(redis, "open")
    new = await hire("gw-2/b")
    await new.shared.poll()
    assert new.state == OPEN
    one.clock.advance(31.0)
    one.ask(2)
    await written(redis, "recovering")
    newer = await hire("gw-3/c")
    await newer.shared.poll()
    assert newer.state == RECOVERING


@pytest_twisted.ensureDeferred
async def test_an_outage_is_followed_once_and_a_stale_record_holds_nothing(redis: RedisServer, hire: Hire) -> None:
    """The gateway that opened it is gone, and its record never expires."""
    one = await hire("gw-1/a")
    record = {"state": "open", "opened_at": 1.0, "until": 9e9, "by": "gw-9/z", "since": None}
    redis.command("SET", KEY, json.dumps(record))
    await one.shared.poll()
    assert one.state == OPEN
    assert one.circuits.gates["users"].breaker.retry_after_s(0.0) == 30, "no longer than by its own judgement"
    one.clock.advance(30.0)
    await one.shared.poll()
    assert one.ask(2) == 2 and one.state == RECOVERING


@pytest_twisted.ensureDeferred
async def test_clocks_that_differ_make_it_shorter_and_no_more(redis: RedisServer, hire: Hire) -> None:
    one, behind, ahead = await hire("gw-1/a"), await hire("gw-2/b", behind_s=5.0), await hire("gw-3/c", behind_s=-5.0)
    one.ask(20, status=500)
    await written(redis, "open")
    seconds = []
    for worker in (behind, ahead):
        await worker.shared.poll()
        seconds.append(worker.circuits.gates["users"].breaker.retry_after_s(0.0))
    assert seconds[0] == 30 and 24 <= seconds[1] <= 25


@pytest_twisted.ensureDeferred
async def test_without_redis_each_decides_for_itself_and_tells_the_others_later(redis: RedisServer, hire: Hire) -> None:
    one, other = await hire("gw-1/a"), await hire("gw-2/b")
    redis.kill()
    await until(lambda: not one.store.up and not other.store.up, loop)
    one.ask(20, status=500)
    assert one.state == OPEN
    with pytest.raises(PollFailed, match="each worker decides for itself"):
        await one.shared.poll()
    assert other.state == CLOSED and other.ask(5) == 5
    redis.start()
    await until(lambda: one.store.up and other.store.up, loop)
    await one.shared.poll()
    await written(redis, "open")
    await other.shared.poll()
    assert other.state == OPEN


@pytest_twisted.ensureDeferred
async def test_a_redis_that_has_forgotten_is_told_again(redis: RedisServer, hire: Hire) -> None:
    one = await hire("gw-1/a")
    one.ask(20, status=500)
    await written(redis, "open")
    redis.command("FLUSHALL")
    await one.shared.poll()
    await written(redis, "open")


@pytest_twisted.ensureDeferred
async def test_a_backend_that_is_not_shared_is_its_workers_own_matter(redis: RedisServer, hire: Hire) -> None:
    alone = evolve(USERS, circuit_breaker=CircuitBreaker(shared=False))
    one, other = await hire("gw-1/a", alone), await hire("gw-2/b", alone)
    one.ask(20, status=500)
    await other.shared.poll()
    assert (one.state, other.state) == (OPEN, CLOSED)
    assert redis.command("GET", KEY) is None


@pytest_twisted.ensureDeferred
async def test_nonsense_in_redis_changes_nothing(redis: RedisServer, hire: Hire) -> None:
    one = await hire("gw-1/a")
    redis.command("SET", KEY, b"\xff\x00{")
    await one.shared.poll()
    assert one.state == CLOSED
    redis.command("DEL", KEY)
    redis.command("HSET", KEY, "a", "b")
    with pytest.raises(PollFailed, match="WRONGTYPE"):
        await one.shared.poll()
    assert one.state == CLOSED and one.ask() == 1


@pytest_twisted.ensureDeferred
async def test_a_backend_that_a_reload_takes_away_is_forgotten(redis: RedisServer, hire: Hire) -> None:
    one = await hire("gw-1/a")
    one.ask(20, status=500)
    one.configure()
    await one.shared.poll()
    one.configure(USERS)
    assert one.state == CLOSED


# -- a fleet under anything

POLICY = CircuitBreaker(
    window_s=4.0, min_requests=4, open_s=5.0, close_after_probes=2, recovery_steps=(0.25, 0.5, 1.0), recovery_s=6.0
)
EVENTS = st.one_of(
    st.tuples(st.just("ask"), st.integers(0, 2), st.integers(1, 8)),  # which worker, how many requests
    st.tuples(st.just("wait"), st.sampled_from([0.1, 0.6, 1.0, 3.0, 7.0]), st.just(0)),
    st.tuples(st.just("backend"), st.booleans(), st.just(0)),
    st.tuples(st.just("redis"), st.booleans(), st.just(0)),
    st.tuples(st.just("restart"), st.integers(0, 2), st.just(0)),
)


class Fleet:
    """Three workers on one clock and one store; their wall clocks differ by two seconds. Pollers run by themselves."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.store = MemoryStore(self.clock.seconds)
        self.good = True
        self.names = 0
        self.workers = [self.worker(number) for number in range(3)]

    def worker(self, number: int) -> Circuits:
        circuits = Circuits(self.clock, dict)
        skew_s = number - 1.0
        self.names += 1
        shared = SharedCircuits(
            self.clock, self.store, circuits, lambda: 1e9 + self.clock.seconds() + skew_s, f"gw/{self.names}"
        )
        backends = (evolve(USERS, circuit_breaker=POLICY),)
        circuits.configure(evolve(small_snapshot().config, backends=backends, routes=()))
        circuits.startService()
        shared.startService()
        return circuits

    def ask(self, number: int) -> bool:
        gate = self.workers[number].gates["users"]
        ex = ended_exchange(status=200 if self.good else 500, ended_s=self.clock.seconds())
        if gate.refusal(ex, True, 1.0) is not None:
            return False
        record(ex)
        return True

    def states(self) -> set[str]:
        return {circuits.gates["users"].breaker.state for circuits in self.workers}

    def happen(self, event: tuple[str, Any, int]) -> None:
        what, value, count = event
        if what == "ask":
            for _ in range(count):
                self.ask(value)
        elif what == "wait":
            self.pass_s(value)
        elif what == "backend":
            self.good = value
        elif what == "redis":
            self.store.down = value
        else:
            self.workers[value] = self.worker(value)

    def pass_s(self, seconds: float) -> None:
        for _ in range(round(seconds * 10)):
            self.clock.advance(0.1)


@given(st.lists(EVENTS, max_size=40))
@settings(max_examples=60, deadline=None)
def test_whatever_happens_a_fleet_comes_back_to_a_backend_that_is_well(events: list[tuple[str, Any, int]]) -> None:
    fleet = Fleet()
    for event in events:
        fleet.happen(event)
    fleet.good, fleet.store.down = True, False
    for _ in range(400):  # 40 s: what is open ends, is probed, ramps, and what was told late is followed once more
        for number in range(3):
            fleet.ask(number)
        fleet.pass_s(0.1)
    assert fleet.states() == {CLOSED}
    assert all(fleet.ask(number) for number in range(3) for _ in range(20))


@given(st.integers(0, 2), st.integers(0, 2))
@settings(deadline=None)
def test_a_fleet_opens_within_two_seconds_and_recovers_together(finder: int, prober: int) -> None:
    fleet = Fleet()
    fleet.good = False
    for _ in range(4):
        fleet.ask(finder)
    fleet.pass_s(2.0)
    assert fleet.states() == {OPEN}
    fleet.good = True
    fleet.pass_s(6.0)
    while RECOVERING not in fleet.states():
        fleet.ask(prober)
        fleet.pass_s(0.1)
    fleet.pass_s(2.0)
    assert fleet.states() == {RECOVERING}
