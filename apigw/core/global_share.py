"""The global tier between two questions to the store: a worker counts a little of it by itself. Pure.

    state     event                                      then
    exact     asked with a request, below 90% of limit   holding: 0.25% of the limit, for a moment of the same window
    exact     asked with a request, 90% or more          exact
    holding   a request                                  holding: one less, nobody is asked
    holding   none left, its time or the window over     exact: the next question takes along what was spent,
                                                         or overdue() does where no request comes

Note [Global share]
  Everybody's counter is the one that each request would ask. Far from its limit the answer is known, so it is asked
  once in a while: Redis has half the work, and in a cluster a request asks one slot. What the store does not know yet
  is at most 0.25% of the limit a worker, whenever it is settled; near the limit, and where 0.25% is less than ten
  requests, each request is asked for. Worst of all, one worker fills the last 10% while the others hold their shares:
  N workers let through at most (N - 1) * 0.25% too many, so twenty stay within the contract's 5%. A share that is held
  when its worker ends or the store is lost is never settled.
"""

from typing import Final

from apigw.core.window import Count, Demand, judge, window_start

_SHARE: Final = 400  # one in so many of the limit
_LEAST: Final = 10  # a smaller share is not worth its trouble
_FAR: Final = 0.9  # of the limit; from there on every request is asked for
_LASTS_S: Final = 0.75  # adapters/share_settlement.py looks each 0.2 s: settled at most a second later


class _Share:
    __slots__ = ("demand", "left", "spent", "until_s", "remaining", "last_s")

    def __init__(self, demand: Demand, left: int, until_s: float, remaining: int, now_s: float) -> None:
        self.demand = demand
        self.left = left
        self.spent = 0
        self.until_s = until_s
        self.remaining = remaining  # of the limit, when it was asked
        self.last_s = now_s  # when one was spent last


class GlobalShares:
    """The shares of one worker, by counter; a configuration has one global tier. Times are epoch seconds."""

    def __init__(self) -> None:
        self._by_key: dict[str, _Share] = {}

    def spend(self, demand: Demand, now_s: float) -> int | None:
        """Count one request here: what is left of the limit after it. None when the store must be asked."""
        share = self._by_key.get(demand.key)
        if share is None or not share.left or not 0.0 < share.until_s - now_s <= _LASTS_S:
            return None
        share.left -= 1
        share.spent += 1
        share.last_s = now_s
        return share.remaining - share.spent

    def take_back(self, demand: Demand) -> None:
        """A request that was counted here was refused by another tier. One that is settled already stays counted."""
        share = self._by_key.get(demand.key)
        if share is not None and share.spent:
            share.left += 1
            share.spent -= 1

    def settle(self, demand: Demand, now_s: float) -> tuple[int, float]:
        """(requests that the store does not know, when the last of them came); (0, 0.0) for none. The share is over.

        A window that nobody asks about any more is left alone: its counter has expired.
        """
        share = self._by_key.pop(demand.key, None)
        if share is None or now_s >= window_start(share.last_s, demand.window_s) + 2 * demand.window_s:
            return 0, 0.0
        return share.spent, share.last_s

    def learn(self, demand: Demand, count: Count, now_s: float) -> None:
        """The store was asked at `now_s`. Answers that come while a share is held change nothing."""
        previous, current, _ = count
        left = demand.limit // _SHARE
        if left < _LEAST or previous + current >= _FAR * demand.limit or demand.key in self._by_key:
            return
        start_s = int(now_s // demand.window_s) * demand.window_s
        remaining = judge(demand, count, now_s).remaining
        until_s = min(now_s + _LASTS_S, start_s + demand.window_s)
        self._by_key[demand.key] = _Share(demand, left, until_s, remaining, now_s)

    def overdue(self, now_s: float) -> list[tuple[Demand, int, float]]:
        """settle() of the shares whose time is over and that no request has ended, each with its demand."""
        over = [share.demand for share in self._by_key.values() if not 0.0 < share.until_s - now_s <= _LASTS_S]
        settled = [(demand, *self.settle(demand, now_s)) for demand in over]
        return [one for one in settled if one[1]]
