"""By how much a p99 rose, and how sure that is: pure functions of recorded waits.

Waits are kept in blocks of a second: what disturbs a machine disturbs neighbours, so single waits are no independent
evidence, seconds nearly are. The p99 is that of all waits of a kind together: a stall counts for as long as it lasts.
How sure a ratio is, is told by the bootstrap: draw as many blocks as there are, with repetition, and see what the ratio
would have been. A twin, measured in the same seconds where what is asked about did not happen, takes out what the
machine did to both. Where a machine takes its cores away for milliseconds, some times a second, those would be all of a
p99: witness.py sees when that is, and undisturbed() leaves the waits out.

Who goes on measuring until the answer is clear looks several times, and each look can err: hence 1% on each side.
"""

import random
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from contextlib import suppress

from attrs import frozen

BLOCK_S = 1.0
ERRING = 0.01  # of looks, on each side: a rise that is just not allowed is called small by 1 of 20 in 5 looks
_DRAWS = 2000
_LEAST = 300  # waits; of fewer, a p99 says nothing
_CATCHING_UP = 2.0  # times a stall: what came meanwhile is still to be done, beside what comes
_OWN = 0.5  # of a wait, at least, lies outside of stalls: else it is the machine's

Span = tuple[float, float]  # begin and end
Wait = tuple[float, float]  # answered at, after so many seconds
Blocks = list[list[float]]


@frozen
class Rise:
    """A part: 0.1 is 10% more. `low` to `high` holds the true one but for ERRING on each side."""

    measured: float
    low: float
    high: float

    def below(self, allowed: float) -> bool:
        return self.high < allowed

    def above(self, allowed: float) -> bool:
        return self.low > allowed

    def __str__(self) -> str:
        return f"{self.measured:+.0%} ({self.low:+.0%} to {self.high:+.0%})"


@frozen
class Tail:
    """The waits of some blocks, the longest first, with what a p99 of any choice of the blocks needs."""

    sizes: list[int]
    waits: list[tuple[float, int]]  # seconds, block; the longest first

    def p99_s(self, times: Sequence[int] | None = None) -> float:
        """With each block so many times; once, unless said. The wait that 99 of 100 are not above."""
        times = [1] * len(self.sizes) if times is None else times
        above = sum(size * many for size, many in zip(self.sizes, times, strict=True)) * 0.01
        for wait_s, block in self.waits:
            above -= times[block]
            if above < 0:
                return wait_s
        raise ValueError("no waits")


def blocks(waits: Iterable[Wait], spans: Iterable[Span]) -> Blocks:
    """What fell into the spans, each cut into parts of about BLOCK_S."""
    edges = []
    for begin_s, end_s in spans:
        count = max(1, round((end_s - begin_s) / BLOCK_S))
        step_s = (end_s - begin_s) / count
        edges += [(begin_s + number * step_s, begin_s + (number + 1) * step_s) for number in range(count)]
    edges.sort()
    found: Blocks = [[] for _ in edges]
    number = 0
    for at_s, wait_s in sorted(waits):
        while number < len(edges) and at_s >= edges[number][1]:
            number += 1
        if number < len(edges) and at_s >= edges[number][0]:
            found[number].append(wait_s)
    return found


def undisturbed(waits: Iterable[Wait], stalls: Iterable[Span]) -> list[Wait]:
    """Those that lie in stalls, and in the time that it takes to catch up, by less than half.

    So a gateway's own stall is left as long as it was, also when the machine has a short one within. All of them where
    more than half would go: of such a machine nothing is known by leaving out.
    """
    every = list(waits)
    begins: list[float] = []
    ends: list[float] = []
    for begin_s, end_s in sorted((begin_s, end_s + _CATCHING_UP * (end_s - begin_s)) for begin_s, end_s in stalls):
        if ends and begin_s <= ends[-1]:
            ends[-1] = max(ends[-1], end_s)
        else:
            begins.append(begin_s)
            ends.append(end_s)

    def within_s(from_s: float, to_s: float) -> float:
        first, last = bisect_left(ends, from_s), bisect_left(begins, to_s)
        return sum(min(to_s, ends[number]) - max(from_s, begins[number]) for number in range(first, last))

    kept = [(at_s, wait_s) for at_s, wait_s in every if within_s(at_s - wait_s, at_s) <= (1 - _OWN) * wait_s]
    return kept if 2 * len(kept) >= len(every) else every


def tail(found: Blocks) -> Tail:
    """Raises ValueError where a p99 would say nothing."""
    if sum(map(len, found)) < _LEAST:
        raise ValueError("too few answers for a p99")
    waits = [(wait_s, number) for number, block in enumerate(found) for wait_s in block]
    return Tail([len(block) for block in found], sorted(waits, reverse=True))


def rise(before: Blocks, after: Blocks, twin: tuple[Blocks, Blocks] | None = None) -> Rise:
    """Of the p99 from `before` to `after`; where there is a twin, over and above its own from its first to its second.

    The twin's blocks are of the same seconds, and are drawn together with the others.
    """
    pairs = [(tail(before), tail(after))]
    if twin is not None:
        assert (len(twin[0]), len(twin[1])) == (len(before), len(after))
        pairs.append((tail(twin[0]), tail(twin[1])))
    rolls = random.Random(1)  # the same data, the same answer

    def ratio(first: Sequence[int] | None, second: Sequence[int] | None) -> float:
        found, *under = (late.p99_s(second) / early.p99_s(first) for early, late in pairs)
        return found / under[0] if under else found

    drawn: list[float] = []
    while len(drawn) < _DRAWS:
        with suppress(ValueError):  # only blocks of which nothing is left: draw again
            drawn.append(ratio(_draw(rolls, len(before)), _draw(rolls, len(after))))
    drawn.sort()
    edge = int(_DRAWS * ERRING)
    return Rise(ratio(None, None) - 1, drawn[edge] - 1, drawn[-1 - edge] - 1)


def _draw(rolls: random.Random, count: int) -> list[int]:
    """How many times each of so many blocks was drawn."""
    times = [0] * count
    for number in rolls.choices(range(count), k=count):
        times[number] += 1
    return times
