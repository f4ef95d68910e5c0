"""Rate counters in a Redis Cluster: one connection to each master, each counter asked where its slot is.

    one counter                       one check of its node, as with one Redis
    several                           one of each node, sent in the same turn: one round trip of time (redis_joint.py)
    MOVED, ASK                        asked again where it says; after MOVED the map is asked for
    TRYAGAIN                          asked in halves (redis_halves.py)
    a node is down                    the checks of its slots fail, at once; all others go on; the map is asked for
                                      until another node has its slots
    the map names another master      it is connected to. The old one is asked until that is done, if it lives: it sends
                                      us on, and who was sent on waits for the connection. Left after a second

A node is a RedisCounters with a probe in its own slots. A question that was sent away goes on for MAX_TRIES.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.adapters.redis_cluster_map import ClusterMap, Ranges
from apigw.adapters.redis_counters import MAX_TRIES, RedisCounters
from apigw.adapters.redis_halves import ask_in_halves, halves_of
from apigw.adapters.redis_joint import Joint
from apigw.adapters.redis_link import pack
from apigw.adapters.redis_script import Check, Plain, Question, Settlement, packed, probe_of
from apigw.config.model import RedisSection
from apigw.core.cluster_slots import SLOTS, Place, read_redirection, slot_of, tag_within
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown

log = Logger()

ASKING: Final = pack("ASKING")
_LEAVE_S: Final = 1.0  # a node that is named no more, for what it was asked before
_ADOPTED_S: Final = 30.0  # a node that only a redirection named: a slot is on its way there, the first it will have
_MAX_NODES: Final = 1000
_ROLE: Final = pack("ROLE")  # the probe of a node that has no slot yet: a list, as the script's


class ClusterCounters(MultiService):
    """A CounterStore over the cluster that `cluster` is the map of. The other arguments are those of its RedisCounters.

    up: whether every slot can be counted in. last_error, reconnects: of all nodes.
    """

    def __init__(
        self,
        cluster: ClusterMap,
        clock: IReactorTime,
        after_turn: Callable[[Callable[[], None]], Any],
        section: RedisSection,
        on_batch: Callable[[float, int], None],
    ) -> None:
        super().__init__()
        self._map = cluster
        self._clock = clock
        self._after_turn = after_turn
        self._section = section
        self._on_batch = on_batch
        self._slots: list[RedisCounters | None] = [None] * SLOTS
        self._nodes: dict[Place, RedisCounters] = {}
        self._adopted: dict[Place, float] = {}  # until when
        self._masters: set[Place] = set()  # that have slots; the others in _nodes were adopted
        self._ranges: Ranges = ()  # as _slots has them, but for single slots that moved
        self._moved = False
        self._leaving: dict[RedisCounters, Any] = {}  # and the timer of its end
        cluster.listen(self._follow, lambda: not self.up)

    # -- what the operator sees

    @property
    def up(self) -> bool:
        return not self._missing() and all(node.up for place, node in self._nodes.items() if place in self._masters)

    @property
    def last_error(self) -> str | None:
        reasons = [
            f"{place[0]}:{place[1]}: {node.last_error}"
            for place, node in self._nodes.items()
            if place in self._masters and node.last_error
        ]
        if self._missing():
            reasons.append(self._map.last_error or f"nobody has {self._missing()} slots")
        return "; ".join(reasons)[:300] or None

    @property
    def reconnects(self) -> int:
        return sum(node.reconnects for node in self._nodes.values())

    def nodes(self) -> dict[str, dict[str, object]]:
        """For /status."""
        return {
            f"{host}:{port}": {"up": node.up, "last_error": node.last_error}
            for (host, port), node in self._nodes.items()
        }

    def _missing(self) -> int:
        return SLOTS - sum(one.last - one.first + 1 for one in self._ranges)

    # -- the port

    def take(self, demands: Sequence[Demand], now_s: float) -> "Deferred[Counted]":
        """See ports.CounterStore. Raises CounterStoreDown at once when no node of the demands is up."""
        if len(demands) == 1:
            return self._node_of(demands[0].key).take(demands, now_s)
        joint = Joint(demands, partial(self._give_back, now_s))
        down: list[tuple[int, CounterStoreDown]] = []
        for index, demand in enumerate(demands):
            try:
                node = self._node_of(demand.key)
                node.put(Check(joint.part(index), packed((demand,), now_s), 1, node.refused))
            except CounterStoreDown as refused:
                down.append((index, refused))
        if len(down) == len(demands):
            raise CounterStoreDown(down[0][1])
        for index, reason in down:
            joint.failed(index, reason)
        return joint.counted

    def add(self, demand: Demand, count: int, at_s: float) -> None:
        """See ports.SettlingStore."""
        node = self._slots[slot_of(demand.key)]
        if node is not None:
            node.add(demand, count, at_s)

    def _give_back(self, now_s: float, demand: Demand) -> None:
        self.add(demand, -1, now_s)

    def _node_of(self, key: str) -> RedisCounters:
        node = self._slots[slot_of(key)]
        if node is None:
            raise CounterStoreDown(self._map.last_error or "nobody has the slot of this counter")
        return node

    # -- sent elsewhere

    def _elsewhere(self, node: RedisCounters, question: Question, text: str) -> bool:
        """A node does not answer, or not now; whether we ask on."""
        if question.tries >= MAX_TRIES:
            return False
        try:
            if text.startswith("TRYAGAIN"):
                return self._apart(node, question) if isinstance(question, Settlement) else self._in_halves(question)
            slot, place = read_redirection(text, self._place_of(node))  # ValueError: nobody has the slot
            target = self._at(place)
            if text.startswith("MOVED"):
                self._moved = True
                self._map.refresh()
                if target.up:
                    self._slots[slot] = target
                target.again(question)
            else:
                target.again(question, ASKING)
        except (CounterStoreDown, ValueError):
            self._map.refresh()
            return False
        return True

    def _apart(self, node: RedisCounters, settlement: Settlement) -> bool:
        for command in settlement.apart:
            node.put(Settlement(node.refused, command))
        return True

    def _in_halves(self, question: Question) -> bool:
        halves = halves_of(question.command)
        if halves is None or not isinstance(question, Check):
            return False
        question.tries = MAX_TRIES
        asked = Deferred.fromCoroutine(ask_in_halves(question, halves, self._ask))
        asked.addErrback(self._broke, question)
        return True

    def _ask(self, key: str, command: bytes) -> "Deferred[Any]":
        node = self._node_of(key)
        answer: Deferred[Any] = Deferred()
        node.put(Plain(answer, command, node.refused))
        return answer

    def _broke(self, failure: Failure, question: Question) -> None:
        log.failure("a check in halves failed", failure=failure)
        question.fail("internal error")

    # -- the nodes

    def _place_of(self, node: RedisCounters) -> Place:
        return next((place for place, one in self._nodes.items() if one is node), ("", 0))

    def _at(self, place: Place) -> RedisCounters:
        """The node at a place that a redirection names. Raises CounterStoreDown."""
        node = self._nodes.get(place)
        if node is None:
            if len(self._nodes) >= _MAX_NODES:
                raise CounterStoreDown("too many nodes")
            self._adopted[place] = self._clock.seconds() + _ADOPTED_S
            node = self._join(place)
        return node

    def _join(self, place: Place) -> RedisCounters:
        node = RedisCounters(
            self._map.access.to(place),
            self._clock,
            self._after_turn,
            self._section,
            title=f"Redis node {place[0]}:{place[1]}",
            on_batch=self._on_batch,
            on_change=self._changed,
            elsewhere=self._elsewhere,
        )
        node.probe = _ROLE
        self._nodes[place] = node
        node.setServiceParent(self)
        return node

    def _changed(self) -> None:
        """A node went up or down."""
        if self._ranges:
            self._lay_out()
        self._map.refresh()

    def _follow(self, ranges: Ranges) -> None:
        """The map was told."""
        now_s = self._clock.seconds()
        masters = self._masters = {one.master for one in ranges}
        adopted = self._adopted.items()
        self._adopted = {place: until_s for place, until_s in adopted if until_s > now_s and place not in masters}
        if ranges != self._ranges or self._moved:
            self._ranges, self._moved = ranges, False
            for master in masters:
                node = self._nodes.get(master) or self._join(master)
                node.probe = probe_of(tag_within([one for one in ranges if one.master == master]) or "probe")
            self._lay_out()
        for place, node in list(self._nodes.items()):
            if place not in masters and place not in self._adopted:
                del self._nodes[place]
                self._leaving[node] = self._clock.callLater(_LEAVE_S, self._left, node)

    def _lay_out(self) -> None:
        """Whom to ask for each slot. Not a node that is only being connected to, while the one before it lives."""
        slots: list[RedisCounters | None] = [None] * SLOTS
        for one in self._ranges:
            node = self._nodes.get(one.master)
            if node is None:  # one of several new ones failed at once, before the others were made
                continue
            span = slice(one.first, one.last + 1)
            if node.fresh:
                slots[span] = [was if was is not None and was.up else node for was in self._slots[span]]
            else:
                slots[span] = [node] * (one.last - one.first + 1)
        self._slots = slots

    def _left(self, node: RedisCounters) -> None:
        del self._leaving[node]
        node.disownServiceParent()

    def stopService(self) -> "Deferred[Any]":
        """Of all nodes; checks in flight fail with CounterStoreDown."""
        for timer in self._leaving.values():
            timer.cancel()
        self._leaving.clear()
        stopped: Deferred[Any] = super().stopService()
        return stopped
