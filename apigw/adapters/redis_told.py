"""What the log says of a Redis: one line each way, and of one that flaps four times a second one line a second."""

from typing import Any, Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

_GAP_S: Final = 1.0

log = Logger()


class Told:
    """A change is told at once, or when a second has passed since the last: then what holds by then, if it is new."""

    def __init__(self, clock: IReactorTime, title: str) -> None:
        self._clock = clock
        self._title = title
        self._up = False
        self._reason: str | None = None
        self._told_up: bool | None = None
        self._told_s = float("-inf")
        self._timer: Any = None

    def changed(self, up: bool, reason: str | None) -> None:
        self._up, self._reason = up, reason
        if self._told_up is up or self._timer is not None:
            return
        left_s = self._told_s + _GAP_S - self._clock.seconds()
        if left_s > 0:
            self._timer = self._clock.callLater(left_s, self._late)
            return
        self._told_up, self._told_s = up, self._clock.seconds()
        if up:
            log.info("{title} answers rate limit checks", title=self._title)
        else:
            log.warn("{title} is down for rate limit checks: {reason}", title=self._title, reason=reason)

    def _late(self) -> None:
        self._timer = None
        self.changed(self._up, self._reason)

    def stop(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()
