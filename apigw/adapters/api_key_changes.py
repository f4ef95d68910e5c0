"""Which API keys were changed (revoked, rotated, edited) since a worker learned them: told by Redis, else asked for.

Redis listens, database asked since then     in step: a change is known as soon as it is told; asked every 4 s all
                                             the same
Redis is not there, or does not listen       the database is asked every 2 s
neither                                      what is remembered ages: see Good.confirmed_s (api_key_cache.py)
"""

from collections.abc import Callable
from typing import Final

import orjson
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from apigw.errors import StoreDown
from apigw.names import API_KEYS_CHANNEL
from apigw.net.poller import Poller, PollFailed
from apigw.ports import SharedStore

ASK_S: Final = 2.0  # contract section 7, and 5 s for a change to be effective: two polls, one of which may fail
_ASK_IN_STEP_S: Final = 3.0  # a message can be lost, or its sender not reach Redis: then 5 s hold as well
_MAX_REMEMBERED: Final = 10_000  # ids that changed

Since = Callable[[int | None], "Deferred[tuple[int, list[str] | None]]"]

log = Logger()


class Announcements:
    """What Redis tells of API keys, for the sources that run. Made before the store starts, and outlives reloads."""

    def __init__(self, store: SharedStore) -> None:
        self.store = store
        self._hearing: list[Changes] = []
        store.listen(API_KEYS_CHANNEL, self._told, self._listens)

    def add(self, changes: "Changes") -> None:
        """It hears from now on."""
        self._hearing.append(changes)
        if self.store.listening:
            changes.listens()

    def remove(self, changes: "Changes") -> None:
        if changes in self._hearing:
            self._hearing.remove(changes)

    def _told(self, message: bytes) -> None:
        for changes in self._hearing:
            changes.told(message)

    def _listens(self) -> None:
        for changes in self._hearing:
            changes.listens()


class Changes(Poller):
    """Calls on_changed(ids), or on_changed(None) for "any of them", after each change that is heard of.

    since(number) asks the database for (number of the newest change, ids changed after `number`); None for
    "from now on", which gives no ids. None for the ids: any of them. It fails with StoreDown.

    in_step: what is remembered is as good as the database. heard_s: until when changes were heard of, by the clock.
    """

    def __init__(
        self,
        clock: IReactorTime,
        announcements: Announcements | None,
        since: Since,
        on_changed: Callable[[list[str] | None], None],
        draw: Callable[[], float],
    ) -> None:
        super().__init__(clock, ASK_S, name="API key changes", jitter=0.1, draw=draw)
        self.heard_s = clock.seconds()
        self._announcements = announcements
        self._store = None if announcements is None else announcements.store
        self._since = since
        self._on_changed = on_changed
        self._number: int | None = None
        self._asked_s = 0.0
        self._listening_s: float | None = None
        self._caught_up = False
        self._stamp = self._all_stamp = 0
        self._stamps: dict[str, int] = {}

    def startService(self) -> None:
        super().startService()
        if self._announcements is not None:
            self._announcements.add(self)

    def stopService(self) -> None:
        super().stopService()
        if self._announcements is not None:
            self._announcements.remove(self)

    @property
    def in_step(self) -> bool:
        return self._caught_up and self._store is not None and self._store.listening

    def age_s(self) -> float:
        """Seconds since changes were last heard of; 0 while in step."""
        return 0.0 if self.in_step else max(0.0, self.clock.seconds() - self.heard_s)

    @property
    def database_up(self) -> bool:
        """Whether the last question was answered."""
        return self.consecutive_failures == 0

    def stamp(self, key_id: str) -> int:
        """Differs from what it was before when the key was changed in between."""
        return self._stamps.get(key_id, self._all_stamp)

    def known(self, key_id: str) -> bool:
        """Whether this very key was changed since the start, as far as is remembered."""
        return key_id in self._stamps

    # -- told by Redis

    def listens(self) -> None:
        """The subscription begins, perhaps again: what was told before it may have been missed."""
        self._caught_up = False
        self._listening_s = self.clock.seconds()
        self.poll_now().addCallback(self._catch_up)  # which may join one from before

    def _catch_up(self, _: bool) -> None:
        if not self._caught_up:
            self.poll_now()

    def told(self, message: bytes) -> None:
        """{"key_id": ID} was changed."""
        try:
            key_id = orjson.loads(message)["key_id"]
        except (ValueError, TypeError, KeyError):
            key_id = None
        if type(key_id) is not str:
            log.warn("not a change of an API key: {message!r}", message=message[:100])
            self._caught_up = False  # it may have been one
            self.poll_now()
            return
        self._changed([key_id])

    # -- asked for

    def poll(self) -> "Deferred[None] | None":
        """Ask the database, unless Redis would have told. Raises PollFailed."""
        now_s = self.clock.seconds()
        if self.in_step and now_s - self._asked_s < _ASK_IN_STEP_S:
            self.heard_s = now_s
            return None
        return Deferred.fromCoroutine(self._ask(now_s))

    async def _ask(self, began_s: float) -> None:
        try:
            number, changed = await self._since(self._number)
        except StoreDown as down:
            raise PollFailed(str(down)) from None
        first, self._number = self._number is None, number
        self._asked_s = self.heard_s = began_s
        self._caught_up = self._listening_s is not None and began_s >= self._listening_s
        if first or changed is None:
            self._changed(None)  # what was learned before cannot be told from what was changed before
        elif changed:
            self._changed(changed)

    def _changed(self, ids: list[str] | None) -> None:
        self._stamp += 1
        if ids is None or len(self._stamps) + len(ids) > _MAX_REMEMBERED:
            self._stamps.clear()
            self._all_stamp = self._stamp
        for key_id in ids or ():
            self._stamps[key_id] = self._stamp
        self._on_changed(ids)
