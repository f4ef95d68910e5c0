"""The revocation list of JWTs as Redis has it: loaded, told of, compared, and never forgotten before its time.

what                                       when
all of it is loaded (ZSCAN, by pages)      at the start; when the subscription begins again; every minute; and when
                                           a comparison or a message that cannot be read says that something is missing
one entry is told (REVOCATIONS_CHANNEL)    at once, within milliseconds of `apigwctl tokens revoke`
numbers are compared (ZCOUNT)              every 2 s, whether it is listened to or not: a lost message shows in 2 s
what is over leaves                        with each minute

Redis is gone: what is known stays in force, and grows old (age_s). Redis comes back empty: likewise, since entries
only ever add up (Note [Revocations], core/revocations.py).

Note [Comparing]
  Both sides count the entries that end after the last pruning. The numbers need not be equal: Redis may have lost
  what we remember, or may have several entries of one user. What they differ by after a load is what they are to
  differ by; anything else is a reason to load. A load of 10,000 entries takes 40 ms of CPU in pieces of 2 ms; one
  for that reason waits until it is no more than a twentieth of the time.
"""

import random
from collections.abc import Callable, Iterable
from typing import Any, Final

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from apigw.core.revocation_codec import from_member, from_message
from apigw.core.revocations import Revocation, Revocations
from apigw.errors import StoreDown
from apigw.names import REVOCATIONS_CHANNEL, REVOKED_TOKENS, REVOKED_USERS
from apigw.net.poller import Poller, PollFailed
from apigw.ports import SharedStore, WallClock

COMPARE_S: Final = 2.0  # contract section 7: effective within 5 s; two comparisons, of which one may fail
LOAD_S: Final = 60.0
SPARE_S: Final = 60.0  # clocks differ, between gateways and from those who revoke: entries stay so much longer
FIRST_POLL_S: Final = 0.5  # the subscription, when it begins, is sooner
PAGE: Final = 500  # entries; about 2 ms
_AGAIN_S: Final = 0.05  # a subscription that began during a load
_LOAD_SHARE: Final = 20.0
_TIMEOUT_S: Final = 120.0  # of a load; each of its commands has a second

log = Logger()


class RevocationList(Poller):
    """Keeps `known`, which verification asks, in step with Redis. Made before the store starts; outlives reloads.

    changes: differs from what it was when there is something new in the list. loads: how often all of it was loaded.
    unreadable: entries in Redis that are no revocations, as of the last load; misheard: messages that are none.
    """

    def __init__(
        self,
        clock: IReactorTime,
        store: SharedStore,
        wall: WallClock,
        *,
        draw: Callable[[], float] = random.random,
    ) -> None:
        super().__init__(
            clock,
            COMPARE_S,
            name="revocations",
            jitter=0.1,
            draw=draw,
            timeout_s=_TIMEOUT_S,
            first_delay_s=FIRST_POLL_S,
        )
        self.known = Revocations()
        self.changes = self.loads = self.unreadable = self.misheard = 0
        self._store = store
        self._wall = wall
        self._wanted = 1  # loads that are due; see _due()
        self._wanted_then = 0  # its value when the last load began
        self._loaded_s = clock.seconds()  # when that was
        self._load_took_s = 0.0
        self._differ: tuple[int, int] | None = None  # Note [Comparing]; None: nobody knows
        self._known_s = clock.seconds()  # when the list was last known to be complete
        self._first: Deferred[None] = Deferred()
        store.listen(REVOCATIONS_CHANNEL, self._told, self._listens)

    @classmethod
    def of(cls, clock: IReactorTime, store: SharedStore | None, wall: WallClock) -> "RevocationList | None":
        """None without a store."""
        return None if store is None else cls(clock, store, wall)

    @property
    def complete(self) -> bool:
        """Whether Redis has told all of it since the start."""
        return self.loads > 0

    def age_s(self) -> float:
        """Seconds since the list was last known to be complete, or since the start when it never was."""
        return max(0.0, self.clock.seconds() - self._known_s)

    def first_load(self, within_s: float) -> "Deferred[None]":
        """Fires when the list is complete for the first time, or when that takes longer."""
        waiting: Deferred[None] = Deferred()
        self._first.chainDeferred(waiting)
        return waiting.addTimeout(within_s, self.clock).addErrback(lambda _: None)

    # -- told

    def _listens(self) -> None:
        """The subscription begins, perhaps again: what was told before it may have been missed."""
        self._wanted += 1
        self.poll_now()  # or a load from before is in flight: then there is another right after it

    def _told(self, message: bytes) -> None:
        try:
            revocation = from_message(message)
        except ValueError as error:
            self.misheard += 1
            self._differ = None  # it may have been one
            if not self.misheard & (self.misheard - 1):
                log.warn("not a revocation ({count} so far): {error}", count=self.misheard, error=error)
            return
        self._add((revocation,))

    def _add(self, revocations: Iterable[Revocation]) -> None:
        if self.known.add(revocations):
            self.changes += 1

    # -- asked for

    def delay_s(self) -> float:
        """Soon when a load is due that could not be made because another one was on its way."""
        return _AGAIN_S if self._wanted != self._wanted_then and not self.consecutive_failures else self.interval_s

    def poll(self) -> "Deferred[None]":
        """Drop what is over; compare, and load if there is reason to. Raises PollFailed."""
        return Deferred.fromCoroutine(self._refresh())

    async def _refresh(self) -> None:
        began_s = self.clock.seconds()
        await self._prune()
        try:
            there = await self._counted()
            if self._due(began_s):
                await self._load(began_s, there)
            elif self._difference(there) != self._differ:
                if not self._affordable(began_s):
                    return
                await self._load(began_s, there)
        except StoreDown as down:
            if not self.complete and not self.consecutive_failures:
                log.warn("what was revoked is not known: only {count} entries of the last run are in force",
                         count=len(self.known))  # fmt: skip
            raise PollFailed(str(down)) from None
        self._known_s = began_s

    def _due(self, now_s: float) -> bool:
        return self._wanted != self._wanted_then or now_s - self._loaded_s >= LOAD_S

    def _affordable(self, now_s: float) -> bool:
        return now_s - self._loaded_s >= _LOAD_SHARE * self._load_took_s

    async def _counted(self) -> tuple[int, int]:
        """How many tokens and users Redis has that count after the last pruning."""
        since = f"({self.known.pruned_s:.0f}"
        tokens = await self._store.command(REVOKED_TOKENS, "ZCOUNT", REVOKED_TOKENS, since, "+inf")
        users = await self._store.command(REVOKED_USERS, "ZCOUNT", REVOKED_USERS, since, "+inf")
        return tokens, users

    def _difference(self, there: tuple[int, int]) -> tuple[int, int]:
        """See Note [Comparing]."""
        here = self.known.counts()
        return there[0] - here["token"], there[1] - here["user"]

    async def _load(self, began_s: float, there: tuple[int, int]) -> None:
        """`there`: what was counted before. What comes during the load makes a difference, lest it be missed."""
        wanted = self._wanted
        self.known.left_out = 0
        unreadable = 0
        for key in (REVOKED_TOKENS, REVOKED_USERS):
            cursor: bytes | None = b"0"
            while cursor is not None:
                reply = await self._store.command(key, "ZSCAN", key, cursor, "COUNT", PAGE)
                cursor = reply[0] if reply[0] != b"0" else None
                unreadable += await self._take(key, reply[1])
        self._differ = self._difference(there)
        now_s = self.clock.seconds()
        self._wanted_then, self._loaded_s, self._load_took_s = wanted, now_s, now_s - began_s
        self._loaded(unreadable)

    async def _take(self, key: str, flat: list[bytes]) -> int:
        """Members and scores in turn, usually a page of them; how many are no revocations."""
        unreadable = 0
        for start in range(0, len(flat), 2 * PAGE):
            if start:
                await self._next_turn()
            entries = []
            for position in range(start, min(start + 2 * PAGE, len(flat)), 2):
                try:
                    entries.append(from_member(key, flat[position], float(flat[position + 1])))
                except ValueError:
                    unreadable += 1
            self._add(entries)
        return unreadable

    def _loaded(self, unreadable: int) -> None:
        if unreadable and unreadable != self.unreadable:
            log.warn("{count} entries of {keys} are no revocations", count=unreadable,
                     keys=f"{REVOKED_TOKENS} and {REVOKED_USERS}")  # fmt: skip
        if self.known.left_out:
            log.error("{count} revocations are not in force: there are too many", count=self.known.left_out)
        self.unreadable = unreadable
        self.loads += 1
        if not self._first.called:
            log.info("revocations in force: {counts}", counts=self.known.counts())
            self._first.callback(None)

    async def _prune(self) -> None:
        entries, pruned_s = len(self.known), self.known.pruned_s
        over_s = self._wall() - SPARE_S
        while not self.known.prune(over_s, 2 * PAGE):
            await self._next_turn()
        if len(self.known) != entries:
            self.changes += 1
        if self.known.pruned_s < pruned_s:  # the clock was put back: what left too early is wanted again
            self._wanted += 1

    def _next_turn(self) -> "Deferred[Any]":
        waited: Deferred[None] = Deferred()
        self.clock.callLater(0, waited.callback, None)
        return waited
