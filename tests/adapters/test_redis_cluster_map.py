"""The map of a real cluster: whoever answers tells it, and who does not is passed over."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor

from apigw.adapters.redis_cluster_map import UNSETTLED_S, ClusterMap, Ranges
from apigw.adapters.redis_connect import RedisAccess
from apigw.config.model import RedisSection
from apigw.core.cluster_slots import SLOTS
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from tests.redis_cluster import ClusterSet, cluster_set
from tests.servers import free_port, redis_server, turns, until

loop: Any = reactor


@pytest.fixture(scope="module")
def servers() -> Iterator[ClusterSet]:
    with cluster_set(replicas=False) as servers:
        yield servers


class Told:
    """A map, and what it told."""

    def __init__(self, *ports: int) -> None:
        hosts = ",".join(f"127.0.0.1:{port}" for port in ports)
        access = RedisAccess(RedisSection(url=f"redis+cluster://{hosts}"), loop, Connector(loop, Deadlines(loop)))
        self.map = ClusterMap(access, loop)
        self.maps: list[Ranges] = []
        self.unsettled = False
        self.map.listen(self.maps.append, lambda: self.unsettled)


@contextlib.asynccontextmanager
async def told_by(*ports: int) -> AsyncIterator[Told]:
    told = Told(*ports)
    told.map.startService()
    try:
        yield told
    finally:
        told.map.stopService()
        await turns(loop, 0.02)


@pytest_twisted.ensureDeferred
async def test_one_node_that_answers_is_enough(servers: ClusterSet) -> None:
    """Of those of the URL; from then on all that it named are known."""
    async with told_by(free_port(), servers.masters[2].port) as told:
        await until(lambda: told.maps, loop)
        assert sum(one.last - one.first + 1 for one in told.map.ranges) == SLOTS
        assert [one.master[1] for one in told.map.ranges] == [node.port for node in servers.masters]
        assert told.map.last_error is None
        assert [port for _, port in told.map.places()][0] == servers.masters[2].port
        assert {node.port for node in servers.masters} < {port for _, port in told.map.places()}


@pytest_twisted.ensureDeferred
async def test_a_frozen_node_is_passed_over_and_asked_last(servers: ClusterSet) -> None:
    async with told_by(servers.masters[0].port, servers.masters[1].port) as told:
        await until(lambda: told.maps, loop)
        servers.masters[0].freeze()
        try:
            told.map.refresh()
            took_s = await until(lambda: len(told.maps) == 2, loop)
            assert took_s < 2.0
            assert told.map.places()[0][1] != servers.masters[0].port
        finally:
            servers.masters[0].thaw()


@pytest_twisted.ensureDeferred
async def test_asked_again_while_somebody_is_unsettled_and_not_more_often_than_needed(servers: ClusterSet) -> None:
    """A flood of redirections is one question."""
    async with told_by(servers.masters[0].port) as told:
        await until(lambda: told.maps, loop)
        for _ in range(100):
            told.map.refresh()
        await turns(loop, 0.3)
        assert len(told.maps) == 2
        told.unsettled = True
        told.map.refresh()
        await turns(loop, 6 * UNSETTLED_S)
        assert 4 <= len(told.maps) <= 10


@pytest_twisted.ensureDeferred
async def test_what_is_no_cluster_is_told(servers: ClusterSet) -> None:
    """One Redis, a node that belongs to nobody, nobody there."""
    with redis_server() as single, redis_server("--cluster-enabled", "yes") as lonely:
        for port, reason in ((single.port, "cluster support disabled"), (lonely.port, "nobody has a slot")):
            async with told_by(port) as told:
                await until(lambda told=told, reason=reason: reason in (told.map.last_error or ""), loop)
        async with told_by(free_port()) as told:
            await until(lambda: "refused" in (told.map.last_error or ""), loop)
            assert not told.maps
