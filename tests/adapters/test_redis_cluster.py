"""Counters in a real cluster: each at its place, all of a request together, and through all that moves or dies."""

import contextlib
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults
from twisted.internet.threads import deferToThread

from apigw.adapters.redis_cluster import ClusterCounters
from apigw.adapters.redis_deployment import RedisDeployment
from apigw.config.model import RedisSection
from apigw.core.cluster_slots import SLOTS, slot_of
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from tests.adapters.refusal_cost import REFUSED_WITHIN_S, refusal_cost_s
from tests.certificates import self_signed
from tests.redis_cluster import ClusterNode, ClusterSet, cluster_set
from tests.servers import turns, until

loop: Any = reactor
NOW_S = 1_707_264_012.5
START_S = 1_707_264_000
BACK_S = 2.0  # the contract: enforcement is back so soon
THIRD = -(-SLOTS // 3)


def demand(name: str, limit: int = 1_000_000) -> Demand:
    return Demand("standard", f"rate:{{standard:user:{name}}}", limit, 60)


def names_at(slots: range) -> Iterator[str]:
    """Users whose counters lie in these slots."""
    return (name for name in map(str, range(10_000_000)) if slot_of(demand(name).key) in slots)


def at_node(number: int, limit: int = 1_000_000) -> Demand:
    """A counter of the third that masters[number] had in the beginning."""
    return demand(next(names_at(range(number * THIRD, min((number + 1) * THIRD, SLOTS)))), limit)


class Running:
    """Counters of a deployment of its own."""

    def __init__(self, section: RedisSection) -> None:
        self.batches: list[int] = []
        self.deployment = RedisDeployment(
            section, loop, Connector(loop, Deadlines(loop)), lambda duration_s, checks: self.batches.append(checks)
        )
        counters = self.deployment.counters()
        assert isinstance(counters, ClusterCounters)
        self.counters = counters
        self.deployment.startService()

    async def take(self, *demands: Demand) -> Any:
        try:
            return await self.counters.take(demands, NOW_S)
        except CounterStoreDown as down:
            return down


@contextlib.asynccontextmanager
async def running(url: str, **section: Any) -> AsyncIterator[Running]:
    run = Running(RedisSection(url=url, **{"timeout_s": 0.1, **section}))
    try:
        yield run
    finally:
        await run.deployment.stopService()
        await turns(loop, 0.02)


@contextlib.asynccontextmanager
async def set_of(**options: Any) -> AsyncIterator[ClusterSet]:
    """The servers' start waits in a thread: the loop lives."""
    with contextlib.ExitStack() as stack:
        yield await deferToThread(stack.enter_context, cluster_set(**options))


@pytest.fixture(scope="module")
def shared_servers() -> Iterator[ClusterSet]:
    with cluster_set(replicas=False) as servers:
        yield servers


@pytest.fixture
def servers(shared_servers: ClusterSet) -> ClusterSet:
    """Three masters, empty. For tests that put back what they move."""
    for master in shared_servers.masters:
        master.command("FLUSHALL")
        master.command("SCRIPT", "FLUSH")
    return shared_servers


def value(node: ClusterNode, one: Demand) -> int:
    return int(node.command("GET", f"{one.key}:{START_S}") or 0)


# -- where what is counted


@pytest_twisted.ensureDeferred
async def test_each_counter_is_where_the_cluster_looks_for_it(servers: ClusterSet) -> None:
    """From one node of the URL to all three."""
    async with running(servers.url) as run:
        await until(lambda: run.counters.up, loop)
        for number, master in enumerate(servers.masters):
            one = at_node(number)
            assert servers.masters[0].command("CLUSTER", "KEYSLOT", one.key) == slot_of(one.key)
            assert await run.take(one) == Counted(True, [(0, 1, 0)])
            assert value(master, one) == 1
        assert run.counters.last_error is None and run.counters.reconnects == 0
        assert run.deployment.whereabouts() == {
            "nodes": {f"127.0.0.1:{node.port}": {"up": True, "last_error": None} for node in servers.masters}
        }


@pytest_twisted.ensureDeferred
async def test_a_request_on_three_nodes_is_counted_on_all_or_on_none(servers: ClusterSet) -> None:
    """One write to each in the same turn; what was counted is given back when another refuses."""
    async with running(servers.url) as run:
        await until(lambda: run.counters.up, loop)
        wide, other, narrow = at_node(0), at_node(1), at_node(2, 1)
        assert await run.take(wide, other, narrow) == Counted(True, [(0, 1, 0), (0, 1, 0), (0, 1, 0)])
        await turns(loop)
        assert run.batches == [1, 1, 1]
        assert (await run.take(wide, other, narrow))[:2] == (False, [(0, 1, 0), (0, 1, 0), (0, 1, 0)])
        assert await run.take(wide) == Counted(True, [(0, 2, 0)])
        assert (await run.take(other, narrow))[:2] == (False, [(0, 1, 0), (0, 1, 0)])
        answers = await gatherResults([run.counters.take([wide, narrow], NOW_S) for _ in range(50)])
        assert not any(answer.allowed for answer in answers)
        await until(lambda: value(servers.masters[0], wide) == 2, loop)
        assert value(servers.masters[1], other) == 1 and value(servers.masters[2], narrow) == 1


@pytest_twisted.ensureDeferred
async def test_two_gateways_hold_one_limit_over_two_nodes(servers: ClusterSet) -> None:
    """What is given back is not lost, and what is not given back is what was allowed.

    How many pass of those that ask at once depends on who came first at which node; all of the limit do in the end.
    """
    async with running(servers.url) as first, running(servers.url) as second:
        await until(lambda: first.counters.up and second.counters.up, loop)
        pair = [at_node(0, 100), at_node(1, 70)]
        answers = await gatherResults([run.counters.take(pair, NOW_S) for run in (first, second) for _ in range(150)])
        await turns(loop, 0.05)
        allowed = sum(answer.allowed for answer in answers)
        assert allowed <= 70
        assert [value(servers.masters[number], pair[number]) for number in (0, 1)] == [allowed, allowed]
        while (await first.take(*pair)).allowed:
            allowed += 1
        await until(lambda: value(servers.masters[0], pair[0]) == 70, loop)
        assert allowed == 70 == value(servers.masters[1], pair[1])


@pytest_twisted.ensureDeferred
async def test_what_was_counted_elsewhere_is_added_where_it_belongs(servers: ClusterSet) -> None:
    async with running(servers.url) as run:
        one = at_node(2)
        run.counters.add(one, 7, START_S)  # lost, and nothing is raised
        await until(lambda: run.counters.up, loop)
        run.counters.add(one, 7, START_S)
        assert await run.take(one) == Counted(True, [(0, 8, 0)])


@pytest_twisted.ensureDeferred
async def test_a_cluster_where_one_redis_was_configured_is_told(servers: ClusterSet) -> None:
    """In words that say what to write; and the other way round."""
    made = RedisDeployment(
        RedisSection(url=servers.masters[0].url, timeout_s=0.1),
        loop,
        Connector(loop, Deadlines(loop)),
        lambda duration_s, checks: None,
    )
    counters = made.counters()
    made.startService()
    await until(lambda: counters.up or "redis+cluster://" in (counters.last_error or ""), loop)
    if counters.up:
        with pytest.raises(CounterStoreDown):
            await counters.take([at_node(2)], NOW_S)
    assert "whose URL begins with redis+cluster://" in (counters.last_error or "")
    await made.stopService()


# -- slots that move


@pytest_twisted.ensureDeferred
async def test_a_slot_that_has_moved_is_found_by_its_redirection(servers: ClusterSet) -> None:
    """No check fails; from the next on the new node is asked at once."""
    source, target = servers.masters[0], servers.masters[1]
    one = at_node(0)
    async with running(servers.url) as run:
        await until(lambda: run.counters.up, loop)
        assert await run.take(one) == Counted(True, [(0, 1, 0)])
        servers.move(slot_of(one.key), source, target)
        try:
            answers = await gatherResults([run.counters.take([one], NOW_S) for _ in range(10)])
            assert sorted(answer.counts[0][1] for answer in answers) == list(range(2, 12))
            run.counters.add(one, 5, START_S)
            assert await run.take(one) == Counted(True, [(0, 17, 0)])
            assert value(target, one) == 17
        finally:
            servers.move(slot_of(one.key), target, source)
        run.counters.add(one, 5, START_S)
        assert await run.take(one) == Counted(True, [(0, 23, 0)]), "what is added follows as well"


@pytest_twisted.ensureDeferred
async def test_a_slot_that_is_on_its_way_counts_all_the_same(servers: ClusterSet) -> None:
    """Counters that went, that stay, that are new, and those of which one window went: each exactly once."""
    source, target = servers.masters[0], servers.masters[1]
    slot = slot_of(at_node(0).key)
    names = names_at(range(slot, slot + 1))
    went, stays, fresh, half = (demand(next(names)) for _ in range(4))
    async with running(servers.url) as run:
        await until(lambda: run.counters.up, loop)
        source.command("SET", f"{half.key}:{START_S - 60}", 8)
        for one in (went, stays, half):
            await run.take(one)
        servers.begin_move(slot, source, target)
        try:
            for key in (f"{went.key}:{START_S}", f"{half.key}:{START_S}"):
                source.command("MIGRATE", "127.0.0.1", target.port, key, 0, 1000)
            for expected in (2, 3, 4):
                assert await run.take(went) == Counted(True, [(0, expected, 0)])
                assert await run.take(stays) == Counted(True, [(0, expected, 0)])
                assert await run.take(half) == Counted(True, [(8, expected, 8)])
                assert await run.take(fresh) == Counted(True, [(0, expected - 1, 0)])
            refused = half._replace(limit=4)
            assert (await run.take(refused))[:2] == (False, [(8, 4, 0)])
            run.counters.add(fresh, 5, START_S)
            assert await run.take(fresh) == Counted(True, [(0, 9, 0)])
            assert run.counters.up
        finally:
            while servers.move_keys(slot, source, target):
                pass
            servers.end_move(slot, source, target)
            servers.move(slot, target, source)


@pytest_twisted.ensureDeferred
async def test_slots_move_under_load_and_nothing_is_lost_or_doubled(servers: ClusterSet) -> None:
    """Twenty slots there and back while 40 counters are counted on; each has what was allowed, and few checks fail."""
    slots = range(100, 120)
    per_slot = [list(zip(names_at(range(slot, slot + 1)), range(2), strict=False)) for slot in slots]
    demands = [demand(name) for found in per_slot for name, _ in found]
    counted = dict.fromkeys(demands, 0)
    failed: list[CounterStoreDown] = []
    moving = True

    def there_and_back() -> None:
        nonlocal moving
        try:
            for source, target in ((0, 1), (1, 0)):
                for slot in slots:
                    servers.move(slot, servers.masters[source], servers.masters[target])
        finally:
            moving = False

    async with running(servers.url) as run:
        await until(lambda: run.counters.up, loop)
        moved = deferToThread(there_and_back)
        asked = 0
        began_s = loop.seconds()
        while moving:
            assert loop.seconds() - began_s < 40
            outcomes = await gatherResults([Deferred.fromCoroutine(run.take(one)) for one in demands])
            asked += len(outcomes)
            for one, outcome in zip(demands, outcomes, strict=True):
                if isinstance(outcome, Counted):
                    counted[one] += 1
                else:
                    failed.append(outcome)
        await moved
        assert asked > 400
        assert len(failed) <= asked / 100, failed[:3]
        assert run.counters.up
        found = sum(value(servers.masters[0], one) for one in demands)
        assert sum(counted.values()) <= found <= sum(counted.values()) + len(failed), "a failed check may be counted"


@pytest_twisted.ensureDeferred
async def test_a_master_that_joins_is_met_with_its_first_slot() -> None:
    """A check that is sent there waits until it is connected."""
    async with set_of(replicas=False) as servers, running(servers.url, timeout_s=1.0) as run:
        await until(lambda: run.counters.up, loop)
        new = servers.make()
        servers.nodes.append(new)
        new.start()
        servers.meet(new)
        await until(lambda: all(servers.knows(node) for node in servers.nodes), loop, 10)
        await until(lambda: b"cluster_state:ok" in new.command("CLUSTER", "INFO"), loop, 10)
        one = at_node(0)
        slot, source = slot_of(one.key), servers.masters[0]
        servers.begin_move(slot, source, new)
        assert await run.take(one) == Counted(True, [(0, 1, 0)])
        assert len(run.counters.nodes()) == 4 and run.counters.up
        assert await run.take(one) == Counted(True, [(0, 2, 0)])
        while servers.move_keys(slot, source, new):
            pass
        servers.end_move(slot, source, new)
        assert await run.take(one) == Counted(True, [(0, 3, 0)])
        assert value(new, one) == 3


# -- nodes that die


@pytest_twisted.ensureDeferred
async def test_a_master_is_killed_and_only_its_slots_are_gone() -> None:
    """At once and at no cost; all others are counted; back within 2 s of the promotion of its replica."""
    async with set_of() as servers, running(servers.url) as run:
        await until(lambda: run.counters.up, loop)
        gone, there = at_node(0, 5), at_node(1, 2)
        await run.take(gone)
        servers.masters[0].kill()
        await until(lambda: not run.counters.up, loop)
        assert f":{servers.masters[0].port}: " in (run.counters.last_error or "")
        assert refusal_cost_s(lambda: run.counters.take([gone], NOW_S)) < REFUSED_WITHIN_S
        assert await run.take(there) == Counted(True, [(0, 1, 0)])
        both = await run.take(gone, there)
        assert isinstance(both, CounterStoreDown) and both.counted == (1,)
        assert (await run.take(gone, there))[:2] == (False, [(0, 0, 0), (0, 2, 0)]), "a refusal stands"
        replica = servers.replicas[0]
        await until(lambda: replica.command("ROLE")[0] == b"master", loop, 20)
        promoted_s = loop.seconds()
        while not isinstance(await run.take(gone), Counted):
            assert loop.seconds() - promoted_s < BACK_S, run.counters.last_error
            await turns(loop, 0.01)
        await until(lambda: run.counters.up, loop, BACK_S)
        servers.masters[0].start()
        await until(lambda: servers.masters[0].command("ROLE")[0] == b"slave", loop, 20)
        assert isinstance(await run.take(gone), Counted)
        await until(lambda: len(run.counters.nodes()) == 3, loop)


@pytest_twisted.ensureDeferred
async def test_a_master_is_frozen_and_comes_back_as_a_replica() -> None:
    """Its silence is noticed; its return disturbs nobody."""
    async with set_of() as servers, running(servers.url) as run:
        await until(lambda: run.counters.up, loop)
        one, replica, frozen = at_node(0), servers.replicas[0], servers.masters[0]
        await run.take(one)
        frozen.freeze()
        assert "no answer within 100 ms" in str(await run.take(one))
        await until(lambda: replica.command("ROLE")[0] == b"master", loop, 20)
        promoted_s = loop.seconds()
        while not isinstance(await run.take(one), Counted):
            assert loop.seconds() - promoted_s < BACK_S, run.counters.last_error
            await turns(loop, 0.01)
        frozen.thaw()
        for _ in range(30):
            assert isinstance(await run.take(one), Counted)
            await turns(loop, 0.01)
        assert value(replica, one) >= 31


@pytest_twisted.ensureDeferred
async def test_a_failover_by_hand_costs_no_check() -> None:
    """The old master holds writes, then says MOVED to a node that we are not connected to yet: checks wait for that."""
    async with set_of() as servers, running(servers.url, timeout_s=2.0) as run:
        await until(lambda: run.counters.up, loop)
        one, replica = at_node(0), servers.replicas[0]
        replica.command("CLUSTER", "FAILOVER")
        outcomes: list[Any] = []
        began_s = loop.seconds()
        while replica.command("ROLE")[0] != b"master" or len(outcomes) < 20:
            assert loop.seconds() - began_s < 20
            outcomes.append(await run.take(one))
            await turns(loop, 0.005)
        assert [outcome for outcome in outcomes if not isinstance(outcome, Counted)] == []
        await until(lambda: run.counters.up, loop, BACK_S)
        assert isinstance(await run.take(one), Counted)
        assert value(replica, one) == len(outcomes) + 1
        await until(lambda: len(run.counters.nodes()) == 3, loop, 5)
        old = servers.masters[0]
        await until(lambda: old.command("ROLE")[0] == b"slave" and old.command("ROLE")[3] == b"connected", loop, 15)
        # a master does not hear a failover asked for by a node that it does not know to be its replica yet
        await until(lambda: old.id.encode() in b"".join(replica.command("CLUSTER", "REPLICAS", replica.id)), loop, 15)
        old.command("CLUSTER", "FAILOVER")
        await until(lambda: old.command("ROLE")[0] == b"master", loop, 15)
        assert isinstance(await run.take(one), Counted)
        await until(lambda: len(run.counters.nodes()) == 3 and run.counters.up, loop, 5)
        replica.kill()
        await turns(loop, 0.3)
        assert run.counters.up and run.counters.last_error is None, "a replica is nobody's trouble"


@pytest_twisted.ensureDeferred
async def test_out_of_memory_on_one_node_is_that_nodes_trouble(servers: ClusterSet) -> None:
    """Its probe meets it; the others count."""
    async with running(servers.url) as run:
        await until(lambda: run.counters.up, loop)
        full = servers.masters[1]
        full.config_set("maxmemory", "1")
        try:
            assert "OOM" in str(await run.take(at_node(1)))
            await turns(loop, 0.6)
            assert not run.counters.up
            assert isinstance(await run.take(at_node(0)), Counted)
        finally:
            full.config_set("maxmemory", "0")
        await until(lambda: run.counters.up, loop, BACK_S)
        assert isinstance(await run.take(at_node(1)), Counted)
        assert run.counters.reconnects == 0


@pytest_twisted.ensureDeferred
async def test_a_cluster_that_wants_all_its_slots_refuses_all_while_one_master_is_away(servers: ClusterSet) -> None:
    """As its configuration says, which the reason names; each node is back as soon as it answers."""
    away = servers.masters[2]
    others = servers.masters[:2]
    async with running(servers.url) as run:
        await until(lambda: run.counters.up, loop)
        for node in others:
            node.config_set("cluster-require-full-coverage", "yes")
        away.freeze()
        try:
            began_s = loop.seconds()
            while "CLUSTERDOWN" not in str(await run.take(at_node(0))):
                assert loop.seconds() - began_s < 15
                await turns(loop, 0.02)
            assert "CLUSTERDOWN" in (run.counters.last_error or "")
        finally:
            for node in others:
                node.config_set("cluster-require-full-coverage", "no")
            away.thaw()
        began_s = loop.seconds()
        while not isinstance(await run.take(at_node(0)), Counted):
            assert loop.seconds() - began_s < BACK_S, run.counters.last_error
            await turns(loop, 0.02)
        await until(lambda: run.counters.up, loop, 10)


@pytest_twisted.ensureDeferred
async def test_over_tls_with_a_password(tmp_path: Path) -> None:
    """Every node is verified; a wrong password or a stranger's authority is told and counts nothing."""
    self_signed(tmp_path)
    async with set_of(replicas=False, password="s3cret", tls=tmp_path) as servers:
        trust = {"ca_file": tmp_path / "cert.pem", "timeout_s": 0.2}
        async with running(servers.url, **trust) as run:
            await until(lambda: run.counters.up, loop)
            for number in range(3):
                assert await run.take(at_node(number)) == Counted(True, [(0, 1, 0)])
        async with running(servers.url.replace("s3cret", "wr0ng"), **trust) as run:
            await until(lambda: "WRONGPASS" in (run.counters.last_error or ""), loop)
            assert "wr0ng" not in (run.counters.last_error or "")
            assert isinstance(await run.take(at_node(0)), CounterStoreDown)
        async with running(servers.url, timeout_s=0.2) as run:
            await until(lambda: "certificate verify failed" in (run.counters.last_error or ""), loop)


@pytest_twisted.ensureDeferred
async def test_before_the_cluster_is_there_and_when_it_is_none() -> None:
    """It fails at once, says why, and finds the cluster when it comes."""
    servers = ClusterSet(replicas=False)
    try:
        async with running(servers.url) as run:
            assert isinstance(await run.take(at_node(0)), CounterStoreDown)
            await until(lambda: "refused" in (run.counters.last_error or ""), loop)
            await deferToThread(servers.start)
            await until(lambda: run.counters.up, loop, BACK_S)
            assert isinstance(await run.take(at_node(0)), Counted)
    finally:
        servers.remove()
