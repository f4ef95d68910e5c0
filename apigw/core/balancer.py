"""Smooth weighted round robin, as nginx does it: weights {a: 5, b: 1, c: 1} give a a b a c a a, not a a a a a b c."""

from typing import Generic, Sequence, TypeVar

Item = TypeVar("Item")


class _Slot(Generic[Item]):
    __slots__ = ("item", "weight", "current")

    def __init__(self, item: Item, weight: int) -> None:
        self.item = item
        self.weight = weight
        self.current = 0


class SmoothRoundRobin(Generic[Item]):
    """`pick()` gives the next item. A new set of items starts a new round."""

    __slots__ = ("_slots", "_total")

    def __init__(self, weighted: Sequence[tuple[Item, int]]) -> None:
        self._slots = [_Slot(item, weight) for item, weight in weighted]
        self._total = sum(weight for _, weight in weighted)

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
