"""Rate counters in this process: the embedded default, and each worker's own count in fail mode `local`.

Note [Bounded counters]
  Clients choose their identifiers, so counters are kept for the most recently seen `max_entries` only, in the
  order of their last use. Each call also looks at the two stalest and drops them when both their windows are
  over: one new counter a call at most per demand, so the dead never pile up. `prune()` does the same for a
  gateway that nobody calls any more.
"""

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, Final

from apigw.core.window import PARTS, Count, Counted, Demand, Steps, part, recent, used
from apigw.net.poller import Poller
from apigw.ports import WallClock

_PRUNE_EVERY_S: Final = 1.0
_PRUNE_AT_MOST: Final = 5000  # about 1 ms; a full store of 100,000 is empty 20 s after its windows are over

MAX_ENTRIES: Final = 100_000  # 240 bytes each after one request, up to 900
_LOOK_AT: Final = 2  # stalest entries looked at in one call
# Shared by all whose requests of a window fell in this part alone: a flood of identifiers costs little.
_ALONE: Final[list[Steps]] = [(number, 0) for number in range(PARTS)]


class MemoryCounters:
    """A CounterStore that answers at once. Not shared: with N workers a client has N times its limit.

    An entry is [window's begin (epoch s), previous, current, epoch s at which it says nothing any more, and the steps
    (core/window.py) of both windows].
    """

    def __init__(self, max_entries: int = MAX_ENTRIES) -> None:
        self._max_entries = max_entries
        self._entries: OrderedDict[str, list[Any]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def take(self, demands: Sequence[Demand], now_s: float) -> Counted:
        """Count against all or none. Never raises CounterStoreDown."""
        allowed = True
        taken = []
        counts: list[Count] = []
        for _, key, limit, window_s in demands:
            start_s = int(now_s // window_s) * window_s
            entry = self._entry(key, start_s, window_s)
            share = 1.0 - (now_s - start_s) / window_s
            count = entry[1], entry[2], recent(entry[1], entry[4], share, limit)
            if used(count, limit, share) >= limit:
                allowed = False
            taken.append((entry, share))
            counts.append(count)
        self.prune(now_s, _LOOK_AT)
        if not allowed:
            return Counted(False, counts, [(entry[4], entry[5]) for entry, _ in taken])
        for entry, share in taken:
            self._count(entry, part(share))
        return Counted(True, [(previous, current + 1, late) for previous, current, late in counts])

    def _count(self, entry: list[Any], fell_in: int) -> None:
        steps = entry[5]
        if not steps:
            entry[5] = _ALONE[fell_in]
        elif steps[-2] < fell_in:
            if steps.__class__ is tuple:
                steps = entry[5] = array("I", steps)
            steps.extend((fell_in, entry[2]))
        entry[2] += 1

    def _entry(self, key: str, start_s: int, window_s: int) -> list[Any]:
        """The key's entry, rolled on to the window that begins at start_s."""
        entries = self._entries
        entry = entries.get(key)
        if entry is None:
            if len(entries) >= self._max_entries:
                entries.popitem(last=False)
            entry = entries[key] = [start_s, 0, 0, start_s + 2 * window_s, (), ()]
            return entry
        entries.move_to_end(key)
        if entry[0] != start_s:
            # Anything but the next window: long ago, or the clock or the window's length was changed.
            entry[1], entry[4] = (entry[2], entry[5]) if entry[0] == start_s - window_s else (0, ())
            entry[0], entry[2], entry[3], entry[5] = start_s, 0, start_s + 2 * window_s, ()
        return entry

    def prune(self, now_s: float, at_most: int) -> None:
        """Drop up to `at_most` counters from the stale end whose windows are over at `now_s` (epoch seconds)."""
        entries = self._entries
        for _ in range(at_most):
            if not entries:
                return
            key = next(iter(entries))
            if entries[key][3] > now_s:
                return
            del entries[key]


class Pruning(Poller):
    """Drops what is over even when no request comes: memory after a flood goes back (contract 13.10)."""

    def __init__(self, reactor: Any, counters: MemoryCounters, wall: WallClock) -> None:
        self._counters = counters
        self._wall = wall
        super().__init__(reactor, _PRUNE_EVERY_S, name="counter pruning")

    def poll(self) -> None:
        self._counters.prune(self._wall(), _PRUNE_AT_MOST)
