"""A check while its slot moves from one node of a cluster to another: its keys may lie on different nodes.

The old node has what was not moved yet, the new one everything else, and neither runs a script that names a key
which it has not (TRYAGAIN). So the check is taken apart: what it only reads is read, then the current window is judged
and counted by a script of one key; at last its spread is told. Two round trips, for as long as the slot moves; counted
exactly once.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

import hiredis
from twisted.internet.defer import Deferred, FirstError, gatherResults, maybeDeferred

from apigw.adapters.redis_link import pack
from apigw.adapters.redis_script import Check, step, steps_of
from apigw.core.window import part, recent, used
from apigw.errors import CounterStoreDown

# KEYS: current window. ARGV: limit, what all other windows count for, TTL. Reply: 1 or 0, current.
HALF: Final = b"""
local current = tonumber(redis.call('GET', KEYS[1]) or 0) or 0
if tonumber(ARGV[2]) + current >= tonumber(ARGV[1]) then return {0, current} end
current = redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {1, current}
"""

Ask = Callable[[str, bytes], "Deferred[Any]"]  # (key, command): the reply of whoever has the key; or CounterStoreDown


class Halves(NamedTuple):
    """What a check of one counter asks: redis_script.keys_of(), and its rule."""

    current: str
    previous: str
    following: str
    spread: str
    previous_spread: str
    limit: int
    share: float
    ttl_s: int


def halves_of(command: bytes) -> Halves | None:
    """A packed check (redis_script.py) taken apart; None for any other command, or for several counters at once."""
    reader = hiredis.Reader()
    reader.feed(command)
    words = reader.gets()
    if not isinstance(words, list) or len(words) != 11 or words[0] != b"EVALSHA":
        return None
    current, previous, following, spread, past = (word.decode("utf-8", "surrogatepass") for word in words[3:8])
    return Halves(current, previous, following, spread, past, int(words[8]), float(words[9]), int(words[10]))


async def ask_in_halves(check: Check, halves: Halves, ask: Ask) -> None:
    """Gives the check its reply, or has it fail."""
    limit, share = halves.limit, halves.share
    keys = halves.previous, halves.following, halves.previous_spread, halves.spread
    try:
        read = [maybeDeferred(ask, key, pack("GET", key)) for key in keys]
        found = await gatherResults(read, consumeErrors=True)
        previous, ahead = _number(found[0]), _number(found[1])
        past, spread = (one if isinstance(one, bytes) else b"" for one in found[2:])
        late = recent(previous, steps_of(past), share, limit)
        others = b"%.17g" % used((previous, ahead, late), limit, share)
        reply = await ask(halves.current, pack("EVAL", HALF, 1, halves.current, limit, others, halves.ttl_s))
    except (CounterStoreDown, FirstError) as failed:
        check.fail(str(failed.subFailure.value if isinstance(failed, FirstError) else failed))
        return
    if not isinstance(reply, list) or len(reply) != 2:
        check.fail("a check's answer is not the script's")
    elif reply[0] == 1:
        check([1, previous, ahead + reply[1], late])
        if part(share) > (spread[-5] if spread else -1):
            await _tell(halves, reply[1], ask)
    else:
        check([0, previous, ahead + reply[1], late, past, spread])


async def _tell(halves: Halves, counted: int, ask: Ask) -> None:
    """It is the first of its part of the window. That it was counted stands, whatever comes of this."""
    try:
        await ask(halves.spread, pack("APPEND", halves.spread, step(part(halves.share), counted - 1)))
        await ask(halves.spread, pack("EXPIRE", halves.spread, halves.ttl_s))
    except CounterStoreDown:
        pass


def _number(found: Any) -> int:
    return int(found) if isinstance(found, bytes) and found.isdigit() else 0
