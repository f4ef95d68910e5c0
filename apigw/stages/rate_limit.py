"""Rate limits: the route's tier (an API key's own tier first) and the global tier, in one question to the store.

    the store says          fail mode   what happens                           decision counted
    allowed                             on, with X-RateLimit headers           allowed
    exhausted                           429 with Retry-After                   rejected
    nothing in time         open        on, without headers                    fail_open
                            closed      503 with Retry-After                   fail_closed
                            local       this worker's own counters decide      fail_local or rejected

One decision is counted a request, for the tier that refused it, else for its own tier.
"""

from collections.abc import Callable, Sequence
from hashlib import sha256
from math import ceil
from typing import Any, Final

from apigw.config.model import Tier
from apigw.constants import RETRY_AFTER_DEPENDENCY_S
from apigw.core.client_address import counting_address
from apigw.core.refusals import Key, Refusals
from apigw.core.window import (
    API_KEY,
    FINGERPRINT,
    GLOBAL,
    IP,
    USER,
    Counted,
    Demand,
    Judgement,
    judge,
    key_prefix,
    safe_identifier,
)
from apigw.errors import CounterStoreDown, GatewayError
from apigw.exchange import ANONYMOUS, ClientRequest, Exchange, Principal, RateVerdict
from apigw.ports import CounterStore, WallClock

ALLOWED: Final = "allowed"
REJECTED: Final = "rejected"
FAIL_OPEN: Final = "fail_open"
FAIL_CLOSED: Final = "fail_closed"
FAIL_LOCAL: Final = "fail_local"

DecisionCounter = Callable[[str, str], None]  # (tier, decision): rate_limit_decisions_total


class _Counters:
    """The counters of one tier: its key prefixes, prepared once."""

    __slots__ = ("tier", "_name", "_limit", "_window_s", "_per", "_user", "_api_key", "_ip", "_fingerprint", "_all")

    def __init__(self, tier: Tier) -> None:
        self.tier = tier
        self._name = tier.tier
        self._limit = tier.limit
        self._window_s = tier.window_s
        self._per = tier.per
        self._user = key_prefix(tier.tier, USER)
        self._api_key = key_prefix(tier.tier, API_KEY)
        self._ip = key_prefix(tier.tier, IP)
        self._fingerprint = key_prefix(tier.tier, FINGERPRINT)
        self._all = Demand(tier.tier, key_prefix(tier.tier, GLOBAL) + "all}", tier.limit, tier.window_s)

    def demand(self, ex: Exchange, principal: Principal) -> Demand:
        """The counter of this request. See Note [Whose counter]."""
        per = self._per
        if per == "global":
            return self._all
        if per == "fingerprint":
            key = f"{self._fingerprint}{fingerprint(ex.request)}}}"
        elif per == "client_ip" or (principal.user_id is None and principal.key_hash is None):
            return self.of_address(ex.client_ip)
        elif principal.user_id is not None and (per == "user_id" or principal.key_hash is None):
            key = f"{self._user}{safe_identifier(principal.user_id)}}}"
        else:
            key = f"{self._api_key}{safe_identifier(principal.key_hash or '')}}}"
        return Demand(self._name, key, self._limit, self._window_s)

    def of_address(self, client_ip: str) -> Demand:
        """The counter of this address."""
        address = safe_identifier(counting_address(client_ip))
        return Demand(self._name, f"{self._ip}{address}}}", self._limit, self._window_s)


# Note [Whose counter]
#   A tier counts per user, API key, address, fingerprint or everybody. A tier per user asked of an API key's
#   request counts the key, and the other way round: the caller is known, only otherwise than the tier thought.
#   A caller without either (a route without authentication, a grace period) counts by its address.


def fingerprint(request: ClientRequest) -> str:
    """What a program looks like wherever it calls from: its header names in order, and what it says of itself.

    For bots spread over many addresses (design part 14, "User-Agent + behavior pattern"), so no address is in it.
    """
    fields = request.fields
    said = [fields.get(name, b"") for name in (b"user-agent", b"accept", b"accept-language", b"accept-encoding")]
    names = [lower for _, lower, _ in request.headers]
    return sha256(b"\n".join(said) + b"\n\n" + b"\n".join(names)).hexdigest()[:32]


class _TierCounters:
    """_Counters by tier, made when a tier is first seen and again when a reload changed it."""

    def __init__(self) -> None:
        self._by_name: dict[str, _Counters] = {}

    def of(self, tier: Tier) -> _Counters:
        counters = self._by_name.get(tier.tier)
        if counters is None or counters.tier is not tier:
            counters = self._by_name[tier.tier] = _Counters(tier)
        return counters


class RateLimit:
    """Stage 8. The tiers are those of the exchange's own snapshot, so a reload changes nothing for its request.

    `local` decides for routes with fail mode local while `store` is down. A request that is refused never gets
    its part from the runner, so the stage itself sets `ex.verdict` before it raises: a 429 has the X-RateLimit
    headers too.
    """

    name = "rate_limit"
    needs = frozenset({"identity", "route", "principal"})
    gives = "verdict"

    def __init__(
        self,
        store: CounterStore,
        local: CounterStore,
        wall: WallClock,
        on_decision: DecisionCounter,
        refusals: Refusals,
    ) -> None:
        self._refusals = refusals
        self._store = store
        self._local = local
        self._wall = wall
        self._on_decision = on_decision
        self._counters = _TierCounters()

    def enter(self, ex: Exchange) -> Any:
        """RateVerdict, None where no tier applies or the limiter failed open, or a Deferred of either.

        Raises GatewayError: 429 rate_limit_exceeded, 503 rate_limiter_unavailable.
        """
        demands = self._demands(ex)
        if not demands:
            return None
        now_s = self._wall()
        try:
            counted = self._store.take(demands, now_s)
        except CounterStoreDown as down:
            return self._store_down(down, ex, demands, now_s)
        if isinstance(counted, Counted):
            return self._judged(counted, ex, demands, now_s)
        asked = (ex, demands, now_s)
        return counted.addCallbacks(self._judged, self._failed, callbackArgs=asked, errbackArgs=asked)

    def _demands(self, ex: Exchange) -> list[Demand]:
        snapshot = ex.snapshot
        principal = ex.principal or ANONYMOUS
        tier = snapshot.tiers.get(principal.tier) if principal.tier is not None else None
        if tier is None and ex.route is not None:
            tier = ex.route.tier
        demands = [] if tier is None else [self._counters.of(tier).demand(ex, principal)]
        if snapshot.global_tier is not None and snapshot.global_tier is not tier:
            demands.append(self._counters.of(snapshot.global_tier).demand(ex, principal))
        return demands

    def _judged(
        self, counted: Counted, ex: Exchange, demands: list[Demand], now_s: float, decision: str = ALLOWED
    ) -> RateVerdict:
        if not counted.allowed:
            refusal, by = _refusal(counted, ex, demands, now_s, self._on_decision)
            self._remember(ex, by, now_s, refusal.retry_after_s or 1)
            raise refusal
        self._on_decision(demands[0].tier, decision)
        return _nearest(counted, demands, now_s)

    def _remember(self, ex: Exchange, by: Demand, now_s: float, wait_s: int) -> None:
        key = caller(ex)
        if key is not None and ex.verdict is not None:
            self._refusals.remember(key, now_s, wait_s, by.window_s, by.tier, ex.verdict, ex.principal)

    def _failed(self, failure: Any, ex: Exchange, demands: list[Demand], now_s: float) -> RateVerdict | None:
        failure.trap(CounterStoreDown)
        return self._store_down(failure.value, ex, demands, now_s)

    def _store_down(
        self, down: CounterStoreDown, ex: Exchange, demands: list[Demand], now_s: float
    ) -> RateVerdict | None:
        """The route's fail mode decides."""
        mode = ex.route.fail_mode if ex.route is not None else "open"
        if mode == "local":
            counted = self._local.take(demands, now_s)
            assert isinstance(counted, Counted)  # the worker's own memory never waits
            return self._judged(counted, ex, demands, now_s, FAIL_LOCAL)
        if mode == "closed":
            self._on_decision(demands[0].tier, FAIL_CLOSED)
            raise GatewayError(
                "The rate limiter is unavailable.",
                status=503,
                code="rate_limiter_unavailable",
                retry_after_s=RETRY_AFTER_DEPENDENCY_S,
                detail=str(down),
            )
        self._on_decision(demands[0].tier, FAIL_OPEN)
        return None


class UnmatchedLimit:
    """Paths that match no route count against the client's address: a scanner meets its limit as well.

    Fails open always: what it guards is the answer 404.
    """

    def __init__(self, store: CounterStore, wall: WallClock, on_decision: DecisionCounter) -> None:
        self._store = store
        self._wall = wall
        self._on_decision = on_decision
        self._counters = _TierCounters()

    def take(self, ex: Exchange) -> Any:
        """None at once, or a Deferred of None. Sets ex.verdict. Raises (or fails with) GatewayError 429."""
        tier = ex.snapshot.unmatched_tier
        if tier is None:
            return None
        demands = [self._counters.of(tier).of_address(ex.client_ip)]
        now_s = self._wall()
        try:
            counted = self._store.take(demands, now_s)
        except CounterStoreDown:
            return self._on_decision(tier.tier, FAIL_OPEN)
        if isinstance(counted, Counted):
            return self._judged(counted, ex, demands, now_s)
        asked = (ex, demands, now_s)
        return counted.addCallbacks(self._judged, self._failed, callbackArgs=asked, errbackArgs=(tier.tier,))

    def _judged(self, counted: Counted, ex: Exchange, demands: list[Demand], now_s: float) -> None:
        if not counted.allowed:
            raise _refusal(counted, ex, demands, now_s, self._on_decision)[0]
        self._on_decision(demands[0].tier, ALLOWED)
        ex.verdict = _nearest(counted, demands, now_s)

    def _failed(self, failure: Any, tier: str) -> None:
        failure.trap(CounterStoreDown)
        self._on_decision(tier, FAIL_OPEN)


def _nearest(counted: Counted, demands: Sequence[Demand], now_s: float) -> RateVerdict:
    """The verdict of the limit nearest to refusing."""
    limit, remaining, reset_epoch_s, _ = judge(demands[0], *counted.counts[0], now_s)
    for position in range(1, len(demands)):
        other = judge(demands[position], *counted.counts[position], now_s)
        if other.remaining < remaining:
            limit, remaining, reset_epoch_s, _ = other
    return RateVerdict(limit, remaining, reset_epoch_s)


def _refusal(
    counted: Counted, ex: Exchange, demands: Sequence[Demand], now_s: float, on_decision: DecisionCounter
) -> tuple[GatewayError, Demand]:
    """429 by the limit that keeps the client waiting longest; ex gets what the log and the headers say of it."""
    judgements = [judge(demand, *counts, now_s) for demand, counts in zip(demands, counted.counts, strict=True)]
    worst: Judgement = max(judgements, key=lambda judgement: judgement.retry_after_s)
    wait_s = max(1, worst.retry_after_s)
    by = demands[judgements.index(worst)]
    on_decision(by.tier, REJECTED)
    ex.rate_limited = True
    ex.verdict = RateVerdict(worst.limit, worst.remaining, worst.reset_epoch_s)
    return _exceeded(wait_s), by


def _exceeded(wait_s: int) -> GatewayError:
    return GatewayError(
        "The rate limit is exceeded; try again later.",
        status=429,
        code="rate_limit_exceeded",
        retry_after_s=wait_s,
        extra={"retry_after": wait_s},
    )


def caller(ex: Exchange) -> Key | None:
    """Who asks, as far as it is known before authentication; None where the route has no tier."""
    route = ex.route
    if route is None or route.tier is None:
        return None
    fields = ex.request.fields
    return fields.get(b"authorization"), fields.get(b"x-api-key"), ex.client_ip, route.tier.tier


class StandingRefusal:
    """Before authentication: says 429 again to a caller who was just told so. See Note [Standing refusals]."""

    name = "standing_refusal"
    needs = frozenset({"identity", "route"})
    gives = None

    def __init__(self, refusals: Refusals, wall: WallClock, on_decision: DecisionCounter) -> None:
        self._refusals = refusals
        self._wall = wall
        self._on_decision = on_decision

    def enter(self, ex: Exchange) -> None:
        """Raises GatewayError 429. Sets what the refused exchange shows in log and headers."""
        if not self._refusals.any:
            return
        key = caller(ex)
        if key is None:
            return
        now_s = self._wall()
        standing = self._refusals.of(key, now_s)
        if standing is not None:
            self._on_decision(standing.tier, REJECTED)
            ex.rate_limited = True
            ex.verdict = standing.verdict
            ex.principal = standing.principal
            raise _exceeded(max(1, ceil(standing.retry_at_s - now_s)))
