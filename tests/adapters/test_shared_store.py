"""What gateways share, through a real Redis: commands, messages, and what is known while it is away."""

from collections.abc import Iterator
from itertools import count
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol

from apigw.adapters.redis_connect import StraightWay
from apigw.adapters.redis_link import opening_of
from apigw.adapters.shared_store import RedisSharedStore
from apigw.config.redis_url import RedisURL
from apigw.errors import StoreDown
from apigw.ports import SharedStore
from tests.servers import RedisServer, free_port, redis_server, turns, until

loop: Any = reactor
CHANNEL = "apigw:test"


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


class Gateway:
    """A store, and what it hears."""

    def __init__(
        self,
        port: int,
        url: str | None = None,
        channels: tuple[str, ...] = (CHANNEL,),
        held: "dict[int, Deferred[None]] | None" = None,
    ) -> None:
        connects = count()

        def connect(protocol: Protocol) -> "Deferred[Any]":
            hold = (held or {}).pop(next(connects), None)
            if hold is not None:
                return hold.addCallback(lambda _: connect(protocol))
            return connectProtocol(TCP4ClientEndpoint(loop, "127.0.0.1", port, timeout=1), protocol)

        self.store = RedisSharedStore(
            lambda: StraightWay(connect), loop, opening_of(RedisURL.of(url or f"redis://127.0.0.1:{port}"))
        )
        self.heard: list[tuple[str, bytes]] = []
        self.begins = 0
        for channel in channels:
            self.store.listen(
                channel, lambda message, channel=channel: self.heard.append((channel, message)), self.begun
            )
        as_port: SharedStore = self.store
        assert not as_port.listening

    def begun(self) -> None:
        assert self.store.listening
        self.begins += 1

    async def up(self) -> "Gateway":
        self.store.startService()
        await until(lambda: self.store.up and (self.store.listening or not self.store._hearers), loop)
        return self


class Gateways:
    def __init__(self) -> None:
        self.made: list[Gateway] = []

    def make(self, port: int, **more: Any) -> Gateway:
        self.made.append(Gateway(port, **more))
        return self.made[-1]


@pytest.fixture
def gateways() -> Iterator[Gateways]:
    gateways = Gateways()
    yield gateways
    for gateway in gateways.made:
        if gateway.store.running:
            pytest_twisted.blockon(gateway.store.stopService())


async def down(store: RedisSharedStore, *words: str | bytes | int) -> str:
    with pytest.raises(StoreDown) as error:
        await store.command("a", *(words or ("GET", "a")))
    return str(error.value)


@pytest_twisted.ensureDeferred
async def test_two_gateways_share_what_one_of_them_wrote(redis: RedisServer, gateways: Gateways) -> None:
    first, second = [await gateways.make(redis.port).up() for _ in range(2)]
    assert await first.store.command("a", "SET", "a", b"\x00\r\n", "EX", 60) == b"OK"
    assert await second.store.command("a", "GET", "a") == b"\x00\r\n"
    assert await second.store.command("z", "ZADD", "z", 5, "m") == 1
    assert await first.store.command("z", "ZRANGE", "z", 0, -1, "WITHSCORES") == [b"m", b"5"]


@pytest_twisted.ensureDeferred
async def test_what_is_published_is_heard_by_all_who_listen_on_its_channel(
    redis: RedisServer, gateways: Gateways
) -> None:
    """By the one who said it, too; several may listen to one channel of one store."""
    first = await gateways.make(redis.port, channels=(CHANNEL, CHANNEL, "apigw:other")).up()
    second = await gateways.make(redis.port).up()
    silent = await gateways.make(redis.port, channels=()).up()
    assert (first.begins, second.begins, silent.begins) == (3, 1, 0)
    assert await silent.store.publish(CHANNEL, b"\xff\r\n") == 2
    await until(lambda: len(first.heard) == 2 and second.heard, loop)
    assert first.heard == [(CHANNEL, b"\xff\r\n")] * 2 and second.heard == [(CHANNEL, b"\xff\r\n")]
    assert not silent.store.listening and silent.store.last_error is None


@pytest_twisted.ensureDeferred
async def test_a_listener_that_fails_is_nobody_elses_trouble(redis: RedisServer, gateways: Gateways) -> None:
    gateway = gateways.make(redis.port, channels=())
    heard: list[bytes] = []

    def fails(*_: Any) -> None:
        raise KeyError("the listener's defect")

    gateway.store.listen(CHANNEL, fails, fails)
    gateway.store.listen(CHANNEL, heard.append, gateway.begun)
    await gateway.up()
    await gateway.store.publish(CHANNEL, b"1")
    await until(lambda: heard, loop)
    assert gateway.begins == 1 and gateway.store.listening


@pytest_twisted.ensureDeferred
async def test_an_error_reply_is_store_down_and_the_connection_stays(redis: RedisServer, gateways: Gateways) -> None:
    gateway = await gateways.make(redis.port).up()
    await gateway.store.command("a", "SET", "a", "x")
    assert "WRONGTYPE" in await down(gateway.store, "SADD", "a", "b")
    redis.command("ACL", "SETUSER", "default", "-zadd")
    assert "NOPERM" in await down(gateway.store, "ZADD", "z", 1, "m")
    assert gateway.store.up and gateway.store.reconnects == 0


@pytest_twisted.ensureDeferred
async def test_a_replica_is_left_for_whoever_is_master_by_now(redis: RedisServer, gateways: Gateways) -> None:
    """READONLY after a failover: both connections are made anew, where the name leads now."""
    gateway = await gateways.make(redis.port).up()
    redis.command("REPLICAOF", "127.0.0.1", free_port())
    assert "READONLY" in await down(gateway.store, "SET", "a", "1")
    assert not gateway.store.up and not gateway.store.listening
    redis.command("REPLICAOF", "NO", "ONE")
    await until(lambda: gateway.store.up and gateway.store.listening, loop)
    assert gateway.begins == 2 and gateway.store.reconnects == 2
    assert await gateway.store.command("a", "SET", "a", "1") == b"OK"


@pytest_twisted.ensureDeferred
async def test_redis_down_at_the_start_is_found_later(redis: RedisServer, gateways: Gateways) -> None:
    redis.kill()
    gateway = gateways.make(redis.port)
    assert await down(gateway.store) == "not connected yet"
    gateway.store.startService()
    await until(lambda: "refused" in (gateway.store.last_error or ""), loop)
    assert not gateway.store.listening and gateway.begins == 0
    redis.start()
    await until(lambda: gateway.store.up and gateway.begins, loop)
    assert gateway.store.last_error is None


@pytest.mark.parametrize("last", [0, 1])
@pytest_twisted.ensureDeferred
async def test_whichever_connection_is_made_last_who_is_told_to_load_anew_can_do_so(
    redis: RedisServer, gateways: Gateways, last: int
) -> None:
    """Commands are the first one, messages the second."""
    hold: Deferred[None] = Deferred()
    gateway = gateways.make(redis.port, held={last: hold})
    loaded: list[Any] = []
    gateway.store.listen(
        CHANNEL, lambda _: None, lambda: gateway.store.command("a", "GET", "a").addBoth(loaded.append) and None
    )
    gateway.store.startService()
    await until(lambda: redis.command("CLIENT", "LIST").count(b"\n") == 2, loop)
    await turns(loop, 0.05)
    assert not gateway.store.listening and gateway.begins == 0
    hold.callback(None)
    await until(lambda: loaded, loop)
    assert gateway.store.listening and gateway.begins == 1 and loaded == [None]


@pytest_twisted.ensureDeferred
async def test_after_a_restart_it_listens_again_and_says_so(redis: RedisServer, gateways: Gateways) -> None:
    """What was said in between is lost, which is what the listener is told for."""
    gateway = await gateways.make(redis.port).up()
    redis.restart()
    await until(lambda: not gateway.store.listening, loop)
    await until(lambda: gateway.begins == 2 and gateway.store.up, loop)
    await gateway.store.publish(CHANNEL, b"again")
    await until(lambda: gateway.heard, loop)
    assert gateway.heard == [(CHANNEL, b"again")]


@pytest_twisted.ensureDeferred
async def test_a_frozen_redis_is_neither_up_nor_listened_to(redis: RedisServer, gateways: Gateways) -> None:
    """A command that waits for it fails within a second; the subscription, which asks nothing, knows in two."""
    gateway = await gateways.make(redis.port).up()
    redis.freeze()
    began_s = loop.seconds()
    assert await down(gateway.store) == "no answer within 1 s"
    assert loop.seconds() - began_s < 2.5
    await until(lambda: not gateway.store.listening, loop, 3.0)
    redis.thaw()
    await until(lambda: gateway.store.up and gateway.store.listening, loop)
    assert gateway.begins == 2


@pytest_twisted.ensureDeferred
async def test_a_subscription_that_redis_ends_begins_again(redis: RedisServer, gateways: Gateways) -> None:
    """As Redis does with one that reads too slowly. Commands go on meanwhile."""
    gateway = await gateways.make(redis.port).up()
    redis.command("CLIENT", "KILL", "TYPE", "pubsub")
    await until(lambda: gateway.begins == 2, loop)
    assert gateway.store.up and gateway.store.reconnects == 1


@pytest_twisted.ensureDeferred
async def test_a_password_opens_both_connections(gateways: Gateways) -> None:
    with redis_server("--requirepass", "p@ss") as server:
        url = f"redis://:p%40ss@127.0.0.1:{server.port}/2"
        gateway = await gateways.make(server.port, url=url).up()
        await gateway.store.publish(CHANNEL, b"1")
        await until(lambda: gateway.heard, loop)
        assert await gateway.store.command("a", "GET", "a") is None
        stranger = gateways.make(server.port, url=f"redis://:no@127.0.0.1:{server.port}")
        stranger.store.startService()
        await until(lambda: "WRONGPASS" in (stranger.store.last_error or ""), loop)
        assert "no@" not in str(stranger.store.last_error) and not stranger.store.up
        await gateway.store.stopService()
        await stranger.store.stopService()


@pytest_twisted.ensureDeferred
async def test_a_stopped_store_leaves_no_connection(redis: RedisServer, gateways: Gateways) -> None:
    gateway = await gateways.make(redis.port).up()
    waiting = gateway.store.command("a", "BLPOP", "nothing", 5)
    await gateway.store.stopService()
    with pytest.raises(StoreDown, match="stopped"):
        await waiting
    assert not gateway.store.listening and await down(gateway.store) == "stopped"
    await until(lambda: redis.command("CLIENT", "LIST").count(b"\n") == 1, loop)
    await turns(loop, 0.05)


def test_whoever_listens_says_so_before_the_start(gateways: Gateways) -> None:
    gateway = gateways.make(free_port())
    gateway.store.startService()
    with pytest.raises(AssertionError):
        gateway.store.listen("more", lambda _: None, lambda: None)
