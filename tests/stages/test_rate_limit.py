"""What the limiter lets through, refuses, says about it, and does without its store."""

from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ClientEndpoint, connectProtocol

from apigw.adapters.memory_counters import MemoryCounters
from apigw.adapters.redis_counters import RedisCounters
from apigw.config.model import RedisSection, Tier
from apigw.core.global_share import GlobalShares
from apigw.core.refusals import Refusals
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown, GatewayError
from apigw.exchange import ANONYMOUS, ClientRequest, Exchange, Principal
from apigw.stages.rate_limit import RateLimit, StandingRefusal
from tests.servers import redis_server, until

NOW_S = 1_707_264_012.5
KEY_HASH = "ab" * 32
STANDARD = Tier("standard", 5, 60, "user_id")
PARTNER = Tier("third_party", 3, 60, "api_key")
LOGIN = Tier("login", 2, 60, "client_ip")
BOTS = Tier("fingerprinted", 2, 60, "fingerprint")
SAFETY = Tier("global_safety", 100, 60, "global")
ALICE = Principal(user_id="alice")


class Snapshot:
    """The part of a snapshot that the stage reads."""

    def __init__(self, *, global_tier: Tier | None = None) -> None:
        self.tiers = {tier.tier: tier for tier in (STANDARD, PARTNER, LOGIN, BOTS, SAFETY)}
        self.global_tier = global_tier


class Route:
    """The part of a route that the stage reads."""

    def __init__(self, tier: Tier | None, fail_mode: str = "open") -> None:
        self.tier = tier
        self.fail_mode = fail_mode
        self.auth_type = "jwt"


class Recording(MemoryCounters):
    """Memory that remembers what it was asked."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[list[Demand]] = []

    def take(self, demands: Any, now_s: float) -> Counted:
        self.asked.append(list(demands))
        return super().take(demands, now_s)

    @property
    def keys(self) -> list[str]:
        return [demand.key for demand in self.asked[-1]]


class Down:
    """A store that cannot answer, at once or later."""

    def __init__(self, later: bool) -> None:
        self.later = later

    def take(self, demands: Any, now_s: float) -> "Deferred[Counted]":
        if not self.later:
            raise CounterStoreDown("no answer within 5 ms")
        failed: Deferred[Counted] = Deferred()
        failed.errback(CounterStoreDown("no answer within 5 ms"))
        return failed


class Later(Recording):
    """A store that answers with a Deferred."""

    def take(self, demands: Any, now_s: float) -> Any:
        answer: Deferred[Counted] = Deferred()
        answer.callback(super().take(demands, now_s))
        return answer


class World:
    def __init__(self, store: Any = None) -> None:
        self.store = store if store is not None else Recording()
        self.decisions: list[tuple[str, str]] = []
        self.now_s = NOW_S
        refusals = Refusals()
        self.shadowed: list[str] = []
        self.stage = RateLimit(
            self.store, MemoryCounters(), lambda: NOW_S, self.decide, refusals, self.shadow, GlobalShares()
        )
        self.standing = StandingRefusal(refusals, lambda: self.now_s, self.decide)

    def decide(self, tier: str, decision: str) -> None:
        self.decisions.append((tier, decision))

    def shadow(self, ex: Exchange, demands: list[Demand], now_s: float) -> None:
        self.shadowed += [demand.key for demand in demands]

    def enter(self, ex: Exchange) -> Any:
        """The part, or the GatewayError."""
        return settled(lambda: self.stage.enter(ex))


def settled(call: Any) -> Any:
    try:
        part = call()
    except GatewayError as error:
        return error
    if isinstance(part, Deferred):
        results: list[Any] = []
        part.addCallbacks(results.append, lambda failure: results.append(failure.value))
        return results[0]
    return part


def exchange(
    tier: Tier | None = STANDARD,
    principal: Principal = ALICE,
    *,
    ip: str = "203.0.113.42",
    fail_mode: str = "open",
    global_tier: Tier | None = None,
    agent: bytes = b"curl",
) -> Exchange:
    headers = [(b"Host", b"host", b"x"), (b"User-Agent", b"user-agent", agent)]
    request = ClientRequest("GET", b"/", headers, {b"host": b"x", b"user-agent": agent}, peer_ip=ip)
    snapshot: Any = Snapshot(global_tier=global_tier)
    ex = Exchange(snapshot, request, 0.0, NOW_S)
    route: Any = Route(tier, fail_mode)
    ex.route, ex.principal = route, principal
    return ex


@pytest.mark.parametrize("store", [Recording, Later])
def test_a_user_gets_its_limit_and_then_429(store: Any) -> None:
    """With headers on both, and the advice to come back when a request passes again; at once or by Deferred alike."""
    world = World(store())
    verdicts = [world.enter(exchange()) for _ in range(5)]
    assert [verdict.remaining for verdict in verdicts] == [4, 3, 2, 1, 0]
    assert verdicts[0].header_lines == (
        b"X-RateLimit-Limit: 5\r\nX-RateLimit-Remaining: 4\r\nX-RateLimit-Reset: 1707264060\r\n"
    )
    ex = exchange()
    error = world.enter(ex)
    assert (error.status, error.code, error.retry_after_s) == (429, "rate_limit_exceeded", 48)
    assert error.extra == {"retry_after": 48}
    assert ex.rate_limited
    assert ex.verdict is not None and (ex.verdict.limit, ex.verdict.remaining) == (5, 0)
    assert world.decisions == [("standard", "allowed")] * 5 + [("standard", "rejected")]


def test_without_a_tier_the_store_is_not_asked() -> None:
    """Neither tier: no verdict, no headers, no decision."""
    world = World()
    assert world.enter(exchange(None)) is None
    assert world.store.asked == [] and world.decisions == []


@pytest.mark.parametrize(
    ("tier", "principal", "ip", "key"),
    [
        (STANDARD, ALICE, "203.0.113.42", "rate:{standard:user:alice}"),
        (STANDARD, Principal(user_id="a:{b}\r\n"), "1.1.1.1", "rate:{standard:user:sha256-"),
        (STANDARD, ANONYMOUS, "203.0.113.42", "rate:{standard:ip:203.0.113.42}"),
        (STANDARD, ANONYMOUS, "2001:db8:0:7::1", "rate:{standard:ip:2001-db8-0-7}"),
        (STANDARD, Principal(partner_id="p", key_hash=KEY_HASH), "1.1.1.1", f"rate:{{standard:apikey:{KEY_HASH}}}"),
        (PARTNER, Principal(partner_id="p", key_hash=KEY_HASH), "1.1.1.1", f"rate:{{third_party:apikey:{KEY_HASH}}}"),
        (PARTNER, ALICE, "1.1.1.1", "rate:{third_party:user:alice}"),
        (PARTNER, ANONYMOUS, "1.1.1.1", "rate:{third_party:ip:1.1.1.1}"),
        (LOGIN, ALICE, "203.0.113.42", "rate:{login:ip:203.0.113.42}"),
        (LOGIN, ALICE, "", "rate:{login:ip:unknown}"),
        (BOTS, ALICE, "1.1.1.1", "rate:{fingerprinted:fingerprint:"),
        (SAFETY, ALICE, "1.1.1.1", "rate:{global_safety:global:all}"),
    ],
)
def test_whose_counter_it_is(tier: Tier, principal: Principal, ip: str, key: str) -> None:
    """By the tier's `per`; a caller that has no such identity counts as what it is known by, else by its address."""
    world = World()
    world.enter(exchange(tier, principal, ip=ip))
    assert world.store.keys[0].startswith(key)
    assert world.store.keys[0].count("{") == world.store.keys[0].count("}") == 1
    assert world.store.keys[0].endswith("}")


def test_an_api_keys_own_tier_comes_before_the_routes() -> None:
    """And one that the configuration does not know changes nothing."""
    world = World()
    world.enter(exchange(STANDARD, Principal(partner_id="p", tier="third_party", key_hash=KEY_HASH)))
    assert world.store.asked[-1][0].tier == "third_party"
    world.enter(exchange(STANDARD, Principal(partner_id="p", tier="gone", key_hash=KEY_HASH)))
    assert world.store.asked[-1][0].tier == "standard"
    world.enter(exchange(None, Principal(partner_id="p", tier="third_party", key_hash=KEY_HASH)))
    assert world.store.asked[-1][0].tier == "third_party"


def test_the_global_tier_is_asked_in_the_same_question() -> None:
    """One take() for both; the headers speak of the one nearest to refusing."""
    world = World()
    verdict = world.enter(exchange(global_tier=SAFETY))
    assert world.store.keys == ["rate:{standard:user:alice}", "rate:{global_safety:global:all}"]
    assert (verdict.limit, verdict.remaining) == (5, 4)
    narrow = Tier("global_safety", 3, 60, "global")
    verdict = world.enter(exchange(global_tier=narrow))
    assert (verdict.limit, verdict.remaining) == (3, 1)


def test_the_tier_that_refuses_is_the_one_that_is_told_and_counted() -> None:
    """When the global limit is exhausted, users who have requests left get 429 with the global limit's numbers."""
    world = World()
    narrow = Tier("global_safety", 1, 60, "global")
    world.enter(exchange(global_tier=narrow))
    ex = exchange(principal=Principal(user_id="bob"), global_tier=narrow)
    assert world.enter(ex).status == 429
    assert ex.verdict is not None and ex.verdict.limit == 1
    assert world.decisions == [("standard", "allowed"), ("global_safety", "rejected")]
    assert world.enter(exchange(None, global_tier=narrow)).status == 429


def test_a_reload_changes_the_limit_and_resets_no_counter() -> None:
    """The next exchange brings the new tier; its counter goes on."""
    world = World()
    for _ in range(3):
        world.enter(exchange())
    assert world.enter(exchange(Tier("standard", 3, 60, "user_id"))).status == 429
    assert world.enter(exchange(Tier("standard", 10, 60, "user_id"))).remaining == 6


@pytest.mark.parametrize("later", [False, True])
def test_fail_mode_open_lets_through_without_headers(later: bool) -> None:
    """Whether the store says so at once or by its Deferred."""
    world = World(Down(later))
    ex = exchange(fail_mode="open")
    assert world.enter(ex) is None
    assert world.decisions == [("standard", "fail_open")]
    assert not ex.rate_limited


@pytest.mark.parametrize("later", [False, True])
def test_fail_mode_closed_is_503_with_retry_after(later: bool) -> None:
    """The reason goes to the log, not to the client."""
    world = World(Down(later))
    error = world.enter(exchange(fail_mode="closed"))
    assert (error.status, error.code) == (503, "rate_limiter_unavailable")
    assert error.retry_after_s == 5
    assert "ms" not in error.message and error.detail == "no answer within 5 ms"
    assert world.decisions == [("standard", "fail_closed")]


@pytest.mark.parametrize("later", [False, True])
def test_fail_mode_local_counts_in_this_worker(later: bool) -> None:
    """The limit holds for each worker, with headers and 429."""
    world = World(Down(later))
    verdicts = [world.enter(exchange(LOGIN, fail_mode="local")) for _ in range(3)]
    assert [verdicts[0].remaining, verdicts[1].remaining] == [1, 0]
    assert verdicts[2].status == 429
    assert world.decisions == [("login", "fail_local"), ("login", "fail_local"), ("login", "rejected")]


class Settling(Recording):
    """A store that can be told later, as Redis can."""

    def __init__(self) -> None:
        super().__init__()
        self.added: list[tuple[str, int]] = []

    def add(self, demand: Demand, count: int, at_s: float) -> None:
        self.added.append((demand.tier, count))
        self._entries[demand.key][2] += count


class HalfDown(Settling):
    """A cluster: the first counter has the request, the other's node does not answer."""

    def take(self, demands: Any, now_s: float) -> Any:
        super().take(demands[:1], now_s)
        failed: Deferred[Counted] = Deferred()
        failed.errback(CounterStoreDown("no answer within 5 ms", (0,)))
        return failed


@pytest.mark.parametrize(("mode", "added"), [("open", []), ("closed", [("login", -1)] * 3), ("local", [("login", -1)])])
def test_what_a_part_of_a_cluster_counted_is_given_back_where_the_request_does_not_go_on(mode: str, added: Any) -> None:
    """Let through, it stays counted: the tier whose node answers goes on to be enforced."""
    world = World(HalfDown())
    for _ in range(3):
        world.enter(exchange(LOGIN, fail_mode=mode, global_tier=Tier("all", 100, 60, "global")))
    assert world.store.added == added


def test_nothing_is_learned_of_a_global_counter_that_said_nothing() -> None:
    """Its node is down while the own tier refuses: the worker's share stays what it was."""

    class Refusing(Settling):
        def take(self, demands: Any, now_s: float) -> Counted:
            self.asked.append(list(demands))
            return Counted(False, [(0, 5, 0), (0, 0, 0)])

    world = World(Refusing())
    for _ in range(3):
        assert world.enter(exchange(global_tier=WIDE)).status == 429
    assert [len(asked) for asked in world.store.asked] == [2, 2, 2]


WIDE = Tier("all", 8000, 60, "global")  # a worker's share is 20


def test_the_global_tier_is_asked_once_in_a_while_where_the_store_can_be_told_later() -> None:
    """Every request still counts, and the headers still know of it."""
    world = World(Settling())
    many = Tier("many", 100_000, 60, "user_id")
    verdicts = [world.enter(exchange(many, global_tier=WIDE)) for _ in range(43)]
    assert [len(asked) for asked in world.store.asked] == [2] + [1] * 20 + [2] + [1] * 20 + [2]
    assert world.store.added == [("all", 20)] * 2
    assert [verdict.remaining for verdict in verdicts] == [*range(7999, 7956, -1)]
    assert {(verdict.limit, verdict.reset_epoch_s) for verdict in verdicts} == {(8000, 1_707_264_060)}


def test_a_request_with_the_global_tier_alone_needs_no_store_while_the_share_lasts() -> None:
    world = World(Settling())
    verdicts = [world.enter(exchange(None, global_tier=WIDE)) for _ in range(21)]
    assert len(world.store.asked) == 1
    assert verdicts[-1].remaining == 7979
    assert world.decisions == [("all", "allowed")] * 21


def test_what_the_own_tier_refuses_is_not_counted_globally_either() -> None:
    world = World(Settling())
    for _ in range(15):
        world.enter(exchange(global_tier=WIDE))  # five of them pass
    many = Tier("many", 10**6, 60, "user_id")
    left = world.enter(exchange(many, Principal(user_id="bob"), global_tier=WIDE))
    assert (left.limit, left.remaining) == (8000, 7994)


@pytest.mark.parametrize("per", ["client_ip", "fingerprint"])
def test_a_global_tier_that_does_not_count_everybody_is_asked_each_time(per: str) -> None:
    world = World(Settling())
    for _ in range(3):
        world.enter(exchange(None, global_tier=Tier("all", 8000, 60, per)))
    assert len(world.store.asked) == 3


@pytest.mark.parametrize("store", [Recording, Later])
def test_a_tier_in_shadow_mode_is_not_asked_with_the_others(store: Any) -> None:
    """It stands for itself: no header speaks of it, and it cannot refuse."""
    world = World(store())
    shadow = Tier("standard", 1, 60, "user_id", mode="shadow")
    verdict = world.enter(exchange(shadow, global_tier=SAFETY))
    assert world.store.keys == ["rate:{global_safety:global:all}"] and verdict.limit == 100
    assert world.shadowed == ["rate:{standard:user:alice}"]
    assert world.decisions == [("global_safety", "allowed")]


def test_where_all_tiers_are_shadows_there_is_no_verdict() -> None:
    """No header, no decision, and the store is asked by the shadow alone."""
    world = World()
    shadows = Tier("standard", 1, 60, "user_id", mode="shadow"), Tier("all", 1, 60, "global", mode="shadow")
    assert world.enter(exchange(shadows[0], global_tier=shadows[1])) is None
    assert world.shadowed == ["rate:{standard:user:alice}", "rate:{all:global:all}"]
    assert world.store.asked == [] and world.decisions == []


def test_what_an_enforced_tier_refuses_is_not_counted_on_a_shadow() -> None:
    """As if the shadow were enforced: a refused request is counted on none."""
    world = World()
    shadow = Tier("all", 100, 60, "global", mode="shadow")
    for _ in range(8):
        world.enter(exchange(global_tier=shadow))
    assert len(world.shadowed) == 5


@pytest.mark.parametrize("mode", ["open", "local"])
def test_a_shadow_judges_nothing_while_the_store_is_down(mode: str) -> None:
    world = World(Down(later=True))
    world.enter(exchange(fail_mode=mode, global_tier=Tier("all", 1, 60, "global", mode="shadow")))
    assert world.shadowed == []


def test_other_failures_are_not_taken_for_a_store_that_is_down() -> None:
    """A defect is a 500 and a traceback, not an open limiter."""

    class Broken:
        def take(self, demands: Any, now_s: float) -> Any:
            failed: Deferred[Counted] = Deferred()
            failed.errback(ZeroDivisionError())
            return failed

    world = World(Broken())
    assert isinstance(world.enter(exchange()), ZeroDivisionError)
    assert world.decisions == []


@pytest_twisted.ensureDeferred
async def test_four_gateways_on_one_redis_hold_the_global_tier_within_five_percent() -> None:
    """Each with its share; twice the limit is asked, in turns of twenty as under load."""
    loop: Any = reactor
    limit, passed = 4000, 0
    with redis_server() as server:
        sections = RedisSection(server.url, timeout_s=1.0)
        stores = [
            RedisCounters(
                lambda link: connectProtocol(TCP4ClientEndpoint(loop, "127.0.0.1", server.port), link),
                loop,
                lambda call: loop.callLater(0, call),
                sections,
            )
            for _ in range(4)
        ]
        for store in stores:
            store.startService()
        await until(lambda: all(store.up for store in stores), loop)
        worlds = [World(store) for store in stores]
        wide = Tier("all", limit, 3600, "global")
        for turn in range(2 * limit // 80):
            pending = []
            for world in worlds:
                for number in range(20):
                    who = Principal(user_id=f"user-{turn}-{number}")
                    pending.append(maybeDeferred(world.stage.enter, exchange(principal=who, global_tier=wide)))
            answers = await gatherResults([one.addErrback(lambda failure: failure.value) for one in pending])
            passed += sum(not isinstance(answer, GatewayError) for answer in answers)
        asked = server.command("GET", f"rate:{{all:global:all}}:{int(NOW_S) // 3600 * 3600}")
        for store in stores:
            store.stopService()
    assert limit <= passed <= 1.05 * limit, (passed, asked)


def refused(world: World, **about: Any) -> Exchange:
    """An exchange like those that exhausted the tier, on its way to authentication."""
    ex = exchange(**about)
    ex.principal = None
    return ex


def test_who_was_just_refused_is_refused_again_without_token_or_store() -> None:
    """With the same headers, logged for the same user, and a Retry-After that runs down."""
    world = World()
    for _ in range(6):
        first = world.enter(exchange())
    asked = len(world.store.asked)
    again = refused(world)
    world.now_s += 0.5
    error = settled(lambda: world.standing.enter(again))
    assert (error.status, error.retry_after_s) == (429, first.retry_after_s)
    assert again.principal is ALICE and again.rate_limited and again.verdict is not None
    assert world.decisions[-1] == ("standard", "rejected")
    assert len(world.store.asked) == asked


def test_a_refusal_stands_for_less_than_a_second() -> None:
    """Below the shortest Retry-After: whoever obeys it never meets it."""
    world = World()
    for _ in range(6):
        world.enter(exchange())
    world.now_s += 0.95
    assert settled(lambda: world.standing.enter(refused(world))) is None


def test_a_refusal_meets_nobody_else() -> None:
    """Not another address, token, API key or tier; and not one who was never refused."""
    world = World()
    assert settled(lambda: world.standing.enter(refused(world))) is None
    for _ in range(6):
        world.enter(exchange())
    world.now_s += 0.1
    other_token, other_key = refused(world), refused(world)
    other_token.request.fields[b"authorization"] = b"Bearer other"
    other_key.request.fields[b"x-api-key"] = b"pk_live_other"
    for ex in (refused(world, ip="203.0.113.43"), refused(world, tier=LOGIN), other_token, other_key):
        assert settled(lambda ex=ex: world.standing.enter(ex)) is None  # type: ignore[misc]


def test_a_refusal_of_an_identity_that_another_route_does_not_ask_for_does_not_stand_there() -> None:
    """The same headers were anonymous on a public route and are a user here, whose limit is another."""
    world = World()
    for _ in range(6):
        public = exchange(principal=ANONYMOUS)
        public.route.auth_type = "none"  # type: ignore[union-attr,misc]
        world.enter(public)
    assert public.rate_limited
    world.now_s += 0.1
    assert settled(lambda: world.standing.enter(refused(world))) is None


def test_a_refused_fingerprint_stands_for_nobody_else_behind_its_address() -> None:
    world = World()
    for _ in range(3):
        bot = exchange(BOTS, agent=b"bot")
        world.enter(bot)
    assert bot.rate_limited
    world.now_s += 0.1
    browser = exchange(BOTS, agent=b"Mozilla/5.0")
    assert settled(lambda: world.standing.enter(browser)) is None
    assert world.enter(browser).remaining == 1


def test_a_clock_set_back_ends_a_refusal() -> None:
    world = World()
    for _ in range(6):
        world.enter(exchange())
    world.now_s -= 3600
    assert settled(lambda: world.standing.enter(refused(world))) is None
