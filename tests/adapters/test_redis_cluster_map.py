"""The map of a real cluster: whoever answers tells it, and who does not is passed over."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.task import Clock

from apigw.adapters.redis_cluster_map import UNSETTLED_S, ClusterMap, Ranges, _View
from apigw.adapters.redis_connect import RedisAccess
from apigw.config.model import RedisSection
from apigw.core.cluster_slots import SLOTS, Place, SlotRange
from apigw.errors import StoreDown
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from apigw.net.poller import PollFailed
from tests.redis_cluster import ClusterNode, ClusterSet, cluster_set
from tests.servers import free_port, redis_server, turns, until

loop: Any = reactor


@pytest.fixture(scope="module")
def servers() -> Iterator[ClusterSet]:
    with cluster_set(replicas=False) as servers:
        yield servers


@contextlib.contextmanager
def single_node() -> Iterator[ClusterNode]:
    """A cluster's node that has met nobody."""
    node = ClusterNode()
    try:
        node.start()
        yield node
    finally:
        node.remove()


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
        assert told.map.places()[0][1] == servers.masters[2].port
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


class Canned(ClusterMap):
    """Nodes a to e, which say what the test wants: (whole, epoch, master) each, None for nobody there."""

    def __init__(self, **views: tuple[bool, int, str] | None) -> None:
        section = RedisSection(url="redis+cluster://" + ",".join(f"{name}:1" for name in "abcde"))
        clock = Clock()
        super().__init__(RedisAccess(section, clock, Connector(clock, Deadlines(clock))), clock)
        self.views = views
        self.asked: list[str] = []

    async def _view(self, place: Place) -> _View:
        self.asked.append(place[0])
        view = self.views.get(place[0])
        if view is None:
            raise StoreDown("refused")
        whole, epoch, master = view
        return _View(whole, epoch, (SlotRange(0, SLOTS - 1, (master, 1)),), place)

    def ask(self) -> str:
        """Who is the master after one more round."""
        self.asked.clear()
        self.poll().addErrback(lambda failure: failure.trap(PollFailed))
        return self.ranges[0].master[0] if self.ranges else ""


def test_who_missed_a_failover_is_not_believed() -> None:
    """Its map is older, though it does not know that. While nobody else answers, it is better than nothing."""
    canned = Canned(a=(True, 6, "old"), b=(True, 6, "old"), c=(True, 6, "old"), d=None, e=None)
    assert canned.ask() == "old" and canned.asked == ["a"]
    canned.views["b"] = canned.views["c"] = (True, 7, "new")
    canned.views["a"] = (False, 6, "old")  # cut off from the others by now
    assert canned.ask() == "new" and canned.asked == ["a", "b"]
    canned.views["a"] = (True, 6, "old")  # back, and before it hears of it
    for _ in range(10):
        assert canned.ask() == "new"
    canned.views["b"] = canned.views["c"] = None
    assert "old" in [canned.ask() for _ in range(4)], "nobody knows better"


def test_a_cluster_that_is_not_whole_is_followed_all_the_same() -> None:
    """With cluster-require-full-coverage all nodes say so while one part has no master: the newest map counts."""
    canned = Canned(a=(False, 7, "new"), b=(False, 8, "newer"), c=(False, 6, "old"), d=None, e=None)
    assert canned.ask() == "newer"


def test_while_somebody_is_unsettled_others_are_asked_first() -> None:
    """Who answered last may be the one that knows least."""
    canned = Canned(**{name: (True, 6, "old") for name in "abcde"})
    canned.listen(lambda ranges: None, lambda: True)
    asked = set()
    for _ in range(6):
        canned.ask()
        asked.add(canned.asked[0])
    assert len(asked) > 2


@pytest_twisted.ensureDeferred
async def test_when_all_nodes_are_elsewhere_the_hosts_of_the_url_are_asked(servers: ClusterSet) -> None:
    """However many there were."""
    async with told_by(servers.masters[0].port) as told:
        told.map._known = {("127.0.0.1", free_port()): None for _ in range(30)}
        told.map.refresh()
        assert await until(lambda: told.maps, loop) < 2.0


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
    with redis_server() as single, single_node() as lonely:
        for port, reason in ((single.port, "cluster support disabled"), (lonely.port, "nobody has a slot")):
            async with told_by(port) as told:
                await until(lambda told=told, reason=reason: reason in (told.map.last_error or ""), loop)
        async with told_by(free_port()) as told:
            await until(lambda: "refused" in (told.map.last_error or ""), loop)
            assert not told.maps
