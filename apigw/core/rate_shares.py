"""How workers share a backend's max_rps: by what their clients ask for. Pure; times are epoch seconds.

Once a second each worker writes down what it was asked for, reads what the others were, and takes its part of the cap:

    part = (own demand + LEAST of the cap) / (everybody's demand + LEAST of the cap for each)

All parts together are the cap. Who is asked for little keeps a little room (LEAST), so that a worker whose clients come
suddenly is not at nothing; within a second it has its part. Who has not written for STALE_S is gone. While Redis is
gone nobody can know better, and each keeps its last part.
"""

import math
from typing import Final, Mapping

LEAST: Final = 0.05
STALE_S: Final = 5.0
FORGOTTEN_S: Final = 60.0
NEW_WEIGHT: Final = 0.7  # of the last second in the smoothed demand
_MAX_BYTES: Final = 64


def entry(demand_rps: float, now: float) -> bytes:
    """A worker's line in the hash: b"812.5 1707264480.5"."""
    return b"%.1f %.3f" % (demand_rps, now)


def _read(value: bytes) -> tuple[float, float] | None:
    """(demand, when), None for nonsense."""
    words = value.split(b" ") if len(value) <= _MAX_BYTES else []
    try:
        demand_rps, when = map(float, words)
    except ValueError:
        return None
    return (demand_rps, when) if math.isfinite(when) and 0.0 <= demand_rps < math.inf else None


def part(entries: Mapping[bytes, bytes], me: bytes, demand_rps: float, cap_rps: float, now: float) -> float:
    """This worker's part of the cap, above 0 and at most 1."""
    least_rps = LEAST * cap_rps
    total_rps = own_rps = demand_rps + least_rps
    for name, value in entries.items():
        said = _read(value)
        if name != me and said is not None and abs(now - said[1]) <= STALE_S:
            total_rps += said[0] + least_rps
    return own_rps / total_rps


def forgotten(entries: Mapping[bytes, bytes], now: float) -> list[bytes]:
    """Who may leave the hash: workers that ended, and what cannot be read."""
    gone = []
    for name, value in entries.items():
        said = _read(value)
        if said is None or abs(now - said[1]) > FORGOTTEN_S:
            gone.append(name)
    return gone
