"""What tiers in shadow mode would have refused, in the daemon's log: at most one line a second and tier."""

from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from apigw.core.window import Demand
from apigw.exchange import Exchange

GAP_S: Final = 1.0

log = Logger()


class ShadowLog:
    """Tells of the first such request at once, and of how many there were since with the next line.

    The key names the caller as Redis does: no credential is in it. All requests are in
    rate_limit_decisions_total{decision="shadow_rejected"}.
    """

    def __init__(self, clock: IReactorTime) -> None:
        self._clock = clock
        self._tiers: dict[str, tuple[float, int]] = {}  # by tier: when it was told last, how many since

    def refused(self, demand: Demand, ex: Exchange) -> None:
        """A request that `demand`'s tier would have refused."""
        now_s = self._clock.seconds()
        told_s, untold = self._tiers.get(demand.tier, (float("-inf"), 0))
        if now_s - told_s < GAP_S:
            self._tiers[demand.tier] = told_s, untold + 1
            return
        self._tiers[demand.tier] = now_s, 0
        log.info(
            "tier {tier} (shadow) would refuse: {key} on {route}, request {request_id}; and {untold} before it",
            tier=demand.tier,
            key=demand.key,
            route="no route" if ex.route is None else f"route {ex.route.route_id}",
            request_id=ex.identity.request_id if ex.identity is not None else "-",
            untold=untold,
        )
