"""API keys (contract section 7): a memory on the path of each request, and what stands behind it.

memory      good keys for cache_ttl_seconds         api_key_cache.py
case        a key that memory does not know         api_key_cases.py    joined, bounded, refused at its time
Redis       what other gateways checked             api_key_shared.py   } in the order of
database    the record                              api_key_database.py } api_key_examination.py
bcrypt      the secret                              api_key_check.py    }
changes     what was revoked or changed since       api_key_changes.py  drops it from memory
removal     what the database says was changed      api_key_removal.py  takes it out of Redis
"""

import random
from collections.abc import Callable
from typing import Any, Final

from twisted.application.service import MultiService
from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.adapters.api_key_cache import Good, GoodKeys
from apigw.adapters.api_key_cases import HOLD_S, Case, Cases
from apigw.adapters.api_key_changes import Announcements, Changes
from apigw.adapters.api_key_check import SecretChecks
from apigw.adapters.api_key_database import KeyDatabase, KeyTable
from apigw.adapters.api_key_examination import Examination, Shown
from apigw.adapters.api_key_removal import Removal
from apigw.adapters.api_key_shared import SharedKeys
from apigw.core.api_keys import APIKey, InvalidAPIKey, Malformed, digest, split
from apigw.errors import GatewayError
from apigw.net.deadlines import Deadlines
from apigw.ports import WallClock
from apigw.stages.authentication import AuthenticationUnavailable

UNHEARD_S: Final = 5.0  # contract section 7: without Redis a revocation is effective within it
_MAX_TIERS_TOLD: Final = 100

log = Logger()


class APIKeys(MultiService):
    """An APIKeySource (ports.py). Starts and stops its threads and pollers.

    open_table: makes the key table; blocks, so it is called in a thread. announcements: of the store in Redis,
    None without. knows_tier: whether the configuration has a tier of this name. max_in_flight: what it says now.
    """

    def __init__(
        self,
        reactor: Any,
        deadlines: Deadlines,
        wall: WallClock,
        open_table: Callable[[], KeyTable],
        announcements: Announcements | None,
        cache_ttl_s: float,
        knows_tier: Callable[[str], bool],
        max_in_flight: Callable[[], int],
        *,
        hold_s: float = HOLD_S,
        draw: Callable[[], float] = random.random,
    ) -> None:
        super().__init__()
        self.memory_hits = 0
        self.good = GoodKeys()
        self.cases = Cases(deadlines, max_in_flight, hold_s)
        self.database = KeyDatabase(reactor, open_table)
        self.checks = SecretChecks(reactor)
        self.changes = Changes(reactor, announcements, self._since, self._changed, draw)
        shared = SharedKeys(None if announcements is None else announcements.store, cache_ttl_s)
        self.removal = Removal(reactor, shared, cache_ttl_s)
        self.examination = Examination(
            reactor, wall, self.good, shared, self.database, self.checks, self.changes, self._learned
        )
        self._clock = reactor
        self._wall = wall
        self._ttl_s = cache_ttl_s
        self._knows_tier = knows_tier
        self._tiers_told: set[str] = set()
        self._looking: set[Deferred[Any]] = set()
        for child in (self.database, self.checks, self.removal, self.changes):
            child.setServiceParent(self)

    def stopService(self) -> "Deferred[Any]":
        """What is looked into ends with 503."""
        for looking in list(self._looking):
            looking.cancel()
        return super().stopService()  # type: ignore[no-any-return]

    def find(self, presented: bytes) -> "APIKey | Deferred[APIKey]":
        """See ports.APIKeySource."""
        good = self.good.by_presented.get(presented)
        if good is not None:
            now_s = self._clock.seconds()
            if now_s < good.until_s and (good.expires_s is None or good.expires_s > self._wall()):
                changes = self.changes
                if changes.in_step or now_s - max(good.confirmed_s, changes.heard_s) < UNHEARD_S:
                    self.memory_hits += 1
                    return good.key
        return self._case(presented, good)

    def knows(self, presented: bytes) -> bool:
        """See ports.APIKeySource."""
        good = self.good.by_presented.get(presented)
        if good is not None and not good.key.expired(self._wall()):
            return True
        return self.examination.proven(digest(presented))

    def hits(self) -> dict[str, int]:
        """Good keys by the layer that knew them: memory, redis, database."""
        return {"memory": self.memory_hits, **self.examination.hits}

    def turned_away(self) -> int:
        """Keys that were not looked into because too many were."""
        return self.cases.turned_away + self.checks.rejected

    # -- what memory does not know

    def _case(self, presented: bytes, good: Good | None) -> "Deferred[APIKey]":
        """Raises AuthenticationUnavailable, at once, when too many wait."""
        name = digest(presented)
        try:
            shown = Shown(presented, *split(presented), name)
        except Malformed:
            case, new = self.cases.opened(name, None, preferred=False)
            if new:
                self.cases.decided(case, InvalidAPIKey("key_malformed"))
            return self.cases.wait(case)
        case, new = self.cases.opened(name, shown.key_id, self.examination.preferred(shown, good))
        waiting = self.cases.wait(case)
        if new:
            shown.placeless = case.placeless
            self._look(case, shown, good)
        return waiting

    def _look(self, case: Case, shown: Shown, good: Good | None) -> None:
        examination = self.examination
        refusal = examination.known(shown)
        if case.crowded:
            telling = examination.found_in_redis(shown)
        elif refusal is None:
            telling = examination.verdict(shown, good)
        elif self.checks.idle:
            self.cases.decided(case, refusal)
            return
        else:
            telling = examination.at_its_turn(refusal, shown)
        looking: Deferred[Any] = Deferred.fromCoroutine(telling)
        self._looking.add(looking)
        looking.addBoth(self._looked, case, looking)

    def _looked(self, result: "APIKey | GatewayError | Failure", case: Case, looking: "Deferred[Any]") -> None:
        self._looking.discard(looking)
        if isinstance(result, Failure):
            if not result.check(CancelledError):
                log.failure("an API key cannot be checked: a defect", failure=result)
            result = AuthenticationUnavailable("key_unverifiable")
        self.cases.decided(case, result)

    # -- memory

    def _learned(self, key: APIKey, shown: Shown, confirmed_s: float) -> None:
        """A key is good as of `confirmed_s`."""
        self.good.add(Good(key, shown.presented, self._clock.seconds() + self._ttl_s, confirmed_s))
        tier = key.principal.tier
        if tier is not None and not self._knows_tier(tier) and tier not in self._tiers_told:
            if len(self._tiers_told) < _MAX_TIERS_TOLD:
                self._tiers_told.add(tier)
                log.warn("the tier {tier} of API key {key_id} is not configured: the route's counts",
                         tier=tier, key_id=key.key_id)  # fmt: skip

    def _since(self, number: int | None) -> "Deferred[tuple[int, list[str] | None]]":
        return self.database.since(number).addCallback(self._answered)

    def _answered(self, answer: tuple[int, list[str] | None]) -> tuple[int, list[str] | None]:
        """What Redis has may be out of date where the database says so, and what it was trusted with is looked at."""
        self.removal.changed(answer[1] or ())
        self.examination.database_answers()
        return answer

    def _changed(self, ids: list[str] | None) -> None:
        if ids is None:
            self.good.clear()
        for key_id in ids or ():
            self.good.drop(key_id)
        self.cases.changed(ids or [])
        self.examination.changed(ids)
