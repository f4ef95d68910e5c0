"""The connection of counters beyond what test_redis_counters.py sees of it: whom it refuses, and when it is renewed."""

from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

from apigw.adapters.redis_counters import RedisCounters
from apigw.config.model import RedisSection
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown
from tests.servers import redis_server, turns, until

loop: Any = reactor
DEMAND = Demand("standard", "rate:{standard:user:a}", 10, 60)


class Led:
    """Counters led to a port that the test may change, as sentinels would do it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.connects = 0
        self.changes: list[bool] = []
        self.store = RedisCounters(
            self.connect,
            loop,
            lambda call: loop.callLater(0, call),
            RedisSection(url="redis+sentinel://127.0.0.1/main", timeout_s=0.1),
            on_change=lambda: self.changes.append(self.store.up),
        )
        self.store.startService()

    def connect(self, protocol: Protocol) -> "Deferred[Any]":
        self.connects += 1
        return connectProtocol(TCP4ClientEndpoint(loop, "127.0.0.1", self.port, timeout=0.5), protocol)


@pytest_twisted.ensureDeferred
async def test_behind_sentinels_a_replica_is_refused() -> None:
    """What was named may have become one; even one that lets itself be written to."""
    with redis_server() as master, redis_server("--replica-read-only", "no") as replica:
        replica.command("REPLICAOF", "127.0.0.1", master.port)
        led = Led(replica.port)
        await until(lambda: led.store.last_error == "it is a replica, not the master", loop)
        await turns(loop, 0.3)
        assert not led.store.up and led.connects >= 2
        led.port = master.port
        await until(lambda: led.store.up, loop, 2.0)
        assert led.changes == [False, True], "the first try failed"
        led.store.stopService()
        assert led.changes == [False, True, False]


@pytest_twisted.ensureDeferred
async def test_renewed_it_connects_at_once_and_what_waits_fails() -> None:
    with redis_server() as first, redis_server() as second:
        led = Led(first.port)
        await until(lambda: led.store.up, loop)
        waiting = led.store.take([DEMAND], 0.0)
        led.port = second.port
        led.store.renew("the master is another")
        with pytest.raises(CounterStoreDown, match="the master is another"):
            await waiting
        assert led.connects == 2
        await until(lambda: led.store.up, loop)
        assert isinstance(await led.store.take([DEMAND], 0.0), Counted)
        assert second.command("GET", "rate:{standard:user:a}:0") == b"1"
        led.store.stopService()
        led.store.renew("too late")
        assert led.connects == 2
