"""bcrypt over the secrets of API keys: a few at once, in threads that stand back, nobody's queue before another's.

Note [Fair checks]
  One check takes 0.3 s of a core, so a queue of them is what a flood aims at. Checks wait by key id, and the ids
  take turns: a flood on one id delays another id by one check, not by its queue. How many of one id wait, and
  how many in all, is bounded; api_keys.py bounds an id earlier and alike for ids that do not exist, because a
  bound that only real ids have would tell which are real.

Note [Turns without a check]
  A key that needs no check (its id is unknown, expired, revoked) must not be refused sooner than one with a wrong
  secret, or whoever fills the queue would see by the time which ids are real. So it takes its turn among the checks
  and is told when a check would have been done. It takes no thread, so a flood of them holds no check up. When
  nothing is checked it is told at once: a check, too, would be done while refusals are held (api_key_cases.py).
"""

import os
from collections import deque
from collections.abc import Callable
from typing import Any

import bcrypt
from twisted.application.service import Service
from twisted.internet.defer import Deferred, succeed
from twisted.python.failure import Failure

from apigw.net.threads import Threads

MAX_WAITING = 64  # about 15 s of two threads; whoever is behind that asks again
_NICENESS = 5  # a third of the loop's share where cores are short: still a check in a second or so
_TAKES_S = 0.3  # one check, until the first was made
_SPARE_CORES = 2  # below this many cores one check at a time leaves the loop its own


class ChecksBusy(Exception):
    """Too many checks wait already."""


class _Check:
    __slots__ = ("secret", "secret_hash", "answer", "begun_s")

    def __init__(self, secret: bytes, secret_hash: bytes, cancel: Callable[["Deferred[bool]"], None]) -> None:
        self.secret = secret
        self.secret_hash = secret_hash
        self.answer: Deferred[bool] = Deferred(cancel)
        self.begun_s: float | None = None


class _Turn:
    """What waits like a check and is none."""

    __slots__ = ("answer", "timer")

    def __init__(self) -> None:
        self.timer: Any = None
        self.answer: Deferred[None] = Deferred(self._forget)

    def _forget(self, _: object) -> None:
        if self.timer is not None:
            self.timer.cancel()


class SecretChecks(Service):
    """See Note [Fair checks]. `busy` and `queued` are for gauges, `rejected` counts ChecksBusy.

    takes_s: what the last check took.
    """

    def __init__(self, reactor: Any, threads: int | None = None, max_waiting: int = MAX_WAITING) -> None:
        """threads: None for one, or two where there are cores enough."""
        self.size = threads or (1 if (os.cpu_count() or 1) <= _SPARE_CORES else 2)
        self.threads = Threads(reactor, "bcrypt", self.size, _NICENESS)
        self.busy = 0
        self.queued = 0
        self.rejected = 0
        self.takes_s = _TAKES_S
        self._clock = reactor
        self._max_waiting = max_waiting
        self._waiting: dict[str, deque[_Check | _Turn]] = {}  # by key id; the first id is the next one's turn

    def check(self, key_id: str, secret: bytes, secret_hash: bytes) -> "Deferred[bool]":
        """Whether the secret is that of the hash. A hash that is none fails. Raises ChecksBusy."""
        self._bounded()
        one = _Check(secret, secret_hash, lambda _: self._forget(key_id, one))
        self._waiting.setdefault(key_id, deque()).append(one)
        self.queued += 1
        self._begin()
        return one.answer

    @property
    def idle(self) -> bool:
        """A check would begin at once."""
        return self.busy < self.size and not self._waiting

    def turn(self, key_id: str) -> "Deferred[None]":
        """Fires when a check of this id would be done; at once when idle. Raises ChecksBusy, as check() would."""
        self._bounded()
        if self.idle:
            return succeed(None)
        one = _Turn()
        self._waiting.setdefault(key_id, deque()).append(one)
        return one.answer

    def _bounded(self) -> None:
        if self.queued >= self._max_waiting:
            self.rejected += 1
            raise ChecksBusy

    def startService(self) -> None:
        Service.startService(self)
        self.threads.startService()

    def stopService(self) -> "Deferred[None] | None":
        """What waits fails with CancelledError."""
        Service.stopService(self)
        for waiting in list(self._waiting.values()):
            for one in list(waiting):
                one.answer.cancel()
        return self.threads.stopService()

    def _begin(self) -> None:
        while self.busy < self.size and self._waiting:
            key_id, waiting = next(iter(self._waiting.items()))
            one = waiting.popleft()
            del self._waiting[key_id]
            if waiting:
                self._waiting[key_id] = waiting  # to the end of the turns
            if isinstance(one, _Turn):
                if not one.answer.called:
                    one.timer = self._clock.callLater(self.takes_s, one.answer.callback, None)
                continue
            self.queued -= 1
            self.busy += 1
            one.begun_s = self._clock.seconds()
            self.threads.run(bcrypt.checkpw, one.secret, one.secret_hash).addBoth(self._done, one)

    def _done(self, result: "bool | Failure", one: _Check) -> None:
        self.busy -= 1
        if one.begun_s is not None:
            self.takes_s = self._clock.seconds() - one.begun_s
        if self.running:
            self._begin()
        if not one.answer.called:
            one.answer.callback(result)  # a Failure makes it fail

    def _forget(self, key_id: str, one: _Check) -> None:
        """Nobody waits for it any more; one that has begun cannot be stopped."""
        if one.begun_s is not None:
            return
        waiting = self._waiting[key_id]
        waiting.remove(one)
        self.queued -= 1
        if not waiting:
            del self._waiting[key_id]
