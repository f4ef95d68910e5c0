"""Which node of a Redis Cluster has which slots: asked at the start, when something moved, and every 15 s.

    all is well                         every 15 s
    a listener is unsettled             every 0.25 s: a failover is waited for
    refresh(): a node sent us away,     now, but not within 0.1 s of the last time
    or went down

One node is asked at a time, the one that answered last first; every node and replica ever named knows the map, and
the hosts of the URL do. One that does not answer within 0.3 s is the last to be asked again.
"""

import random
from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from apigw.adapters.redis_connect import RedisAccess
from apigw.adapters.redis_errand import errand
from apigw.adapters.redis_link import pack
from apigw.core.cluster_slots import Place, SlotRange, read_slots
from apigw.errors import StoreDown
from apigw.net.poller import Poller, PollFailed

CALM_S: Final = 15.0
UNSETTLED_S: Final = 0.25
_GAP_S: Final = 0.1
_ASK_S: Final = 0.3
_ASKED_AT_ONCE: Final = 4  # nodes in a row for one map
_MAX_KNOWN: Final = 3000  # a cluster has at most 1000 masters

log = Logger()

Ranges = tuple[SlotRange, ...]


class ClusterMap(Poller):
    """ranges: the map as it was last told, () before that. last_error: why there is none newer."""

    def __init__(self, access: RedisAccess, clock: IReactorTime) -> None:
        super().__init__(clock, CALM_S, name="map of the Redis Cluster", jitter=0.2, draw=random.random, timeout_s=3.0)
        self.access = access
        self.ranges: Ranges = ()
        self.last_error: str | None = "not asked yet"
        self._known: dict[Place, None] = dict.fromkeys(access.url.hosts)  # in the order in which they are asked
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
        reasons = []
        for place in self.places()[:_ASKED_AT_ONCE]:
            try:
                commands = (*self.access.opening, pack("CLUSTER", "SLOTS"))
                replies = await errand(self.access.to(place), self.clock, commands, _ASK_S)
                ranges = read_slots(replies[-1], place)
                if not ranges:
                    raise ValueError("nobody has a slot")  # a node that was reset knows only itself
            except (StoreDown, ValueError) as error:
                reasons.append(f"{place[0]}:{place[1]}: {error}"[:120])
                self._known.pop(place, None)
                self._known[place] = None  # the last from now on
                continue
            self._told(ranges, place)
            return
        self.last_error = f"no node of the cluster tells its map: {'; '.join(reasons)}"
        raise PollFailed(self.last_error)

    def _told(self, ranges: Ranges, by: Place) -> None:
        self.ranges, self.last_error = ranges, None
        self._known = dict.fromkeys((by, *self._known, *_places(ranges)))
        if len(self._known) > _MAX_KNOWN:  # nodes came and went for months
            self._known = dict.fromkeys((by, *_places(ranges), *self.access.url.hosts))
        for on_map, _ in self._listeners:
            try:
                on_map(ranges)
            except Exception:
                log.failure("a map of the cluster could not be followed")


def _places(ranges: Ranges) -> Iterable[Place]:
    for one in ranges:
        yield one.master
        yield from one.replicas
