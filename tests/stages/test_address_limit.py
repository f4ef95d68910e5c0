"""What counts against the client's address, whoever it claims to be."""

from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred

from apigw.adapters.memory_counters import MemoryCounters
from apigw.config.model import Tier
from apigw.core.verdicts import Refusal
from apigw.core.window import Counted, Demand, window_start
from apigw.errors import CounterStoreDown, GatewayError
from apigw.exchange import ClientRequest, Exchange
from apigw.stages.address_limit import AddressLimit

NOW_S = 1_707_264_012.5
DOOR = Tier("door", 2, 60, "client_ip")
WATCHED = Tier("door", 2, 60, "client_ip", mode="shadow")


class Later(MemoryCounters):
    """A store that answers with a Deferred."""

    def take(self, demands: Any, now_s: float) -> Any:
        answer: Deferred[Counted] = Deferred()
        answer.callback(super().take(demands, now_s))
        return answer


class Down:
    """A store that cannot answer, at once or later."""

    def __init__(self, later: bool) -> None:
        self.later = later

    def take(self, demands: Any, now_s: float) -> Any:
        failed: Deferred[Counted] = Deferred()
        if not self.later:
            raise CounterStoreDown("no answer within 5 ms")
        failed.errback(CounterStoreDown("no answer within 5 ms"))
        return failed


class World:
    def __init__(self, store: Any) -> None:
        self.decisions: list[tuple[str, str]] = []
        self.shadowed: list[str] = []
        self.limit = AddressLimit(store, MemoryCounters(), lambda: NOW_S, self.decide, self.shadow)

    def decide(self, tier: str, decision: str) -> None:
        self.decisions.append((tier, decision))

    def shadow(self, ex: Exchange, demands: list[Demand], now_s: float) -> None:
        self.shadowed += [demand.key for demand in demands]

    def unmatched(self, ex: Exchange) -> Any:
        return settled(lambda: self.limit.unmatched(ex))


def settled(call: Any) -> Any:
    """The answer, or the GatewayError."""
    try:
        part = call()
    except GatewayError as error:
        return error
    if isinstance(part, Deferred):
        results: list[Any] = []
        part.addCallbacks(results.append, lambda failure: results.append(failure.value))
        return results[0]
    return part


def exchange(tier: Tier | None = DOOR, ip: str = "203.0.113.42") -> Exchange:
    snapshot: Any = SimpleNamespace(unmatched_tier=tier)
    return Exchange(snapshot, ClientRequest("GET", b"/", [], {}, peer_ip=ip), 0.0, NOW_S)


STORES = [MemoryCounters, Later]


@pytest.mark.parametrize("store", STORES)
def test_unmatched_paths_count_against_the_address(store: Any) -> None:
    """A scanner gets its 404s up to the tier's limit, then 429, with headers on all of them."""
    world = World(store())
    asked = [exchange() for _ in range(3)]
    answers = [world.unmatched(ex) for ex in asked]
    assert answers[:2] == [None, None]
    assert (answers[2].status, answers[2].code, answers[2].retry_after_s) == (429, "rate_limit_exceeded", 48)
    assert [ex.rate_limited for ex in asked] == [False, False, True]
    assert [ex.verdict.remaining for ex in asked if ex.verdict] == [1, 0, 0]
    assert world.unmatched(exchange(ip="203.0.113.43")) is None, "another address"
    assert world.decisions == [("door", "allowed")] * 2 + [("door", "rejected"), ("door", "allowed")]


@pytest.mark.parametrize("store", STORES)
def test_an_ipv6_client_is_its_64(store: Any) -> None:
    world = World(store())
    answers = [world.unmatched(exchange(ip=f"2001:db8::{n}")) for n in range(1, 4)]
    assert answers[:2] == [None, None] and answers[2].status == 429


@pytest.mark.parametrize("store", STORES)
def test_others_who_count_get_the_refusal_itself(store: Any) -> None:
    """By whom, what the headers say, how long to wait; whoever asked decides what to answer."""
    limit = World(store()).limit
    answers = [settled(lambda: limit.take(exchange(), DOOR)) for _ in range(3)]
    assert answers[:2] == [None, None]
    assert isinstance(answers[2], Refusal)
    assert (answers[2].by.key, answers[2].wait_s) == ("rate:{door:ip:203.0.113.42}", 48)


@pytest.mark.parametrize("later", [False, True])
def test_while_the_store_is_down_the_worker_counts_for_itself(later: bool) -> None:
    """So guessing is slow then, too; it is counted as such, and without a tier nothing is."""
    world = World(Down(later))
    asked = [exchange() for _ in range(3)]
    answers = [world.unmatched(ex) for ex in asked]
    assert answers[:2] == [None, None]
    assert (answers[2].status, answers[2].retry_after_s) == (429, 48)
    assert [ex.verdict.remaining for ex in asked if ex.verdict] == [1, 0, 0]
    assert world.unmatched(exchange(ip="203.0.113.43")) is None, "another address"
    assert world.decisions == [("door", "fail_local")] * 2 + [("door", "rejected"), ("door", "fail_local")]
    assert world.unmatched(exchange(None)) is None
    assert len(world.decisions) == 4


def test_a_tier_in_shadow_mode_refuses_nobody() -> None:
    """Nor do headers speak of it."""
    world = World(MemoryCounters())
    asked = [exchange(WATCHED) for _ in range(4)]
    assert [world.unmatched(ex) for ex in asked] == [None] * 4
    assert world.shadowed == ["rate:{door:ip:203.0.113.42}"] * 4
    assert [ex.verdict for ex in asked] == [None] * 4 and world.decisions == []


class FarAway(Later):
    """A store that can be added to, as Redis."""

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0
        self.added: list[tuple[int, float]] = []

    def take(self, demands: Any, now_s: float) -> Any:
        self.asked += 1
        return super().take(demands, now_s)

    def add(self, demand: Demand, count: int, at_s: float) -> None:
        self.added.append((count, at_s))
        self._entry(demand.key, window_start(at_s, demand.window_s), demand.window_s)[2] += count


def test_far_from_its_limit_an_address_is_not_asked_for_each_time() -> None:
    """Of 1,000 requests a hundredth at a time goes unasked, all of them are counted, and the headers go on falling."""
    store = FarAway()
    world = World(store)
    tier = Tier("door", 1000, 60, "client_ip")
    asked = [exchange(tier) for _ in range(1100)]
    answers = [world.unmatched(ex) for ex in asked]
    assert answers[:1000] == [None] * 1000 and all(answer.status == 429 for answer in answers[1000:])
    assert store.asked < 250 and {count for count, _ in store.added} == {10}
    remaining = [ex.verdict.remaining for ex in asked[:1000] if ex.verdict is not None]
    assert remaining == list(range(999, -1, -1))
    assert world.decisions.count(("door", "allowed")) == 1000


class Failing(FarAway):
    """One that fails when the test says."""

    down = False

    def take(self, demands: Any, now_s: float) -> Any:
        if self.down:
            raise CounterStoreDown("no answer within 5 ms")
        return super().take(demands, now_s)


def test_what_the_worker_counted_for_itself_is_never_added_to_the_store() -> None:
    """Nor taken for what the store would allow: it is asked first when it is back."""
    store = Failing()
    world = World(store)
    tier = Tier("door", 1000, 60, "client_ip")
    store.down = True
    for _ in range(30):
        assert world.unmatched(exchange(tier)) is None
    store.down = False
    ex = exchange(tier)
    assert world.unmatched(ex) is None
    assert store.asked == 1 and store.added == []
    assert ex.verdict is not None and ex.verdict.remaining == 999


def test_a_small_limit_is_asked_for_every_time() -> None:
    store = FarAway()
    world = World(store)
    for _ in range(5):
        world.unmatched(exchange(DOOR))
    assert store.asked == 5 and store.added == []
