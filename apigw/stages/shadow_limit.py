"""Tiers in shadow mode: counted as if they were enforced, and nobody is refused.

Note [True shadows]
  A shadow tier is to say what would happen if it were enforced. So it is counted with its real limit: what it would
  have refused is not counted, or a client at ten times the limit would seem refused for ever; and it is asked after
  the enforced tiers let the request through, since what they refuse would not have been counted on it. Nobody waits
  for its answer: a shadow tier costs a request no time, and one command more, which goes out with the next write.
"""

from collections.abc import Callable
from typing import Any

from apigw.core.verdicts import SHADOW_ALLOWED, SHADOW_REJECTED
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown
from apigw.exchange import Exchange
from apigw.ports import CounterStore, DecisionCounter

# (demand, exchange): a request that a tier in shadow mode would have refused
OnShadow = Callable[[Demand, Exchange], None]


class ShadowLimit:
    """Asks `store` for each demand by itself, so that one exhausted tier hides nothing of another.

    on_refused: told of each request that would have been refused.
    """

    def __init__(self, store: CounterStore, on_decision: DecisionCounter, on_refused: OnShadow) -> None:
        self._store = store
        self._on_decision = on_decision
        self._on_refused = on_refused

    def take(self, ex: Exchange, demands: list[Demand], now_s: float) -> None:
        """Count the request of `ex`; never raises and never waits. While the store is down nothing is judged."""
        for demand in demands:
            try:
                counted = self._store.take([demand], now_s)
            except CounterStoreDown:
                return
            if isinstance(counted, Counted):
                self._judged(counted, demand, ex)
            else:
                counted.addCallbacks(self._judged, _ignored, callbackArgs=(demand, ex))

    def _judged(self, counted: Counted, demand: Demand, ex: Exchange) -> None:
        if counted.allowed:
            self._on_decision(demand.tier, SHADOW_ALLOWED)
        else:
            self._on_decision(demand.tier, SHADOW_REJECTED)
            self._on_refused(demand, ex)


def _ignored(failure: Any) -> None:
    failure.trap(CounterStoreDown)
