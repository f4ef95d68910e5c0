"""The master that real sentinels name: found, lost, followed to another, and no old one trusted."""

import contextlib
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.internet.threads import deferToThread
from twisted.logger import formatEvent, globalLogPublisher

from apigw.adapters.redis_connect import RedisAccess
from apigw.adapters.redis_counters import RedisCounters
from apigw.adapters.redis_deployment import RedisDeployment
from apigw.adapters.redis_sentinel import GRACE_S, LOOKUP_S, Sentinels, _Lookup, read_answer
from apigw.adapters.shared_store import RedisSharedStore
from apigw.config.model import RedisSection
from apigw.config.redis_url import Place
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown, StoreDown
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from tests.adapters.refusal_cost import REFUSED_WITHIN_S, refusal_cost_s
from tests.certificates import self_signed
from tests.redis_sentinel import SentinelSet, sentinel_set
from tests.servers import RedisServer, free_port, redis_server, turns, until

loop: Any = reactor
NOW_S = 1_707_264_012.5
BACK_S = 2.0  # the contract: enforcement is back so soon
DEMAND = Demand("standard", "rate:{standard:user:a}", 1_000_000, 60)
KEY = "rate:{standard:user:a}:1707264000"


class Running:
    """A deployment of its own with counters and a shared store that listens."""

    def __init__(self, section: RedisSection) -> None:
        self.connector = Connector(loop, Deadlines(loop))
        self.deployment = RedisDeployment(section, loop, self.connector, lambda duration_s, checks: None)
        self.counters: RedisCounters = self.deployment.counters()
        self.store: RedisSharedStore = self.deployment.shared_store()
        self.heard: list[bytes] = []
        self.store.listen("channel", self.heard.append, lambda: None)
        self.deployment.startService()

    async def count(self) -> Counted | str:
        try:
            return await self.counters.take([DEMAND], NOW_S)
        except CounterStoreDown as down:
            return str(down)

    async def counts_on(self, server: RedisServer, timeout_s: float) -> float:
        """Seconds until a check is counted on this server."""
        began_s = time.monotonic()
        before = int(server.command("GET", KEY) or 0)
        while True:
            await self.count()
            if int(server.command("GET", KEY) or 0) > before:
                return time.monotonic() - began_s
            assert time.monotonic() - began_s < timeout_s, self.counters.last_error
            await turns(loop, 0.01)


@contextlib.asynccontextmanager
async def running(url: str, **section: Any) -> AsyncIterator[Running]:
    run = Running(RedisSection(url=url, **{"timeout_s": 0.1, **section}))
    try:
        yield run
    finally:
        await run.deployment.stopService()
        await turns(loop, 0.02)


@contextlib.asynccontextmanager
async def set_of(**options: Any) -> AsyncIterator[SentinelSet]:
    """The servers' start waits in a thread: the loop lives."""
    with contextlib.ExitStack() as stack:
        yield await deferToThread(stack.enter_context, sentinel_set(**options))


# -- which answer counts


class Looked:
    """One lookup whose sentinels answer as the test wants."""

    def __init__(self, sentinels: int) -> None:
        self.clock = Clock()
        self.asked: list[Deferred[tuple[int, Place]]] = [Deferred() for _ in range(sentinels)]
        self.ended: list[Place | None] = []
        asks: list[tuple[Place, Callable[[], Deferred[tuple[int, Place]]]]] = [
            (("s", number), lambda one=one: one)  # type: ignore[misc]
            for number, one in enumerate(self.asked, 1)
        ]
        self.lookup = _Lookup(self.clock, asks, self.ended.append)
        self.heard: list[Any] = []
        self.lookup.wait().addBoth(self.heard.append)
        self.lookup.begin()


def test_the_highest_configuration_epoch_counts() -> None:
    """A sentinel that has just started, or was cut off with the old master, answers as well."""
    looked = Looked(3)
    looked.asked[0].callback((4, ("old", 1)))
    looked.asked[1].callback((5, ("new", 2)))
    assert not looked.heard
    looked.asked[2].callback((4, ("old", 1)))
    assert looked.heard == looked.ended == [("new", 2)]
    assert not looked.clock.getDelayedCalls()


def test_nobody_waits_long_for_the_silent_ones() -> None:
    looked = Looked(3)
    looked.asked[1].callback((5, ("new", 2)))
    looked.clock.advance(GRACE_S)
    assert looked.heard == looked.ended == [("new", 2)]


def test_when_none_answers_the_reasons_are_told() -> None:
    looked = Looked(2)
    looked.asked[1].errback(StoreDown("refused"))
    looked.asked[0].errback(StoreDown("no answer"))
    assert looked.ended == [None]
    assert looked.heard[0].getErrorMessage() == "no sentinel names the master: s:2: refused; s:1: no answer"


@pytest.mark.parametrize(
    "replies",
    [
        [None, None],
        [[b"config-epoch", b"1"], None],
        [[b"name"], [b"h", b"1"]],
        [[b"config-epoch", b"x"], [b"h", b"1"]],
        [[], [b"h", b"1"]],
        [b"OK", [b"h", b"1", b"2"]],
    ],
)
def test_an_answer_that_is_none(replies: list[Any]) -> None:
    with pytest.raises(StoreDown, match="about the master"):
        read_answer(replies)
    assert read_answer(["+OK", [b"config-epoch", b"7"], [b"10.0.0.1", b"6379"]]) == (7, ("10.0.0.1", 6379))


# -- real ones


@pytest.mark.alone
@pytest_twisted.ensureDeferred
async def test_the_master_is_killed() -> None:
    """Down at once and at no cost; counted on the new master within 2 s of its promotion; what is shared follows."""
    async with set_of(replicas=2) as servers, running(servers.url) as run:
        await until(lambda: run.counters.up and run.store.listening, loop)
        old = servers.servers[0]
        assert isinstance(await run.count(), Counted)
        assert old.command("GET", KEY) == b"1"
        old.kill()
        await until(lambda: not run.counters.up, loop)
        assert refusal_cost_s(lambda: run.counters.take([DEMAND], NOW_S)) < REFUSED_WITHIN_S
        new = await deferToThread(servers.promoted, old)
        assert await run.counts_on(new, BACK_S) < BACK_S
        assert run.deployment.whereabouts() == {"master": f"127.0.0.1:{new.port}"}
        await until(lambda: run.store.up and run.store.listening, loop, 3.0)
        await run.store.publish("channel", b"hello")
        await until(lambda: run.heard == [b"hello"], loop)
        assert await run.store.command("k", "SET", "k", "v") == b"OK" and new.command("GET", "k") == b"v"


@pytest.mark.alone
@pytest_twisted.ensureDeferred
async def test_the_master_is_frozen_and_comes_back_as_if_nothing_had_been() -> None:
    """It still thinks that it is the master, and for seconds nobody tells it otherwise; nothing is counted on it."""
    async with set_of() as servers, running(servers.url) as run:
        await until(lambda: run.counters.up and run.store.up, loop)
        old = servers.servers[0]
        await run.count()
        old.freeze()
        assert await run.count() == "no answer within 100 ms"
        new = await _promoted_beside_frozen(servers)
        assert await run.counts_on(new, BACK_S) < BACK_S
        old.thaw()
        assert old.command("ROLE")[0] == b"master"
        before = old.command("GET", KEY)
        for _ in range(20):
            assert isinstance(await run.count(), Counted)
            await turns(loop, 0.01)
        assert old.command("GET", KEY) == before


async def _promoted_beside_frozen(servers: SentinelSet) -> RedisServer:
    """The replica, once it is a master. The frozen one is not asked."""
    new = servers.servers[1]
    await until(lambda: new.command("ROLE")[0] == b"master", loop, 20.0)
    return new


@pytest.mark.alone
@pytest_twisted.ensureDeferred
async def test_the_master_moves_while_it_is_alive() -> None:
    """The sentinels' message is heard: no check has to meet READONLY first."""
    async with set_of() as servers, running(servers.url) as run:
        await until(lambda: run.counters.up and run.store.up, loop)
        await run.count()
        new = await deferToThread(servers.fail_over)
        await until(lambda: f":{new.port} now" in (run.counters.last_error or "") or run.counters.up, loop)
        assert await run.counts_on(new, BACK_S) < BACK_S
        await until(lambda: run.store.up and run.store.listening, loop, 3.0)
        assert await run.store.command("k", "SET", "k", "v") == b"OK" and new.command("GET", "k") == b"v"


@pytest_twisted.ensureDeferred
async def test_sentinels_that_are_away_or_frozen_hinder_nobody() -> None:
    """One alive is enough to connect; none of them is needed to go on."""
    async with set_of() as servers:
        servers.sentinels[0].kill()
        servers.sentinels[1].freeze()
        async with running(servers.url) as run:
            assert await until(lambda: run.counters.up, loop, 2.0) < 2.0
            servers.sentinels[2].kill()
            await turns(loop, 0.1)
            assert isinstance(await run.count(), Counted)
            servers.servers[0].kill()
            await until(lambda: "no sentinel names the master" in (run.counters.last_error or ""), loop)
            assert LOOKUP_S < 1.0


@pytest_twisted.ensureDeferred
async def test_passwords_of_redis_and_of_the_sentinels() -> None:
    """Right ones count; a wrong one is told by whom it was refused, and never itself."""
    said: list[str] = []
    observe = globalLogPublisher.addObserver
    observe(listen := lambda event: said.append(formatEvent(event)))
    try:
        async with set_of(password="s3cret") as servers:
            right = {"sentinel_password": servers.sentinel_password}
            async with running(servers.url, **right) as run:
                await until(lambda: run.counters.up and run.store.listening, loop)
                assert isinstance(await run.count(), Counted)
            async with running(servers.url.replace("s3cret", "wr0ng"), **right) as run:
                await until(lambda: "WRONGPASS" in (run.counters.last_error or ""), loop)
                await until(lambda: "WRONGPASS" in (run.store.last_error or ""), loop)
            async with running(servers.url, sentinel_password="wr0ng") as run:
                await until(lambda: "WRONGPASS" in (run.counters.last_error or ""), loop)
                assert "no sentinel names the master" in (run.counters.last_error or "")
            async with running(servers.url) as run:
                await until(lambda: "NOAUTH" in (run.counters.last_error or ""), loop)
    finally:
        globalLogPublisher.removeObserver(listen)
    text = "\n".join(said)
    assert (
        "WRONGPASS" in text and "s3cret" not in text and "wr0ng" not in text and servers.sentinel_password not in text
    )


@pytest_twisted.ensureDeferred
async def test_a_user_of_the_sentinels_with_the_documented_rights_is_enough() -> None:
    """Heard and asked; the default user has none."""
    text = (Path(__file__).parents[2] / "docs" / "rate-limiting.rst").read_text()
    rules = text.partition("A user of the\nsentinels: ``")[2].partition("``")[0].split()
    async with set_of() as servers:
        for sentinel in servers.sentinels:
            sentinel.command("ACL", "SETUSER", "gw", "on", ">pw", *rules)
        async with running(servers.url, sentinel_user="gw", sentinel_password="pw") as run:
            await until(lambda: run.counters.up and run.store.listening, loop)
            new = await deferToThread(servers.fail_over)
            assert await run.counts_on(new, BACK_S) < BACK_S


@pytest_twisted.ensureDeferred
async def test_over_tls_sentinels_and_master_are_verified(tmp_path: Path) -> None:
    """With a password too; whoever does not trust the authority learns nothing and counts nothing."""
    self_signed(tmp_path)
    async with set_of(password="s3cret", tls=tmp_path) as servers:
        section = {"sentinel_password": servers.sentinel_password, "timeout_s": 0.2}
        async with running(servers.url, ca_file=tmp_path / "cert.pem", **section) as run:
            await until(lambda: run.counters.up and run.store.listening, loop)
            assert isinstance(await run.count(), Counted)
        async with running(servers.url, **section) as run:
            await until(lambda: "certificate verify failed" in (run.counters.last_error or ""), loop)
            assert not run.counters.up


@pytest_twisted.ensureDeferred
async def test_a_master_that_no_sentinel_knows_and_sentinels_that_are_none() -> None:
    with redis_server() as no_sentinel:
        for host in (f"127.0.0.1:{no_sentinel.port}", f"127.0.0.1:{free_port()}"):
            async with running(f"redis+sentinel://{host}/other") as run:
                await until(lambda: "no sentinel names the master" in (run.counters.last_error or ""), loop)
                assert not run.counters.up


@pytest_twisted.ensureDeferred
async def test_stopped_it_leaves_nothing_behind() -> None:
    """With a lookup in flight to a host that does not answer."""
    with redis_server() as silent:
        silent.freeze()
        access = RedisAccess(
            RedisSection(url=f"redis+sentinel://127.0.0.1:{silent.port}/main"), loop, Connector(loop, Deadlines(loop))
        )
        sentinels = Sentinels(access, loop)
        sentinels.startService()
        asked = sentinels.master()
        assert sentinels.current is None
        await sentinels.stopService()
        with pytest.raises(StoreDown, match="no answer within 0.5 s"):
            await asked
        await turns(loop, 0.02)
        assert not [call for call in loop.getDelayedCalls() if "redis" in str(getattr(call.func, "__module__", ""))]
