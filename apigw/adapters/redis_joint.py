"""One request whose counters are on several nodes of a cluster: all are asked at once, then it is decided.

    each counter said    then                                      the counters
    counted              it goes on                                stay
    some: exhausted      it is refused                             those that counted it are given it back
    no word from some,   the fail mode decides (CounterStoreDown   stay: CounterStoreDown.counted names them, for a
    none exhausted       with the reason)                          mode that refuses

A refusal stands though another counter is not to be had: it does not depend on that.
"""

from collections.abc import Callable, Sequence

from twisted.internet.defer import Deferred

from apigw.core.window import UNKNOWN, Count, Counted, Demand, Spread
from apigw.errors import CounterStoreDown


class _Part:
    """An Asker (redis_script.py): one counter's answer, for the request."""

    __slots__ = ("_joint", "_index")

    def __init__(self, joint: "Joint", index: int) -> None:
        self._joint = joint
        self._index = index

    def callback(self, counted: Counted, /) -> None:
        self._joint.said(self._index, counted)

    def errback(self, down: CounterStoreDown, /) -> None:
        self._joint.failed(self._index, down)


class Joint:
    """Made for one request. give_back(demand): take one off its counter again.

    counted: fires when all counters have said or failed.
    """

    __slots__ = ("counted", "_demands", "_give_back", "_left", "_verdicts", "_counts", "_spreads", "_reason")

    def __init__(self, demands: Sequence[Demand], give_back: Callable[[Demand], None]) -> None:
        self.counted: Deferred[Counted] = Deferred()
        self._demands = demands
        self._give_back = give_back
        self._left = len(demands)
        self._verdicts: list[bool | None] = [None] * len(demands)  # None: no word
        self._counts: list[Count] = [(0, 0, 0)] * len(demands)
        self._spreads: list[Spread] = [UNKNOWN] * len(demands)
        self._reason: CounterStoreDown | None = None

    def part(self, index: int) -> _Part:
        """Who is told what the counter of `demands[index]` says."""
        return _Part(self, index)

    def said(self, index: int, counted: Counted) -> None:
        self._verdicts[index] = counted.allowed
        self._counts[index] = counted.counts[0]
        if counted.spreads:
            self._spreads[index] = counted.spreads[0]
        self._one_less()

    def failed(self, index: int, down: CounterStoreDown) -> None:
        self._reason = down
        self._one_less()

    def _one_less(self) -> None:
        self._left -= 1
        if self._left:
            return
        verdicts, counts = self._verdicts, self._counts
        if False in verdicts:
            for index, verdict in enumerate(verdicts):
                if verdict:
                    previous, current, recent = counts[index]
                    counts[index] = previous, current - 1, recent
                    self._give_back(self._demands[index])
            self.counted.callback(Counted(False, counts, self._spreads))
        elif None in verdicts:
            counted = tuple(index for index, verdict in enumerate(verdicts) if verdict)
            self.counted.errback(CounterStoreDown(self._reason, counted))
        else:
            self.counted.callback(Counted(True, counts))
