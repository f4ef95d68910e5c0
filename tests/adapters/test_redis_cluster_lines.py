"""What gateways share, in a real cluster: keys at their place, messages everywhere, through what moves or dies."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import gatherResults
from twisted.internet.threads import deferToThread

from apigw.adapters.redis_deployment import RedisDeployment
from apigw.config.model import RedisSection
from apigw.core.cluster_slots import SLOTS, slot_of
from apigw.errors import StoreDown
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from tests.redis_cluster import ClusterSet, cluster_set
from tests.servers import turns, until

loop: Any = reactor
THIRD = -(-SLOTS // 3)


@pytest.fixture(scope="module")
def servers() -> Iterator[ClusterSet]:
    with cluster_set(replicas=False) as servers:
        yield servers


class Running:
    """A shared store of its own that hears one channel."""

    def __init__(self, url: str) -> None:
        connector = Connector(loop, Deadlines(loop))
        self.deployment = RedisDeployment(RedisSection(url=url), loop, connector, lambda took_s, checks: None)
        self.store = self.deployment.shared_store()
        self.heard: list[bytes] = []
        self.begins = 0
        self.store.listen("channel", self.heard.append, self._begun)
        self.deployment.startService()

    def _begun(self) -> None:
        self.begins += 1

    async def works(self, timeout_s: float = 5.0) -> None:
        await until(lambda: self.store.up and self.store.listening, loop, timeout_s)


@contextlib.asynccontextmanager
async def running(url: str) -> AsyncIterator[Running]:
    run = Running(url)
    try:
        yield run
    finally:
        await run.deployment.stopService()
        await turns(loop, 0.02)


def name_at(number: int) -> str:
    """A key of the third that masters[number] had in the beginning."""
    third = range(number * THIRD, min((number + 1) * THIRD, SLOTS))
    return next(name for name in map(str, range(10_000)) if slot_of(name) in third)


@pytest_twisted.ensureDeferred
async def test_each_key_is_where_the_cluster_looks_for_it(servers: ClusterSet) -> None:
    async with running(servers.url) as run:
        with pytest.raises(StoreDown):
            await run.store.command("a", "GET", "a")
        await run.works()
        for number, master in enumerate(servers.masters):
            name = name_at(number)
            assert await run.store.command(name, "SET", name, number) == b"OK"
            assert master.command("GET", name) == str(number).encode()
        assert run.store.last_error is None and run.store.reconnects == 0
        with pytest.raises(StoreDown, match="WRONGTYPE"):
            await run.store.command(name_at(0), "SADD", name_at(0), "x")


@pytest_twisted.ensureDeferred
async def test_what_one_says_all_hear_at_whichever_nodes_they_listen(servers: ClusterSet) -> None:
    async with (
        running(servers.url) as a,
        running(servers.url) as b,
        running(servers.url) as c,
        running(servers.url) as d,
    ):
        runs = [a, b, c, d]
        for run in runs:
            await run.works()
        await gatherResults([run.store.publish("channel", str(number).encode()) for number, run in enumerate(runs)])
        for run in runs:
            await until(lambda run=run: sorted(run.heard) == [b"0", b"1", b"2", b"3"], loop)


@pytest_twisted.ensureDeferred
async def test_commands_follow_a_slot_that_moves_or_is_on_its_way(servers: ClusterSet) -> None:
    name, other = "{on-its-way}a", "{on-its-way}b"
    slot = slot_of(name)
    source = servers.master_of(slot)
    target = next(master for master in servers.masters if master is not source)
    async with running(servers.url) as run:
        await run.works()
        await run.store.command(name, "SET", name, "here")
        servers.begin_move(slot, source, target)
        try:
            assert await run.store.command(name, "GET", name) == b"here"
            assert await run.store.command(other, "SET", other, "there") == b"OK", "asked for at the new one"
            assert await run.store.command(other, "GET", other) == b"there"
            with pytest.raises(StoreDown, match="TRYAGAIN"):
                await run.store.command(name, "MGET", name, other)
        finally:
            while servers.move_keys(slot, source, target):
                pass
            servers.end_move(slot, source, target)
        try:
            assert await run.store.command(name, "MGET", name, other) == [b"here", b"there"]
            assert await run.store.command(name, "GET", name) == b"here"
        finally:
            servers.move(slot, target, source)


@pytest_twisted.ensureDeferred
async def test_a_master_is_killed() -> None:
    """Commands on other keys go on; the subscription is somewhere else soon; all is well after the failover."""
    with contextlib.ExitStack() as stack:
        servers = await deferToThread(stack.enter_context, cluster_set())
        async with running(servers.url) as run:
            await run.works()
            listens_at = run.store._messages._conversation.transport.getPeer().port  # type: ignore[union-attr]
            number = next(n for n, master in enumerate(servers.masters) if master.port == listens_at)
            gone, there = name_at(number), name_at((number + 1) % 3)
            servers.masters[number].kill()
            await until(lambda: not run.store.up, loop)
            with pytest.raises(StoreDown):
                await run.store.command(gone, "SET", gone, "x")
            assert await run.store.command(there, "SET", there, "x") == b"OK"
            await until(lambda: run.store.listening and run.begins == 2, loop, 5)
            replica = servers.replicas[number]
            await until(lambda: replica.command("ROLE")[0] == b"master", loop, 20)
            await run.works(3.0)
            assert await run.store.command(gone, "SET", gone, "y") == b"OK"
            await run.store.publish("channel", b"still")
            await until(lambda: run.heard == [b"still"], loop)


@pytest_twisted.ensureDeferred
async def test_a_subscription_to_a_node_that_left_is_made_anew() -> None:
    """It is alive and says nothing more: no error would ever tell."""
    with contextlib.ExitStack() as stack:
        servers = await deferToThread(stack.enter_context, cluster_set())
        async with running(servers.url) as run:
            await run.works()
            listens_at = run.store._messages._conversation.transport.getPeer().port  # type: ignore[union-attr]
            number = next(n for n, master in enumerate(servers.masters) if master.port == listens_at)
            servers.replicas[number].command("CLUSTER", "FAILOVER")
            await until(lambda: servers.replicas[number].command("ROLE")[0] == b"master", loop, 20)
            name = name_at(number)
            assert await run.store.command(name, "SET", name, "x") == b"OK", "MOVED has the map asked for"
            await until(lambda: run.begins == 2 and run.store.listening, loop, 5)
            assert run.store._messages._conversation.transport.getPeer().port != listens_at  # type: ignore[union-attr]
