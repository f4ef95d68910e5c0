"""The sliding-window counter: what is counted, under which key, and the rule that refuses.

    a request is refused when   previous * (1 - elapsed / window) + current >= limit

`current` and `previous` are the requests counted in this window (it begins at a multiple of its length since
the epoch) and in the one before. A refused request is not counted, so a busy client is slowed to its limit
and not starved by its own refusals.

Note [What the rule promises]
  The rule takes the previous window's requests as spread evenly. Hence, whatever the schedule:
  - no window that begins at a multiple of its length has more than `limit` requests;
  - n window lengths in a row have at most (n + 1) * limit, so in the long run the limit holds exactly;
  - any one stretch of a window's length has at most 2 * limit, and some have: `limit` requests in the last
    instant of a window, and `limit` more at the end of the next. The exact bound at elapsed time e is
    1 + limit + previous * e / window.
  Steady traffic (gaps that vary by half) keeps every stretch within 5% of the limit, random (Poisson) traffic
  within 2 / sqrt(limit), the share by which it bunches itself; tests/core/test_window.py has all of it.
"""

import re
from collections.abc import Sequence
from hashlib import sha256
from math import floor
from typing import Final, NamedTuple

USER: Final = "user"
API_KEY: Final = "apikey"
IP: Final = "ip"
FINGERPRINT: Final = "fingerprint"
GLOBAL: Final = "global"

_SAFE = re.compile(r"(?!sha256-)[A-Za-z0-9._@+-]{1,64}").fullmatch


class Demand(NamedTuple):
    """One counter that a request wants to be counted on. `key` is counter_key()'s: the counter without its window.

    A tuple: made for each request, at a quarter of a frozen record's price (0.23 us to 0.83).
    """

    tier: str
    key: str
    limit: int
    window_s: int


class Counted(NamedTuple):
    """The store's answer: was the request counted, and (previous, current) of each demand in their order.

    `current` has this request in it when it was allowed; when it was not, no counter was changed.
    """

    allowed: bool
    counts: Sequence[tuple[int, int]]


class Judgement(NamedTuple):
    """One demand's counter in words for the client. retry_after_s is 0 when a request would pass now."""

    limit: int
    remaining: int
    reset_epoch_s: int
    retry_after_s: int


def safe_identifier(identifier: str) -> str:
    """The identifier as it may stand in a key: itself, or "sha256-" and 32 hex digits of its digest.

    No ":", "{", "}", CR or LF can break out of the key, and no two identifiers share a counter: one that
    looks like a digest is digested too.
    """
    if _SAFE(identifier) is not None:
        return identifier
    return "sha256-" + sha256(identifier.encode("utf-8", "surrogatepass")).hexdigest()[:32]


def key_prefix(tier: str, kind: str) -> str:
    """What counter_key() begins with, to be prepared once a tier: `rate:{standard:user:`."""
    return f"rate:{{{safe_identifier(tier)}:{kind}:"


def counter_key(tier: str, kind: str, identifier: str) -> str:
    """A counter without its window: `rate:{standard:user:user_789}`. Braces make both windows share a cluster slot."""
    return f"{key_prefix(tier, kind)}{safe_identifier(identifier)}}}"


def key(tier: str, kind: str, identifier: str, start_s: int) -> str:
    """The key of one window of a counter: `rate:{standard:user:user_789}:1707264000`."""
    return f"{counter_key(tier, kind, identifier)}:{start_s}"


def window_start(now_s: float, window_s: int) -> int:
    """The epoch second at which the window of `now_s` (epoch seconds) began."""
    return int(now_s // window_s) * window_s


def weight(now_s: float, window_s: int) -> float:
    """The share of the previous window's requests that still counts: 1 at a window's begin, 0 at its end."""
    return 1.0 - (now_s - window_start(now_s, window_s)) / window_s


def exhausted(previous: int, current: int, limit: int, share: float) -> bool:
    """The rule; `share` is weight(). The Redis script (adapters/redis_counters.py) says the same in Lua."""
    return previous * share + current >= limit


def judge(demand: Demand, previous: int, current: int, now_s: float) -> Judgement:
    """What the counts (as of Counted) mean at `now_s`, epoch seconds. remaining is rounded down, never negative."""
    _, _, limit, window_s = demand
    start_s = int(now_s // window_s) * window_s
    used = previous * (1.0 - (now_s - start_s) / window_s) + current
    if used < limit:
        return Judgement(limit, floor(limit - used), start_s + window_s, 0)
    return Judgement(limit, 0, start_s + window_s, retry_after_s(previous, current, limit, window_s, now_s))


def retry_after_s(previous: int, current: int, limit: int, window_s: int, now_s: float) -> int:
    """The least whole number of seconds, at least 1, after which a request passes if no other comes in between.

    The used share only shrinks with time: in this window with the previous one's weight; once `current`
    alone reaches the limit, in the next window, whose previous one is then this.
    """
    if limit < 1:
        return window_s  # nothing ever passes; any answer is as good
    start_s = window_start(now_s, window_s)
    if current >= limit:
        passes_s = start_s + window_s + window_s * (1.0 - limit / current)
    elif previous:
        passes_s = start_s + window_s * (1.0 - (limit - current) / previous)
    else:
        passes_s = now_s
    wait_s = max(1, floor(passes_s - now_s))
    while _refused_at(previous, current, limit, window_s, start_s, now_s + wait_s):
        wait_s += 1  # once or twice: passing needs strictly less than the limit, and floats round
    return wait_s


def _refused_at(previous: int, current: int, limit: int, window_s: int, start_s: int, later_s: float) -> bool:
    """Whether the counts of the window that began at start_s refuse a request at later_s."""
    windows = (window_start(later_s, window_s) - start_s) // window_s
    if windows == 1:
        previous, current = current, 0
    elif windows > 1:
        return False
    return exhausted(previous, current, limit, weight(later_s, window_s))
