"""The script that counts a request in Redis: its text, its calls, and what its answers mean."""

from collections.abc import Callable, Sequence
from functools import cache
from hashlib import sha1
from typing import Any, Final, Protocol

from hiredis import ReplyError
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
_SHARE: Final = b"%.17g"  # 17 digits carry a double exactly: Redis decides as core.window would
_ONE_KEY_WORDS: Final = ("WRONGTYPE", "not an integer", "would overflow")  # says nothing about other counters
_CLUSTER_WORDS: Final = ("MOVED ", "ASK ", "TRYAGAIN", "CLUSTERDOWN Hash slot")
# The password changed, or this is no longer the master and its name leads elsewhere by now.
_NEW_CONNECTION_WORDS: Final = ("NOAUTH", "WRONGPASS", "NOPERM", "READONLY", "MASTERDOWN")
_CALLS_KEPT: Final = 4096  # 0.8 KiB each
# (begin of the window; the call of this counter alone up to its share; its keys; its limit; what follows the share)
_calls: dict[Demand, tuple[int, bytes, bytes, bytes, bytes]] = {}


def probe_of(tag: str) -> bytes:
    """The script call on a counter that nobody else has: `rate:{probe}`; in a cluster of a tag in the node's slots."""
    return pack("EVALSHA", SHA, 2, f"rate:{{{tag}}}", f"rate:{{{tag}}}:previous", 1 << 53, "0", 10)


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
    keys = _word(f"{key}:{start_s}") + _word(f"{key}:{start_s - window_s}")
    limit_word = _word(limit)
    if len(_calls) >= _CALLS_KEPT:
        _calls.clear()
    kept = (start_s, _begin(1) + keys + limit_word, keys, limit_word, b"\r\n" + _word(2 * window_s))
    _calls[demand] = kept
    return kept


def _word(word: str | int) -> bytes:
    """A word as it stands inside a packed command."""
    return pack(word).partition(b"\r\n")[2]


@cache
def _begin(counters: int) -> bytes:
    """How the call for so many counters begins: up to its keys."""
    return b"*%d\r\n%b" % (3 + 5 * counters, pack(b"EVALSHA", SHA, 2 * counters).partition(b"\r\n")[2])


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
    """A command that adds requests which were let through unasked. Nobody waits for its reply."""

    __slots__ = ()

    def __init__(self, refused: "Callable[[Question, Any], None]", *words: str | bytes | int) -> None:
        self.command = pack(*words)
        self.refused = refused
        self.tries = 0

    def __call__(self, reply: Any) -> None:
        """Another error than being sent elsewhere is met by the check that goes along as well."""
        if isinstance(reply, ReplyError) and sent_away(str(reply)):
            self.refused(self, reply)

    def fail(self, reason: str | None) -> None:
        """Lost, as all that was not counted while Redis was down."""


class Asker(Protocol):
    """Who waits for a check: a Deferred, or a part of a request on several nodes."""

    def callback(self, counted: Counted, /) -> None: ...

    def errback(self, down: CounterStoreDown, /) -> None: ...


class Check(Question):
    """One request's question. Without its asker it has failed: the answer is too late."""

    __slots__ = ("asker", "_length")

    def __init__(self, asker: Asker, command: bytes, length: int, refused: "Callable[[Question, Any], None]") -> None:
        self.asker: Asker | None = asker
        self.command = command
        self.tries = 0
        self._length = length  # of the reply
        self.refused = refused

    def __call__(self, reply: Any) -> None:
        if self.asker is None:
            return
        if reply.__class__ is list and len(reply) == self._length:
            if len(reply) == 3:
                counts = [(reply[1], reply[2])]
            else:
                counts = list(zip(reply[1::2], reply[2::2], strict=True))
            self.asker.callback(Counted(reply[0] == 1, counts))
        else:
            self.refused(self, reply)

    def fail(self, reason: str | None) -> None:
        asker, self.asker = self.asker, None
        if asker is not None:
            asker.errback(CounterStoreDown(reason))


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
