"""Good and bad outcomes within a sliding window, by buckets. Pure; times are seconds of a clock that only goes forward.

Note [Ever]
  A window is the difference of two accounts that only grow: what was counted ever, and what had been counted when its
  oldest bucket began. So a good outcome costs one addition, and nothing is forgotten but at a bucket's end. The window
  has nine whole buckets and the one that is being filled: it reaches back 90 to 100% of its length.
"""

from collections import deque
from typing import Final

_BUCKETS: Final = 10


class Outcomes:
    """`ever` += 1 is a good outcome, once `now_s < until_s` is made sure of by turn(). `bad` is that of the window."""

    __slots__ = ("ever", "bad", "until_s", "span_s", "_bad_ever", "_marks")

    def __init__(self, window_s: float, now_s: float) -> None:
        self.span_s = window_s / _BUCKETS
        self.until_s = now_s + self.span_s  # the end of the bucket that is being filled
        self.ever = 0
        self.bad = 0
        self._bad_ever = 0
        self._marks: deque[tuple[int, int]] = deque([(0, 0)], maxlen=_BUCKETS)  # both accounts at each bucket's begin

    def turn(self, now_s: float) -> int:
        """Begin the bucket of `now_s`; how many have ended."""
        if now_s < self.until_s:
            return 0
        ended = int((now_s - self.until_s) / self.span_s) + 1
        for _ in range(min(ended, _BUCKETS)):
            self._marks.append((self.ever, self._bad_ever))
        self.until_s += ended * self.span_s
        self.bad = self._bad_ever - self._marks[0][1]
        return ended

    def failed(self) -> None:
        """A bad outcome; see `ever`."""
        self.ever += 1
        self._bad_ever += 1
        self.bad += 1

    @property
    def total(self) -> int:
        """Outcomes of the window, good and bad."""
        return self.ever - self._marks[0][0]

    def covered_s(self, now_s: float) -> float:
        """How far back the window reaches: less than its length at first."""
        return now_s - self.until_s + len(self._marks) * self.span_s
