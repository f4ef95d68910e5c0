"""Workers of one deployment in one process: each with circuits of its own, a store on a real Redis, and a name."""

import time
from typing import Any

from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from apigw.adapters.redis_connect import StraightWay
from apigw.adapters.shared_store import RedisSharedStore
from apigw.config.model import Backend
from apigw.testing import ended_exchange, small_snapshot
from apigw.upstream.circuits import Circuits
from apigw.upstream.gate import record
from apigw.upstream.shared_circuits import SharedCircuits
from apigw.upstream.shared_rates import SharedRates

loop: Any = reactor


class OneWorker:
    """Its clock is the test's, the wall clock is the real one and `behind_s`; pollers are polled by the test."""

    def __init__(self, port: int, name: str, *backends: Backend, behind_s: float = 0.0) -> None:
        def connect(protocol: Protocol) -> "Deferred[Any]":
            return connectProtocol(TCP4ClientEndpoint(loop, "127.0.0.1", port, timeout=1), protocol)

        self.clock = Clock()
        self.circuits = Circuits(self.clock, dict)
        self.store = RedisSharedStore(lambda: StraightWay(connect), loop, ())
        wall = lambda: time.time() - behind_s  # noqa: E731
        self.shared = SharedCircuits(self.clock, self.store, self.circuits, wall, name)
        self.rates = SharedRates(self.clock, self.store, self.circuits, wall, name)
        self.configure(*backends)
        self.store.startService()

    def configure(self, *backends: Backend) -> None:
        self.circuits.configure(evolve(small_snapshot().config, backends=backends, routes=()))

    @property
    def state(self) -> str:
        """Of the circuit of `users`."""
        return self.circuits.gates["users"].breaker.state

    def ask(self, count: int = 1, *, status: int = 200, spread_s: float = 0.0, backend: str = "users") -> int:
        """Requests that are answered at once, over some time of this worker; how many were let through."""
        passed = 0
        for _ in range(count):
            ex = ended_exchange(status=status, ended_s=self.clock.seconds())
            if self.circuits.gates[backend].refusal(ex, True, 10.0) is None:
                passed += 1
                record(ex)
            if spread_s:
                self.clock.advance(spread_s / count)
        return passed

    async def stop(self) -> None:
        await self.store.stopService()
