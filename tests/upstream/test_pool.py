"""The pool under every order of events: its books always balance, and an answer is its own request's."""

from typing import Any

import pytest
from attrs import evolve
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from twisted.internet.task import Clock

from apigw.config.model import Backend, Instance
from apigw.core.http1 import Head
from apigw.net.connect import EXHAUSTED, REFUSED, TIMED_OUT
from apigw.net.deadlines import Deadlines
from apigw.testing import MemoryConnector, MemoryTransport
from apigw.upstream.connection import UpstreamConnection
from apigw.upstream.detached import DETACHED_TIMEOUT_S
from apigw.upstream.member import SPARE
from apigw.upstream.pool import NO_INSTANCE, POOL_FULL, QUEUE_MAX, Pool
from apigw.upstream.slow_clients import PATIENCE_S

ONE, TWO, THREE = (Instance(f"10.0.0.{n}", 80) for n in (1, 2, 3))


class Asker:
    """A request: waits for a connection, sends its number, and expects its own number as the answer."""

    made = 0
    timeout_s = 5.0
    guarded = True

    def __init__(self) -> None:
        Asker.made += 1
        self.number = b"%d" % Asker.made
        self.connection: UpstreamConnection | None = None
        self.answer = b""
        self.outcome: str | None = None
        self.abandoned = False

    def pool_ready(self, connection: UpstreamConnection) -> None:
        assert not self.abandoned, "a connection for somebody who gave up"
        assert self.connection is None and self.outcome is None, "two connections"
        assert not connection.dead
        self.connection = connection
        connection.begin(self, False, b"GET " + self.number + b"\n", True)

    def pool_failed(self, reason: str, detail: str, instance: str | None) -> None:
        self._over(reason)

    def reply_head(self, head: Head) -> None:
        assert self.outcome is None

    def reply_body(self, data: bytes) -> None:
        self.answer += data

    def reply_flush(self) -> None:
        """Nothing is held."""

    def reply_end(self) -> None:
        self._over("answered")

    def reply_failed(self, reason: str, detail: str) -> None:
        self._over(reason)

    def _over(self, outcome: str) -> None:
        assert not self.abandoned
        assert self.outcome is None, "two outcomes"
        self.outcome = outcome


def answer_to(transport: MemoryTransport, *lines: bytes, extra: bytes = b"") -> bytes:
    """A whole answer whose body is the number of the last request on this connection."""
    number = transport.written.split(b"GET ")[-1].rstrip(b"\n")
    head = [b"HTTP/1.1 200 OK", b"Content-Length: %d" % len(number), *lines, b"", b""]
    return b"\r\n".join(head) + number + extra


class Bench:
    """A pool over a connector in memory."""

    def __init__(self, **fields: Any) -> None:
        self.clock = Clock()
        self.connector = MemoryConnector()
        connector: Any = self.connector
        draw = fields.pop("draw", lambda: 0.0)
        self.backend = Backend("users", **{"instances": (ONE,), "max_connections": 2, **fields})
        self.pool = Pool(self.clock, Deadlines(self.clock), connector, self.backend, draw)

    def ask(self) -> Asker:
        asker = Asker()
        self.pool.acquire(asker)
        return asker

    def connected(self) -> "tuple[Asker, MemoryTransport]":
        asker = self.ask()
        return asker, self.connector.attempts[-1].succeed()

    def turn(self) -> None:
        for _ in range(5):
            self.clock.advance(0)


# -- sentences


def test_an_idle_connection_is_used_again_last_used_first() -> None:
    bench = Bench()
    first, transport = bench.connected()
    transport.arrive(answer_to(transport))
    second = bench.ask()
    transport.arrive(answer_to(transport))
    assert (first.answer, second.answer) == (first.number, second.number)
    assert len(bench.connector.transports) == 1
    assert (bench.pool.open, bench.pool.idle, bench.pool.busy) == (1, 1, 0)


def test_a_full_pool_queues_in_order_and_serves_whoever_came_first() -> None:
    bench = Bench(max_connections=1)
    _, transport = bench.connected()
    askers = [bench.ask() for _ in range(3)]
    assert bench.pool.waiting == 3
    for asker in askers:
        transport.arrive(answer_to(transport))
        assert asker.connection is not None
    assert len(bench.connector.transports) == 1


def test_a_new_request_does_not_overtake_the_queue_when_a_place_gets_free() -> None:
    bench = Bench(max_connections=1)
    _, transport = bench.connected()
    early = bench.ask()
    transport.end()
    late = bench.ask()
    bench.turn()
    attempt = bench.connector.attempts[-1].succeed()
    assert (early.connection is not None, late.connection) == (True, None)
    attempt.arrive(answer_to(attempt))
    assert late.connection is not None


def test_the_queue_is_bounded() -> None:
    bench = Bench(max_connections=1)
    bench.ask()
    askers = [bench.ask() for _ in range(QUEUE_MAX + 1)]
    assert [asker.outcome for asker in askers[-2:]] == [None, POOL_FULL]


def test_who_gives_up_gets_nothing_and_its_connection_is_kept_for_others() -> None:
    bench = Bench(max_connections=1)
    asker, queued = bench.ask(), bench.ask()
    for one in (asker, queued):
        one.abandoned = True
        bench.pool.abandon(one)
        bench.pool.abandon(one)
    bench.connector.attempts[0].succeed()
    assert (bench.pool.open, bench.pool.idle, bench.pool.waiting) == (1, 1, 0)
    assert bench.ask().connection is not None


def test_a_connection_opened_for_somebody_who_gave_up_goes_to_the_queue() -> None:
    bench = Bench(max_connections=1)
    asker, queued = bench.ask(), bench.ask()
    asker.abandoned = True
    bench.pool.abandon(asker)
    bench.connector.attempts[0].succeed()
    assert queued.connection is not None


def test_a_failed_connect_is_told_to_the_asker_and_to_the_health_check() -> None:
    bench = Bench()
    failed: list[str] = []
    bench.pool.on_connect_failure = lambda member, why: failed.append(f"{member.label}: {why}")
    asker = bench.ask()
    bench.connector.attempts[0].fail(REFUSED)
    assert asker.outcome == REFUSED
    assert failed == ["10.0.0.1:80: a request's connection was refused: as the test said"]
    assert (bench.pool.open, bench.pool.busy) == (0, 0)


@pytest.mark.parametrize("how", ["bytes", "end"])
def test_an_idle_connection_with_something_unread_is_never_given_away(how: str) -> None:
    """What lies there would be taken for the answer to the next request: an answer of somebody else."""
    bench = Bench()
    _, transport = bench.connected()
    transport.arrive(answer_to(transport))
    if how == "bytes":
        transport.unread = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
    else:
        transport.ended_unseen = True
    asker = bench.ask()
    assert asker.connection is None
    assert transport.dead
    fresh = bench.connector.attempts[0].succeed()
    fresh.arrive(answer_to(fresh))
    assert asker.answer == asker.number


def test_many_stale_connections_are_no_deep_recursion() -> None:
    bench = Bench(max_connections=2000)
    opened = [bench.connected() for _ in range(2000)]
    for _, transport in opened:
        transport.arrive(answer_to(transport))
        transport.ended_unseen = True
    assert bench.pool.idle == 2000
    asker = bench.ask()
    assert len(bench.connector.attempts) == 1
    assert (asker.outcome, bench.pool.open) == (None, 1)


def test_a_stale_connection_is_not_handed_to_the_queue_either() -> None:
    bench = Bench(max_connections=1)
    _, transport = bench.connected()
    queued = bench.ask()
    data = answer_to(transport)
    transport.ended_unseen = True
    transport.arrive(data)
    assert queued.connection is None
    bench.turn()
    bench.connector.attempts[0].succeed()
    assert queued.connection is not None


def test_a_full_pool_closes_an_idle_connection_to_reach_another_instance() -> None:
    bench = Bench(max_connections=1, instances=(ONE, TWO))
    _, transport = bench.connected()
    transport.arrive(answer_to(transport))
    bench.ask()
    assert transport.dead
    assert {bench.connector.attempts[0].host} == {"10.0.0.2"}
    assert bench.pool.open == 1


def test_without_a_healthy_instance_the_asker_is_told_at_once() -> None:
    bench = Bench()
    bench.pool.members[0].up = False
    bench.pool.rebalance()
    assert bench.ask().outcome == NO_INSTANCE


def test_an_answer_that_nobody_waits_for_is_read_and_its_connection_kept() -> None:
    bench = Bench(max_connections=1)
    asker, transport = bench.connected()
    assert asker.connection is not None
    asker.abandoned = True
    asker.connection.detach()
    assert (bench.pool.busy, transport.dead) == (1, False)
    transport.arrive(answer_to(transport))
    assert (bench.pool.busy, bench.pool.idle) == (0, 1)
    again = bench.ask()
    transport.arrive(answer_to(transport))
    assert again.answer == again.number


@pytest.mark.parametrize("size", [262_144, 262_145, 300_000])
@pytest.mark.parametrize("chunked", [False, True])
def test_a_large_answer_that_nobody_waits_for_ends_its_connection_and_the_books_balance(
    size: int, chunked: bool
) -> None:
    """Also when the piece that is one too many is the last: a connection is given back or dead, never both."""
    bench = Bench()
    asker, transport = bench.connected()
    assert asker.connection is not None
    asker.abandoned = True
    asker.connection.detach()
    if chunked:
        transport.arrive(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n" % size)
        transport.arrive(b"a" * size + b"\r\n0\r\n\r\n")
    else:
        transport.arrive(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % size)
        transport.arrive(b"a" * size)
    assert bench.pool.busy == 0
    assert bench.pool.open == bench.pool.idle == (0 if transport.dead else 1)
    assert transport.dead == (size > 262_144)
    assert bench.ask().outcome is None


def test_a_backend_that_never_answers_a_detached_request_is_hung_up_on() -> None:
    bench = Bench()
    asker, transport = bench.connected()
    assert asker.connection is not None
    asker.abandoned = True
    asker.connection.detach()
    bench.clock.advance(DETACHED_TIMEOUT_S)
    bench.pool.sweep()
    assert not transport.dead
    bench.clock.advance(1)
    bench.pool.sweep()
    assert (transport.dead, bench.pool.open) == (True, 0)


def test_idle_and_old_connections_are_swept() -> None:
    bench = Bench(idle_timeout_s=60.0, max_lifetime_s=100.0)
    _, transport = bench.connected()
    transport.arrive(answer_to(transport))
    bench.clock.advance(59)
    bench.pool.sweep()
    assert bench.pool.idle == 1
    bench.ask()
    bench.clock.advance(42)
    transport.arrive(answer_to(transport))
    assert transport.dead, "it was older than its lifetime when it came back"
    _, transport = bench.connected()
    transport.arrive(answer_to(transport))
    bench.clock.advance(61)
    bench.pool.sweep()
    assert (transport.dead, bench.pool.open) == (True, 0)


def test_min_connections_are_kept_open_but_not_by_a_retired_pool() -> None:
    bench = Bench(min_connections=2, max_connections=5)
    bench.pool.sweep()
    for attempt in list(bench.connector.attempts):
        attempt.succeed()
    assert (bench.pool.open, bench.pool.idle) == (2, 2)
    bench.pool.close()
    bench.pool.sweep()
    assert (bench.pool.open, bench.connector.attempts) == (0, [])


def test_a_connection_opened_in_advance_counts_as_reused() -> None:
    """It has rested: the backend may have closed it, so that a GET on it may be sent once more."""
    bench = Bench(min_connections=1)
    bench.pool.sweep()
    bench.connector.attempts[0].succeed()
    asker = bench.ask()
    assert asker.connection is not None and asker.connection.reused


def test_a_reload_keeps_the_connections_of_instances_that_stay_even_with_a_new_weight() -> None:
    bench = Bench(instances=(ONE, TWO), max_connections=4)
    transports = {}
    for _ in range(2):
        asker, transport = bench.connected()
        assert asker.connection is not None
        transports[asker.connection.member.label] = transport
    for transport in transports.values():
        transport.arrive(answer_to(transport))
    bench.pool.members[0].failures = 2
    bench.pool.update(evolve(bench.backend, instances=(evolve(ONE, weight=5),)))
    assert not transports[ONE.label].dead
    assert transports[TWO.label].dead
    assert [(member.instance.weight, member.failures) for member in bench.pool.members] == [(5, 2)]


def test_a_larger_pool_serves_its_queue() -> None:
    bench = Bench(max_connections=1)
    bench.connected()
    queued = [bench.ask() for _ in range(3)]
    bench.pool.update(evolve(bench.backend, max_connections=3))
    bench.turn()
    for attempt in list(bench.connector.attempts):
        attempt.succeed()
    assert [asker.connection is not None for asker in queued] == [True, True, False]


def test_a_smaller_pool_gives_up_what_is_idle_and_then_what_becomes_idle() -> None:
    bench = Bench(max_connections=4)
    transports = [bench.connected()[1] for _ in range(4)]
    for transport in transports[:2]:
        transport.arrive(answer_to(transport))
    bench.pool.update(evolve(bench.backend, max_connections=1))
    bench.pool.sweep()
    assert (bench.pool.open, bench.pool.busy) == (2, 2)
    for transport in transports[2:]:
        transport.arrive(answer_to(transport))
    bench.pool.sweep()
    assert (bench.pool.open, bench.pool.idle) == (1, 1)


# -- several instances


def test_an_instance_that_hangs_holds_a_few_requests_and_the_rest_go_to_its_siblings() -> None:
    """One of three answers nothing: what it holds stays small, and nobody waits for a connection."""
    bench = Bench(instances=(ONE, TWO, THREE), max_connections=20)
    for _ in range(200):
        asker = bench.ask()
        assert bench.pool.waiting == 0
        for attempt in list(bench.connector.attempts):
            attempt.succeed()
        assert asker.connection is not None
        if asker.connection.member.label != ONE.label:
            asker.connection.transport.arrive(answer_to(asker.connection.transport))
    assert SPARE <= bench.pool.members[0].in_flight <= 2 * SPARE + 1
    assert [member.in_flight for member in bench.pool.members[1:]] == [0, 0]


def test_instances_that_are_equally_slow_share_the_whole_pool() -> None:
    bench = Bench(instances=(ONE, TWO, THREE), max_connections=20)
    for _ in range(20):
        bench.ask()
    assert sorted(member.in_flight for member in bench.pool.members) == [6, 7, 7]


def test_an_instance_that_is_back_or_new_gets_its_share_by_and_by() -> None:
    bench = Bench(instances=(ONE, TWO), max_connections=1000, slow_start_s=10.0)

    def share(label: str) -> float:
        askers = [bench.ask() for _ in range(200)]
        for attempt in list(bench.connector.attempts):
            attempt.succeed()
        asked = [asker.connection for asker in askers if asker.connection is not None]
        for connection in asked:
            connection.transport.arrive(answer_to(connection.transport))
        return sum(connection.member.label == label for connection in asked) / len(askers)

    assert share(TWO.label) == 0.5, "at the start of the process none is newer than others"
    bench.pool.update(evolve(bench.backend, instances=(ONE, TWO, THREE)))
    shares = [share(THREE.label)]
    for _ in range(10):
        bench.clock.advance(1)
        bench.pool.sweep()
        shares.append(share(THREE.label))
    assert all(later >= early - 0.01 for early, later in zip(shares, shares[1:]))
    assert shares[0] == pytest.approx(0.1 / 2.1, abs=0.01)
    assert shares[5] == pytest.approx(0.5 / 2.5, abs=0.02)
    assert shares[-1] == pytest.approx(1 / 3, abs=0.01)


def test_a_list_that_changes_under_load_loses_no_request_and_favours_nobody() -> None:
    """As discovery changes it: each second another of four instances is gone; connections of those that stay stay."""
    four = tuple(Instance(f"10.0.0.{n}", 80) for n in range(4))
    bench = Bench(instances=four, max_connections=100, slow_start_s=0.0)
    asked: dict[str, int] = {}
    pending: list[Asker] = []
    for turn in range(400):
        if turn % 10 == 0:
            gone = four[turn // 10 % 4]
            bench.pool.update(evolve(bench.backend, instances=tuple(one for one in four if one is not gone)))
        asker = bench.ask()
        for attempt in list(bench.connector.attempts):
            attempt.succeed()
        assert asker.connection is not None
        asked[asker.connection.member.label] = asked.get(asker.connection.member.label, 0) + 1
        pending.append(asker)
        if len(pending) > 7:
            early = pending.pop(0)
            assert early.connection is not None
            early.connection.transport.arrive(answer_to(early.connection.transport))
            assert early.answer == early.number
    assert all(80 <= count <= 120 for count in asked.values()), asked


def test_a_connect_to_an_instance_that_left_the_list_meanwhile_goes_to_another() -> None:
    """Nothing was sent to it. A connect to one that is on the list is never made again."""
    bench = Bench(instances=(ONE, TWO))
    asker = bench.ask()
    bench.pool.update(evolve(bench.backend, instances=(TWO,)))
    bench.connector.attempts[0].fail(REFUSED)
    assert asker.outcome is None and bench.connector.attempts[0].host == TWO.host
    bench.connector.attempts[0].fail(REFUSED)
    assert asker.outcome == REFUSED


def test_who_waits_is_told_at_once_when_the_last_instance_goes_out() -> None:
    bench = Bench(max_connections=1)
    bench.connected()
    queued = [bench.ask() for _ in range(120)]
    bench.pool.members[0].up = False
    bench.pool.rebalance()
    bench.turn()
    assert {asker.outcome for asker in queued} == {NO_INSTANCE} and bench.pool.waiting == 0


def test_who_gives_up_learns_what_it_waited_for() -> None:
    bench = Bench(max_connections=1)
    connecting, queued = bench.ask(), bench.ask()
    assert bench.pool.abandon(queued) == (POOL_FULL, "all 1 connections stayed busy", None)
    assert bench.pool.abandon(connecting) == (TIMED_OUT, "no answer to the connect", ONE.label)


def test_a_lack_of_descriptors_is_no_failure_of_the_instance() -> None:
    bench = Bench()
    failed: list[str] = []
    bench.pool.on_connect_failure = lambda member, why: failed.append(why)
    asker = bench.ask()
    bench.connector.attempts[0].fail(EXHAUSTED)
    assert (asker.outcome, failed) == (EXHAUSTED, [])


def test_without_descriptors_an_idle_connection_to_any_instance_serves() -> None:
    bench = Bench(instances=(ONE, TWO), max_connections=4)
    stale, good = (bench.connected()[1] for _ in range(2))
    bench.pool.update(evolve(bench.backend, instances=(ONE, TWO, THREE), slow_start_s=0.0))
    for transport in (stale, good):
        transport.arrive(answer_to(transport))
    stale.ended_unseen = True
    asker = bench.ask()
    while not bench.connector.attempts:
        asker = bench.ask()
    bench.connector.attempts[0].fail(EXHAUSTED)
    assert asker.connection is not None and asker.connection.transport is good
    assert (bench.pool.open, bench.pool.busy) == (1, 1)


def test_answers_that_nobody_waits_for_give_way_in_a_full_pool() -> None:
    """A backend that hung and is back: its old requests must not hold the pool for half a minute."""
    bench = Bench(max_connections=2)
    for _ in range(2):
        asker, _ = bench.connected()
        assert asker.connection is not None
        asker.abandoned = True
        asker.connection.detach()
    early = bench.ask()
    assert (early.connection, bench.pool.waiting) == (None, 1), "not at once: it may be about to answer"
    bench.clock.advance(1)
    late = bench.ask()
    bench.pool.sweep()
    bench.turn()
    for attempt in list(bench.connector.attempts):
        attempt.succeed()
    assert early.connection is not None and late.connection is not None
    assert bench.pool.open == 2


class Upload:
    """A streamed request on the asker's connection, whose client sends nothing more."""

    def __init__(self, bench: Bench, asker: Asker) -> None:
        self.told = ""
        self._bench = bench
        self._asker = asker
        bench.pool.follow(self)

    def client_holds(self) -> bool:
        return True

    def client_bytes(self) -> int:
        return 0

    def give_way(self, how_slow: str) -> None:
        self.told = how_slow
        assert self._asker.connection is not None
        self._asker.connection.kill()


def uploads(bench: Bench, count: int) -> list[Upload]:
    return [Upload(bench, asker) for asker, _ in [bench.connected() for _ in range(count)]]


def test_for_each_request_that_waits_for_a_moment_one_slow_client_gives_way() -> None:
    bench = Bench(max_connections=4)
    slow = uploads(bench, 4)
    bench.clock.advance(PATIENCE_S + 1)
    first, second = bench.ask(), bench.ask()
    assert not any(one.told for one in slow), "not at once: a place may come free"
    bench.clock.pump([0.1] * 10)
    assert sum(bool(one.told) for one in slow) == 2
    for attempt in list(bench.connector.attempts):
        attempt.succeed()
    assert first.connection is not None and second.connection is not None
    assert (bench.pool.open, bench.pool.waiting, bench.pool.slow_clients.ended) == (4, 0, 2)


def test_a_burst_that_is_over_in_a_moment_ends_no_slow_client() -> None:
    bench = Bench(max_connections=2)
    (slow,) = uploads(bench, 1)
    _, transport = bench.connected()
    bench.clock.advance(60)
    for _ in range(20):
        late = bench.ask()
        bench.clock.advance(0.05)
        transport.arrive(answer_to(transport))
        assert late.connection is not None
    bench.clock.advance(1)
    assert not slow.told


def test_a_request_that_waits_while_all_are_at_their_pace_waits_on_until_one_is_not() -> None:
    bench = Bench(max_connections=1)
    (slow,) = uploads(bench, 1)
    waiting = bench.ask()
    bench.clock.advance(PATIENCE_S - 0.5)
    assert not slow.told
    bench.clock.pump([0.1] * 10)
    assert slow.told
    bench.turn()
    bench.connector.attempts[-1].succeed()
    assert waiting.connection is not None


def test_requests_that_wait_for_less_than_a_moment_are_helped_too() -> None:
    """A timeout of 50 ms, and none comes while another waits: the next one finds a place."""
    bench = Bench(max_connections=1)
    uploads(bench, 1)
    bench.clock.advance(PATIENCE_S + 1)
    hasty = bench.ask()
    bench.clock.advance(0.05)
    hasty.abandoned = True
    bench.pool.abandon(hasty)
    bench.clock.advance(0.2)
    bench.ask()
    assert bench.pool.waiting == 0 and len(bench.connector.attempts) == 1


def test_who_gave_up_before_there_was_a_slow_client_ends_none_later() -> None:
    bench = Bench(max_connections=2)
    (_, one), (_, other) = bench.connected(), bench.connected()
    hasty = bench.ask()
    hasty.abandoned = True
    bench.pool.abandon(hasty)
    one.arrive(answer_to(one))
    slow = Upload(bench, bench.ask())
    bench.clock.advance(60)
    late = bench.ask()
    other.arrive(answer_to(other))
    assert late.connection is not None
    bench.clock.advance(1)
    assert not slow.told


def test_a_request_that_waits_already_when_the_first_slow_client_comes_is_seen() -> None:
    bench = Bench(max_connections=1)
    asker, _ = bench.connected()
    bench.ask()
    slow = Upload(bench, asker)
    bench.clock.pump([0.1] * 40)
    assert slow.told


def test_connections_opened_together_do_not_end_together() -> None:
    draws = iter([0.0, 0.25, 0.5, 0.75, 0.999] * 2)
    bench = Bench(max_connections=10, max_lifetime_s=100.0, idle_timeout_s=1000.0, draw=lambda: next(draws))
    transports = [bench.connected()[1] for _ in range(5)]
    for transport in transports:
        transport.arrive(answer_to(transport))
    open_then = []
    for _ in range(21):
        bench.clock.advance(80 if not open_then else 1)
        bench.pool.sweep()
        open_then.append(bench.pool.open)
    assert (open_then[0], open_then[5], open_then[10], open_then[-1]) == (5, 4, 3, 1)


def test_an_instance_that_fails_does_not_keep_the_others_from_being_warm() -> None:
    bench = Bench(instances=(ONE, TWO), min_connections=4, max_connections=10)
    bench.pool.members[0].failures = 1
    bench.pool.sweep()
    assert {attempt.host for attempt in bench.connector.attempts} == {TWO.host}
    assert len(bench.connector.attempts) == 4


# -- every order of events


class PoolMachine(RuleBasedStateMachine):
    """Requests come and go, backends answer well and badly, configurations change; the books must balance."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(instances=(ONE, TWO), max_connections=3, slow_start_s=100.0)
        self.pool = self.bench.pool
        self.askers: list[Asker] = []
        self.limit = 3

    def _pick(self, things: list[Any], n: int) -> Any:
        return things[n % len(things)]

    def _alive(self, busy: bool) -> list[MemoryTransport]:
        return [
            one for one in self.bench.connector.transports if not one.dead and (one.protocol._sink is not None) == busy
        ]

    @rule()
    def ask(self) -> None:
        self.askers.append(self.bench.ask())

    @precondition(lambda self: self.bench.connector.attempts)
    @rule(n=st.integers(0, 9), works=st.booleans(), why=st.sampled_from([REFUSED, EXHAUSTED]))
    def connect(self, n: int, works: bool, why: str) -> None:
        attempt = self._pick(self.bench.connector.attempts, n)
        if works:
            attempt.succeed()
        else:
            attempt.fail(why)

    @precondition(lambda self: self._alive(True))
    @rule(n=st.integers(0, 9), how=st.sampled_from(["well", "close", "extra", "garbage", "half", "split"]))
    def answer(self, n: int, how: str) -> None:
        transport = self._pick(self._alive(True), n)
        data = answer_to(transport)
        if how == "close":
            transport.arrive(answer_to(transport, b"Connection: close"))
        elif how == "extra":
            transport.arrive(answer_to(transport, extra=b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"))
        elif how == "garbage":
            transport.arrive(b"garbage\r\n\r\n")
        elif how == "half":
            transport.arrive(data[:-1])
            transport.end()
        elif how == "split":
            transport.arrive(data[:20])
            transport.arrive(data[20:])
        else:
            transport.arrive(data)

    @precondition(lambda self: self._alive(True) or self._alive(False))
    @rule(n=st.integers(0, 9), clean=st.booleans())
    def backend_ends(self, n: int, clean: bool) -> None:
        self._pick(self._alive(True) + self._alive(False), n).end(clean)

    @precondition(lambda self: self._alive(False))
    @rule(n=st.integers(0, 9), how=st.sampled_from(["arrives", "unread", "ended"]))
    def poison(self, n: int, how: str) -> None:
        transport = self._pick(self._alive(False), n)
        if how == "arrives":
            transport.arrive(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison")
        elif how == "unread":
            transport.unread = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
        else:
            transport.ended_unseen = True

    @precondition(lambda self: any(asker.outcome is None for asker in self.askers))
    @rule(n=st.integers(0, 9))
    def give_up(self, n: int) -> None:
        asker = self._pick([asker for asker in self.askers if asker.outcome is None], n)
        asker.abandoned = True
        asker.outcome = "abandoned"
        if asker.connection is not None:
            asker.connection.detach()
        else:
            self.pool.abandon(asker)

    @rule(seconds=st.sampled_from([0.0, 1.0, 31.0, 61.0, 301.0]))
    def time_passes(self, seconds: float) -> None:
        self.bench.clock.advance(seconds)
        self.pool.sweep()

    @precondition(lambda self: self.pool.members)
    @rule(n=st.integers(0, 2), up=st.booleans())
    def health(self, n: int, up: bool) -> None:
        self._pick(self.pool.members, n).up = up
        self.pool.rebalance()

    @rule(
        limit=st.integers(1, 6),
        instances=st.sampled_from([(), (ONE,), (TWO,), (ONE, TWO), (THREE, ONE), (ONE, evolve(TWO, weight=5), THREE)]),
        least=st.integers(0, 2),
    )
    def reload(self, limit: int, instances: tuple[Instance, ...], least: int) -> None:
        self.limit = limit
        self.pool.update(evolve(self.bench.backend, max_connections=limit, instances=instances, min_connections=least))

    @invariant()
    def the_books_balance(self) -> None:
        pool = self.pool
        alive = [one for one in self.bench.connector.transports if not one.dead]
        attempts: list[Any] = self.bench.connector.attempts
        assert pool.open == len(alive) + len(attempts)
        assert pool.busy == len(self._alive(True)) + len(attempts)
        members = {one.protocol.member for one in alive} | {one._wanting.member for one in attempts}
        assert pool.open == sum(member.open for member in members)
        assert pool.open == pool.idle + pool.busy
        assert not any(connection.dead for member in pool.members for connection in member.idle)

    @invariant()
    def the_limit_holds(self) -> None:
        """Against the limit in force when the last connection was opened: a lower one takes effect as they end."""
        assert self.pool.open <= max(self.limit, getattr(self, "_before", 0))
        self._before = self.pool.open

    @invariant()
    def nobody_waits_for_a_backend_without_an_instance(self) -> None:
        """At the latest a turn later; nor while there is room."""
        if self.pool.waiting and not any(member.up for member in self.pool.members):
            self.bench.turn()
            assert self.pool.waiting == 0

    @invariant()
    def every_answer_is_its_own(self) -> None:
        for asker in self.askers:
            if asker.outcome == "answered":
                assert asker.answer == asker.number

    def teardown(self) -> None:
        """Nobody waits for ever: once backends answer, all are served or told."""
        for member in self.pool.members:
            member.up = True
        self.pool.rebalance()
        self.bench.clock.advance(2)  # answers that nobody waits for give way
        self.pool.sweep()
        for _ in range(200):
            self.bench.turn()
            for attempt in list(self.bench.connector.attempts):
                attempt.succeed()
            for transport in self._alive(True):
                transport.arrive(answer_to(transport))
        assert [asker.outcome for asker in self.askers if asker.outcome is None] == []
        assert self.pool.busy == self.pool.waiting == 0


TestPoolMachine = PoolMachine.TestCase
TestPoolMachine.settings = settings(max_examples=120, stateful_step_count=50, deadline=None)
