"""The script that counts a request in Redis: its text, its calls, and what its answers mean."""

from collections.abc import Callable, Sequence
from hashlib import sha1
from typing import Any, Final

from twisted.internet.defer import Deferred

from apigw.adapters.redis_link import pack
from apigw.core.window import Counted, Demand
from apigw.errors import CounterStoreDown

# KEYS: current and previous window of each counter. ARGV: limit, previous window's share, TTL of each.
# Reply: 1 or 0 (all counted, or none), then previous and current of each. core.window.exhausted() in Lua.
SCRIPT: Final = b"""
local counts = redis.call('MGET', unpack(KEYS))
local reply = {1}
for i = 1, #KEYS, 2 do
  local current = tonumber(counts[i] or 0) or 0
  local previous = tonumber(counts[i + 1] or 0) or 0
  local rule = (i - 1) / 2 * 3
  if previous * tonumber(ARGV[rule + 2]) + current >= tonumber(ARGV[rule + 1]) then reply[1] = 0 end
  reply[i + 1] = previous
  reply[i + 2] = current
end
if reply[1] == 1 then
  for i = 1, #KEYS, 2 do
    reply[i + 2] = redis.call('INCR', KEYS[i])
    redis.call('EXPIRE', KEYS[i], ARGV[(i - 1) / 2 * 3 + 3])
  end
end
return reply
"""
SHA: Final = sha1(SCRIPT).hexdigest().encode("ascii")
LOAD: Final = pack(b"SCRIPT", b"LOAD", SCRIPT)
PROBE: Final = pack(b"EVALSHA", SHA, 2, b"rate:{probe}", b"rate:{probe}:previous", 1 << 53, b"0", 10)
_ONE_KEY_WORDS: Final = ("WRONGTYPE", "not an integer", "would overflow")  # says nothing about other counters
# The password changed, or this is no longer the master and its name leads elsewhere by now.
_NEW_CONNECTION_WORDS: Final = ("NOAUTH", "WRONGPASS", "NOPERM", "READONLY", "MASTERDOWN")


def packed(demands: Sequence[Demand], now_s: float) -> bytes:
    """The script call that counts one request against all of `demands` at `now_s` (epoch seconds)."""
    keys: list[str] = []
    rules: list[bytes | int] = []
    for _, key, limit, window_s in demands:
        start_s = int(now_s // window_s) * window_s
        keys += (f"{key}:{start_s}", f"{key}:{start_s - window_s}")
        # 17 digits carry a double exactly: Redis decides as core.window would
        rules += (limit, b"%.17g" % (1.0 - (now_s - start_s) / window_s), 2 * window_s)
    return pack(b"EVALSHA", SHA, len(keys), *keys, *rules)


class Settlement:
    """A command that adds requests which were let through unasked. Nobody waits for its reply."""

    __slots__ = ("command",)

    def __init__(self, *words: str | bytes | int) -> None:
        self.command = pack(*words)

    def __call__(self, reply: Any) -> None:
        """An error reply is met by the check that goes along as well."""

    def fail(self, reason: str | None) -> None:
        """Lost, as all that was not counted while Redis was down."""


class Check:
    """One request's question; called with its reply. Without its Deferred it has failed: the answer is too late."""

    __slots__ = ("deferred", "command", "second_try", "_length", "_refused")

    def __init__(
        self, deferred: "Deferred[Counted]", command: bytes, length: int, refused: "Callable[[Check, Any], None]"
    ) -> None:
        self.deferred: Deferred[Counted] | None = deferred
        self.command = command
        self.second_try = False
        self._length = length  # of the reply
        self._refused = refused

    def __call__(self, reply: Any) -> None:
        if self.deferred is None:
            return
        if reply.__class__ is list and len(reply) == self._length:
            previous, current = reply[1::2], reply[2::2]
            self.deferred.callback(Counted(reply[0] == 1, list(zip(previous, current, strict=True))))
        else:
            self._refused(self, reply)

    def fail(self, reason: str | None) -> None:
        deferred, self.deferred = self.deferred, None
        if deferred is not None:
            deferred.errback(CounterStoreDown(reason))


def about_one_key(error: str) -> bool:
    """Whether the error says nothing about other counters: somebody else's value under our key."""
    return any(word in error for word in _ONE_KEY_WORDS)


def cured_by_new_connection(error: str) -> bool:
    """Whether to connect anew: the password changed, or this is no longer the master and its name leads elsewhere.

    Words are sought anywhere: before Redis 7 an error inside a script is wrapped in another.
    """
    return any(word in error for word in _NEW_CONNECTION_WORDS)
