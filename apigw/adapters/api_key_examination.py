"""Whether an API key that memory does not know is good: asked of Redis, then of the database and bcrypt.

    Redis       what another gateway checked: confirmed by the database, which spares bcrypt; if that does not answer,
                believed for as long as the record stands, so that a TTL does not begin anew with each worker
    database    the record; then bcrypt, unless this worker saw this very secret to be right before

Note [A key that is revoked while it is checked]
  A check takes a while, and what it found may be over when it ends. So a key is put into Redis first, then the
  database is asked again, and only then it is good: a revocation before that question is seen by it, one after it
  finds the key in Redis and takes it out. Within the worker a stamp says whether the key was changed while the
  answer was on its way; then it is asked once more. A record in Redis of a key that was changed is not believed.

Note [A record from before the start]
  Of changes before its own start a worker hears nothing, and whoever revoked a key may not have reached Redis. So no
  record is believed before the database has said that the key is as it is there. What was believed because the
  database was down is forgotten when it answers (database_answers), and is confirmed with the key's next request.

Note [When revocations cannot be heard of]
  A good key is believed for UNHEARD_S (api_keys.py) after the last moment at which a revocation would have been
  heard of. Then the database is asked for it. When that does not answer either, nobody can have revoked it there,
  and the key stays good until its TTL ends: counted in `unconfirmed`.
"""

from collections.abc import Callable
from typing import Final

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from apigw.adapters.api_key_cache import MAX_GOOD, MAX_PROOFS, MAX_REFUSED, Good, GoodKeys, Remembered
from apigw.adapters.api_key_changes import Changes
from apigw.adapters.api_key_check import ChecksBusy, SecretChecks
from apigw.adapters.api_key_database import KeyDatabase, StoredKey
from apigw.adapters.api_key_shared import SharedKeys
from apigw.core.api_keys import APIKey, InvalidAPIKey, Unusable, made, to_json
from apigw.errors import GatewayError, StoreDown
from apigw.ports import WallClock
from apigw.stages.authentication import AuthenticationUnavailable

Proof = tuple[str, float | None]  # the hash that a key belongs to, and the key's end as it was then

WRONG_S: Final = 60.0
_NO_KEY_S: Final = 10.0  # an id that is no key now may be one soon: it works this much later at the latest
_PROOF_S: Final = 30 * 86_400.0  # true for ever; memory is not for keys that nobody shows for a month
_TRIES: Final = 3  # a key that changes each time it is looked at is not let in

log = Logger()


class Shown:
    """A well-formed key as a client showed it. digest: of the whole key, in hex. placeless: as its case is."""

    __slots__ = ("presented", "key_id", "secret", "digest", "placeless")

    def __init__(self, presented: bytes, key_id: str, secret: bytes, digest: str) -> None:
        self.presented = presented
        self.key_id = key_id
        self.secret = secret
        self.digest = digest
        self.placeless = False


class Examination:
    """Decides, and remembers what it decided. `learned(good)` is called for each key that is good anew.

    hits: good keys by the layer that knew them. unconfirmed: see Note [When revocations cannot be heard of].
    """

    def __init__(
        self,
        clock: IReactorTime,
        wall: WallClock,
        good: GoodKeys,
        shared: SharedKeys,
        database: KeyDatabase,
        checks: SecretChecks,
        changes: Changes,
        learned: Callable[[APIKey, Shown, float], None],
    ) -> None:
        self.hits = {"redis": 0, "database": 0}
        self.unconfirmed = 0
        self._clock = clock
        self._wall = wall
        self._good = good
        self._shared = shared
        self._database = database
        self._checks = checks
        self._changes = changes
        self._learned = learned
        self._wrong: Remembered[str, bool] = Remembered(MAX_REFUSED, WRONG_S)  # by digest
        self._no_key: Remembered[str, str] = Remembered(MAX_REFUSED, _NO_KEY_S)  # id: why
        self._proofs: Remembered[str, Proof] = Remembered(MAX_PROOFS, _PROOF_S)  # by digest
        self._trusted: dict[bytes, None] = {}  # good keys that the database did not confirm, oldest first

    def proven(self, digest: str) -> bool:
        """Whether this key was good before, and has not ended since: see Note [Proofs] in api_key_cache.py."""
        proof = self._proofs.get(digest, self._clock.seconds())
        return proof is not None and (proof[1] is None or proof[1] > self._wall())

    def preferred(self, shown: Shown, good: Good | None) -> bool:
        """Whether bounds that a flood fills are not for this key; `good` is what memory still has of it."""
        if self.known(shown) is not None:
            return False
        return (good is not None and not good.key.expired(self._wall())) or self.proven(shown.digest)

    def changed(self, ids: list[str] | None) -> None:
        """Forget that these ids were no keys, or that any was."""
        if ids is None:
            self._no_key = Remembered(MAX_REFUSED, _NO_KEY_S)
        else:
            self._no_key.forget(ids)

    def database_answers(self) -> None:
        """See Note [A record from before the start]."""
        for presented in self._trusted:
            self._good.drop_one(presented)
        self._trusted.clear()

    def known(self, shown: Shown) -> GatewayError | None:
        """A refusal that needs no look any more."""
        now_s = self._clock.seconds()
        if self._wrong.get(shown.digest, now_s):
            return InvalidAPIKey("key_wrong", shown.key_id)
        why = self._no_key.get(shown.key_id, now_s)
        if why is None:
            return None
        self._proofs.forget((shown.digest,))  # a guess of its id may have been what found out
        return InvalidAPIKey(why, shown.key_id)

    async def at_its_turn(self, refusal: GatewayError, shown: Shown) -> GatewayError:
        """The refusal of a key that needs no check, when a check would be done: Note [Turns without a check].

        Of one without a place at once: a guess without one is refused without a check, too.
        """
        if shown.placeless:
            return refusal
        try:
            await self._checks.turn(shown.key_id)
        except ChecksBusy:
            return AuthenticationUnavailable("key_unverifiable")
        return refusal

    async def verdict(self, shown: Shown, good: Good | None) -> APIKey | GatewayError:
        """The key, or why not; `good` is what memory still has of it. What is raised is a defect."""
        try:
            if good is not None and self._clock.seconds() < good.until_s:
                return await self._still_good(shown, good)
            return await self._from_redis(shown) or await self._from_database(shown)
        except (StoreDown, ChecksBusy):
            return AuthenticationUnavailable("key_unverifiable")
        except Unusable as error:
            log.error("API key {key_id} cannot be used: {error}", key_id=shown.key_id, error=error)
            return AuthenticationUnavailable("key_unverifiable")

    # -- memory

    async def _still_good(self, shown: Shown, good: Good) -> APIKey | GatewayError:
        """A remembered key that nobody vouched for lately, or whose own end has come."""
        if good.key.expired(self._wall()):  # refused like one that was never seen, by who refuses that
            self._good.drop_one(shown.presented)
            self._proofs.forget((shown.digest,))
            return await self._from_database(shown)
        began_s, stamp = self._clock.seconds(), self._changes.stamp(shown.key_id)
        try:
            if not self._changes.database_up:  # asked by its poller a moment ago
                raise StoreDown
            same = await self._same(good.key, shown)
        except StoreDown:
            same = stamp == self._changes.stamp(shown.key_id)
            self.unconfirmed += same
        if same and stamp == self._changes.stamp(shown.key_id):
            good.confirmed_s = began_s
            return good.key
        return await self._from_database(shown)

    async def _same(self, key: APIKey, shown: Shown) -> bool:
        """Whether the database has this key as we do."""
        stored = await self._database.find(shown.key_id, real=True)
        if stored is None or stored.revoked_s is not None:
            return False
        return to_json(_made(stored, shown)) == to_json(key)

    # -- Redis

    async def found_in_redis(self, shown: Shown) -> APIKey | GatewayError:
        """The key if Redis has it: all that is asked of a key whose id has no place left (api_key_cases.py)."""
        found = None if self.known(shown) else await self._from_redis(shown)
        return found or AuthenticationUnavailable("key_unverifiable")

    async def _from_redis(self, shown: Shown) -> APIKey | None:
        """See Note [A record from before the start]."""
        if self._changes.known(shown.key_id):
            return None
        stamp = self._changes.stamp(shown.key_id)
        key = await self._shared.get(shown.digest, shown.key_id)
        if key is None or key.expired(self._wall()) or stamp != self._changes.stamp(shown.key_id):
            return None
        try:
            return await self._confirmed(key, shown)
        except StoreDown:
            return await self._on_trust(key, shown, stamp)

    async def _confirmed(self, key: APIKey, shown: Shown) -> APIKey | None:
        """The key, if the database has it as Redis does; else it leaves Redis. Raises StoreDown."""
        for _ in range(_TRIES):
            if not self._changes.database_up:  # asked by its poller a moment ago
                raise StoreDown
            began_s, stamp = self._clock.seconds(), self._changes.stamp(shown.key_id)
            try:
                same = await self._same(key, shown)
            except Unusable:
                same = False
            if not same:
                break
            if stamp == self._changes.stamp(shown.key_id):
                self.hits["redis"] += 1
                self._learned(key, shown, began_s)
                return key
        await self._shared.drop(shown.digest)
        return None

    async def _on_trust(self, key: APIKey, shown: Shown, stamp: int) -> APIKey | None:
        """The key while the database is down: for as long as its record stands, and until the database answers."""
        now_s = self._clock.seconds()
        until_s = now_s + await self._shared.left_s(shown.digest)
        if until_s <= self._clock.seconds() or stamp != self._changes.stamp(shown.key_id):
            return None
        self.hits["redis"] += 1
        self._learned(key, shown, now_s)
        good = self._good.by_presented[shown.presented]
        good.until_s = min(good.until_s, until_s)
        self._trusted[shown.presented] = None
        if len(self._trusted) > MAX_GOOD:
            oldest = next(iter(self._trusted))
            del self._trusted[oldest]
            self._good.drop_one(oldest)
        return key

    # -- database

    async def _from_database(self, shown: Shown) -> APIKey | GatewayError:
        """Raises StoreDown, ChecksBusy, Unusable."""
        stored = await self._database.find(shown.key_id, real=self.proven(shown.digest))
        refusal = self._refusal(stored, shown)
        if refusal is not None or stored is None:
            return await self.at_its_turn(refusal or InvalidAPIKey("key_unknown", shown.key_id), shown)
        proof = self._proofs.get(shown.digest, self._clock.seconds())
        if proof is None or proof[0] != stored.secret_hash:
            if not await self._checks.check(shown.key_id, shown.secret, stored.secret_hash.encode("utf-8")):
                self._wrong.put(shown.digest, True, self._clock.seconds())
                return InvalidAPIKey("key_wrong", shown.key_id)
        self._proofs.put(shown.digest, (stored.secret_hash, stored.expires_s), self._clock.seconds())
        try:
            return await self._let_in(shown, stored)
        except StoreDown:
            await self._shared.drop(shown.digest)
            raise

    async def _let_in(self, shown: Shown, stored: StoredKey) -> APIKey | GatewayError:
        """The secret is right. See Note [A key that is revoked while it is checked]."""
        for _ in range(_TRIES):
            key = _made(stored, shown)
            await self._shared.put(key, shown.digest)
            began_s, stamp = self._clock.seconds(), self._changes.stamp(shown.key_id)
            again = await self._database.find(shown.key_id, real=True)
            refusal = self._refusal(again, shown)
            if again is None or refusal is not None or again.secret_hash != stored.secret_hash:
                await self._shared.drop(shown.digest)
                return refusal or InvalidAPIKey("key_wrong", shown.key_id)
            if stamp == self._changes.stamp(shown.key_id) and to_json(_made(again, shown)) == to_json(key):
                self.hits["database"] += 1
                self._learned(key, shown, began_s)
                return key
            stored = again
        await self._shared.drop(shown.digest)
        return AuthenticationUnavailable("key_unverifiable")

    def _refusal(self, stored: StoredKey | None, shown: Shown) -> InvalidAPIKey | None:
        """Why a record makes no good key, whatever the secret. From then on bounds are for it as for any other."""
        if stored is None:
            why = "key_unknown"
        elif stored.revoked_s is not None:
            why = "key_revoked"
        elif stored.expires_s is not None and stored.expires_s <= self._wall():
            why = "key_expired"
        else:
            return None
        self._proofs.forget((shown.digest,))
        if why != "key_expired":
            self._no_key.put(shown.key_id, why, self._clock.seconds())
            self._good.drop(shown.key_id)
        return InvalidAPIKey(why, shown.key_id)


def _made(stored: StoredKey, shown: Shown) -> APIKey:
    return made(
        shown.key_id,
        shown.digest,
        partner_id=stored.partner_id,
        tier=stored.tier,
        scopes=stored.scopes,
        expires_s=stored.expires_s,
        networks=stored.networks,
    )
