"""Which pools and checks a worker has after a reload, and what becomes of those that went."""

import threading
from typing import Any

import pytest_twisted
from attrs import evolve
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread

from apigw.config.model import Backend, Discovery, Instance
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from apigw.testing import MemoryConnector
from apigw.upstream.backends import Backends
from tests.servers import until
from tests.upstream.origin import Caller, Origin

USERS = Backend("users", (Instance("10.0.0.1", 80), Instance("10.0.0.2", 80)), health_check_interval_s=1.0)
ORDERS = Backend("orders", (Instance("10.0.0.3", 80),), health_check_interval_s=1.0)


class World:
    """Backends on a clock; who is in `refusing` fails its checks. `asked` are the hosts that were asked."""

    def __init__(self, *backends: Backend) -> None:
        self.clock = Clock()
        self.refusing: set[str] = set()
        self.asked: set[str] = set()
        connector: Any = MemoryConnector()
        self.backends = Backends(self.clock, Deadlines(self.clock), connector, self.probe, lambda: 0.0)
        self.backends.startService()
        self.backends.configure(backends)

    def probe(self, host: str, port: int, path: str, timeout_s: float) -> "Deferred[int]":
        self.asked.add(host)
        return fail(ConnectionError("refused")) if host in self.refusing else succeed(200)

    def asked_in(self, seconds: float) -> set[str]:
        """Who is asked from now on."""
        self.asked.clear()
        for _ in range(int(seconds * 10)):
            self.clock.advance(0.1)
        return set(self.asked)


def test_a_reload_keeps_the_pools_it_knows_with_their_health() -> None:
    """The pool is the same object and its new settings are in force; a request's mapping does not change."""
    world = World(USERS, ORDERS)
    before = world.backends.pools
    pool, first = before["users"], before["users"].members[0]
    first.up = False
    after = world.backends.configure((evolve(USERS, max_connections=7),))
    assert after is world.backends.pools and after["users"] is pool
    assert pool.members[0] is first and not first.up
    assert pool.backend.max_connections == 7
    assert [*before] == ["users", "orders"] and [*after] == ["users"]


def test_a_new_backend_is_checked_and_one_that_is_gone_is_not() -> None:
    world = World(USERS)
    assert world.asked_in(3) == {"10.0.0.1", "10.0.0.2"}
    gone = world.backends.pools["users"]
    world.backends.configure((ORDERS,))
    assert gone.closed
    assert world.asked_in(3) == {"10.0.0.3"}


def test_an_instance_that_a_reload_adds_is_checked_and_one_it_removes_is_not() -> None:
    world = World(USERS)
    world.asked_in(3)
    world.backends.configure((evolve(USERS, instances=(USERS.instances[0], Instance("10.0.0.9", 80))),))
    assert world.asked_in(3) == {"10.0.0.1", "10.0.0.9"}


def test_a_backend_that_comes_back_starts_anew() -> None:
    world = World(USERS)
    gone = world.backends.pools["users"]
    world.backends.configure(())
    world.backends.configure((USERS,))
    assert world.backends.pools["users"] is not gone and not world.backends.pools["users"].closed
    assert world.asked_in(3) == {"10.0.0.1", "10.0.0.2"}


def test_a_backend_is_healthy_while_one_of_its_instances_is_up() -> None:
    world = World(USERS, ORDERS)
    assert world.backends.healthy() == 2
    world.refusing = {"10.0.0.1", "10.0.0.3"}
    world.asked_in(6)
    assert world.backends.healthy() == 1
    world.refusing = {"10.0.0.1", "10.0.0.2"}
    world.asked_in(6)
    assert world.backends.healthy() == 1
    world.backends.configure(())
    assert world.backends.healthy() == 0


def test_discovery_changes_a_list_and_members_that_stay_are_kept() -> None:
    """With their health; the new one is checked at once; twice the same address counts once."""
    world = World(USERS)
    pool = world.backends.pools["users"]
    first = pool.members[0]
    first.up = False
    fresh = Instance("10.0.0.9", 80)
    assert world.backends.set_instances("users", (USERS.instances[0], fresh, evolve(fresh, weight=9)))
    assert pool.members[0] is first and not first.up
    assert [member.instance for member in pool.members] == [USERS.instances[0], fresh]
    assert world.asked_in(2) == {"10.0.0.1", "10.0.0.9"}
    assert world.backends.set_instances("users", ()) and pool.members == []
    assert not world.backends.set_instances("nobody", ())


def test_a_reload_keeps_what_was_discovered_and_takes_the_new_settings() -> None:
    """Unless the discovery itself is another one: the instances of another service are none of this one."""
    found = Backend("found", discovery=Discovery("consul", "found"))
    world = World(found)
    pool = world.backends.pools["found"]
    world.backends.set_instances("found", (Instance("10.0.0.9", 80),))
    member = pool.members[0]
    world.backends.configure((evolve(found, max_connections=7),))
    assert pool.members == [member] and pool.backend.max_connections == 7
    world.backends.configure((evolve(found, discovery=Discovery("consul", "other")),))
    assert pool.members == []


def test_instances_serve_on_while_their_registry_moves_or_takes_over_from_a_static_list() -> None:
    world = World(USERS)
    pool = world.backends.pools["users"]
    members = list(pool.members)
    world.backends.configure((evolve(USERS, instances=(), discovery=Discovery("etcd", "users")),))
    assert pool.members == members and world.backends.instances("users") == USERS.instances
    world.backends.configure((evolve(USERS, instances=(), discovery=Discovery("consul", "users")),))
    assert pool.members == members
    world.backends.set_instances("users", ())
    assert world.backends.instances("users") == world.backends.instances("nobody") == ()


def test_a_backend_that_lists_its_instances_again_has_those() -> None:
    found = Backend("found", discovery=Discovery("consul", "found"))
    world = World(found)
    world.backends.set_instances("found", (Instance("10.0.0.9", 80),))
    world.backends.configure((evolve(found, discovery=None, instances=(Instance("10.0.0.1", 80),)),))
    assert [member.label for member in world.backends.pools["found"].members] == ["10.0.0.1:80"]


def test_connects_that_failed_in_requests_take_an_instance_out() -> None:
    """The pool tells its own check."""
    world = World(ORDERS, USERS)
    pool = world.backends.pools["orders"]
    for _ in range(ORDERS.unhealthy_after):
        pool.on_connect_failure(pool.members[0], "refused")
    assert not pool.members[0].up
    assert world.backends.healthy() == 1


@pytest_twisted.ensureDeferred
async def test_the_idle_connections_of_a_backend_that_is_gone_are_closed() -> None:
    """Its warm minimum is opened by the sweeper, and not again after the reload."""
    ended, endings = threading.Event(), []

    def script(caller: Caller) -> None:
        endings.append(caller.wait_for_end())
        ended.set()

    origin = Origin(script)
    deadlines = Deadlines(reactor)  # type: ignore[arg-type]
    connector = Connector(reactor, deadlines)
    backends = Backends(reactor, deadlines, connector, lambda *_: succeed(200), lambda: 0.0)
    try:
        backends.startService()
        warm: Any = Backend("warm", (Instance("127.0.0.1", origin.port),), min_connections=1)
        pool = backends.configure((warm,))["warm"]
        await until(lambda: pool.idle == 1, reactor)
        backends.configure(())
        assert await deferToThread(ended.wait, 5.0)
        assert pool.open == 0 and origin.connections == len(endings) == 1
    finally:
        await backends.stopService()
        backends.close()
        deadlines.stop()
        origin.close()
