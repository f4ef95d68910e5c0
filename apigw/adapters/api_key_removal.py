"""Records of changed API keys leave Redis, also when whoever changed them could not reach it.

`apigwctl` takes a changed key out of Redis and tells the gateways. When it does not reach Redis they learn of the
change from the database, and forget the key; what Redis has of it would stand on for cache_ttl_seconds.

    told by the database    tried at once
    Redis does not answer   tried again after the next question to the database, until the records have ended anyway
"""

from collections.abc import Iterable
from typing import Final

from twisted.application.service import Service
from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.adapters.api_key_shared import SharedKeys
from apigw.errors import StoreDown

MAX_LEFT: Final = 10_000  # ids; what is found in Redis of those beyond it is confirmed (api_key_examination.py)

log = Logger()


class Removal(Service):
    """Takes the records of changed ids out of Redis, one id after the other. ttl_s: how long a record stands."""

    def __init__(self, clock: IReactorTime, shared: SharedKeys, ttl_s: float) -> None:
        self._clock = clock
        self._shared = shared
        self._ttl_s = ttl_s
        self._left: dict[str, float] = {}  # id: when its records have ended by themselves
        self._removing: Deferred[None] | None = None
        self._failed = False

    def __len__(self) -> int:
        """Ids whose records may still be there."""
        return len(self._left)

    def stopService(self) -> None:
        Service.stopService(self)
        if self._removing is not None:
            self._removing.cancel()

    def changed(self, ids: Iterable[str]) -> None:
        """The database answered: these were changed. Those that are left from before are tried again."""
        for key_id in ids:
            self._left.pop(key_id, None)
            self._left[key_id] = self._clock.seconds() + self._ttl_s
            if len(self._left) > MAX_LEFT:
                del self._left[next(iter(self._left))]
        if self._left and self._removing is None and self.running:
            self._removing = removing = Deferred.fromCoroutine(self._remove())
            removing.addBoth(self._removed)

    async def _remove(self) -> None:
        """Until Redis does not answer. What it did not answer for is the last one the next time: it may be one node."""
        for key_id, until_s in list(self._left.items()):
            try:
                if self._clock.seconds() < until_s:
                    await self._shared.drop_id(key_id)
            except StoreDown as down:
                if key_id in self._left:
                    self._left[key_id] = self._left.pop(key_id)
                self._fail(down)
                return
            if self._left.get(key_id) == until_s:  # else it was changed once more
                del self._left[key_id]
        self._failed = False

    def _fail(self, down: StoreDown) -> None:
        if not self._failed:
            log.warn("changed API keys are not taken out of Redis yet: {why}", why=str(down))
        self._failed = True

    def _removed(self, result: None | Failure) -> None:
        self._removing = None
        if isinstance(result, Failure) and not result.check(CancelledError):
            log.failure("changed API keys cannot be taken out of Redis: a defect", failure=result)
