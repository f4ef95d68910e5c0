"""Which gates a worker has after a reload, and that their clock goes on without requests."""

from typing import Any

from attrs import evolve
from twisted.internet.defer import succeed
from twisted.internet.task import Clock

from apigw.config.model import Backend, CircuitBreaker, Config, Instance
from apigw.core.breaker import CLOSED, OPEN
from apigw.net.deadlines import Deadlines
from apigw.testing import MemoryConnector, ended_exchange, small_snapshot
from apigw.upstream.backends import Backends
from apigw.upstream.circuits import CIRCUIT_VALUES, Circuits
from apigw.upstream.connection import UpstreamConnection
from apigw.upstream.gate import Gate, record

OWN = CircuitBreaker(open_s=7.0, recovery_s=0.0)
USERS = Backend("users", (Instance("10.0.0.1", 80), Instance("10.0.0.2", 80)))
ORDERS = Backend("orders", (Instance("10.0.0.3", 80),), max_rps=50.0, circuit_breaker=OWN)


def configured(*backends: Backend, **sections: Any) -> Config:
    return evolve(small_snapshot().config, backends=backends, routes=(), **sections)


class World:
    def __init__(self, *backends: Backend) -> None:
        self.clock = Clock()
        connector: Any = MemoryConnector()
        self.backends = Backends(self.clock, Deadlines(self.clock), connector, lambda *_: succeed(200), lambda: 0.0)
        self.changes: list[tuple[str, str, str]] = []
        self.circuits = Circuits(self.clock, lambda: self.backends.pools, self._changed)
        self.configure(*backends)
        self.circuits.startService()

    def _changed(self, gate: Gate, old: str, new: str) -> None:
        self.changes.append((gate.name, old, new))

    def configure(self, *backends: Backend, **sections: Any) -> None:
        config = configured(*backends, **sections)
        self.backends.configure(config.backends)
        self.circuits.configure(config)

    def fail(self, name: str, error_type: str | None = None, count: int = 20, **facts: Any) -> None:
        for _ in range(count):
            ex = ended_exchange(status=503, error_type=error_type, ended_s=self.clock.seconds(), **facts)
            self.circuits.gates[name].refusal(ex, True, 10.0)
            record(ex)

    def value(self, name: str) -> float:
        return dict(self.circuits.states())[(name,)]


def test_a_backends_own_settings_go_before_those_of_the_main_file() -> None:
    world = World(USERS, ORDERS)
    gates = world.circuits.gates
    assert gates["users"].settings == CircuitBreaker() and gates["orders"].settings == OWN
    assert gates["users"].pace is None and gates["orders"].max_rps == 50.0


def test_a_reload_keeps_the_state_of_a_backend_by_name_and_a_new_one_is_closed() -> None:
    world = World(USERS)
    world.fail("users")
    gate = world.circuits.gates["users"]
    world.configure(USERS, ORDERS, circuit_breaker=CircuitBreaker(open_s=2.0))
    assert world.circuits.gates["users"] is gate and gate.breaker.state == OPEN
    assert world.value("orders") == CIRCUIT_VALUES[CLOSED]
    assert gate.breaker.retry_after_s(world.clock.seconds()) == 2
    world.configure(ORDERS)
    assert [*world.circuits.gates] == ["orders"]
    world.configure(ORDERS, USERS)
    assert world.circuits.gates["users"].breaker.state == CLOSED


def test_one_open_circuit_is_no_other_backends_trouble() -> None:
    world = World(USERS, ORDERS)
    world.fail("users")
    assert [world.value(name) for name in ("users", "orders")] == [2.0, 0.0]
    assert world.circuits.openings() == [(("users",), 1.0), (("orders",), 0.0)]
    assert world.changes == [("users", "closed", "open")]


def test_time_goes_on_without_requests() -> None:
    world = World(USERS)
    world.fail("users")
    world.clock.advance(30.0)
    assert world.value("users") == 1.0
    world.circuits.gates["users"].breaker.recovering_elsewhere(0.0, world.clock.seconds(), "as another says")
    assert world.value("users") == 3.0
    for _ in range(121):
        world.clock.advance(1.0)
    assert world.value("users") == 0.0


def test_a_failed_connect_counts_once_no_instance_is_without_failures() -> None:
    world = World(USERS)
    first, second = world.backends.pools["users"].members
    world.fail("users", "connection_refused", instance=first.label)
    assert world.circuits.gates["users"].breaker.state == CLOSED
    second.refused = 1
    world.fail("users", "connection_refused", instance=first.label)
    assert world.circuits.gates["users"].breaker.state == OPEN


def test_the_only_instance_has_no_other() -> None:
    world = World(evolve(ORDERS, max_rps=None))
    world.fail("orders", "connect_timeout", instance="10.0.0.3:80")
    assert world.circuits.gates["orders"].breaker.state == OPEN


def test_the_operator_sees_state_counts_and_rates() -> None:
    world = World(USERS, ORDERS)
    world.fail("orders", count=3)
    assert world.circuits.status("orders") == {
        "circuit": {
            "state": "closed",
            "open_seconds_left": None,
            "share": 1.0,
            "outcomes": 3,
            "failed": 3,
            "opened": 0,
        },
        "max_rps": 50.0,
        "max_rps_here": 50.0,
        "refused_at_max_rps": 0,
    }
    world.fail("users")
    world.clock.advance(4.5)
    said: Any = world.circuits.status("users")
    assert (said["circuit"]["state"], said["circuit"]["open_seconds_left"]) == ("open", 25.5)
    assert (said["circuit"]["share"], said["max_rps"], said["max_rps_here"]) == (0.0, None, None)


class Waiting:
    """A request in a pool's queue."""

    timeout_s = 5.0

    def __init__(self, guarded: bool) -> None:
        self.guarded = guarded
        self.failed: str | None = None

    def pool_ready(self, connection: UpstreamConnection) -> None:
        raise AssertionError("there is no connection to give")

    def pool_failed(self, reason: str, detail: str, instance: str | None) -> None:
        self.failed = reason


def test_who_waits_for_a_connection_is_refused_when_the_circuit_opens() -> None:
    """A route without circuit breaker waits on."""
    world = World(evolve(USERS, max_connections=1), ORDERS)
    pool = world.backends.pools["users"]
    waiting = [Waiting(guarded=n % 10 > 0) for n in range(301)]
    for one in waiting:
        pool.acquire(one)
    world.fail("users")
    assert {one.failed for one in waiting} == {None}, "not from inside whoever had the bad outcome"
    world.clock.advance(0)
    assert {one.failed for one in waiting if one.guarded} == {"circuit_open"}
    assert {one.failed for one in waiting if not one.guarded} == {None}
    assert pool.waiting == 30


def test_a_long_queue_is_turned_away_in_slices_and_only_while_the_circuit_is_open() -> None:
    world = World(evolve(USERS, max_connections=1))
    pool = world.backends.pools["users"]
    for _ in range(201):
        pool.acquire(Waiting(guarded=True))
    world.fail("users")
    recover = world.circuits.gates["users"].breaker.recovering_elsewhere
    world.clock.callLater(0, recover, 0.0, world.clock.seconds(), "as another says")  # after the first slice
    world.clock.advance(0)
    assert pool.waiting == 150
