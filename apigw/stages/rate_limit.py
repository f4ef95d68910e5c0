"""Rate limits: the route's tier (an API key's own tier first) and the global tier, in one question to the store.

    the store says          fail mode   what happens                           decision counted
    allowed                             on, with X-RateLimit headers           allowed
    exhausted                           429 with Retry-After                   rejected
    nothing in time         open        on, without headers                    fail_open
                            closed      503 with Retry-After                   fail_closed
                            local       this worker's own counters decide      fail_local or rejected

One decision is counted a request, for the tier that refused it, else for its own tier. Tiers in shadow mode are
asked when the others have let the request through (stages/shadow_limit.py); no header speaks of them.
"""

from collections.abc import Callable
from math import ceil
from typing import Any

from apigw.constants import RETRY_AFTER_DEPENDENCY_S
from apigw.core.refusals import Key, Refusals
from apigw.core.tier_counters import TierCounters
from apigw.core.verdicts import ALLOWED, FAIL_CLOSED, FAIL_LOCAL, FAIL_OPEN, REJECTED, exceeded, nearest, refusal
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown, GatewayError
from apigw.exchange import ANONYMOUS, Exchange, RateVerdict
from apigw.ports import CounterStore, DecisionCounter, WallClock

Demands = list[Demand]


class RateLimit:
    """Stage 8. The tiers are those of the exchange's own snapshot, so a reload changes nothing for its request.

    `local` decides for routes with fail mode local while `store` is down; `shadow` takes the demands of tiers in
    shadow mode. A request that is refused never gets its part from the runner, so the stage itself sets
    `ex.verdict` before it raises: a 429 has the X-RateLimit headers too.
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
    ) -> None:
        self._refusals = refusals
        self._store = store
        self._local = local
        self._wall = wall
        self._on_decision = on_decision
        self._shadow = shadow
        self._counters = TierCounters()

    def enter(self, ex: Exchange) -> Any:
        """RateVerdict, None where no tier applies or the limiter failed open, or a Deferred of either.

        Raises GatewayError: 429 rate_limit_exceeded, 503 rate_limiter_unavailable.
        """
        demands, shadows = self._demands(ex)
        now_s = self._wall()
        if not demands:
            if shadows:
                self._shadow(ex, shadows, now_s)
            return None
        try:
            counted = self._store.take(demands, now_s)
        except CounterStoreDown as down:
            return self._store_down(down, ex, demands, now_s)
        if isinstance(counted, Counted):
            verdict = self._judged(counted, ex, demands, now_s, shadows)
            if isinstance(verdict, GatewayError):
                raise verdict
            return verdict
        return counted.addCallbacks(
            self._judged,
            self._failed,
            callbackArgs=(ex, demands, now_s, shadows),
            errbackArgs=(ex, demands, now_s),
        )

    def _demands(self, ex: Exchange) -> tuple[Demands, Demands]:
        """What is enforced, and what is only watched."""
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
        if snapshot.global_tier is not None and snapshot.global_tier is not tier:
            counters = self._counters.of(snapshot.global_tier)
            (shadows if counters.shadow else demands).append(counters.demand(ex, principal))
        return demands, shadows

    def _judged(
        self,
        counted: Counted,
        ex: Exchange,
        demands: Demands,
        now_s: float,
        shadows: Demands,
        decision: str = ALLOWED,
    ) -> RateVerdict | GatewayError:
        """What the headers say, or the 429."""
        if not counted.allowed:
            return self._refused(counted, ex, demands, now_s)
        self._on_decision(demands[0].tier, decision)
        if shadows:
            self._shadow(ex, shadows, now_s)
        return nearest(counted, demands, now_s)

    def _refused(self, counted: Counted, ex: Exchange, demands: Demands, now_s: float) -> GatewayError:
        by, verdict, wait_s = refusal(counted, demands, now_s)
        self._on_decision(by.tier, REJECTED)
        ex.rate_limited = True
        ex.verdict = verdict
        key = caller(ex)
        if key is not None:
            self._refusals.remember(key, now_s, wait_s, by.window_s, by.tier, verdict, ex.principal)
        return exceeded(wait_s)

    def _failed(self, failure: Any, ex: Exchange, demands: Demands, now_s: float) -> RateVerdict | GatewayError | None:
        failure.trap(CounterStoreDown)
        return self._by_fail_mode(failure.value, ex, demands, now_s)

    def _store_down(self, down: CounterStoreDown, ex: Exchange, demands: Demands, now_s: float) -> RateVerdict | None:
        verdict = self._by_fail_mode(down, ex, demands, now_s)
        if isinstance(verdict, GatewayError):
            raise verdict
        return verdict

    def _by_fail_mode(
        self, down: CounterStoreDown, ex: Exchange, demands: Demands, now_s: float
    ) -> RateVerdict | GatewayError | None:
        """The route's fail mode decides. Tiers in shadow mode judge nothing meanwhile: they refuse nobody anyway."""
        mode = ex.route.fail_mode if ex.route is not None else "open"
        if mode == "local":
            counted = self._local.take(demands, now_s)
            assert isinstance(counted, Counted)  # the worker's own memory never waits
            return self._judged(counted, ex, demands, now_s, [], FAIL_LOCAL)
        if mode == "closed":
            self._on_decision(demands[0].tier, FAIL_CLOSED)
            return GatewayError(
                "The rate limiter is unavailable.",
                status=503,
                code="rate_limiter_unavailable",
                retry_after_s=RETRY_AFTER_DEPENDENCY_S,
                detail=str(down),
            )
        self._on_decision(demands[0].tier, FAIL_OPEN)
        return None


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
            raise exceeded(max(1, ceil(standing.retry_at_s - now_s)))
