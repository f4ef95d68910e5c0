"""A kept connection to a real Redis that is killed, frozen, restarted, or wants a password."""

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from hiredis import ReplyError
from twisted.internet import reactor
from twisted.internet.defer import Deferred, fail
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from apigw.adapters.redis_line import FIRST_BACKOFF_S, LAST_BACKOFF_S, RedisLine
from apigw.adapters.redis_link import opening_of, pack
from apigw.config.redis_url import RedisURL
from apigw.errors import StoreDown
from tests.servers import DelayProxy, RedisServer, free_port, redis_server, turns, until

loop: Any = reactor


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


class Lines:
    """Makes lines to a port, and stops them in the end. `said`: ups and downs, in order."""

    def __init__(self) -> None:
        self.said: list[str] = []
        self.connects = 0
        self.made: list[RedisLine] = []

    def make(self, port: int, *opening: bytes) -> RedisLine:
        def connect(protocol: Protocol) -> "Deferred[Any]":
            self.connects += 1
            return connectProtocol(TCP4ClientEndpoint(loop, "127.0.0.1", port, timeout=5), protocol)

        up, down = lambda: self.said.append("up"), lambda: self.said.append("down")
        line = RedisLine(connect, loop, opening, title="test line", on_up=up, on_down=down)
        self.made.append(line)
        line.startService()
        return line

    async def up(self, port: int, *opening: bytes) -> RedisLine:
        line = self.make(port, *opening)
        await until(lambda: line.up, loop)
        return line


@pytest.fixture
def lines() -> Iterator[Lines]:
    lines = Lines()
    yield lines
    for line in lines.made:
        if line.running:
            line.stopService()


async def get(line: RedisLine) -> Any:
    return await line.ask(pack("GET", "a"))


@pytest_twisted.ensureDeferred
async def test_it_connects_opens_and_answers(redis: RedisServer, lines: Lines) -> None:
    """In the database that the opening selects."""
    line = await lines.up(redis.port, pack("SELECT", 3))
    await line.ask(pack("SET", "a", "1"))
    assert redis.command("GET", "a") is None and await get(line) == b"1"
    assert (line.last_error, line.reconnects, lines.said) == (None, 0, ["up"])
    line.stopService()
    assert lines.said == ["up", "down"] and line.last_error == "stopped"


@pytest_twisted.ensureDeferred
async def test_while_down_a_command_fails_at_once(lines: Lines) -> None:
    line = lines.make(free_port())
    await until(lambda: "refused" in (line.last_error or ""), loop)
    began_s = loop.seconds()
    for _ in range(100):
        with pytest.raises(StoreDown, match="refused"):
            await get(line)
    assert loop.seconds() - began_s < 0.5 and lines.said == []


@pytest_twisted.ensureDeferred
async def test_a_restarted_redis_is_found_within_two_seconds(redis: RedisServer, lines: Lines) -> None:
    """However long it was away; the connects meanwhile are few."""
    line = await lines.up(redis.port)
    redis.kill()
    await until(lambda: not line.up, loop)
    await turns(loop, 1.5)
    assert 2 <= lines.connects <= 12
    redis.start()
    assert await until(lambda: line.up, loop) < 2.0
    assert lines.said == ["up", "down", "up"] and line.reconnects == 1
    assert await get(line) is None


@pytest_twisted.ensureDeferred
async def test_a_frozen_redis_is_noticed_without_a_command_and_found_when_it_thaws(
    redis: RedisServer, lines: Lines
) -> None:
    """Its kernel goes on accepting connections; none of them is up."""
    line = await lines.up(redis.port)
    redis.freeze()
    assert await until(lambda: not line.up, loop) < 3.0, "0.75 s to the next PING and 1 s for its answer"
    await turns(loop, 1.2)
    assert lines.said == ["up", "down"]
    redis.thaw()
    assert await until(lambda: line.up, loop) < 3.0
    assert lines.said == ["up", "down", "up"]


@pytest_twisted.ensureDeferred
async def test_a_redis_that_answers_late_but_answers_is_up(redis: RedisServer, lines: Lines) -> None:
    """Here 0.3 s are nothing; on the request path they would be."""
    proxy = DelayProxy(loop, redis.port, delay_s=0.3)
    line = await lines.up(proxy.port)
    await turns(loop, 1.5)
    assert lines.said == ["up"] and proxy.connections == 1
    assert await get(line) is None
    line.stopService()
    await proxy.close()


@pytest_twisted.ensureDeferred
async def test_with_the_wrong_password_it_is_not_up_and_says_why(lines: Lines) -> None:
    """With the right one it is; a Redis that wants none of it is an error, too."""
    with redis_server("--requirepass", "secret") as server:
        line = lines.make(server.port, *opening_of(RedisURL.of(f"redis://:wrong@127.0.0.1:{server.port}")))
        await until(lambda: "WRONGPASS" in (line.last_error or ""), loop)
        silent = lines.make(server.port)
        await until(lambda: "NOAUTH" in (silent.last_error or ""), loop)
        assert lines.said == [] and not line.up
        right = await lines.up(server.port, *opening_of(RedisURL.of(f"redis://:secret@127.0.0.1:{server.port}")))
        assert await get(right) is None


@pytest_twisted.ensureDeferred
async def test_renewing_makes_another_connection(redis: RedisServer, lines: Lines) -> None:
    """Whoever waits on the old one is told; the new one is as good."""
    line = await lines.up(redis.port)
    waiting = line.ask(pack("BLPOP", "nothing", 5))
    line.renew("somewhere else by now")
    with pytest.raises(StoreDown, match="somewhere else"):
        await waiting
    assert not line.up and line.last_error == "somewhere else by now"
    await until(lambda: line.up, loop)
    assert lines.said == ["up", "down", "up"] and lines.connects == 2


@pytest_twisted.ensureDeferred
async def test_what_fails_in_on_up_does_not_end_the_line(redis: RedisServer, lines: Lines) -> None:
    line = lines.make(redis.port)
    line._on_up = lambda: {}["no such"]  # type: ignore[assignment,index]
    await until(lambda: line.up, loop)
    await turns(loop, 0.05)
    assert line.up and await get(line) is None
    assert isinstance(await line.ask(pack("NONSENSE")), ReplyError)


def test_the_back_off_doubles_to_its_end_and_is_jittered() -> None:
    """Half of it to all of it; a connect that never ends is given up after a second."""
    clock, connects = Clock(), list[float]()
    never: Deferred[Any] = Deferred()

    def connect(protocol: Protocol) -> "Deferred[Any]":
        connects.append(clock.seconds())
        return never if len(connects) == 1 else fail(ConnectionError("refused"))

    line = RedisLine(connect, clock, (), title="test line", draw=lambda: 0.5)
    line.startService()
    for _ in range(80):
        clock.advance(0.1)
    gaps = [round(after - before, 1) for before, after in zip(connects, connects[1:])]
    assert 1.0 < gaps[0] < 1.25, "a second of waiting, and the first back-off"
    assert gaps[-1] == pytest.approx(LAST_BACKOFF_S * 0.75, abs=0.11) and max(gaps[1:]) <= LAST_BACKOFF_S
    assert 8 <= len(connects) <= 16 and FIRST_BACKOFF_S < LAST_BACKOFF_S
    line.stopService()
    assert not clock.getDelayedCalls()


@pytest_twisted.ensureDeferred
async def test_stopping_while_it_connects_leaves_nothing(redis: RedisServer, lines: Lines) -> None:
    line = lines.make(redis.port)
    line.stopService()
    await turns(loop, 0.1)
    assert not line.up and lines.said == []
    await until(lambda: redis.command("CLIENT", "LIST").count(b"\n") == 1, loop)
