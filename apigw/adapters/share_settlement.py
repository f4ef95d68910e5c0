"""What a worker counted of the global tier by itself, told to the store although no request comes any more.

Under load each question takes it along (stages/rate_limit.py); the last ones of a worker that has gone quiet would
else be known to nobody until it is asked again.
"""

from typing import Any, Final

from apigw.core.global_share import GlobalShares
from apigw.net.poller import Poller
from apigw.ports import SettlingStore, WallClock

_EVERY_S: Final = 0.2  # with what a share lasts: told within a second


class ShareSettlement(Poller):
    """Looks for shares that are over, five times a second; nothing to do for a worker under load."""

    def __init__(self, reactor: Any, shares: GlobalShares, store: SettlingStore, wall: WallClock) -> None:
        self._shares = shares
        self._store = store
        self._wall = wall
        super().__init__(reactor, _EVERY_S, name="share settlement")

    def poll(self) -> None:
        for demand, spent, last_s in self._shares.overdue(self._wall()):
            self._store.add(demand, spent, last_s)
