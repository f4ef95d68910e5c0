"""One connection to a real Redis: commands in order, messages beside them, and how it ends."""

from collections.abc import Iterator
from typing import Any

import hiredis
import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import CancelledError, Deferred, gatherResults
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport

from apigw.adapters.redis_conversation import MAX_OUTSTANDING, MAX_REPLY_BYTES, RedisConversation
from apigw.adapters.redis_link import pack
from apigw.errors import StoreDown
from tests.servers import RedisServer, redis_server, until

loop: Any = reactor
PING = pack("PING")


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


class Talk:
    """A conversation and what was said of it. On a transport in memory until connected()."""

    def __init__(self, clock: Any = loop, listens: bool = False) -> None:
        self.ends: list[str] = []
        self.ready = 0
        self.messages: list[tuple[bytes, bytes]] = []
        hear = (lambda channel, message: self.messages.append((channel, message))) if listens else None
        self.it = RedisConversation(clock, self._ready, lambda _, reason: self.ends.append(reason), hear)

    def _ready(self, conversation: RedisConversation) -> None:
        self.ready += 1

    async def connected(self, server: RedisServer) -> "Talk":
        endpoint = TCP4ClientEndpoint(loop, "127.0.0.1", server.port, timeout=2)
        await connectProtocol(endpoint, self.it)
        return self


class NextTurn(Clock):
    """What is to run at once runs in the next turn, as in a reactor, which reads its sockets before."""

    def callLater(self, delay: float, *call: Any, **more: Any) -> Any:
        return super().callLater(delay or 1e-6, *call, **more)


class Transport(StringTransport):
    def setTcpNoDelay(self, enabled: bool) -> None:
        """As a TCP transport has it."""

    def setTcpKeepAlive(self, enabled: bool) -> None:
        """Likewise."""


def in_memory(clock: Clock | None = None, listens: bool = False) -> tuple[Talk, Transport]:
    talk, transport = Talk(clock or Clock(), listens), Transport()
    talk.it.makeConnection(transport)
    return talk, transport


async def failure_of(waiting: "Deferred[Any]") -> str:
    with pytest.raises(StoreDown) as down:
        await waiting
    return str(down.value)


def outcome(waiting: "Deferred[Any]") -> list[Any]:
    """What is known of it now."""
    seen: list[Any] = []
    waiting.addBoth(seen.append)
    return seen


# -- talk


@pytest_twisted.ensureDeferred
async def test_replies_come_in_the_order_of_the_commands_and_an_error_is_a_value(redis: RedisServer) -> None:
    talk = await Talk().connected(redis)
    commands = [("SET", "a", "1"), ("GET", "a"), ("INCR", "a"), ("NONSENSE",), ("LRANGE", "l", 0, -1), ("GET", "none")]
    replies = await gatherResults([talk.it.ask(pack(*words)) for words in commands])
    assert replies[:3] == [b"OK", b"1", 2] and replies[4:] == [[], None]
    assert isinstance(replies[3], hiredis.ReplyError)
    assert talk.ready == 1 and talk.ends == []
    talk.it.drop("the test is over")


@pytest_twisted.ensureDeferred
async def test_a_list_of_megabytes_is_one_reply(redis: RedisServer) -> None:
    """Only the request path's link is narrow."""
    talk = await Talk().connected(redis)
    text = b"x" * 3_000_000
    await talk.it.ask(pack("SET", "long", text))
    assert await talk.it.ask(pack("MGET", "long", "long")) == [text, text]
    talk.it.drop("the test is over")


@pytest_twisted.ensureDeferred
async def test_messages_come_beside_the_replies(redis: RedisServer) -> None:
    """A subscription still answers PING, which is how its silence is told from its death."""
    talk = await Talk(listens=True).connected(redis)
    assert (await talk.it.ask(pack("SUBSCRIBE", "c")))[:2] == [b"subscribe", b"c"]
    assert redis.command("PUBLISH", "c", b"hello\r\n") == 1
    await until(lambda: talk.messages, loop)
    assert talk.messages == [(b"c", b"hello\r\n")]
    assert (await talk.it.ask(PING))[0] == b"pong"
    talk.it.drop("the test is over")


@pytest_twisted.ensureDeferred
async def test_who_cancels_gets_nothing_and_disturbs_nobody(redis: RedisServer) -> None:
    talk = await Talk().connected(redis)
    first, second = talk.it.ask(pack("ECHO", "1")), talk.it.ask(pack("ECHO", "2"))
    first.cancel()
    assert await second == b"2"
    with pytest.raises(CancelledError):
        await first
    talk.it.drop("the test is over")


# -- the end


@pytest_twisted.ensureDeferred
async def test_a_frozen_redis_is_given_up_after_a_second_and_all_who_wait_are_told(redis: RedisServer) -> None:
    talk = await Talk().connected(redis)
    redis.freeze()
    try:
        began_s = loop.seconds()
        waiting = [talk.it.ask(PING) for _ in range(3)]
        for each in waiting:
            assert await failure_of(each) == "no answer within 1 s"
        assert 0.9 < loop.seconds() - began_s < 3.0
        assert talk.ends == ["no answer within 1 s"], "who keeps the connection knows before those who wait"
        assert await failure_of(talk.it.ask(PING)) == "not connected"
    finally:
        redis.thaw()


@pytest_twisted.ensureDeferred
async def test_a_killed_redis_is_noticed_at_once(redis: RedisServer) -> None:
    talk = await Talk().connected(redis)
    redis.freeze()  # so that the command is not answered before the end
    waiting = talk.it.ask(PING)
    redis.restart()
    assert (await failure_of(waiting)).startswith("connection lost: ")
    assert len(talk.ends) == 1


@pytest_twisted.ensureDeferred
async def test_dropping_tells_those_who_wait_and_nobody_else(redis: RedisServer) -> None:
    talk = await Talk().connected(redis)
    waiting = talk.it.ask(pack("BLPOP", "nothing", 5))
    talk.it.drop("enough")
    assert await failure_of(waiting) == "enough"
    assert talk.ends == []


def test_the_deadline_is_the_oldest_commands_and_leaves_no_timer_behind() -> None:
    """Counted from its own sending: a younger one's answer is not its."""
    clock = Clock()
    talk, _ = in_memory(clock)
    first = outcome(talk.it.ask(PING))
    clock.advance(0.6)
    second = outcome(talk.it.ask(PING))
    talk.it.dataReceived(b"+PONG\r\n")
    clock.advance(0.6)
    assert first == [b"PONG"] and second == [] and talk.ends == []
    clock.advance(0.4)
    assert talk.ends == ["no answer within 1 s"] and len(second) == 1
    assert not clock.getDelayedCalls()


def test_an_answer_that_lies_in_the_socket_when_time_is_up_still_counts() -> None:
    """It was our loop that was late."""
    clock = NextTurn()
    talk, _ = in_memory(clock)
    waiting = outcome(talk.it.ask(PING))
    clock.advance(1.0)
    talk.it.dataReceived(b"+PONG\r\n")
    clock.advance(1.0)
    assert waiting == [b"PONG"] and talk.ends == []


@pytest.mark.parametrize("listens", [False, True])
@pytest.mark.parametrize(
    ("garbage", "reason"),
    [
        (b"SSH-2.0\r\n", "what Redis sent is not its protocol"),
        (b":1\r\n:2\r\n", "a reply that nobody asked for"),
        (b"$%d\r\n" % (2 * MAX_REPLY_BYTES) + b"x" * (MAX_REPLY_BYTES + 1), "a reply without end"),
    ],
)
def test_garbage_ends_it(garbage: bytes, reason: str, listens: bool) -> None:
    talk, transport = in_memory(listens=listens)
    waiting = outcome(talk.it.ask(PING))
    talk.it.dataReceived(garbage)
    talk.it.dataReceived(b":3\r\n")
    assert transport.disconnected and len(talk.ends) == 1 and talk.ends[0].startswith(reason)
    assert len(waiting) == 1


def test_a_message_where_nobody_listens_is_a_reply_that_nobody_asked_for() -> None:
    talk, _ = in_memory()
    talk.it.dataReceived(b"*3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n")
    assert talk.ends == ["a reply that nobody asked for"]


def test_what_waits_is_bounded() -> None:
    talk, transport = in_memory()
    waiting = [outcome(talk.it.ask(PING)) for _ in range(MAX_OUTSTANDING + 1)]
    assert len(transport.value()) == MAX_OUTSTANDING * len(PING)
    assert waiting[-1][0].check(StoreDown) and waiting[-2] == []
    talk.it.drop("the test is over")


def test_a_connection_that_comes_after_it_was_given_up_is_closed() -> None:
    talk = Talk(Clock())
    assert len(outcome(talk.it.ask(PING))) == 1, "not connected yet"
    talk.it.drop("waited too long")
    transport = Transport()
    talk.it.makeConnection(transport)
    assert transport.disconnected and talk.ready == 0
