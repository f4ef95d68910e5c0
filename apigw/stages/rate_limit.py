"""Rate limits: the route's tier (an API key's own tier first) and the global tier, in one question to the store.

    the store says          fail mode   what happens                           decision counted
    allowed                             on, with X-RateLimit headers           allowed
    exhausted                           429 with Retry-After                   rejected
    nothing in time         open        on, without headers                    fail_open
                            closed      503 with Retry-After                   fail_closed
                            local       this worker's own counters decide      fail_local or rejected

One decision is counted a request, for the tier that refused it, else for its own tier. Tiers in shadow mode are
asked when the others have let the request through (stages/shadow_limit.py); no header speaks of them. The global tier
is asked for some requests only, where the store can be told of the others later (core/global_share.py).
"""

from collections.abc import Callable
from math import ceil
from typing import Any, NamedTuple

from apigw.constants import RETRY_AFTER_DEPENDENCY_S
from apigw.core.global_share import GlobalShares
from apigw.core.refusals import Key, Refusals
from apigw.core.tier_counters import TierCounters
from apigw.core.verdicts import ALLOWED, FAIL_CLOSED, FAIL_LOCAL, FAIL_OPEN, REJECTED, exceeded, nearest, refusal
from apigw.core.window import FINGERPRINT, Counted, Demand, key_prefix, window_start
from apigw.errors import CounterStoreDown, GatewayError, or_raised
from apigw.exchange import ANONYMOUS, Exchange, RateVerdict
from apigw.ports import CounterStore, DecisionCounter, WallClock

Demands = list[Demand]


class _Asked(NamedTuple):
    """One request: what the store is asked, the shadows to be asked after it, and the global tier.

    overall: the global tier's counter. left: of its limit, when the request was counted on this worker's share;
    None when it stands at the end of `demands` instead.
    """

    ex: Exchange
    demands: Demands
    shadows: Demands
    overall: Demand | None
    left: int | None
    now_s: float


class RateLimit:
    """Stage 8. The tiers are those of the exchange's own snapshot, so a reload changes nothing for its request.

    `local` decides for routes with fail mode local while `store` is down; `shadow` takes the demands of tiers in
    shadow mode; `shares` are the worker's, if `store` can settle them. A request that is refused never gets its part
    from the runner, so the stage itself sets `ex.verdict` before it raises: a 429 has the X-RateLimit headers too.
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
        shadow: Callable[[Exchange, Demands, float], None],
        shares: GlobalShares,
    ) -> None:
        self._refusals = refusals
        self._store = store
        self._local = local
        self._wall = wall
        self._on_decision = on_decision
        self._shadow = shadow
        self._shares = shares
        self._settle: Callable[[Demand, int, float], None] | None = getattr(store, "add", None)  # ports.SettlingStore
        self._counters = TierCounters()

    def enter(self, ex: Exchange) -> Any:
        """RateVerdict, None where no tier applies or the limiter failed open, or a Deferred of either.

        Raises GatewayError: 429 rate_limit_exceeded, 503 rate_limiter_unavailable.
        """
        asked = self._asked(ex, self._wall())
        if not asked.demands:
            return self._unasked(asked)
        try:
            counted = self._store.take(asked.demands, asked.now_s)
        except CounterStoreDown as down:
            return or_raised(self._by_fail_mode(down, asked))
        if isinstance(counted, Counted):
            return or_raised(self._judged(counted, asked))
        return counted.addCallbacks(self._judged, self._failed, callbackArgs=(asked,), errbackArgs=(asked,))

    def _asked(self, ex: Exchange, now_s: float) -> _Asked:
        snapshot = ex.snapshot
        principal = ex.principal or ANONYMOUS
        tier = snapshot.tiers.get(principal.tier) if principal.tier is not None else None
        if tier is None and ex.route is not None:
            tier = ex.route.tier
        demands: Demands = []
        shadows: Demands = []
        if tier is not None:
            counters = self._counters.of(tier)
            (shadows if counters.shadow else demands).append(counters.demand(ex, principal))
        overall = left = None
        if snapshot.global_tier is not None and snapshot.global_tier is not tier:
            counters = self._counters.of(snapshot.global_tier)
            demand = counters.demand(ex, principal)
            if counters.shadow:
                shadows.append(demand)
            elif self._settle is None or not counters.everybody:
                demands.append(demand)
            else:
                overall = demand
                left = self._shares.spend(demand, now_s)
                if left is None:
                    demands.append(demand)
                    spent, last_s = self._shares.settle(demand, now_s)
                    if spent:
                        self._settle(demand, spent, last_s)
        return _Asked(ex, demands, shadows, overall, left, now_s)

    def _unasked(self, asked: _Asked) -> RateVerdict | None:
        """Nothing to ask: no tier but shadows, or the global one alone and this worker's share."""
        if asked.shadows:
            self._shadow(asked.ex, asked.shadows, asked.now_s)
        if asked.overall is None or asked.left is None:
            return None
        self._on_decision(asked.overall.tier, ALLOWED)
        return _of_share(asked.overall, asked.left, asked.now_s)

    def _judged(self, counted: Counted, asked: _Asked) -> RateVerdict | GatewayError:
        """What the headers say, or the 429."""
        if asked.overall is not None and asked.left is None:
            previous, current, _ = counted.counts[-1]
            if counted.allowed or previous or current:  # else its node may have said nothing (adapters/redis_joint.py)
                self._shares.learn(asked.overall, counted.counts[-1], asked.now_s)
        return self._decided(counted, asked, ALLOWED)

    def _decided(self, counted: Counted, asked: _Asked, decision: str) -> RateVerdict | GatewayError:
        demands, now_s, left = asked.demands, asked.now_s, asked.left
        if not counted.allowed:
            self._take_back(asked)
            return self._refused(counted, asked.ex, demands, now_s)
        self._on_decision(demands[0].tier, decision)
        if asked.shadows:
            self._shadow(asked.ex, asked.shadows, now_s)
        verdict = nearest(counted, demands, now_s)
        if left is not None and left < verdict.remaining and asked.overall is not None:
            return _of_share(asked.overall, left, now_s)
        return verdict

    def _take_back(self, asked: _Asked) -> None:
        """A refused request is not counted."""
        if asked.overall is not None and asked.left is not None:
            self._shares.take_back(asked.overall)

    def _give_back(self, down: CounterStoreDown, asked: _Asked) -> None:
        """Likewise, where some counters of a cluster had it already when another did not answer."""
        if self._settle is not None:
            for index in down.counted:
                self._settle(asked.demands[index], -1, asked.now_s)

    def _refused(self, counted: Counted, ex: Exchange, demands: Demands, now_s: float) -> GatewayError:
        by, verdict, wait_s = refusal(counted, demands, now_s)
        self._on_decision(by.tier, REJECTED)
        ex.rate_limited = True
        ex.verdict = verdict
        key = caller(ex)
        if key is not None and not by.key.startswith(key_prefix(by.tier, FINGERPRINT)):
            self._refusals.remember(key, now_s, wait_s, by.window_s, by.tier, verdict, ex.principal)
        return exceeded(wait_s)

    def _failed(self, failure: Any, asked: _Asked) -> RateVerdict | GatewayError | None:
        failure.trap(CounterStoreDown)
        return self._by_fail_mode(failure.value, asked)

    def _by_fail_mode(self, down: CounterStoreDown, asked: _Asked) -> RateVerdict | GatewayError | None:
        """The route's fail mode decides. Tiers in shadow mode judge nothing meanwhile: they refuse nobody anyway."""
        route = asked.ex.route
        mode = route.fail_mode if route is not None else "open"
        if mode == "local":
            counted = self._local.take(asked.demands, asked.now_s)
            assert isinstance(counted, Counted)  # the worker's own memory never waits
            if not counted.allowed:
                self._give_back(down, asked)
            return self._decided(counted, asked._replace(shadows=[]), FAIL_LOCAL)
        if mode == "closed":
            self._take_back(asked)
            self._give_back(down, asked)
            self._on_decision(asked.demands[0].tier, FAIL_CLOSED)
            return GatewayError(
                "The rate limiter is unavailable.",
                status=503,
                code="rate_limiter_unavailable",
                retry_after_s=RETRY_AFTER_DEPENDENCY_S,
                detail=str(down),
            )
        self._on_decision(asked.demands[0].tier, FAIL_OPEN)
        return None


def _of_share(overall: Demand, left: int, now_s: float) -> RateVerdict:
    """What the headers say of the global tier when this worker counted the request itself."""
    return RateVerdict(overall.limit, max(0, left), window_start(now_s, overall.window_s) + overall.window_s)


def caller(ex: Exchange) -> Key | None:
    """Who asks, as far as it is known before authentication; None where the route has no tier."""
    route = ex.route
    if route is None or route.tier is None:
        return None
    fields = ex.request.fields
    return fields.get(b"authorization"), fields.get(b"x-api-key"), ex.client_ip, route.auth_type, route.tier.tier


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
            raise exceeded(max(1, ceil(standing.retry_at_s - now_s)))
