"""How the Python peers are told what to do: one JSON file, its name the only argument. Runs in their environments."""

import json
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Settings:
    port: int
    backend: str  # http://127.0.0.1:9001
    redis_port: int
    certificate_file: str
    key_file: str
    jwks_file: str
    issuer: str
    audience: str
    access_log: str
    prefix: str
    limits: dict[str, int]  # first path segment after the prefix -> requests a window
    window_s: int


def settings() -> Settings:
    return Settings(**json.loads(Path(sys.argv[1]).read_text()))


# The sliding window of every Redis-backed peer in Python: two keys, one round trip.
RATE_SCRIPT = """
local previous = tonumber(redis.call('GET', KEYS[2]) or '0')
local current = tonumber(redis.call('GET', KEYS[1]) or '0')
if previous * tonumber(ARGV[1]) + current >= tonumber(ARGV[2]) then return -1 end
current = redis.call('INCR', KEYS[1])
if current == 1 then redis.call('EXPIRE', KEYS[1], ARGV[3]) end
return current
"""


def rate_keys(route: str, user_id: str, now_s: float, window_s: int) -> tuple[str, str, float]:
    """(key of this window, key of the one before, weight of the one before)."""
    window = int(now_s // window_s) * window_s
    name = f"rate:{{{route}:user:{user_id}}}"
    return f"{name}:{window}", f"{name}:{window - window_s}", 1 - (now_s - window) / window_s
