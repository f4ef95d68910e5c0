"""Checked API keys in Redis, for all gateways of a deployment, and how a revocation finds them there.

apikey:{sha256 of the key}     the record of core/api_keys.to_json(), for cache_ttl_seconds
apikeys:{KEY_ID}               SET of the digests under which keys of this id were put, as long
"""

from apigw.core.api_keys import APIKey, Unusable, from_json
from apigw.core.api_keys import to_json as record_of
from apigw.errors import StoreDown
from apigw.names import api_key_digests, api_key_record
from apigw.ports import SharedStore


class SharedKeys:
    """Redis as a cache: when it does not answer, nothing is there. `store` is None in a deployment without one.

    ttl_s: 0 for no cache at all.
    """

    def __init__(self, store: SharedStore | None, ttl_s: float) -> None:
        self._store = store if ttl_s > 0 else None
        self._ttl_s = max(1, round(ttl_s))

    async def get(self, digest: str, key_id: str) -> APIKey | None:
        """The key, if one of the gateways checked it lately. A record that is not whole is none."""
        if self._store is None:
            return None
        name = api_key_record(digest)
        try:
            document = await self._store.command(name, "GET", name)
        except StoreDown:
            return None
        if not isinstance(document, bytes):
            return None
        try:
            return from_json(document, key_id, digest)
        except Unusable:
            return None

    async def left_s(self, digest: str) -> float:
        """How long the record still stands; 0 when it is gone, and when nobody answers."""
        if self._store is None:
            return 0.0
        record = api_key_record(digest)
        try:
            left_ms: int = await self._store.command(record, "PTTL", record)
        except StoreDown:
            return 0.0
        return max(0, left_ms) / 1000.0  # negative: no such record, or one without an end, which nobody here made

    async def put(self, key: APIKey, digest: str) -> None:
        """Let the others know. The digest is put where a revocation looks before the record is there."""
        if self._store is None:
            return
        digests, record = api_key_digests(key.key_id), api_key_record(digest)
        try:
            await self._store.command(digests, "SADD", digests, digest)
            await self._store.command(digests, "EXPIRE", digests, self._ttl_s)
            await self._store.command(record, "SET", record, record_of(key), "EX", self._ttl_s)
        except StoreDown:
            return  # the next gateway that is asked for it checks it itself

    async def drop_id(self, key_id: str) -> None:
        """No key of this id is good any more as it stands there. Raises StoreDown.

        The set of digests stays: a gateway that puts one there now would have a record that no revocation finds.
        """
        if self._store is None:
            return
        digests = api_key_digests(key_id)
        for digest in await self._store.command(digests, "SMEMBERS", digests):
            record = api_key_record(digest.decode("ascii", "replace"))
            await self._store.command(record, "DEL", record)

    async def drop(self, digest: str) -> None:
        """The key is not good any more."""
        if self._store is not None:
            record = api_key_record(digest)
            try:
                await self._store.command(record, "DEL", record)
            except StoreDown:
                return  # the next gateway that reads it confirms it first thing
