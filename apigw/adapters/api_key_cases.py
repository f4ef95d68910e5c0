"""Unknown API keys while they are looked into: each key once, so many at a time, refusals all after the same time.

    arrives     the same key is looked into already    joins it
    arrives     too many requests wait                 503 at once, before anything is looked at
    arrives     too many keys of this id are open      Redis alone is asked, but for a key that was good here before;
                                                       what is not good is 503 at its time
    waits       the key is good                        goes on, at once
    waits       its time comes and the key is refused  the refusal
    waits       its time comes and nobody knows yet    waits as long again, _LOOKS times in all, then 503

Note [The same time]
  An unknown id needs a look into a memory, a wrong secret 0.3 s of bcrypt, and a client must not see which it was.
  So a refusal is given when a request is HOLD_S old, or twice that and so on; HOLD_S is some checks long, so that
  a check's queue seldom shows. What is counted and bounded is counted alike for ids that exist and ids that do
  not: a case stays open for HOLD_S, however soon its verdict is there, and fills its id's places until then.

Note [The owner of a flooded id]
  Whoever knows an id can keep its places taken. The owner's key, which another gateway has checked, is in Redis then,
  and one GET for each key finds it, which the database confirms. A case without a place gets no more (`crowded`),
  but for a key that was good before in this worker. Either ends well or like a guess: a key that was good once and
  is revoked or expired by now must not be told from one that never was, so it has the words and the time of that.
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime

from apigw.core.api_keys import APIKey
from apigw.errors import GatewayError
from apigw.net.deadlines import Bucket, Deadlines
from apigw.stages.authentication import AuthenticationUnavailable

_TICK_S: Final = 0.001
HOLD_S: Final = 1.0  # three checks of bcrypt cost 12 on a slow core
MAX_WAITING: Final = 4000  # requests; each holds its head
_PART: Final = 2  # one in so many of the requests that may be in flight may wait: the others need places, too
MAX_PER_ID: Final = 2  # keys of one id that are open at a time: their checks end within HOLD_S, one after the other
_LOOKS: Final = 5


class Case:
    """One presented key that is looked into. `verdict` is None until somebody knows.

    placeless: its id has no place left. crowded: and it was not good before. See Note [The owner of a flooded id].
    """

    __slots__ = ("name", "key_id", "placeless", "crowded", "verdict", "waiting", "held")

    def __init__(self, name: str, key_id: str | None, placeless: bool, preferred: bool) -> None:
        self.name = name
        self.key_id = key_id
        self.placeless = placeless
        self.crowded = placeless and not preferred
        self.verdict: APIKey | GatewayError | None = None
        self.waiting: dict[_Waiter, None] = {}
        self.held = not placeless  # it fills no place, and the same key may find one the next time


class _Waiter:
    """One request that waits for a case."""

    __slots__ = ("answer", "looks", "bucket", "look")

    def __init__(self, answer: "Deferred[APIKey]") -> None:
        self.answer = answer
        self.looks = 0
        self.bucket: Bucket | None = None
        self.look: Callable[[], None] | None = None


def refusal_deadlines(clock: IReactorTime) -> Deadlines:
    """Those of refusals alone: the refusals of a flood come one by one, where eight in a turn of the loop would be the
    p99 of everybody else. They are hardly ever taken back, so sharing would save no wake-up (Deadlines).
    """
    return Deadlines(clock, _TICK_S, long_ticks=1)


class Cases:
    """See the table. `waiting` is for a gauge, `turned_away` counts what was refused because of a bound.

    max_in_flight: as it is configured now. Who waits is in flight.
    """

    def __init__(self, deadlines: Deadlines, max_in_flight: Callable[[], int], hold_s: float = HOLD_S) -> None:
        self.waiting = 0
        self.turned_away = 0
        self._deadlines = deadlines
        self._max_in_flight = max_in_flight
        self._hold_s = hold_s
        self._open: dict[str, Case] = {}
        self._by_id: dict[str, dict[Case, None]] = {}  # with those that are open no more, until their time is over

    def __len__(self) -> int:
        return len(self._open)

    def opened(self, name: str, key_id: str | None, preferred: bool) -> tuple[Case, bool]:
        """The case of this key, and whether it is new, so that somebody must look into it and call decided(); of one
        that is crowded no further than into Redis.

        name: the key's digest. preferred: it was good before, so bounds that a flood fills are not for it.
        Raises AuthenticationUnavailable.
        """
        case = self._open.get(name)
        if case is not None:
            if self.waiting >= self._most() and not (preferred and case.verdict is None):  # else it is a refusal
                self._turn_away()
            return case, False
        if not preferred and max(self.waiting, len(self._open)) >= self._most():
            self._turn_away()
        placeless = key_id is not None and len(self._by_id.get(key_id, ())) >= MAX_PER_ID
        self._open[name] = case = Case(name, key_id, placeless, preferred)
        if not placeless:
            if key_id is not None:
                self._by_id.setdefault(key_id, {})[case] = None
            self._deadlines.add(self._hold_s, partial(self._let_go, case))
        return case, True

    def _most(self) -> int:
        return min(MAX_WAITING, max(1, self._max_in_flight() // _PART))

    def _turn_away(self) -> None:
        self.turned_away += 1
        raise AuthenticationUnavailable("key_unverifiable")

    def wait(self, case: Case) -> "Deferred[APIKey]":
        """The verdict, as the table says. Cancelled when the client is gone; the case goes on."""
        waiter = _Waiter(Deferred(lambda _: self._leave(case, waiter)))
        waiter.look = partial(self._look, case, waiter)
        case.waiting[waiter] = None
        self.waiting += 1
        waiter.bucket = self._deadlines.add(self._hold_s, waiter.look)
        return waiter.answer

    def decided(self, case: Case, verdict: APIKey | GatewayError) -> None:
        """What became of it. A good key's requests go on from here."""
        if case.placeless and isinstance(verdict, GatewayError):
            self.turned_away += 1
            if not isinstance(verdict, AuthenticationUnavailable):
                verdict = AuthenticationUnavailable("key_unverifiable")
        case.verdict = verdict
        self._close(case)  # before anybody goes on, who may ask again
        if isinstance(verdict, APIKey):
            for waiter in list(case.waiting):
                if waiter in case.waiting:  # not gone because of one before it
                    self._leave(case, waiter)
                    waiter.answer.callback(verdict)

    def changed(self, ids: list[str]) -> None:
        """What was refused may be good now: whoever comes from here on gets a new case. Its place stays taken."""
        for key_id in ids:
            for case in self._by_id.get(key_id, ()):
                if case.verdict is not None and self._open.get(case.name) is case:
                    del self._open[case.name]

    def _look(self, case: Case, waiter: _Waiter) -> None:
        waiter.looks += 1
        verdict = case.verdict
        if verdict is None and waiter.looks < _LOOKS:
            assert waiter.look is not None
            waiter.bucket = self._deadlines.add(self._hold_s, waiter.look)
            return
        self._leave(case, waiter)
        if isinstance(verdict, GatewayError):
            waiter.answer.errback(verdict)
        else:
            waiter.answer.errback(AuthenticationUnavailable("key_unverifiable"))

    def _leave(self, case: Case, waiter: _Waiter) -> None:
        if case.waiting.pop(waiter, self) is self:
            return
        self.waiting -= 1
        if waiter.bucket is not None:
            waiter.bucket.pop(waiter.look, None)  # type: ignore[arg-type]
        waiter.look = None  # a cycle through the case

    def _let_go(self, case: Case) -> None:
        case.held = False
        self._close(case)

    def _close(self, case: Case) -> None:
        """Forget a case that is decided, when its time is over or its key is good: then memory answers."""
        if case.verdict is None or (case.held and not isinstance(case.verdict, APIKey)):
            return
        if self._open.get(case.name) is case:
            del self._open[case.name]
        siblings = self._by_id.get(case.key_id or "")
        if siblings is not None and siblings.pop(case, self) is None and not siblings:
            del self._by_id[case.key_id or ""]
