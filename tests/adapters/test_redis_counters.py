"""Counters in a real Redis: shared, exact, quick to fail and quick to be back."""

import time
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Factory, Protocol

from apigw.adapters.redis_counters import MAX_OUTSTANDING, RedisCounters
from apigw.adapters.redis_script import Check, packed
from apigw.config.model import RedisSection
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown
from tests.adapters.refusal_cost import REFUSED_WITHIN_S, refusal_cost_s
from tests.servers import DelayProxy, RedisServer, free_port, redis_server, turns, until

NOW_S = 1_707_264_012.5
TIMEOUT_S = 0.05  # ten times the default: what is tested is behaviour, on a machine that others use too
loop: Any = reactor


@pytest.fixture(scope="module")
def shared_redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture
def redis(shared_redis: RedisServer) -> RedisServer:
    """Empty, and with its script forgotten."""
    shared_redis.command("FLUSHALL")
    shared_redis.command("SCRIPT", "FLUSH")
    return shared_redis


class Stores:
    """Makes stores and stops them at the end of the test."""

    def __init__(self) -> None:
        self.made: list[RedisCounters] = []
        self.batches: list[tuple[float, int]] = []

    def make(self, port: int, url: str | None = None, timeout_s: float = TIMEOUT_S) -> RedisCounters:
        def connect(protocol: Protocol) -> Deferred[Any]:
            return connectProtocol(TCP4ClientEndpoint(loop, "127.0.0.1", port, timeout=0.5), protocol)

        store = RedisCounters(
            connect,
            loop,
            lambda call: loop.callLater(0, call),
            RedisSection(url=url or f"redis://127.0.0.1:{port}/0", timeout_s=timeout_s),
            on_batch=lambda duration_s, checks: self.batches.append((duration_s, checks)),
        )
        self.made.append(store)
        store.startService()
        return store

    async def up(self, port: int, url: str | None = None, timeout_s: float = TIMEOUT_S) -> RedisCounters:
        store = self.make(port, url, timeout_s)
        await until(lambda: store.up, loop)
        return store


@pytest.fixture
def stores() -> Iterator[Stores]:
    stores = Stores()
    yield stores
    for store in stores.made:
        if store.running:
            store.stopService()


def demand(name: str = "a", limit: int = 10, window_s: int = 60) -> Demand:
    return Demand("standard", f"rate:{{standard:user:{name}}}", limit, window_s)


async def outcome(store: RedisCounters, *demands: Demand) -> Counted | str:
    """What a check came to; the reason when the store is down."""
    try:
        return await store.take(demands or [demand()], NOW_S)
    except CounterStoreDown as down:
        return f"down: {down}"


async def back_within(store: RedisCounters, seconds: float) -> None:
    """Enforcement is back: the store is up and counts."""
    await until(lambda: store.up, loop, seconds)
    assert isinstance(await outcome(store, demand("back")), Counted)


# -- counting


@pytest_twisted.ensureDeferred
async def test_counts_under_the_contracts_keys_for_two_windows(redis: RedisServer, stores: Stores) -> None:
    """`rate:{tier:kind:identifier}:window_start`, with twice the window to live."""
    store = await stores.up(redis.port)
    assert await outcome(store) == Counted(True, [(0, 1, 0)])
    assert redis.command("GET", "rate:{standard:user:a}:1707264000") == b"1"
    assert 118 <= redis.command("TTL", "rate:{standard:user:a}:1707264000") <= 120


@pytest_twisted.ensureDeferred
async def test_the_limit_holds_and_refusals_are_not_counted(redis: RedisServer, stores: Stores) -> None:
    """Ten of a limit of ten, however many ask."""
    store = await stores.up(redis.port)
    answers = await gatherResults([store.take([demand()], NOW_S) for _ in range(25)])
    assert [answer.allowed for answer in answers] == [True] * 10 + [False] * 15
    assert answers[-1].counts == [(0, 10, 0)]


@pytest_twisted.ensureDeferred
async def test_all_demands_are_counted_or_none(redis: RedisServer, stores: Stores) -> None:
    """A request that the second limit refuses costs the first nothing."""
    store = await stores.up(redis.port)
    wide, narrow = demand("wide", 10), demand("narrow", 1)
    assert await outcome(store, wide, narrow) == Counted(True, [(0, 1, 0), (0, 1, 0)])
    assert (await outcome(store, wide, narrow))[:2] == (False, [(0, 1, 0), (0, 1, 0)])
    assert await outcome(store, wide) == Counted(True, [(0, 2, 0)])


@pytest_twisted.ensureDeferred
async def test_what_was_let_through_unasked_is_counted_before_the_check_that_goes_along(
    redis: RedisServer, stores: Stores
) -> None:
    store = await stores.up(redis.port)
    assert await outcome(store) == Counted(True, [(0, 1, 0)])
    store.add(demand(), 7, 1707264000)
    assert await outcome(store) == Counted(True, [(0, 9, 0)])
    redis.command("DEL", "rate:{standard:user:a}:1707264000")  # as an eviction does
    store.add(demand(limit=0), 2, 1707264000)
    assert (await outcome(store, demand(limit=0)))[:2] == (False, [(0, 2, 0)])
    for kind in ("rate", "spread"):
        assert 118 <= redis.command("TTL", f"{kind}:{{standard:user:a}}:1707264000") <= 120
    store.stopService()
    store.add(demand(), 7, 1707264000)  # lost, and nothing is raised


@pytest_twisted.ensureDeferred
async def test_checks_of_one_turn_are_one_write(redis: RedisServer, stores: Stores) -> None:
    """And the observer hears of one batch with its round trip."""
    store = await stores.up(redis.port)
    await gatherResults([store.take([demand(str(number))], NOW_S) for number in range(20)])
    await turns(loop)
    assert [checks for _, checks in stores.batches] == [20]
    assert 0 < stores.batches[0][0] < TIMEOUT_S


@pytest_twisted.ensureDeferred
async def test_two_gateways_on_one_redis_hold_one_limit(redis: RedisServer, stores: Stores) -> None:
    """Both ask for three times the limit in turns; together they get exactly the limit, in one window and the next."""
    first, second = await stores.up(redis.port), await stores.up(redis.port)
    rule = demand("shared", 100)
    allowed = 0
    for at_s in [NOW_S + step * 0.5 for step in range(200)]:  # 100 s: two windows are begun
        answers = await gatherResults([store.take([rule], at_s) for store in (first, second) for _ in range(2)])
        allowed += sum(answer.allowed for answer in answers)
    # window 1 has the limit; in window 2 the share that has passed (52.5 s of 60) of it
    assert 100 + 0.95 * 87.5 <= allowed <= 1.05 * (100 + 87.5)


# -- the connection's beginnings


@pytest_twisted.ensureDeferred
async def test_password_and_database_come_from_the_url(stores: Stores) -> None:
    """AUTH and SELECT before anything else; the wrong password never counts."""
    with redis_server("--requirepass", "s:e/cret") as server:
        store = await stores.up(server.port, f"redis://:s%3Ae%2Fcret@127.0.0.1:{server.port}/3")
        assert isinstance(await outcome(store), Counted)
        wrong = stores.make(server.port, f"redis://:wrong@127.0.0.1:{server.port}/3")
        await until(lambda: "WRONGPASS" in (wrong.last_error or ""), loop)
        assert not wrong.up
        assert "wrong@" not in (wrong.last_error or "")
        bad = stores.make(server.port, f"redis://:s%3Ae%2Fcret@127.0.0.1:{server.port}/99")
        await until(lambda: "DB index" in (bad.last_error or ""), loop)
        assert not bad.up


@pytest_twisted.ensureDeferred
async def test_before_the_first_connection_it_is_down_and_redis_may_come_later(stores: Stores) -> None:
    """A gateway that starts before its Redis fails at once and counts as soon as it is there."""
    server = RedisServer()
    try:
        store = stores.make(server.port)
        assert (await outcome(store)) == "down: not connected yet"
        await until(lambda: "refused" in (store.last_error or ""), loop)
        server.start()
        await back_within(store, 2.0)
    finally:
        server.remove()


@pytest_twisted.ensureDeferred
async def test_a_forgotten_script_is_loaded_and_the_batch_repeated(redis: RedisServer, stores: Stores) -> None:
    """After SCRIPT FLUSH nothing fails, and nothing is counted twice."""
    store = await stores.up(redis.port)
    redis.command("SCRIPT", "FLUSH")
    answers = await gatherResults([store.take([demand()], NOW_S) for _ in range(5)])
    assert [answer.counts for answer in answers] == [[(0, number, 0)] for number in range(1, 6)]
    assert store.up


# -- failures


@pytest_twisted.ensureDeferred
async def test_killed_and_restarted(redis: RedisServer, stores: Stores) -> None:
    """Down at once when the connection breaks; back within 2 s of the start, on counters that begin anew."""
    with redis_server() as server:
        store = await stores.up(server.port)
        await outcome(store)
        waiting = store.take([demand()], NOW_S)
        server.kill()
        with pytest.raises(CounterStoreDown):
            await waiting
        await until(lambda: not store.up, loop)
        await turns(loop, 0.6)  # some tries fail
        server.start()
        await back_within(store, 2.0)
        assert store.reconnects == 1


@pytest_twisted.ensureDeferred
async def test_frozen_and_thawed(stores: Stores) -> None:
    """Silence is noticed within the timeout; the frozen one's kernel still accepts, which is not mistaken for life."""
    with redis_server() as server:
        store = await stores.up(server.port)
        for frozen_s in (0.3, 2.5):  # within the first probe, and after connections were given up
            server.freeze()
            began_s = loop.seconds()
            assert await outcome(store) == "down: no answer within 50 ms"
            assert TIMEOUT_S <= loop.seconds() - began_s < 3 * TIMEOUT_S
            await turns(loop, frozen_s)
            assert not store.up
            server.thaw()
            await back_within(store, 2.0)


@pytest_twisted.ensureDeferred
async def test_late_answers_are_dropped_in_order(redis: RedisServer, stores: Stores) -> None:
    """After a hiccup each check gets its own answer, never one that was meant for another."""
    proxy = DelayProxy(loop, redis.port)
    store = await stores.up(proxy.port)
    proxy.delay_s = 2 * TIMEOUT_S
    late = [store.take([demand("late")], NOW_S) for _ in range(3)]
    for check in late:
        with pytest.raises(CounterStoreDown):
            await check
    proxy.delay_s = 0.0
    await back_within(store, 2.0)
    assert await outcome(store, demand("fresh")) == Counted(True, [(0, 1, 0)])
    assert await outcome(store, demand("late")) == Counted(True, [(0, 4, 0)])
    assert proxy.connections == 1
    await proxy.close()


@pytest_twisted.ensureDeferred
async def test_a_redis_that_stays_slow_stays_down(redis: RedisServer, stores: Stores) -> None:
    """Slower than the timeout is no use: probes are answered late, four a second at most, until it is quick again."""
    proxy = DelayProxy(loop, redis.port)
    store = await stores.up(proxy.port)
    proxy.delay_s = 2 * TIMEOUT_S
    assert await outcome(store) == "down: no answer within 50 ms"
    before = redis.command("GET", "rate:{probe}")
    await turns(loop, 1.1)
    assert not store.up
    assert store.last_error == "answers take longer than 50 ms"
    assert 2 <= int(redis.command("GET", "rate:{probe}")) - int(before) <= 6
    proxy.delay_s = 0.0
    await back_within(store, 2.0)
    assert proxy.connections == 1
    await proxy.close()


@pytest_twisted.ensureDeferred
async def test_read_only_and_writable_again(stores: Stores) -> None:
    """A demoted master refuses to count; a new connection is tried, since the name may lead to another by now."""
    with redis_server() as server:
        store = await stores.up(server.port)
        server.command("REPLICAOF", "127.0.0.1", 1)
        assert "READONLY" in str(await outcome(store))
        await turns(loop, 0.8)
        assert not store.up
        server.command("REPLICAOF", "NO", "ONE")
        await back_within(store, 2.0)


@pytest_twisted.ensureDeferred
async def test_too_few_replicas_and_out_of_memory(stores: Stores) -> None:
    """Errors of writes are met by the probe, which writes."""
    with redis_server() as server:
        store = await stores.up(server.port)
        for setting, broken, good, error in [
            ("min-replicas-to-write", "1", "0", "NOREPLICAS"),
            ("maxmemory", "1", "0", "OOM"),
        ]:
            server.config_set(setting, broken)
            assert error in str(await outcome(store, demand(setting)))
            await turns(loop, 0.6)
            assert not store.up
            server.config_set(setting, good)
            await back_within(store, 2.0)
        assert store.reconnects == 0


@pytest_twisted.ensureDeferred
async def test_somebody_elses_value_under_one_key_fails_that_check_only(redis: RedisServer, stores: Stores) -> None:
    """The store stays up for the others."""
    store = await stores.up(redis.port)
    redis.command("LPUSH", "rate:{standard:user:a}:1707264000", "x")
    assert "WRONGTYPE" in str(await outcome(store))
    assert store.up
    assert isinstance(await outcome(store, demand("b")), Counted)


@pytest_twisted.ensureDeferred
async def test_a_dead_redis_costs_microseconds(stores: Stores) -> None:
    """No Deferred, no timer, no byte sent."""
    store = stores.make(free_port())
    await until(lambda: "refused" in (store.last_error or ""), loop)
    demands = [demand()]
    assert refusal_cost_s(lambda: store.take(demands, NOW_S)) < REFUSED_WITHIN_S


@pytest_twisted.ensureDeferred
async def test_outstanding_checks_are_bounded(stores: Stores) -> None:
    """More than 10,000 without an answer are refused, and all of them are answered in the end."""
    with redis_server() as server:
        store = await stores.up(server.port, timeout_s=1.0)
        server.freeze()
        checks = [store.take([demand()], NOW_S) for _ in range(MAX_OUTSTANDING)]
        with pytest.raises(CounterStoreDown, match="too many"):
            store.take([demand()], NOW_S)
        for check in checks:
            check.addErrback(lambda failure: failure.trap(CounterStoreDown))
        await gatherResults(checks)
        assert not store.up


@pytest_twisted.ensureDeferred
async def test_our_own_late_loop_is_not_taken_for_a_late_redis(redis: RedisServer, stores: Stores) -> None:
    """The loop stalls for longer than the timeout with the answer in the socket: it is read before judging."""
    store = await stores.up(redis.port)
    check = store.take([demand()], NOW_S)
    await turns(loop)
    await turns(loop)  # the write has left
    time.sleep(2 * TIMEOUT_S)  # the stall itself
    assert await check == Counted(True, [(0, 1, 0)])
    assert store.up


@pytest.mark.parametrize("garbage", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$70000\r\n" + b"x" * 69_000, b":1\r\n" * 9])
@pytest_twisted.ensureDeferred
async def test_garbage_ends_the_connection(stores: Stores, garbage: bytes) -> None:
    """Not Redis' protocol, a reply without end, more replies than questions: aborted, and tried again with back-off."""
    server = Factory.forProtocol(_Garbage)
    server.garbage = garbage  # type: ignore[attr-defined]
    server.connections = 0  # type: ignore[attr-defined]
    port = loop.listenTCP(0, server, interface="127.0.0.1")
    store = stores.make(port.getHost().port)
    await until(lambda: server.connections == 3, loop)  # type: ignore[attr-defined]
    assert not store.up
    assert store.last_error
    store.stopService()
    await port.stopListening()


class _Garbage(Protocol):
    def connectionMade(self) -> None:
        self.factory.connections += 1  # type: ignore[union-attr]

    def dataReceived(self, data: bytes) -> None:
        self.transport.write(self.factory.garbage)  # type: ignore[union-attr]


def question(store: RedisCounters) -> tuple[Check, "Deferred[Counted]"]:
    asker: Deferred[Counted] = Deferred()
    return Check(asker, packed([demand()], NOW_S), 1, store.refused), asker


@pytest_twisted.ensureDeferred
async def test_what_another_node_sends_here_waits_for_the_first_connection(redis: RedisServer, stores: Stores) -> None:
    """As long as for an answer, and no longer; a node that was up before and is down is not waited for."""
    store = stores.make(redis.port)
    sent, answer = question(store)
    assert not store.up
    store.again(sent)
    assert await answer == Counted(True, [(0, 1, 0)])
    with redis_server() as server:
        server.freeze()
        silent = stores.make(server.port)
        sent, answer = question(silent)
        silent.again(sent)
        began_s = loop.seconds()
        with pytest.raises(CounterStoreDown, match="not connected within 50 ms"):
            await answer
        assert TIMEOUT_S <= loop.seconds() - began_s < 3 * TIMEOUT_S
        server.thaw()
        await until(lambda: silent.up, loop)
        server.kill()
        await until(lambda: not silent.up, loop)
        with pytest.raises(CounterStoreDown):
            silent.again(question(silent)[0])


@pytest_twisted.ensureDeferred
async def test_a_cancelled_check_disturbs_nobody(redis: RedisServer, stores: Stores) -> None:
    """Its client is gone; its answer comes all the same, and goes nowhere."""
    store = await stores.up(redis.port)
    gone, stays = store.take([demand()], NOW_S), store.take([demand()], NOW_S)
    gone.addErrback(lambda _: "gone")
    gone.cancel()
    assert await stays == Counted(True, [(0, 2, 0)])
    assert await gone == "gone"


@pytest_twisted.ensureDeferred
async def test_stopping_fails_what_waits_and_leaves_no_timer(redis: RedisServer, stores: Stores) -> None:
    """Nothing of the store is left in the reactor."""
    store = await stores.up(redis.port)
    waiting = [store.take([demand()], NOW_S)]
    await turns(loop)
    waiting.append(store.take([demand()], NOW_S))
    store.stopService()
    for check in waiting:
        with pytest.raises(CounterStoreDown, match="stopped"):
            await check
    await turns(loop, 0.01)
    assert not [call for call in loop.getDelayedCalls() if "apigw" in str(getattr(call.func, "__module__", ""))]
