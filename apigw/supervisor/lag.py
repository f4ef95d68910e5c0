"""How late the loop is: what every request of this worker waits besides its own work."""

from typing import Any

from apigw.net.poller import Poller

_EVERY_S = 0.5
_KEPT = 4  # measurements, the last two seconds


class LoopLag(Poller):
    """lag_s(): the worst delay of a timer within the last two seconds, 0 when none was measured."""

    def __init__(self, reactor: Any) -> None:
        self._last_s: float | None = None
        self._lags: list[float] = []
        super().__init__(reactor, _EVERY_S, name="event loop lag")

    def poll(self) -> None:
        now_s = self.clock.seconds()
        if self._last_s is not None:
            self._lags = [*self._lags[1 - _KEPT :], max(0.0, now_s - self._last_s - _EVERY_S)]
        self._last_s = now_s

    def lag_s(self) -> float:
        overdue_s = 0.0 if self._last_s is None else self.clock.seconds() - self._last_s - _EVERY_S
        return max([overdue_s, 0.0, *self._lags])
