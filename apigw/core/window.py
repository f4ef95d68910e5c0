"""The sliding-window counter: what is counted, under which key, and the rule that refuses.

    a request is refused when   previous * (1 - elapsed / window) + current >= limit     the rule (contract 6)
    and when                    recent + current >= limit + slack(limit)                 its guard

`current` and `previous` are the requests counted in this window (it begins at a multiple of its length since
the epoch) and in the one before; `recent` are those of `previous` that may be younger than a window. A refused
request is not counted, so a busy client is slowed to its limit and not starved by its own refusals.

Note [What the rule promises]
  The rule takes the previous window's requests as spread evenly. Alone it would let bursts through that are not: the
  limit in the last instant of a window, and as much again at the end of the next. So the store also keeps how many
  requests a window had when the first of each of its PARTS came, and the guard counts those that are not over for
  certain: from the part that is as far in the previous window as this moment is in its own. Hence, for any schedule:
  - no stretch of a window's length has more than 2% over the limit, or one request, by an exact log;
  - no window that begins at a multiple of its length has more than `limit`;
  - n window lengths in a row have at most (n + 1) * limit, so in the long run the limit holds exactly.
  The contract's 5% are these 2% and what may be untold (core/allowance.py: 3% for four gateways). The one request of
  a limit below 50 lets a client that has used all of it pass again when the window ends, as X-RateLimit-Reset says.
  `recent` counts up to a PARTS-th of a window too much, less than the 2%: steady traffic does not meet the guard.
  Gateways whose clocks differ by d keep the first promise for stretches of window - d. `current` counts what one whose
  clock is ahead counted in the next window already.
"""

import re
from bisect import bisect_left
from collections.abc import Sequence
from hashlib import sha256
from math import floor
from typing import Final, NamedTuple

USER: Final = "user"
API_KEY: Final = "apikey"
IP: Final = "ip"
FINGERPRINT: Final = "fingerprint"
GLOBAL: Final = "global"

PARTS: Final = 64  # of a window; with 50 or less steady traffic would meet the guard

_SAFE = re.compile(r"(?!sha256-)[A-Za-z0-9._@+-]{1,64}").fullmatch


class Demand(NamedTuple):
    """One counter that a request wants to be counted on. `key` is counter_key()'s: the counter without its window.

    A tuple: made for each request, at a quarter of a frozen record's price (0.23 us to 0.83).
    """

    tier: str
    key: str
    limit: int
    window_s: int


Count = tuple[int, int, int]  # previous, current, recent
# How a window's requests lie in it: part, requests before its first one, part, requests before ...; rising. Parts that
# had none are left out.
Steps = Sequence[int]
Spread = tuple[Steps, Steps]  # of the previous window and of the current one
UNKNOWN: Final[Spread] = ((), ())


class Counted(NamedTuple):
    """The store's answer: was the request counted, and what each demand's counter says, in their order.

    `current` has this request in it when it was allowed; when it was not, no counter was changed. spreads: of a request
    that was refused, for Retry-After; empty where the store cannot say.
    """

    allowed: bool
    counts: Sequence[Count]
    spreads: Sequence[Spread] = ()


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


def spread_key(counter: str, start_s: int) -> str:
    """Where the spread of one window is: `spread:{standard:user:user_789}:1707264000`; `counter` is counter_key()'s."""
    return f"spread{counter[4:]}:{start_s}"


def window_start(now_s: float, window_s: int) -> int:
    """The epoch second at which the window of `now_s` (epoch seconds) began."""
    return int(now_s // window_s) * window_s


def weight(now_s: float, window_s: int) -> float:
    """The share of the previous window's requests that still counts: 1 at a window's begin, 0 at its end."""
    return 1.0 - (now_s - window_start(now_s, window_s)) / window_s


def slack(limit: int) -> int:
    """What the guard gives above the limit: one in 50, at least one. The same in Lua: adapters/redis_script.py."""
    return limit // 50 or 1


def part(share: float) -> int:
    """The part of a window that a moment is in; `share` is weight() of it."""
    return min(PARTS - 1, int((1.0 - share) * PARTS))


def recent(previous: int, steps: Steps, share: float, limit: int) -> int:
    """Of the previous window's requests, which lie in it as `steps` say, those that may be younger than a window.

    All of them where even then the guard would not say more than the rule: nobody needs to look. Those of which no step
    tells count as old.
    """
    if not previous or previous * (1.0 - share) <= slack(limit):
        return previous
    at = 2 * bisect_left(steps[::2], part(share))
    return max(0, previous - steps[at + 1]) if at < len(steps) else 0


def used(count: Count, limit: int, share: float) -> float:
    """How much of the limit is used, by the rule or by its guard; the request is refused when it is `limit` or more.

    adapters/redis_script.py says the same in Lua.
    """
    previous, current, late = count
    return max(previous * share, late - slack(limit)) + current


def judge(demand: Demand, count: Count, now_s: float, spread: Spread = UNKNOWN) -> Judgement:
    """What the count (as of Counted) means at `now_s`, epoch seconds. remaining is rounded down, never negative."""
    _, _, limit, window_s = demand
    start_s = int(now_s // window_s) * window_s
    left = limit - used(count, limit, 1.0 - (now_s - start_s) / window_s)
    if left > 0:
        return Judgement(limit, floor(left), start_s + window_s, 0)
    return Judgement(limit, 0, start_s + window_s, retry_after_s(count, spread, limit, window_s, now_s))


def retry_after_s(count: Count, spread: Spread, limit: int, window_s: int, now_s: float) -> int:
    """The least whole number of seconds, at least 1, after which a request passes if no other comes in between.

    What is used only shrinks with time: in this window as the previous one's requests grow old; in the next, whose
    previous one is then this.
    """
    if limit < 1:
        return window_s  # nothing ever passes; any answer is as good
    previous, current, _ = count
    start_s = window_start(now_s, window_s)
    room_s = _room_s(previous, current, spread[0], limit, window_s)
    if room_s >= window_s:
        room_s = window_s + _room_s(current, 0, spread[1], limit, window_s)
    wait_s = max(1, floor(start_s + room_s - now_s))
    while _refused_at(previous, current, spread, limit, window_s, start_s, now_s + wait_s):
        wait_s += 1  # once or twice: passing needs strictly less than the limit, and floats round
    return wait_s


def _room_s(previous: int, current: int, steps: Steps, limit: int, window_s: int) -> float:
    """How far into a window with these counts a request passes; its length: not in this one."""
    if current >= limit:
        return window_s
    by_rule_s = window_s * max(0.0, 1.0 - (limit - current) / previous) if previous else 0.0
    at = len(steps)
    while at and previous - steps[at - 1] + current < limit + slack(limit):
        at -= 2
    by_guard_s = (steps[at - 2] + 1) * window_s / PARTS if at else 0.0
    return max(by_rule_s, by_guard_s)


def _refused_at(
    previous: int, current: int, spread: Spread, limit: int, window_s: int, start_s: int, later_s: float
) -> bool:
    """Whether the counts of the window that began at start_s refuse a request at later_s."""
    windows = (window_start(later_s, window_s) - start_s) // window_s
    if windows > 1:
        return False
    share = weight(later_s, window_s)
    if windows == 1:
        return used((current, 0, recent(current, spread[1], share, limit)), limit, share) >= limit
    return used((previous, current, recent(previous, spread[0], share, limit)), limit, share) >= limit
