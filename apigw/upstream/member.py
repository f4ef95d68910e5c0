"""One instance of a backend as its pool and its health check know it."""

from math import ceil
from typing import TYPE_CHECKING, Sequence

from apigw.config.model import Instance
from apigw.core.balancer import SLOW_SHARE, ramp

if TYPE_CHECKING:
    from apigw.upstream.connection import UpstreamConnection

FAIR = 1.5  # times its share is what one of several instances may hold of what is in flight; see Note [Fair parts]
SPARE = 4  # requests more than that: with few in flight shares say nothing


class Member:
    """`up` is the health check's word, `retired` the list's: the backend has it no longer.

    failures, refused: checks, and connects of requests, that failed in a row. good: checks that went well in a row
    while it is down. since_s: when `up` became what it is. why: the last failure, in words.
    check_s: what the last check took; took_s: the last three good ones; slow: see core/balancer.py.
    joined_s: when it came new or back, None at the start of the process.

    Note [Fair parts]
      An instance that hangs holds every request it gets until the timeout, and round robin goes on giving: without
      a bound it would soon hold the whole pool, and the requests of its sound siblings would queue. So an instance is
      passed over while it holds more than FAIR times its share of all that is in flight to its backend, plus SPARE, or
      FAIR times its share of the pool. By that rule not all can be passed over at once, and a single instance never is.
    """

    __slots__ = (
        "instance",
        "label",
        "idle",
        "open",
        "up",
        "retired",
        "failures",
        "refused",
        "good",
        "since_s",
        "why",
        "took_s",
        "check_s",
        "slow",
        "joined_s",
        "part",
        "most",
        "free",
    )

    def __init__(self, instance: Instance, now_s: float, joined_s: float | None = None) -> None:
        self.instance = instance
        self.label = instance.label
        self.idle: list[UpstreamConnection] = []
        self.open = 0
        self.up = True
        self.retired = False
        self.failures = 0
        self.refused = 0
        self.good = 0
        self.since_s = now_s
        self.why: str | None = None
        self.took_s: tuple[float, ...] = ()
        self.check_s: float | None = None
        self.slow = False
        self.joined_s = joined_s
        self.part = FAIR
        self.most = self.free = 1 << 30

    @property
    def in_flight(self) -> int:
        """Requests that hold a connection to it or wait for one to open, those whose clients gave up included."""
        return self.open - len(self.idle)

    def sound(self) -> bool:
        """Whether nothing failed of late, so that connections to it may be opened in advance."""
        return not self.failures and not self.refused

    def weight(self, now_s: float, slow_start_s: float) -> float:
        """What it weighs now; see Note [What an instance weighs] in core/balancer.py."""
        weight: float = self.instance.weight
        if self.joined_s is not None:
            share = ramp(now_s - self.joined_s, slow_start_s)
            if share < 1.0:
                weight *= share
            else:
                self.joined_s = None
        return weight * SLOW_SHARE if self.slow else weight

    def crowded(self, in_flight: int) -> bool:
        """Whether it holds more than its part of what is in flight to all. Asked when it holds `free` or more."""
        own = self.in_flight
        return own >= self.most or own > SPARE + self.part * in_flight


def share_out(members: Sequence[Member], max_connections: int) -> None:
    """Say what each of the members in rotation may hold at most. See Note [Fair parts]."""
    total = sum(member.instance.weight for member in members)
    for member in members:
        member.part = FAIR * member.instance.weight / total
        member.most = 1 << 30 if len(members) == 1 else max(1, ceil(member.part * max_connections))
        member.free = 1 << 30 if len(members) == 1 else min(SPARE, member.most)


def oldest_idle(members: Sequence[Member]) -> "UpstreamConnection | None":
    """The idle connection that rested longest."""
    oldest: UpstreamConnection | None = None
    for member in members:
        if member.idle and (oldest is None or member.idle[0].idle_since_s < oldest.idle_since_s):
            oldest = member.idle[0]
    return oldest
