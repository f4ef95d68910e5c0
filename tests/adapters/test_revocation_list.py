"""The revocation list over a real Redis: told, compared, loaded, and kept through whatever happens to Redis."""

import gc
import time
from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, succeed
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol
from twisted.internet.protocol import Protocol
from twisted.internet.task import Clock

from apigw.adapters.redis_connect import StraightWay
from apigw.adapters.redis_link import pack
from apigw.adapters.revocation_list import COMPARE_S, PAGE, SPARE_S, RevocationList
from apigw.adapters.shared_store import RedisSharedStore
from apigw.core.revocation_codec import key, member, message
from apigw.core.revocations import Revocation, RevokedToken, RevokedUser
from apigw.names import REVOCATIONS_CHANNEL, REVOKED_TOKENS, REVOKED_USERS
from tests.servers import RedisServer, redis_server, turns, until

loop: Any = reactor
NOW_S = 1_800_000_000.0
LATER_S = NOW_S + 3600.0


@pytest.fixture
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


def write(redis: RedisServer, *revocations: Revocation, told: bool = False) -> None:
    """What `apigwctl tokens revoke` does; its message may be lost."""
    for revocation in revocations:
        redis.command("ZADD", key(revocation), "GT", repr(revocation.until_s), member(revocation))
        if told:
            redis.command("PUBLISH", REVOCATIONS_CHANNEL, message(revocation))


def write_many(redis: RedisServer, count: int, prefix: str = "j") -> None:
    for start in range(0, count, 1000):
        words: list[Any] = ["ZADD", REVOKED_TOKENS]
        for number in range(start, min(start + 1000, count)):
            words += [repr(LATER_S), f"{prefix}{number}"]
        redis.packed_command(pack(*words))


class Gateway:
    """A list over a store of its own. The wall clock is the test's, time is not."""

    def __init__(self, redis: RedisServer) -> None:
        def connect(protocol: Protocol) -> "Deferred[Any]":
            return connectProtocol(TCP4ClientEndpoint(loop, "127.0.0.1", redis.port, timeout=1), protocol)

        self.now_s = NOW_S
        self.store = RedisSharedStore(lambda: StraightWay(connect), loop, ())
        self.list = RevocationList(loop, self.store, lambda: self.now_s)
        self.known = self.list.known

    def start(self) -> "Gateway":
        self.store.startService()
        self.list.startService()
        return self

    async def loaded(self) -> "Gateway":
        self.start()
        await until(lambda: self.list.complete and self.store.listening, loop)
        return self

    def refuses(self, *jtis: str) -> bool:
        return all(self.known.refuses(jti, None, None) for jti in jtis)


class Gateways:
    def __init__(self) -> None:
        self.made: list[Gateway] = []

    def make(self, redis: RedisServer) -> Gateway:
        self.made.append(Gateway(redis))
        return self.made[-1]


@pytest.fixture
def gateways() -> Iterator[Gateways]:
    gateways = Gateways()
    yield gateways
    for gateway in gateways.made:
        gateway.list.stopService()
        pytest_twisted.blockon(gateway.store.stopService())


@pytest_twisted.ensureDeferred
async def test_what_was_revoked_before_the_start_is_loaded_first(redis: RedisServer, gateways: Gateways) -> None:
    """Tokens and users; a worker opens its doors after it. What is over is not taken."""
    write(redis, RevokedToken("a", LATER_S), RevokedUser("u:1", NOW_S - 50, LATER_S), RevokedToken("old", NOW_S - 200))
    gateway = gateways.make(redis).start()
    await gateway.list.first_load(5.0)
    assert gateway.list.complete and gateway.refuses("a") and not gateway.refuses("old")
    assert gateway.known.refuses(None, "u:1", NOW_S - 50) and not gateway.known.refuses(None, "u:1", NOW_S - 49)
    assert gateway.known.counts() == {"token": 1, "user": 1}


@pytest_twisted.ensureDeferred
async def test_what_is_told_counts_at_once_on_all_gateways(redis: RedisServer, gateways: Gateways) -> None:
    made = [await gateways.make(redis).loaded() for _ in range(2)]
    before = [gateway.list.changes for gateway in made]
    write(redis, RevokedToken("a", LATER_S), RevokedUser("u", NOW_S, LATER_S), told=True)
    took_s = await until(lambda: all(each.refuses("a") and each.known.refuses(None, "u", NOW_S) for each in made), loop)
    assert took_s < 1.0, "no comparison comes as soon as that"
    assert [gateway.list.changes - was for gateway, was in zip(made, before)] == [2, 2]


@pytest_twisted.ensureDeferred
async def test_a_lost_message_is_found_by_comparing(redis: RedisServer, gateways: Gateways) -> None:
    """Within two comparisons; after that nothing is loaded again, since nothing is missing."""
    gateway = await gateways.make(redis).loaded()
    for lost in (RevokedToken("a", LATER_S), RevokedUser("u", NOW_S, LATER_S)):
        write(redis, lost)
        loads = gateway.list.loads
        assert await until(lambda: gateway.list.loads > loads, loop, 5.0) < 2 * COMPARE_S + 0.5
    assert gateway.refuses("a") and gateway.known.refuses(None, "u", NOW_S)
    loads, polls = gateway.list.loads, gateway.list.last_success
    await until(lambda: gateway.list.last_success != polls, loop)
    assert gateway.list.loads == loads and gateway.list.age_s() < 1.0


@pytest_twisted.ensureDeferred
async def test_what_redis_loses_stays_in_force_and_does_not_hide_what_is_missed(
    redis: RedisServer, gateways: Gateways
) -> None:
    """Redis is killed and comes back empty. Then a message is lost: Redis has fewer entries than we, but more than it
    had."""
    write(redis, *(RevokedToken(name, LATER_S) for name in "abc"))
    gateway = await gateways.make(redis).loaded()
    redis.kill()
    await until(lambda: not gateway.store.up, loop)
    await until(lambda: gateway.list.consecutive_failures, loop)
    assert gateway.refuses("a", "b", "c") and gateway.list.age_s() > 0
    loads = gateway.list.loads
    redis.start()
    await until(lambda: gateway.list.loads > loads, loop)
    assert gateway.refuses("a", "b", "c")
    loads = gateway.list.loads
    write(redis, RevokedToken("d", LATER_S))
    await until(lambda: gateway.refuses("d"), loop)
    assert gateway.list.loads == loads + 1 and len(gateway.known) == 4


@pytest_twisted.ensureDeferred
async def test_what_was_told_while_nobody_listened_is_loaded_when_the_subscription_begins_again(
    redis: RedisServer, gateways: Gateways
) -> None:
    """Though the numbers are the same: one entry left in the meantime."""
    write(redis, RevokedToken("a", LATER_S))
    gateway = await gateways.make(redis).loaded()
    redis.command("ZREM", REVOKED_TOKENS, "a")
    redis.command("CLIENT", "KILL", "TYPE", "pubsub")
    write(redis, RevokedToken("b", LATER_S), told=True)
    await until(lambda: gateway.refuses("a", "b"), loop)


@pytest_twisted.ensureDeferred
async def test_redis_down_at_the_start_leaves_the_list_empty_and_the_gateway_running(
    redis: RedisServer, gateways: Gateways
) -> None:
    """It waits no longer than it is told to; later all of it comes in force."""
    write(redis, RevokedToken("a", LATER_S))
    redis.freeze()
    gateway = gateways.make(redis).start()
    began_s = loop.seconds()
    await gateway.list.first_load(0.3)
    assert 0.25 < loop.seconds() - began_s < 2.0
    assert not gateway.list.complete and not gateway.known.any and not gateway.refuses("a")
    await until(lambda: gateway.list.consecutive_failures, loop)
    assert gateway.list.age_s() > 0.3
    redis.thaw()
    await until(lambda: gateway.refuses("a"), loop)
    await gateway.list.first_load(1.0)


@pytest_twisted.ensureDeferred
async def test_entries_leave_when_they_are_over_also_while_redis_is_down(
    redis: RedisServer, gateways: Gateways
) -> None:
    """And the numbers still agree: nothing is loaded for it."""
    write(redis, RevokedToken("soon", NOW_S + 30), RevokedToken("late", LATER_S), RevokedUser("u", NOW_S, NOW_S + 30))
    gateway = await gateways.make(redis).loaded()
    loads = gateway.list.loads
    gateway.now_s = NOW_S + 30 + SPARE_S - 1  # another machine's clock may be behind ours
    assert await gateway.list.poll_now() and len(gateway.known) == 3
    gateway.now_s = NOW_S + 90 + SPARE_S
    assert await gateway.list.poll_now()
    assert len(gateway.known) == 1 and gateway.list.loads == loads
    redis.kill()
    await until(lambda: not gateway.store.up, loop)
    gateway.now_s = LATER_S + 120
    assert not await gateway.list.poll_now() and not gateway.known.any


@pytest_twisted.ensureDeferred
async def test_what_is_no_revocation_is_counted_and_harms_nothing(redis: RedisServer, gateways: Gateways) -> None:
    gateway = await gateways.make(redis).loaded()
    redis.command("ZADD", REVOKED_USERS, repr(LATER_S), "no-time", "inf", f"{NOW_S:.0f}:u")
    redis.command("ZADD", REVOKED_TOKENS, repr(LATER_S), b"\xff\xfe", repr(LATER_S), "a")
    for garbage in (b"", b"[]", b'{"jti": 7, "until_s": 5}', b"x" * 10_000):
        redis.command("PUBLISH", REVOCATIONS_CHANNEL, garbage)
    await until(lambda: gateway.list.misheard == 4 and gateway.list.unreadable == 3, loop)
    assert gateway.refuses("a") and len(gateway.known) == 1


@pytest_twisted.ensureDeferred
async def test_a_key_of_another_type_is_a_failure_and_nothing_is_forgotten(
    redis: RedisServer, gateways: Gateways
) -> None:
    write(redis, RevokedToken("a", LATER_S))
    gateway = await gateways.make(redis).loaded()
    redis.command("SET", REVOKED_USERS, "somebody else's")
    await until(lambda: gateway.list.consecutive_failures, loop)
    assert gateway.refuses("a")
    redis.command("DEL", REVOKED_USERS)
    await until(lambda: not gateway.list.consecutive_failures, loop)


@pytest_twisted.ensureDeferred
async def test_ten_thousand_at_once_do_not_hold_the_loop(redis: RedisServer, gateways: Gateways) -> None:
    """Loaded by pages, and by slices where Redis answers with more than a page."""
    redis.config_set("zset-max-listpack-entries", "3000")  # below it a ZSCAN gives all of it at once
    write_many(redis, 2_500)
    first = await gateways.make(redis).loaded()
    assert len(first.known) == 2_500 > 2 * PAGE
    write_many(redis, 10_000)
    most_s = min([await _longest_turn_s(gateways.make(redis)) for _ in range(3)])
    assert all(len(gateway.known) == 10_000 for gateway in gateways.made[1:])
    assert most_s < 0.005, "the contract's bound of what may hold the loop"


async def _longest_turn_s(gateway: Gateway) -> float:
    """CPU of the loop's thread between two looks of a timer while a list is loaded: others' load is not in it."""
    longest_s, before_s = 0.0, time.thread_time()
    gc.disable()
    try:
        gateway.start()
        while not gateway.list.complete:
            await turns(loop)
            now_s = time.thread_time()
            longest_s, before_s = max(longest_s, now_s - before_s), now_s
    finally:
        gc.enable()
    return longest_s


@pytest_twisted.ensureDeferred
async def test_a_flood_of_messages_is_taken_in(redis: RedisServer, gateways: Gateways) -> None:
    gateway = await gateways.make(redis).loaded()
    for start in range(0, 10_000, 1000):
        said = [message(RevokedToken(f"j{number}", LATER_S)) for number in range(start, start + 1000)]
        script = "for i = 1, #ARGV do redis.call('PUBLISH', KEYS[1], ARGV[i]) end"
        redis.packed_command(pack("EVAL", script, 1, REVOCATIONS_CHANNEL, *said))
    await until(lambda: len(gateway.known) == 10_000, loop)
    assert gateway.store.reconnects == 0


# -- when it loads: time is moved by the test


class Store:
    """A SharedStore that answers at once, or when the test says so."""

    def __init__(self) -> None:
        self.listening = True
        self.tokens: dict[bytes, float] = {}
        self.asked: list[str] = []
        self.held: Deferred[Any] | None = None
        self.at_users: Any = lambda: None  # called when the tokens were read

    def command(self, key: str, *words: Any) -> "Deferred[Any]":
        self.asked.append(words[0])
        answer: Any = len(self.tokens) if key == REVOKED_TOKENS else 0
        if words[0] == "ZSCAN":
            flat = [part for entry in self.tokens.items() for part in (entry[0], repr(entry[1]).encode())]
            answer = [b"0", flat if key == REVOKED_TOKENS else []]
            if key == REVOKED_USERS:
                self.at_users()
        if self.held is None or words[0] != "ZSCAN":
            return succeed(answer)
        waited: Deferred[Any] = Deferred()
        self.held.chainDeferred(waited)
        return waited.addCallback(lambda _: answer)

    def publish(self, channel: str, message: bytes) -> "Deferred[Any]":
        raise NotImplementedError

    def listen(self, channel: str, on_message: Any, on_listening: Any) -> None:
        self.begins = on_listening


class Timed:
    def __init__(self) -> None:
        self.clock = Clock()
        self.store = Store()
        self.list = RevocationList(self.clock, self.store, lambda: NOW_S, draw=lambda: 0.0)
        self.list.startService()

    def advance(self, seconds: float) -> None:
        for _ in range(int(seconds * 20 + 0.5)):
            self.clock.advance(0.05)


def test_without_a_reason_all_of_it_is_loaded_once_a_minute() -> None:
    timed = Timed()
    timed.advance(1)
    assert timed.list.loads == 1
    timed.advance(57)
    assert timed.list.loads == 1
    timed.advance(5)
    assert timed.list.loads == 2
    asked = timed.store.asked
    assert asked.count("ZSCAN") == 4 and 60 <= asked.count("ZCOUNT") <= 70


def test_a_subscription_that_begins_during_a_load_is_followed_by_another_load() -> None:
    """The first one may have read what was there before the last message that nobody heard."""
    timed = Timed()
    held = timed.store.held = Deferred()
    timed.store.begins()
    assert timed.list.in_flight
    timed.store.begins()
    timed.store.held = None
    held.callback(None)
    assert timed.list.loads == 1
    timed.advance(0.1)
    assert timed.list.loads == 2
    timed.advance(3)
    assert timed.list.loads == 2


def test_what_comes_during_a_load_and_is_not_told_is_found_by_the_next_comparison() -> None:
    """It came after its page was read and before the end, so that no count of the end may be believed."""
    timed = Timed()
    timed.store.tokens[b"a"] = LATER_S
    timed.store.at_users = lambda: timed.store.tokens.update({b"b": LATER_S})
    timed.advance(1)
    assert timed.list.loads == 1 and timed.list.known.refuses("a", None, None)
    assert not timed.list.known.refuses("b", None, None)
    timed.advance(2.5)
    assert timed.list.loads == 2 and timed.list.known.refuses("b", None, None)
    timed.advance(5)
    assert timed.list.loads == 2


@pytest_twisted.ensureDeferred
async def test_a_clock_that_was_ahead_for_a_while_costs_no_revocation(redis: RedisServer, gateways: Gateways) -> None:
    """While it is ahead every token is over, and so are the entries; when it is put back they are loaded again."""
    write(redis, RevokedToken("a", LATER_S))
    gateway = await gateways.make(redis).loaded()
    gateway.now_s = NOW_S + 86_400
    assert await gateway.list.poll_now() and not gateway.known.any
    gateway.now_s = NOW_S
    assert await gateway.list.poll_now() and gateway.refuses("a")


def test_a_load_that_takes_long_is_repeated_seldom_for_a_difference() -> None:
    """A list of a million takes seconds; a lost message may then count later, other work does not."""
    timed = Timed()
    held = timed.store.held = Deferred()
    timed.store.begins()
    timed.advance(0.8)
    timed.store.held = None
    held.callback(None)
    assert timed.list.loads == 1
    timed.store.tokens[b"a"] = LATER_S
    timed.advance(10)
    assert timed.list.loads == 1 and not timed.list.known.any
    assert timed.list.age_s() > 8, "that it is not complete is no secret"
    timed.advance(10)
    assert timed.list.loads == 2 and timed.list.known.any


def test_a_list_without_a_store_is_none() -> None:
    assert RevocationList.of(Clock(), None, lambda: NOW_S) is None
    assert RevocationList.of(Clock(), Store(), lambda: NOW_S) is not None


@pytest_twisted.ensureDeferred
async def test_it_ends_in_the_middle_of_a_load(redis: RedisServer, gateways: Gateways) -> None:
    write_many(redis, 10_000)
    gateway = gateways.make(redis).start()
    await until(lambda: gateway.known.any, loop)
    gateway.list.stopService()
    await turns(loop, 0.1)
    assert not gateway.list.complete
