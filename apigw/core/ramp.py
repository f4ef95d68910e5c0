"""How much of its traffic a backend gets back after an outage: a share that rises by steps, and never a storm. Pure.

    share    steps[0] at first, steps[-1] = 1.0 after `over_s`, the others evenly between. Which requests pass is no
             matter of chance: each adds the share to an account, and the one that makes it whole passes
    rate     of what passes by its share, at most normal * HEADROOM * share * growth a second, where `normal` is what
             the backend served before the outage; None: nothing is known of it, and the share alone decides.
             A guess, from a ramp that failed: growth is quick, and begins with the first step
    growth   1, until the last step is reached; from then on it doubles three times in `over_s`, while answers are good.
             More than a tenth of the answers bad: EASE times as much, also before the last step. More in flight than
             STRAIN times what was usual at first: SLACKEN times as much, not below 1. Where either
             happened is a ceiling: growth is soon back at CLOSE of it, and slow from there on
    over     the last step is reached, and the rate held back few in the stretch of `quiet_s` before

Note [Why a share is not enough]
  After five minutes of outage three hundred seconds' worth of clients wait, and all of them ask again within moments: a
  tenth of that is many times the normal load. Nor are they gone after two minutes in which the backend was given less
  than new clients bring. So passing is bounded by what the backend is known to have carried, and the ramp lasts until
  the queue is gone. A backend whose traffic has become more for good gets it by `growth`; what it cannot carry is cut
  back before it counts as a new outage. Failures come too late for that where they are timeouts: by then a third of the
  breaker's window is lost. What is in flight tells at once that answers fall behind: by Little's law it is the rate
  times the time an answer takes, which is known from the ramp's first requests. tests/core/test_ramp.py tries it all.
"""

from typing import Final, Sequence

from apigw.core.pace import Pace

HEADROOM: Final = 1.25  # above the normal rate: requests come unevenly, and a queue must shrink
EASE: Final = 0.7
CLOSE: Final = 0.85
STRAIN: Final = 3.0
SLACKEN: Final = 0.9
_LOWER: Final = 0.95  # of a ceiling, at most: what is still in flight may strain a rate that would be fine
_LEAST_BURST: Final = 2.0  # a weak backend may need a second for five
_LEAST_FLYING: Final = 8  # in flight; fewer are no queue
_KNOWN: Final = 10  # requests of the steps before, from which on the time of an answer is known
_ENOUGH: Final = 30  # more would tell of a load that is near the limit already
_USUAL, _QUICK, _SOON, _SLOW = 3.0, 8.0, 4.0, 0.5  # how often growth doubles in `over_s`
_BAD_SHARE: Final = 0.1  # of the answers between two looks, from which on it is eased
_LOOK_S: Final = 1.0
_LOOKS: Final = 20  # a window has at least so many looks: one bad look is a small part of it
_HELD_SHARE: Final = 0.1  # of those whose turn it was by their share: fewer are unevenness, more are a queue
_LONGEST_RETRY_S: Final = 10


class Ramp:
    """Begins at `begun_s`. `floor_rps`: the rate is never below it, so that a bad backend is found out.

    Times are seconds of a clock that only goes forward. `window_s`: of the breaker, for how often to look.
    """

    def __init__(
        self,
        steps: Sequence[float],
        over_s: float,
        window_s: float,
        begun_s: float,
        normal_rps: float | None,
        floor_rps: float,
        guessed: bool = False,
    ) -> None:
        self.begun_s = begun_s
        self.growth = 1.0
        self.normal_rps = normal_rps
        self._steps = steps
        self._over_s = over_s
        self._floor_rps = floor_rps
        self._guessed = guessed
        self._pace = None if normal_rps is None else Pace(floor_rps, _LEAST_BURST)
        self._account = 0.0
        self._look_s = min(_LOOK_S, window_s / _LOOKS)
        self._looked_s = begun_s
        self._eased_s = begun_s - 2 * self._look_s
        self._ceiling: float | None = None
        self._easing = False  # no good look since
        self._good = self._bad = 0  # since the last look
        self._passed = self._held = 0  # in this stretch of `quiet_s`
        self._stretch_s = begun_s
        self._crowded: bool | None = None  # in the stretch before; None: there was none
        self._flying = 0
        self._timing = True  # at first, while it has little to do: how long an answer takes
        self._flown = 0  # requests that have passed meanwhile
        self._flying_s = 0.0  # the seconds that those were in flight, all together
        self._event_s = begun_s
        self._retry_s = 0
        self.longest_retry_s = max(1, min(_LONGEST_RETRY_S, int(over_s / 12)))
        self.quiet_s = self.longest_retry_s + 1.0  # who was held back has asked again by then
        self._set_rate(begun_s)

    def share(self, now_s: float) -> float:
        """Of the requests; the rate is another matter."""
        last = len(self._steps) - 1
        if self._over_s <= 0 or last == 0:
            return 1.0
        return self._steps[min(last, int(max(0.0, now_s - self.begun_s) / self._over_s * last + 1e-9))]

    def admits(self, now_s: float) -> bool:
        """Whether this request passes. Ask once a request."""
        self.look(now_s)
        self._account += self.share(now_s)
        if self._account < 1.0 - 1e-9:
            return False
        self._account -= 1.0
        if self._pace is None or self._pace.take(now_s):
            self._passed += 1
            self._flies(1, now_s)
            return True
        self._held += 1
        return False

    def retry_after_s(self) -> int:
        """For who does not pass: 1, 2, 3 ... in turn, so that not all of them are back at once."""
        self._retry_s = self._retry_s % self.longest_retry_s + 1
        return self._retry_s

    def succeeded(self, now_s: float) -> None:
        self._flies(-1, now_s)
        self.look(now_s)
        self._good += 1

    def abandoned(self, now_s: float) -> None:
        """It has ended and says nothing."""
        self._flies(-1, now_s)

    def failed(self, now_s: float) -> None:
        """Cut back at once, not at the next look. What was let through before that fails too: it counts once."""
        self._flies(-1, now_s)
        self.look(now_s)
        self._bad += 1
        if self._bad < 2 or self._bad <= _BAD_SHARE * (self._good + self._bad):
            return
        if now_s - self._eased_s >= 2 * self._look_s:
            self._reach_ceiling()
            self.growth *= EASE
            self._eased_s = now_s
            self._set_rate(now_s)

    def over(self, now_s: float) -> bool:
        """Nothing is held back any more."""
        self.look(now_s)
        if self.share(now_s) < 1.0:
            return False
        return not (self._many_held() if self._crowded is None else self._crowded)

    def look(self, now_s: float) -> None:
        """Once in a while: what became of those that passed, and how many would have liked to."""
        since_s = now_s - self._looked_s
        if since_s < self._look_s:
            return
        self._looked_s = now_s
        if now_s - self._stretch_s >= self.quiet_s:
            self._crowded = self._many_held()
            self._stretch_s, self._passed, self._held = now_s, 0, 0
        if self._strained():
            self._reach_ceiling()
            self.growth = min(self.growth, max(1.0, self.growth * SLACKEN))
        elif self._good and self._bad <= _BAD_SHARE * (self._good + self._bad):
            self._grow(min(since_s, 2 * self._look_s), now_s)
        self._good = self._bad = 0
        self._set_rate(now_s)

    def _many_held(self) -> bool:
        return self._held > _HELD_SHARE * (self._held + self._passed)

    def _flies(self, more: int, now_s: float) -> None:
        if self._timing:
            self._flying_s += self._flying * max(0.0, now_s - self._event_s)
            self._flown += more > 0
            settled = self._flown >= _ENOUGH and 3 * self._flying <= self._flown
            self._timing = not settled and self.share(now_s) < 1.0
        self._flying = max(0, self._flying + more)
        self._event_s = now_s

    def _strained(self) -> bool:
        if self._pace is None or self._flown < _KNOWN or self._flying <= _LEAST_FLYING:
            return False
        return self._flying > STRAIN * self._flying_s / self._flown * self._pace.rps

    def _reach_ceiling(self) -> None:
        if not self._easing:
            self._easing = True
            self._ceiling = max(self.growth, _LOWER * (self._ceiling or 0.0))

    def _grow(self, since_s: float, now_s: float) -> None:
        self._easing = False
        speed = _QUICK if self._guessed else _USUAL
        if self._ceiling is not None:
            speed = _SOON if self.growth < CLOSE * self._ceiling else _SLOW
        grown = self.growth * 2.0 ** (speed * since_s / max(self._over_s, self._look_s))
        bounded = self.share(now_s) < 1.0 and not self._guessed
        self.growth = min(1.0, grown) if bounded else grown

    def _set_rate(self, now_s: float) -> None:
        if self._pace is not None and self.normal_rps is not None:
            rate_rps = self.normal_rps * HEADROOM * self.share(now_s) * self.growth
            self._pace.set(max(self._floor_rps, rate_rps))
