"""A check while its slot moves from one node of a cluster to another: its two windows may lie on different nodes.

The old node has what was not moved yet, the new one everything else, and neither runs a script that names a key
which it has not (TRYAGAIN). So the check is taken apart: the previous window is read, then the current one is judged
and counted by a script of one key. Two round trips, for as long as the slot moves; counted exactly once.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Final, NamedTuple

import hiredis

from apigw.adapters.redis_link import pack
from apigw.adapters.redis_script import Check
from apigw.errors import CounterStoreDown

# KEYS: current window. ARGV: limit, what the previous one counts for, TTL. Reply: 1 or 0, current.
HALF: Final = b"""
local current = tonumber(redis.call('GET', KEYS[1]) or 0) or 0
if tonumber(ARGV[2]) + current >= tonumber(ARGV[1]) then return {0, current} end
current = redis.call('INCR', KEYS[1])
redis.call('EXPIRE', KEYS[1], ARGV[3])
return {1, current}
"""

Ask = Callable[[str, bytes], Awaitable[Any]]  # (key, command): the reply of whoever has the key; or CounterStoreDown


class Halves(NamedTuple):
    """What a check of one counter asks."""

    current: str
    previous: str
    limit: bytes
    share: float
    ttl_s: bytes


def halves_of(command: bytes) -> Halves | None:
    """A packed check (redis_script.py) taken apart; None for any other command, or for several counters at once."""
    reader = hiredis.Reader()
    reader.feed(command)
    words = reader.gets()
    if not isinstance(words, list) or len(words) != 8 or words[0] != b"EVALSHA":
        return None
    current, previous = (word.decode("utf-8", "surrogatepass") for word in words[3:5])
    return Halves(current, previous, words[5], float(words[6]), words[7])


async def ask_in_halves(check: Check, halves: Halves, ask: Ask) -> None:
    """Gives the check its reply, or has it fail."""
    try:
        found = await ask(halves.previous, pack("GET", halves.previous))
        previous = int(found) if isinstance(found, bytes) and found.isdigit() else 0
        share = b"%.17g" % (previous * halves.share)
        reply = await ask(halves.current, pack("EVAL", HALF, 1, halves.current, halves.limit, share, halves.ttl_s))
    except CounterStoreDown as down:
        check.fail(str(down))
        return
    if isinstance(reply, list) and len(reply) == 2:
        check([reply[0], previous, reply[1]])
    else:
        check.fail("a check's answer is not the script's")
