"""Guessing is slow and nobody else pays for it: real tokens, real counters, a source of API keys that is played."""

import gc
from types import SimpleNamespace
from typing import Any

import pytest
from twisted.internet.defer import Deferred, fail, succeed

from apigw.adapters.memory_counters import MemoryCounters
from apigw.config.model import JWTSection, Tier
from apigw.core.api_keys import InvalidAPIKey
from apigw.core.tokens import Keyring
from apigw.core.window import Counted
from apigw.errors import CounterStoreDown, GatewayError
from apigw.exchange import ClientRequest, Exchange, Principal
from apigw.stages.address_limit import AddressLimit
from apigw.stages.authentication import Authentication, AuthenticationUnavailable, MissingCredentials, token_policy
from apigw.stages.failed_authentication import FailedAuthentication
from tests.corpus import forge

EPOCH_S = 1_800_000_000
FORGE = forge.Forge(EPOCH_S)
RING = Keyring.from_jwks({"keys": FORGE.jwks()["keys"][:1]}, ("RS256",))
POLICY = token_policy(JWTSection(issuer=forge.ISSUER, audience=forge.AUDIENCE))
GOOD = b"Bearer " + FORGE.token({})
WRONG = GOOD[:-8] + b"AAAAAAAA"
EXPIRED = b"Bearer " + FORGE.token({"claims": {"exp": EPOCH_S - 100}})
DOOR = Tier("door", 3, 60, "client_ip")


class Ring:
    """A key source whose keys are in force."""

    def current(self) -> Keyring:
        return RING

    def refreshed(self) -> None:
        return None


class KeyRoute:
    """Stage 7 of a route with API keys: `good` are good, all others are wrong after a while. Counts its checks."""

    needs: frozenset[str] = frozenset()
    gives: str | None = "principal"

    def __init__(self, *good: bytes) -> None:
        self.good = good
        self.checked: list[bytes] = []

    def enter(self, ex: Exchange) -> Any:
        presented = ex.request.fields.get(b"x-api-key")
        if presented is None:
            raise MissingCredentials
        self.checked.append(presented)
        if presented in self.good:
            return succeed(Principal(partner_id="p"))
        ex.auth_failure = "key_wrong"
        return fail(InvalidAPIKey("key_wrong"))


class Later(MemoryCounters):
    """A store that answers with a Deferred."""

    def take(self, demands: Any, now_s: float) -> Any:
        return succeed(super().take(demands, now_s))


class Down:
    """A store that cannot answer, at once or later."""

    def __init__(self, later: bool) -> None:
        self.later = later

    def take(self, demands: Any, now_s: float) -> Any:
        if not self.later:
            raise CounterStoreDown("no answer within 5 ms")
        failed: Deferred[Counted] = fail(CounterStoreDown("no answer within 5 ms"))
        return failed


class World:
    def __init__(self, store: Any = None, inner: Any = None, known: frozenset[bytes] = frozenset()) -> None:
        self.now_s = float(EPOCH_S)
        self.asked = 0
        self.decisions: list[tuple[str, str]] = []
        self.limit = AddressLimit(store or MemoryCounters(), MemoryCounters(), self.wall, self.decide, lambda *_: None)
        inner = inner or Authentication(Ring(), POLICY, self.wall)
        self.stage = FailedAuthentication(inner, self.count, known.__contains__, self.wall, self.decide)

    def wall(self) -> float:
        return self.now_s

    def decide(self, tier: str, decision: str) -> None:
        self.decisions.append((tier, decision))

    def count(self, ex: Exchange, tier: Tier) -> Any:
        self.asked += 1
        return self.limit.take(ex, tier)

    def enter(self, ex: Exchange) -> Any:
        """The principal, or the GatewayError."""
        try:
            part = self.stage.enter(ex)
        except GatewayError as error:
            return error
        if isinstance(part, Deferred):
            results: list[Any] = []
            part.addCallbacks(results.append, lambda failure: results.append(failure.value))
            return results[0]
        return part

    def statuses(self, *credentials: bytes | None, **about: Any) -> list[int]:
        """Of requests with these credentials, 200 for those that went on."""
        return [getattr(self.enter(exchange(one, **about)), "status", 200) for one in credentials]


def exchange(
    credential: bytes | None, *, ip: str = "203.0.113.42", tier: Tier | None = DOOR, auth_type: str = "jwt"
) -> Exchange:
    header = b"authorization" if auth_type == "jwt" else b"x-api-key"
    fields = {} if credential is None else {header: credential}
    snapshot: Any = SimpleNamespace(failed_auth_tier=tier)
    ex = Exchange(snapshot, ClientRequest("GET", b"/", [], fields, peer_ip=ip), 0.0, EPOCH_S)
    route: Any = SimpleNamespace(route_id="r", auth_required=True, auth_type=auth_type, auth_grace_period=False)
    ex.route = route
    return ex


def test_it_stands_for_the_stage_that_it_guards() -> None:
    """Same name, same place in the chain."""
    stage = World().stage
    assert (stage.name, stage.needs, stage.gives) == (Authentication.name, Authentication.needs, Authentication.gives)


@pytest.mark.parametrize("store", [MemoryCounters, Later])
def test_after_some_wrong_credentials_the_answer_is_429(store: Any) -> None:
    """With Retry-After and headers, also on the 401s before it; the log keeps why the credential was refused."""
    world = World(store())
    asked = [exchange(WRONG) for _ in range(4)]
    answers = [world.enter(ex) for ex in asked]
    assert [(one.status, one.code) for one in answers[:3]] == [(401, "invalid_token")] * 3
    assert (answers[3].status, answers[3].code, answers[3].retry_after_s) == (429, "rate_limit_exceeded", 61)
    assert [ex.verdict.remaining for ex in asked if ex.verdict] == [2, 1, 0, 0]
    assert [ex.rate_limited for ex in asked] == [False] * 3 + [True]
    assert asked[3].auth_failure == "bad_signature" and "bad_signature" in answers[3].detail
    assert world.decisions == [("door", "allowed")] * 3 + [("door", "rejected")]


def test_a_good_token_from_the_same_address_passes_at_any_time() -> None:
    """And asks no counter, nor does one that was never seen before."""
    world = World()
    assert world.statuses(GOOD, WRONG, WRONG, WRONG, WRONG) == [200, 401, 401, 401, 429]
    asked = world.asked
    fresh = b"Bearer " + FORGE.token({"claims": {"sub": "bob"}})
    assert world.statuses(GOOD, fresh, GOOD) == [200, 200, 200]
    assert world.asked == asked


def test_an_exhausted_address_is_answered_from_memory_until_it_may_pass() -> None:
    """No question to the store in between, and a Retry-After that runs down; other addresses are not met."""
    world = World()
    world.statuses(*[WRONG] * 4)
    asked = world.asked
    world.now_s += 5.5
    error = world.enter(exchange(WRONG))
    assert (error.status, error.retry_after_s) == (429, 56)
    assert world.asked == asked
    assert world.statuses(WRONG, ip="203.0.113.43") == [401]
    world.now_s += 60.0
    assert world.statuses(WRONG) == [401]


def test_what_is_no_guess_is_not_counted() -> None:
    """No credential, and a token that the issuer signed but whose time is over: its client must learn it from a 401."""
    world = World()
    assert world.statuses(*[None] * 5, *[EXPIRED] * 5) == [401] * 10
    assert world.asked == 0
    world.statuses(*[WRONG] * 4)
    assert world.statuses(None, EXPIRED) == [401, 401], "from an exhausted address too"


def test_a_failure_that_is_not_the_clients_is_not_counted() -> None:
    """503 without keys says nothing about the credential."""

    class NoKeys(Ring):
        def current(self) -> Any:
            return None

    world = World(inner=Authentication(NoKeys(), POLICY, lambda: EPOCH_S))
    assert isinstance(world.enter(exchange(WRONG)), AuthenticationUnavailable)
    assert world.asked == 0


def test_without_a_tier_a_wrong_credential_is_401_for_ever() -> None:
    world = World()
    assert world.statuses(*[WRONG] * 6, tier=None) == [401] * 6
    assert world.asked == 0


@pytest.mark.parametrize("later", [False, True])
def test_while_the_counters_are_down_guessing_is_as_slow(later: bool) -> None:
    """The worker counts for itself. Never fail open on authentication itself; who is good is not refused."""
    world = World(Down(later))
    assert world.statuses(*[WRONG] * 6, GOOD) == [401] * 3 + [429] * 3 + [200]
    assert world.decisions == [("door", "fail_local")] * 3 + [("door", "rejected")] * 3


def test_an_exhausted_address_costs_no_more_checks_of_api_keys() -> None:
    """But for keys that are known as good, and for those of other addresses."""
    keys = KeyRoute(b"known", b"new")
    world = World(inner=keys, known=frozenset({b"known"}))
    key = {"auth_type": "api_key"}
    assert world.statuses(*[b"guess-%d" % n for n in range(5)], **key) == [401, 401, 401, 429, 429]
    assert keys.checked == [b"guess-0", b"guess-1", b"guess-2", b"guess-3"]
    assert world.statuses(b"known", None, **key) == [200, 401]
    assert world.statuses(b"new", **key) == [429], "not checked: it may be a guess"
    assert world.statuses(b"new", ip="203.0.113.43", **key) == [200]
    assert keys.checked[4:] == [b"known", b"new"]


def test_other_failures_go_through_as_they_are() -> None:
    """A defect is a 500 and a traceback, not a wrong credential."""

    class Broken(KeyRoute):
        def enter(self, ex: Exchange) -> Any:
            return fail(ZeroDivisionError())

    world = World(inner=Broken())
    assert isinstance(world.enter(exchange(b"k", auth_type="api_key")), ZeroDivisionError)
    assert world.asked == 0


def test_a_refusal_that_is_not_the_clients_leaves_no_cycle() -> None:
    """What a flood is turned away with is gone with its request, without the collector."""

    class Busy(KeyRoute):
        def enter(self, ex: Exchange) -> Any:
            return fail(AuthenticationUnavailable("key_unverifiable"))

    world = World(inner=Busy())
    gc.collect()
    gc.disable()
    try:
        assert world.statuses(b"k", auth_type="api_key") == [503]
        assert gc.collect() == 0
    finally:
        gc.enable()
