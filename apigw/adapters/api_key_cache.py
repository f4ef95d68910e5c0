"""What a worker remembers of API keys: good ones by the bytes that were shown, refused ones, and proofs. All bounded.

Note [Proofs]
  That a secret belongs to a hash is true for ever. So when a good key is asked anew after its TTL, and the database
  still has the same hash for it, there is nothing for bcrypt to do: a partner in steady use costs one check in the
  life of a worker, and a flood that fills the queue of checks cannot keep it out. A key whose record is none that lets
  in any more loses its proof, since bounds are not for keys that have one.
"""

from collections.abc import Iterable, Iterator
from typing import Generic, Hashable, TypeVar

from apigw.core.api_keys import APIKey

MAX_GOOD = 10_000  # keys in use at one time; about a KiB each
MAX_REFUSED = 20_000  # wrong secrets and unknown ids; about 200 bytes each
MAX_PROOFS = 20_000

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Good:
    """A key that is good until `until_s`; `confirmed_s` is when somebody who knows of revocations last said so.

    expires_s: the key's own end, epoch seconds. Other times are the monotonic clock's.
    """

    __slots__ = ("key", "presented", "until_s", "confirmed_s", "expires_s")

    def __init__(self, key: APIKey, presented: bytes, until_s: float, confirmed_s: float) -> None:
        self.key = key
        self.presented = presented
        self.until_s = until_s
        self.confirmed_s = confirmed_s
        self.expires_s = key.expires_s


class GoodKeys:
    """Good keys by what the client shows, so that a request costs one look; by id for whoever revokes."""

    def __init__(self, most: int = MAX_GOOD) -> None:
        self.by_presented: dict[bytes, Good] = {}  # read on the path of each request
        self._by_id: dict[str, list[bytes]] = {}  # one key has one spelling: lists of one, unless an id is used twice
        self._most = most

    def __len__(self) -> int:
        return len(self.by_presented)

    def add(self, good: Good) -> None:
        """Remember, in place of what was remembered before. When full the one known longest goes."""
        self.drop_one(good.presented)
        while len(self.by_presented) >= self._most:
            self.drop_one(next(iter(self.by_presented)))
        self.by_presented[good.presented] = good
        self._by_id.setdefault(good.key.key_id, []).append(good.presented)

    def drop_one(self, presented: bytes) -> None:
        good = self.by_presented.pop(presented, None)
        if good is not None:
            spellings = self._by_id[good.key.key_id]
            spellings.remove(presented)
            if not spellings:
                del self._by_id[good.key.key_id]

    def drop(self, key_id: str) -> int:
        """Forget the keys of an id; how many there were."""
        spellings = list(self._by_id.get(key_id, ()))
        for presented in spellings:
            self.drop_one(presented)
        return len(spellings)

    def ids(self) -> Iterator[str]:
        return iter(self._by_id)

    def clear(self) -> None:
        self.by_presented.clear()
        self._by_id.clear()


class Remembered(Generic[K, V]):
    """Values for `ttl_s` each, at most `most`. Times are arguments, so that a look needs no clock of its own."""

    def __init__(self, most: int, ttl_s: float) -> None:
        self._ttl_s = ttl_s
        self._most = most
        self._entries: dict[K, tuple[float, V]] = {}  # in the order of their ends, since all last as long

    def __len__(self) -> int:
        return len(self._entries)

    def get(self, key: K, now_s: float) -> V | None:
        entry = self._entries.get(key)
        if entry is None:
            return None
        if entry[0] <= now_s:
            del self._entries[key]
            return None
        return entry[1]

    def put(self, key: K, value: V, now_s: float) -> None:
        """Remember from now on. When full, what ends first goes."""
        entries = self._entries
        entries.pop(key, None)
        if len(entries) >= self._most:
            del entries[next(iter(entries))]
        entries[key] = (now_s + self._ttl_s, value)

    def forget(self, keys: Iterable[K]) -> None:
        for key in keys:
            self._entries.pop(key, None)
