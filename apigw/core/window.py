"""The sliding-window counter: Demand, Counted and the rule. (Skeleton; see the rate limiting work.)"""

from typing import Sequence

from attrs import frozen


@frozen
class Demand:
    """One counter that a request wants to be counted on: `key` is the counter without its window."""

    tier: str
    key: str
    limit: int
    window_s: int


@frozen
class Counted:
    """The store's answer: was the request counted (allowed), and (previous, current) of each demand in order."""

    allowed: bool
    counts: Sequence[tuple[int, int]]
