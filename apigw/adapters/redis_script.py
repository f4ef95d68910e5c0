"""The script that counts a request in Redis: its text, its calls, and what its answers mean."""

from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha1
from struct import pack as pack_words
from struct import unpack_from
from typing import Any, Final, Protocol

from hiredis import ReplyError
from twisted.internet.defer import Deferred

from apigw.adapters.redis_link import pack
from apigw.core.window import PARTS, Counted, Demand, Steps, part, spread_key, weight, window_start
from apigw.errors import CounterStoreDown

# KEYS of each counter: keys_of(). ARGV of each: limit, previous window's share, TTL. Reply: 1 or 0 (all counted, or
# none); previous, current and recent of each; when none was counted, the spreads of previous and current of each.
# A spread holds core.window.Steps, in a byte and four for each. core.window.used() and recent() in Lua.
SCRIPT: Final = b"""
local found = redis.call('MGET', unpack(KEYS))
local counters = #KEYS / 5
local reply = {1}
local parts = {}
for i = 0, counters - 1 do
  local current = (tonumber(found[i * 5 + 1] or 0) or 0) + (tonumber(found[i * 5 + 3] or 0) or 0)
  local previous = tonumber(found[i * 5 + 2] or 0) or 0
  local limit, share = tonumber(ARGV[i * 3 + 1]), tonumber(ARGV[i * 3 + 2])
  local slack, part = math.max(1, math.floor(limit / 50)), math.min(%d, math.floor((1 - share) * %d))
  local recent = previous
  if previous * (1 - share) > slack then
    local spread = found[i * 5 + 5] or ''
    local low, high = 0, math.floor(#spread / 5)
    local steps = high
    while low < high do
      local middle = math.floor((low + high) / 2)
      if string.byte(spread, middle * 5 + 1) < part then low = middle + 1 else high = middle end
    end
    recent = low < steps and math.max(0, previous - struct.unpack('>I4', spread, low * 5 + 2)) or 0
  end
  if math.max(previous * share, recent - slack) + current >= limit then reply[1] = 0 end
  parts[i] = part
  reply[i * 3 + 2] = previous
  reply[i * 3 + 3] = current
  reply[i * 3 + 4] = recent
end
for i = 0, counters - 1 do
  local spread = found[i * 5 + 4] or ''
  if reply[1] == 1 then
    local key, ttl = KEYS[i * 5 + 1], ARGV[i * 3 + 3]
    local own = redis.call('INCR', key)
    local begins = parts[i] > (string.byte(spread, -5) or -1)
    if begins then
      redis.call('APPEND', KEYS[i * 5 + 4], struct.pack('>BI4', parts[i], own - 1))
      redis.call('EXPIRE', KEYS[i * 5 + 4], ttl)
    end
    if begins or own == 1 then redis.call('EXPIRE', key, ttl) end
    reply[i * 3 + 3] = reply[i * 3 + 3] + 1
  else
    reply[#reply + 1] = found[i * 5 + 5] or ''
    reply[#reply + 1] = spread
  end
end
return reply
""" % (PARTS - 1, PARTS)
# KEYS: a window and its spread. ARGV: requests, the part in which the last of them fell, TTL.
_ADD: Final = b"""
local part, own = tonumber(ARGV[2]), redis.call('INCRBY', KEYS[1], ARGV[1])
if part > (string.byte(redis.call('GETRANGE', KEYS[2], -5, -5)) or -1) then
  redis.call('APPEND', KEYS[2], struct.pack('>BI4', part, own - ARGV[1]))
end
redis.call('EXPIRE', KEYS[1], ARGV[3])
redis.call('EXPIRE', KEYS[2], ARGV[3])
return own
"""
SHA: Final = sha1(SCRIPT).hexdigest().encode("ascii")
LOAD: Final = pack(b"SCRIPT", b"LOAD", SCRIPT)
_SHARE: Final = b"%.17g"  # 17 digits carry a double exactly: Redis decides as core.window would
_ONE_KEY_WORDS: Final = ("WRONGTYPE", "not an integer", "would overflow")  # says nothing about other counters
_CLUSTER_WORDS: Final = ("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN Hash slot")
# The password changed, or this is no longer the master and its name leads elsewhere by now.
_NEW_CONNECTION_WORDS: Final = ("NOAUTH", "WRONGPASS", "NOPERM", "READONLY", "MASTERDOWN")
_CALLS_KEPT: Final = 4096  # 1.2 KiB each
# (begin of the window; the call of this counter alone up to its share; its keys; its limit; what follows the share)
_calls: dict[Demand, tuple[int, bytes, bytes, bytes, bytes]] = {}


def probe_of(tag: str) -> bytes:
    """The script call on a counter that nobody else has: `rate:{probe}`; in a cluster of a tag in the node's slots."""
    counter, spread = f"rate:{{{tag}}}", f"spread:{{{tag}}}"
    keys = (counter, f"{counter}:previous", f"{counter}:next", spread, f"{spread}:previous")
    return pack("EVALSHA", SHA, len(keys), *keys, 1 << 53, "0", 10)


PROBE: Final = probe_of("probe")


def packed(demands: Sequence[Demand], now_s: float) -> bytes:
    """The script call that counts one request against all of `demands` at `now_s` (epoch seconds).

    Within a window the calls of one counter differ in the previous window's share alone.
    """
    words: list[bytes] = []
    rules: list[bytes] = []
    for demand in demands:
        window_s = demand.window_s
        start_s = int(now_s // window_s) * window_s
        kept = _calls.get(demand)
        if kept is None or kept[0] != start_s:
            kept = _kept(demand, start_s)
        share = _SHARE % (1.0 - (now_s - start_s) / window_s)
        if len(demands) == 1:
            return b"%b$%d\r\n%b%b" % (kept[1], len(share), share, kept[4])
        words.append(kept[2])
        rules.append(b"%b$%d\r\n%b%b" % (kept[3], len(share), share, kept[4]))
    return b"".join((_begin(len(demands)), *words, *rules))


def _kept(demand: Demand, start_s: int) -> tuple[int, bytes, bytes, bytes, bytes]:
    """A counter's words in the window that began at `start_s`; remembered. See _calls."""
    _, key, limit, window_s = demand
    keys = b"".join(map(_word, keys_of(key, start_s, window_s)))
    limit_word = _word(limit)
    if len(_calls) >= _CALLS_KEPT:
        _calls.clear()
    kept = (start_s, _begin(1) + keys + limit_word, keys, limit_word, b"\r\n" + _word(2 * window_s))
    _calls[demand] = kept
    return kept


def keys_of(counter: str, start_s: int, window_s: int) -> tuple[str, ...]:
    """SCRIPT's keys of one counter (counter_key()) in the window that began at `start_s`."""
    return (
        f"{counter}:{start_s}",
        f"{counter}:{start_s - window_s}",
        f"{counter}:{start_s + window_s}",
        spread_key(counter, start_s),
        spread_key(counter, start_s - window_s),
    )


def _word(word: str | int) -> bytes:
    """A word as it stands inside a packed command."""
    return pack(word).partition(b"\r\n")[2]


@cache
def _begin(counters: int) -> bytes:
    """How the call for so many counters begins: up to its keys."""
    return b"*%d\r\n%b" % (3 + 8 * counters, pack(b"EVALSHA", SHA, 5 * counters).partition(b"\r\n")[2])


class Question:
    """A command and who takes its reply. refused: called with what is not answered as it should be."""

    __slots__ = ("command", "refused", "tries")

    command: bytes
    refused: "Callable[[Question, Any], None]"
    tries: int  # so far, less the first

    def __call__(self, reply: Any) -> None:
        """Redis answered."""
        raise NotImplementedError

    def fail(self, reason: str | None) -> None:
        """There will be no answer; a late one finds nobody."""
        raise NotImplementedError


class Settlement(Question):
    """Adds requests which were let through unasked, or gives some back. Nobody waits for its reply.

    apart: commands of one key each, for a slot that moves; the spread is not told of these.
    """

    __slots__ = ("apart",)

    def __init__(
        self, refused: "Callable[[Question, Any], None]", command: bytes, apart: "Sequence[bytes]" = ()
    ) -> None:
        self.command = command
        self.apart = apart
        self.refused = refused
        self.tries = 0

    def __call__(self, reply: Any) -> None:
        """Another error than being sent elsewhere is met by the check that goes along as well."""
        if isinstance(reply, ReplyError) and sent_away(str(reply)):
            self.refused(self, reply)

    def fail(self, reason: str | None) -> None:
        """Lost, as all that was not counted while Redis was down."""


def settlements(
    demand: Demand, count: int, at_s: float, refused: "Callable[[Question, Any], None]"
) -> list[Settlement]:
    """`count` more requests, the last of which SCRIPT would have counted at `at_s`; or less, when it is negative.

    A step that was written while one that is given back was counted is one too high, and the guard counts one less.
    """
    window_s = demand.window_s
    start_s = window_start(at_s, window_s)
    key, spread, ttl_s = f"{demand.key}:{start_s}", spread_key(demand.key, start_s), 2 * window_s
    # the keys may be gone by now, evicted or flushed: without a TTL of its own a new one would live for ever
    apart = pack("INCRBY", key, count), pack("EXPIRE", key, ttl_s)
    if count < 0:
        return [Settlement(refused, command) for command in apart]
    added = pack("EVAL", _ADD, 2, key, spread, count, part(weight(at_s, window_s)), ttl_s)
    return [Settlement(refused, added, apart)]


class Asker(Protocol):
    """Who waits for a check: a Deferred, or a part of a request on several nodes."""

    def callback(self, counted: Counted, /) -> None: ...

    def errback(self, down: CounterStoreDown, /) -> None: ...


class Check(Question):
    """One request's question on `counters` counters. Without its asker it has failed: the answer is too late."""

    __slots__ = ("asker", "_counters")

    def __init__(self, asker: Asker, command: bytes, counters: int, refused: "Callable[[Question, Any], None]") -> None:
        self.asker: Asker | None = asker
        self.command = command
        self.tries = 0
        self._counters = counters
        self.refused = refused

    def __call__(self, reply: Any) -> None:
        if self.asker is None:
            return
        counted = read(reply, self._counters)
        if counted is None:
            self.refused(self, reply)
        else:
            self.asker.callback(counted)

    def fail(self, reason: str | None) -> None:
        asker, self.asker = self.asker, None
        if asker is not None:
            asker.errback(CounterStoreDown(reason))


def read(reply: Any, counters: int) -> Counted | None:
    """What SCRIPT's reply about so many counters says; None: it is not one."""
    if reply.__class__ is not list:
        return None
    end = 1 + 3 * counters
    if len(reply) == end and reply[0] == 1:
        if end == 4:
            return Counted(True, [(reply[1], reply[2], reply[3])])
        return Counted(True, list(zip(reply[1::3], reply[2::3], reply[3::3], strict=True)))
    if len(reply) == end + 2 * counters and reply[0] == 0:
        counts = list(zip(reply[1:end:3], reply[2:end:3], reply[3:end:3], strict=True))
        spreads = [
            (steps_of(one), steps_of(other)) for one, other in zip(reply[end::2], reply[end + 1 :: 2], strict=True)
        ]
        return Counted(False, counts, spreads)
    return None


def step(fell_in: int, before: int) -> bytes:
    """What is added to a spread with the first request of a part."""
    return pack_words(">BI", fell_in, before)


def steps_of(spread: bytes) -> Steps:
    """A spread as Redis keeps it."""
    return unpack_from(">" + "BI" * min(PARTS, len(spread) // 5), spread)


class Plain(Question):
    """Any command; whoever waits gets the reply as it is, or CounterStoreDown."""

    __slots__ = ("_waiting",)

    def __init__(self, waiting: "Deferred[Any]", command: bytes, refused: "Callable[[Question, Any], None]") -> None:
        self._waiting: Deferred[Any] | None = waiting
        self.command = command
        self.refused = refused
        self.tries = 0

    def __call__(self, reply: Any) -> None:
        if self._waiting is None:
            return
        if isinstance(reply, ReplyError):
            self.refused(self, reply)
        else:
            self._waiting.callback(reply)

    def fail(self, reason: str | None) -> None:
        waiting, self._waiting = self._waiting, None
        if waiting is not None:
            waiting.errback(CounterStoreDown(reason))


def sent_away(error: str) -> bool:
    """Whether a cluster's node has not, or not now, what the question is about, and others may."""
    return error.startswith(_CLUSTER_WORDS)


def about_one_key(error: str) -> bool:
    """Whether the error says nothing about other counters."""
    return any(word in error for word in _ONE_KEY_WORDS)


def cured_by_new_connection(error: str) -> bool:
    """Whether to connect anew: the password changed, or this is no longer the master and its name leads elsewhere.

    Words are sought anywhere: before Redis 7 an error inside a script is wrapped in another.
    """
    return any(word in error for word in _NEW_CONNECTION_WORDS)
