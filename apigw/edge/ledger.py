"""After the answer: each observer sees the exchange in its own guard (contract section 3, step 13)."""

from typing import Callable, Sequence

from twisted.logger import Logger

from apigw.exchange import Exchange

Observer = Callable[[Exchange], None]

_LOG_EVERY_S = 10.0  # a broken observer fails on every request

log = Logger()


class Ledger:
    """Gives every exchange that has ended to all observers. What one of them raises never touches a request.

    `failures` counts by the observer's name; a failure is logged with its traceback at most every 10 s.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self._observers = tuple(observers)
        self.failures: dict[str, int] = {}
        self._logged_s: dict[str, float] = {}

    def record(self, ex: Exchange) -> None:
        """`ex.ended_s` and `ex.status` are set. Never raises."""
        for observe in self._observers:
            try:
                observe(ex)
            except Exception:
                self._failed(getattr(observe, "__qualname__", type(observe).__name__), ex)

    def _failed(self, name: str, ex: Exchange) -> None:
        self.failures[name] = self.failures.get(name, 0) + 1
        last_s = self._logged_s.get(name)
        if last_s is not None and 0.0 <= ex.ended_s - last_s < _LOG_EVERY_S:
            return
        self._logged_s[name] = ex.ended_s
        log.failure("observer {name} failed ({n} times so far)", name=name, n=self.failures[name])
