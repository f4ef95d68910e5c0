"""Which node of a Redis Cluster has which slots: asked at the start, when something moved, and every 15 s.

    all is well                         every 15 s
    a listener is unsettled             every 0.25 s: a failover is waited for
    refresh(): a node sent us away,     now, but not within 0.1 s of the last time
    or went down

Nodes are asked one after another until one has a map to go by: one that the node itself holds for whole, and not
older (by the cluster's epoch) than what we have. A node that is cut off, or was frozen and does not know yet what it
missed, has none; when nobody has, the best of what was heard counts. Every node and replica of the last map is asked,
and in each round a host of the URL: where all nodes got new addresses, its names are what is left.
"""

import random
from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Any, Final, NamedTuple

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from apigw.adapters.redis_connect import RedisAccess
from apigw.adapters.redis_errand import errand
from apigw.adapters.redis_link import pack
from apigw.core.cluster_slots import Place, SlotRange, read_info, read_slots
from apigw.errors import StoreDown
from apigw.net.poller import Poller, PollFailed

CALM_S: Final = 15.0
UNSETTLED_S: Final = 0.25
_GAP_S: Final = 0.1
_ASK_S: Final = 0.3  # one node's time
_ROUND: Final = 3  # nodes that are asked for one map, besides a host of the URL

log = Logger()

Ranges = tuple[SlotRange, ...]


class _View(NamedTuple):
    """What one node says. The best view is the greatest."""

    whole: bool
    epoch: int
    ranges: Ranges
    by: Place


class ClusterMap(Poller):
    """ranges: the map as it was last told, () before that. last_error: why there is none newer."""

    def __init__(self, access: RedisAccess, clock: IReactorTime) -> None:
        super().__init__(clock, CALM_S, name="map of the Redis Cluster", jitter=0.2, draw=random.random, timeout_s=3.0)
        self.access = access
        self.ranges: Ranges = ()
        self.last_error: str | None = "not asked yet"
        self._known: dict[Place, None] = dict.fromkeys(access.url.hosts)  # in the order in which they are asked
        self._hosts = cycle(access.url.hosts)
        self._epoch = -1
        self._listeners: list[tuple[Callable[[Ranges], None], Callable[[], bool]]] = []
        self._asked_s = float("-inf")
        self._soon: Any = None

    def listen(self, on_map: Callable[[Ranges], None], unsettled: Callable[[], bool]) -> None:
        """Before the start. on_map is called with every map, new or not."""
        self._listeners.append((on_map, unsettled))

    def refresh(self) -> None:
        """Something is not where the map has it."""
        if self._soon is not None or not self.running:
            return
        left_s = self._asked_s + _GAP_S - self.clock.seconds()
        self._soon = self.clock.callLater(max(0.0, left_s), self._refresh)

    def _refresh(self) -> None:
        self._soon = None
        self.poll_now()

    def stopService(self) -> None:
        super().stopService()
        soon, self._soon = self._soon, None
        if soon is not None:
            soon.cancel()

    def places(self) -> list[Place]:
        """Every node there may be, the likeliest to answer first."""
        return list(self._known)

    def delay_s(self) -> float:
        if self.consecutive_failures or any(unsettled() for _, unsettled in self._listeners):
            return UNSETTLED_S
        return CALM_S

    def poll(self) -> "Deferred[None]":
        self._asked_s = self.clock.seconds()
        return Deferred.fromCoroutine(self._ask_in_turn())

    async def _ask_in_turn(self) -> None:
        views: list[_View] = []
        reasons = []
        for place in dict.fromkeys((*self.places()[:_ROUND], next(self._hosts))):
            self._known[place] = self._known.pop(place, None)  # the last of the next round
            try:
                view = await self._view(place)
            except (StoreDown, ValueError) as error:
                reasons.append(f"{place[0]}:{place[1]}: {error}"[:120])
                continue
            views.append(view)
            if view.whole and view.epoch >= self._epoch:
                break
        if not views:
            self.last_error = f"no node of the cluster tells its map: {'; '.join(reasons)}"
            raise PollFailed(self.last_error)
        self._told(max(views))

    async def _view(self, place: Place) -> _View:
        commands = (*self.access.opening, pack("CLUSTER", "INFO"), pack("CLUSTER", "SLOTS"))
        replies = await errand(self.access.to(place), self.clock, commands, _ASK_S)
        whole, epoch = read_info(replies[-2])
        ranges = read_slots(replies[-1], place)
        if not ranges:
            raise ValueError("nobody has a slot")  # a node that was reset knows only itself
        return _View(whole, epoch, ranges, place)

    def _told(self, view: _View) -> None:
        self.ranges, self._epoch, self.last_error = view.ranges, view.epoch, None
        named = dict.fromkeys((*_places(view.ranges), *self.access.url.hosts))
        waiting = [place for place in self._known if place in named and place != view.by]
        if any(unsettled() for _, unsettled in self._listeners):  # then others may know more
            self._known = dict.fromkeys((*waiting, *named))
        else:
            self._known = dict.fromkeys((view.by, *waiting, *named))
        for on_map, _ in self._listeners:
            try:
                on_map(view.ranges)
            except Exception:
                log.failure("a map of the cluster could not be followed")


def _places(ranges: Ranges) -> Iterable[Place]:
    for one in ranges:
        yield one.master
        yield from one.replicas
