"""At most so many a second, evenly: for a backend's max_rps and for the ramp of a circuit that recovers. Pure.

Each request books 1/rps of time behind the one before. One whose turn is too far ahead is refused and books nothing,
so a flood of refused requests starves nobody. What was not used is lost but for a small burst, since requests do not
come evenly: a tenth of a second's worth, at least `least_burst` requests where the rate is above that. (The generic
cell rate algorithm, a token bucket kept in one number.)
"""

from typing import Final

BURST_S: Final = 0.1
LEAST_BURST: Final = 5.0


class Pace:
    """Times are seconds of a clock that only goes forward. `rps` is above 0."""

    __slots__ = ("rps", "_interval_s", "_ahead_s", "_due_s", "_least_burst")

    def __init__(self, rps: float, least_burst: float = LEAST_BURST) -> None:
        self._due_s = float("-inf")
        self._least_burst = least_burst
        self.set(rps)

    def set(self, rps: float) -> None:
        """Another rate from now on; what is booked stays booked."""
        self.rps = rps
        self._interval_s = 1.0 / rps
        burst = max(1.0, rps * BURST_S, min(rps, self._least_burst))
        self._ahead_s = (burst - 1.0) * self._interval_s

    def take(self, now_s: float) -> bool:
        """Whether one more may go now; if so it is counted."""
        due_s = self._due_s
        if due_s < now_s:
            self._due_s = now_s + self._interval_s
            return True
        if due_s - now_s > self._ahead_s + 1e-9:
            return False
        self._due_s = due_s + self._interval_s
        return True
