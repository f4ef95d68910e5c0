"""Whose turn is it: smooth weighted round robin, and what an instance weighs while it is new, back, or slow.

Smooth, as nginx does it: weights {a: 5, b: 1, c: 1} give a a b a c a a, not a a a a a b c.

Note [What an instance weighs]
  Its configured weight, times `ramp` while it is new or back (caches are cold, pools are empty, code is not compiled),
  times SLOW_SHARE while its health checks take far longer than those of the others. Weights are looked at once a
  second and when the health or the list of instances changes, never for a request.
"""

from typing import Callable, Final, Generic, Sequence, TypeVar

RAMP_FROM: Final = 0.1  # of its weight is what an instance begins with, as the breaker's first step
SLOW_SHARE: Final = 0.25  # of its weight is left to a slow instance: enough to see that it is quick again
SLOW_RATIO: Final = 4.0  # times the median of its backend: far more than instances on unlike machines differ
SLOW_FLOOR_S: Final = 0.1  # a check that is quicker is not slow, whatever the others take

Item = TypeVar("Item")


class _Slot(Generic[Item]):
    __slots__ = ("item", "weight", "current")

    def __init__(self, item: Item, weight: float, current: float) -> None:
        self.item = item
        self.weight = weight
        self.current = current


class SmoothRoundRobin(Generic[Item]):
    """`pick()` gives the next item. `before`: the one it replaces, so that items that stay keep their place in the
    round; lists and weights that change several times a second would else favour the first item each time."""

    __slots__ = ("_slots", "_total")

    def __init__(self, weighted: Sequence[tuple[Item, float]], before: "SmoothRoundRobin[Item] | None" = None) -> None:
        places = {} if before is None else {slot.item: slot.current for slot in before._slots}
        self._slots: list[_Slot[Item]] = [_Slot(item, weight, places.get(item, 0)) for item, weight in weighted]
        self._total = sum(weight for _, weight in weighted)

    def __len__(self) -> int:
        return len(self._slots)

    def pick(self) -> Item | None:
        """None when there is no item."""
        slots = self._slots
        if len(slots) <= 1:
            return slots[0].item if slots else None
        best = slots[0]
        for slot in slots:
            slot.current += slot.weight
            if slot.current > best.current:
                best = slot
        best.current -= self._total
        return best.item

    def pick_among(self, fits: Callable[[Item], bool]) -> Item | None:
        """The next of the items that fit; the others' places in the round stay. None when none fits."""
        best: _Slot[Item] | None = None
        total = 0.0
        for slot in self._slots:
            if fits(slot.item):
                total += slot.weight
                slot.current += slot.weight
                if best is None or slot.current > best.current:
                    best = slot
        if best is None:
            return None
        best.current -= total
        return best.item


def ramp(age_s: float, over_s: float) -> float:
    """The share of its weight that an instance of this age gets: RAMP_FROM, then a straight line to 1 at `over_s`."""
    if age_s >= over_s:
        return 1.0
    return max(RAMP_FROM, age_s / over_s)


def is_slow(latency_s: float, median_s: float, was_slow: bool) -> bool:
    """Whether an instance whose checks take `latency_s` is slow beside a median of `median_s`. What was slow is so
    until it is below half of what made it so: weights must not swing with each check."""
    limit_s = max(SLOW_FLOOR_S, SLOW_RATIO * median_s)
    return latency_s > (limit_s / 2 if was_slow else limit_s)


def lower_median(values: Sequence[float]) -> float:
    """Of two the smaller: never more than half of them are far above it."""
    return sorted(values)[(len(values) - 1) // 2] if values else 0.0
