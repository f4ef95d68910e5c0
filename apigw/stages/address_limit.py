"""Requests that got no further than the door count against the client's address: unmatched paths, wrong credentials.

While the store is down the worker counts for itself, whatever the routes' fail modes are: guessing stays slow. A store
that is far away is not asked for each of them: core/allowance.py.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from apigw.core.allowance import Allowances
from apigw.core.tier_counters import TierCounters
from apigw.core.verdicts import ALLOWED, FAIL_LOCAL, REJECTED, Refusal, exceeded, nearest, refusal
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown, GatewayError
from apigw.exchange import Exchange, RateVerdict
from apigw.ports import CounterStore, DecisionCounter, WallClock

if TYPE_CHECKING:
    from apigw.config.model import Tier


class AddressLimit:
    """Counts a request on a tier's counter of its client's address. Sets ex.verdict.

    `local` decides while `store` is down; `shadow` takes the demands of tiers in shadow mode.
    """

    def __init__(
        self,
        store: CounterStore,
        local: CounterStore,
        wall: WallClock,
        on_decision: DecisionCounter,
        shadow: Callable[[Exchange, list[Demand], float], None],
    ) -> None:
        self._store = store
        self._local = local
        self._wall = wall
        self._on_decision = on_decision
        self._shadow = shadow
        self._counters = TierCounters()
        self._settle: Callable[[Demand, int, float], None] | None = getattr(store, "add", None)  # ports.SettlingStore
        self._allowances = Allowances()

    def unmatched(self, ex: Exchange) -> Any:
        """None, the GatewayError 429, or a Deferred of either."""
        tier = ex.snapshot.unmatched_tier
        if tier is None:
            return None
        refused = self.take(ex, tier)
        if refused is None or isinstance(refused, Refusal):
            return _error(refused)
        return refused.addCallback(_error)

    def take(self, ex: Exchange, tier: "Tier") -> Any:
        """None when the address has requests left, else a Refusal; or a Deferred of either."""
        counters = self._counters.of(tier)
        demands = [counters.of_address(ex.client_ip)]
        now_s = self._wall()
        if counters.shadow:
            self._shadow(ex, demands, now_s)
            return None
        if self._settle is not None and self._allowed(demands[0], ex, now_s):
            return None
        try:
            counted = self._store.take(demands, now_s)
        except CounterStoreDown:
            return self._judged_here(ex, demands, now_s)
        if isinstance(counted, Counted):
            return self._judged(counted, ex, demands, now_s)
        asked = (ex, demands, now_s)
        return counted.addCallbacks(self._judged, self._failed, callbackArgs=asked, errbackArgs=asked)

    def _allowed(self, demand: Demand, ex: Exchange, now_s: float) -> bool:
        """Whether the request is of the address's allowance; if not, what was spent of it goes to the store."""
        remaining = self._allowances.spend(demand.key, now_s)
        if remaining is not None:
            self._on_decision(demand.tier, ALLOWED)
            end_s = int(now_s // demand.window_s + 1) * demand.window_s
            ex.verdict = RateVerdict(demand.limit, remaining, end_s)
            return True
        spent, last_s = self._allowances.settle(demand.key, demand.window_s, now_s)
        if spent and self._settle is not None:
            self._settle(demand, spent, last_s)
        return False

    def _judged(
        self, counted: Counted, ex: Exchange, demands: list[Demand], now_s: float, allowed: str = ALLOWED
    ) -> Refusal | None:
        if counted.allowed:
            self._on_decision(demands[0].tier, allowed)
            verdict = ex.verdict = nearest(counted, demands, now_s)
            if self._settle is not None and allowed == ALLOWED:
                demand = demands[0]
                self._allowances.grant(demand.key, demand.limit, demand.window_s, verdict.remaining, now_s)
            return None
        refused = refusal(counted, demands, now_s)
        self._on_decision(demands[0].tier, REJECTED)
        ex.rate_limited = True
        ex.verdict = refused.verdict
        return refused

    def _failed(self, failure: Any, ex: Exchange, demands: list[Demand], now_s: float) -> Refusal | None:
        failure.trap(CounterStoreDown)
        return self._judged_here(ex, demands, now_s)

    def _judged_here(self, ex: Exchange, demands: list[Demand], now_s: float) -> Refusal | None:
        counted = self._local.take(demands, now_s)
        assert isinstance(counted, Counted)  # the worker's own memory never waits
        return self._judged(counted, ex, demands, now_s, FAIL_LOCAL)


def _error(refused: Refusal | None) -> GatewayError | None:
    return None if refused is None else exceeded(refused.wait_s)
