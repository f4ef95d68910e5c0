"""A Redis Cluster off the request path: commands go to whoever has their key, messages come from any master.

    MOVED, ASK                  asked again where it says, three times in all
    TRYAGAIN                    asked again in 50 ms
    the map names another       it is connected to; the line to one that is named no more is closed after a second
    master

What is published at any node is heard at all. A subscription to a master that the map names no more is renewed: it may
be cut off, or no part of this cluster any more, and deaf without a sign.
"""

import random
from collections.abc import Callable
from functools import partial
from typing import Any, Final

from hiredis import ReplyError
from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.internet.task import deferLater

from apigw.adapters.redis_cluster_map import ClusterMap, Ranges
from apigw.adapters.redis_connect import Renew, unmoved
from apigw.adapters.redis_conversation import Reply
from apigw.adapters.redis_line import RedisLine
from apigw.adapters.redis_link import pack
from apigw.adapters.redis_script import sent_away
from apigw.core.cluster_slots import SLOTS, Place, read_redirection, slot_of
from apigw.errors import StoreDown

ASKING: Final = pack("ASKING")
_MAX_TRIES: Final = 3
_AGAIN_S: Final = 0.05
_LEAVE_S: Final = 1.0
_JOIN_S: Final = 0.5
_LOOK_S: Final = 0.01


def _unheard() -> None:
    """Nobody wants to know."""


class AnyWay:
    """A Way (redis_connect.py) to any master. place: where it leads now."""

    def __init__(self, cluster: ClusterMap, draw: Callable[[], float] = random.random) -> None:
        self.renew: Renew = unmoved
        self.place: Place | None = None
        self._cluster = cluster
        self._turn = int(draw() * SLOTS)  # so that subscriptions are spread
        cluster.listen(self._follow, lambda: False)

    def connect(self, protocol: Any) -> "Deferred[Any]":
        """Another than the last time, if there is another."""
        places = sorted({one.master for one in self._cluster.ranges}) or self._cluster.places()
        self._turn += 1
        self.place = places[self._turn % len(places)]
        return self._cluster.access.open(self.place, protocol)

    def _follow(self, ranges: Ranges) -> None:
        if self.place is not None and self.place not in {one.master for one in ranges}:
            self.renew(f"{self.place[0]}:{self.place[1]} is no master of the cluster")


class ClusterLines(MultiService):
    """The commands of a cluster, for shared_store.py: a line to each master.

    up: whether every slot can be asked for. last_error, reconnects: of all lines. on_up: called when a line is up; may
    be set before the start.
    """

    def __init__(self, cluster: ClusterMap, clock: IReactorTime) -> None:
        super().__init__()
        self.on_up: Callable[[], None] = _unheard
        self._cluster = cluster
        self._clock = clock
        self._lines: dict[Place, RedisLine] = {}
        self._ranges: Ranges = ()
        self._moved: dict[int, Place] = {}  # slots, since the last map
        self._leaving: dict[RedisLine, Any] = {}
        cluster.listen(self._follow, lambda: not self.up)

    @property
    def up(self) -> bool:
        return bool(self._ranges) and all(line.up for line in self._lines.values())

    @property
    def last_error(self) -> str | None:
        lines = self._lines.items()
        reasons = [f"{host}:{port}: {line.last_error}" for (host, port), line in lines if line.last_error]
        if not self._ranges:
            reasons.append(self._cluster.last_error or "no map of the cluster yet")
        return "; ".join(reasons)[:300] or None

    @property
    def reconnects(self) -> int:
        return sum(line.reconnects for line in self._lines.values())

    # -- commands

    def ask(self, command: bytes, key: str | None = None) -> "Deferred[Reply]":
        """A packed command whose key is `key`; any node's when it has none. Fails with StoreDown."""
        return Deferred.fromCoroutine(self._ask(command, key))

    def renew(self, reason: str) -> None:
        """A new password: every line anew."""
        for line in list(self._lines.values()):
            line.renew(reason)

    async def _ask(self, command: bytes, key: str | None) -> Reply:
        line = self._any() if key is None else self._line_of(slot_of(key))
        reply = await line.ask(command)
        for _ in range(_MAX_TRIES - 1):
            if not isinstance(reply, ReplyError) or not sent_away(text := str(reply)):
                break
            if text.startswith("TRYAGAIN"):
                await deferLater(self._clock, _AGAIN_S)
                reply = await line.ask(command)
                continue
            line = await self._joined(self._redirected(text, line))
            if text.startswith("ASK "):
                line.ask(ASKING).addErrback(lambda _: None)  # the command behind it fails likewise
            reply = await line.ask(command)
        return reply

    def _any(self) -> RedisLine:
        for line in self._lines.values():
            if line.up:
                return line
        raise StoreDown(self.last_error)

    def _line_of(self, slot: int) -> RedisLine:
        place = self._moved.get(slot)
        if place is None:
            place = next((one.master for one in self._ranges if one.first <= slot <= one.last), None)
        if place is None:
            raise StoreDown(self.last_error or f"nobody has slot {slot}")
        return self._at(place)

    def _redirected(self, text: str, line: RedisLine) -> RedisLine:
        asked = next((place for place, one in self._lines.items() if one is line), ("", 0))
        try:
            slot, place = read_redirection(text, asked)
        except ValueError as error:
            self._cluster.refresh()
            raise StoreDown(f"{text[:100]}: {error}") from None
        if text.startswith("MOVED "):
            self._moved[slot] = place
            self._cluster.refresh()
        return self._at(place)

    async def _joined(self, line: RedisLine) -> RedisLine:
        """A node that nobody has named before is being connected to: a moment is worth it here."""
        until_s = self._clock.seconds() + _JOIN_S
        while not line.up and self._clock.seconds() < until_s:
            await deferLater(self._clock, _LOOK_S)
        return line

    # -- the lines

    def _at(self, place: Place) -> RedisLine:
        line = self._lines.get(place)
        if line is None:
            access = self._cluster.access
            line = self._lines[place] = RedisLine(
                access.to(place),
                self._clock,
                access.opening,
                title=f"shared store at {place[0]}:{place[1]}",
                on_up=self._one_up,
                on_down=self._cluster.refresh,
            )
            line.setServiceParent(self)
        return line

    def _one_up(self) -> None:
        self.on_up()

    def _follow(self, ranges: Ranges) -> None:
        """The map was told. A line that only a redirection named goes with the next map that does not name it."""
        self._ranges = ranges
        self._moved.clear()
        masters = {one.master for one in ranges}
        for place in masters:
            self._at(place)
        for place in self._lines.keys() - masters:
            line = self._lines.pop(place)
            self._leaving[line] = self._clock.callLater(_LEAVE_S, partial(self._left, line))

    def _left(self, line: RedisLine) -> None:
        del self._leaving[line]
        line.disownServiceParent()

    def stopService(self) -> "Deferred[Any]":
        for timer in self._leaving.values():
            timer.cancel()
        self._leaving.clear()
        stopped: Deferred[Any] = super().stopService()
        return stopped
