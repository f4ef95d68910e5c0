"""Requests that an address may make before its counter is asked again: one in a hundred of its limit. Pure.

Note [Allowances]
  What counts against an address (unmatched paths, wrong credentials) is answered 404 or 401 here, and a question to
  Redis is a third of such an answer. So when the counter was asked and the address is far from its limit, the next
  requests, up to 1% of the limit and for at most a second of the same window, are counted here; the next question
  takes their number along. What an address leaves when it goes quiet is forgotten.
  N gateways let an address through at most N percent more than one would (the contract's accuracy is 5%); a limit
  below 100 has no allowance and is exact. Nearer to the limit than twice the allowance there is none either.
"""

from typing import Final

from apigw.core.window import window_start

_SHARE: Final = 100  # of the limit: one in a hundred
_LASTS_S: Final = 1.0
_KEPT: Final = 4096  # addresses; the oldest leaves, and what it had is forgotten


class _Allowance:
    __slots__ = ("left", "spent", "until_s", "remaining", "last_s")

    def __init__(self, left: int, until_s: float, remaining: int, now_s: float) -> None:
        self.left = left
        self.spent = 0
        self.until_s = until_s
        self.remaining = remaining
        self.last_s = now_s  # when one was spent last


class Allowances:
    """By counter key (core/window.py). Times are epoch seconds."""

    def __init__(self) -> None:
        self._by_key: dict[str, _Allowance] = {}

    def spend(self, key: str, now_s: float) -> int | None:
        """One request of the allowance: what remains of the limit after it; None when the counter must be asked."""
        allowance = self._by_key.get(key)
        if allowance is None or allowance.left <= 0 or not 0.0 < allowance.until_s - now_s <= _LASTS_S:
            return None
        allowance.left -= 1
        allowance.spent += 1
        allowance.last_s = now_s
        return allowance.remaining - allowance.spent

    def settle(self, key: str, window_s: int, now_s: float) -> tuple[int, float]:
        """(requests let through unasked, when the last of them came); the allowance ends with it. (0, 0.0) for none.

        What was let through two windows ago is forgotten: its counter has expired and would be made anew for ever.
        """
        allowance = self._by_key.pop(key, None)
        if allowance is None or now_s >= window_start(allowance.last_s, window_s) + 2 * window_s:
            return 0, 0.0
        return allowance.spent, allowance.last_s

    def grant(self, key: str, limit: int, window_s: int, remaining: int, now_s: float) -> None:
        """The counter was asked at `now_s` and said that `remaining` of `limit` are left.

        Several may have asked before the first answer; the later ones change nothing, or what was spent were lost.
        """
        left = limit // _SHARE
        if left < 1 or remaining <= 2 * left or key in self._by_key:
            return
        begin_s = int(now_s // window_s) * window_s
        if len(self._by_key) >= _KEPT:
            del self._by_key[next(iter(self._by_key))]
        self._by_key[key] = _Allowance(left, min(now_s + _LASTS_S, begin_s + window_s), remaining, now_s)
