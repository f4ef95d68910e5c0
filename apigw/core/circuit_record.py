"""What gateways tell each other of a backend's circuit, and what a worker makes of it. Pure; times are epoch seconds.

    record      found while the circuit here is     then
    open        anything, of an outage unknown here  open here too, for what is left of it
    open        any, of an outage known here         nothing: it was followed once
    recovering  open, half open; same outage         recovering here too, from where that one is
    recovering  open, half open; another outage      the same, if it began to recover after this one opened
    recovering  closed, of an outage unknown here    recovering: its opening was missed
    its own, what is over, what cannot be read       nothing

Note [One outage, many judges]
  Each worker judges, opens and probes by itself, so all of it works without Redis; Redis makes it quicker. Who opens
  says so, and the others open with it within a second or so instead of failing min_requests of their own. When the time
  is over each worker sends probes of its own, one at a time: a bad one opens it for all again, and the first with
  enough good ones brings all into the same ramp. So a fleet of N workers has at most N probes out, far fewer than the
  first step of the ramp lets through, and nobody need ask Redis, or wait for a lease of a gateway that is gone, before
  it may probe. Several may open at the same time: the one that was written last is the outage that all know.

Note [Stale records]
  An outage is followed once, never for longer than by a judgement of one's own, and its record expires in Redis: what a
  gateway that is gone, or whose clock is wrong, has left behind holds no circuit open for ever. Clocks that differ by
  some seconds make an opening longer or shorter by as much; by more than open_seconds, and it is not shared.
"""

import math
from typing import Any, Final

import orjson
from attrs import evolve, frozen

from apigw.core.breaker import CLOSED, HALF_OPEN, OPEN, RECOVERING

MAX_BYTES: Final = 1024
_MAX_BY: Final = 256

Outage = tuple[float, str]  # when it opened, and by whose judgement


@frozen
class CircuitRecord:
    """`state` is open or recovering. until: the end of open; since: the begin of recovering. by: who opened it."""

    state: str
    opened_at: float
    by: str
    until: float
    since: float | None = None
    failure_count: int = 0
    last_failure_at: float = 0.0

    @property
    def outage(self) -> Outage:
        return self.opened_at, self.by

    def recovering(self, since: float) -> "CircuitRecord":
        """The same outage, on its way back."""
        return evolve(self, state=RECOVERING, since=since)


def encoded(record: CircuitRecord) -> bytes:
    """{"state":"open","opened_at":1707264480.5,"until":1707264510.5,"by":"gateway-1/5f1c", ...}"""
    return orjson.dumps(
        {
            "state": record.state,
            "opened_at": record.opened_at,
            "until": record.until,
            "since": record.since,
            "by": record.by,
            "failure_count": record.failure_count,
            "last_failure_at": record.last_failure_at,
        }
    )


def decoded(value: object) -> CircuitRecord | None:
    """What a reply of Redis says, None for nothing and for nonsense."""
    if not isinstance(value, bytes) or len(value) > MAX_BYTES:
        return None
    try:
        said = orjson.loads(value)
    except orjson.JSONDecodeError:
        return None
    if not isinstance(said, dict):
        return None
    state, by, since = said.get("state"), said.get("by"), _time(said.get("since"))
    opened_at, until = _time(said.get("opened_at")), _time(said.get("until"))
    if state not in (OPEN, RECOVERING) or not isinstance(by, str) or not 0 < len(by) <= _MAX_BY:
        return None
    if opened_at is None or until is None or (state == RECOVERING and since is None):
        return None
    return CircuitRecord(state, opened_at, by, until, since)


def _time(value: Any) -> float | None:
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if number and math.isfinite(value) else None


@frozen
class Follow:
    """Be in `state`: OPEN for another `seconds`, or RECOVERING since `seconds` ago."""

    state: str
    seconds: float


def judged(
    record: CircuitRecord | None, now: float, *, me: str, state: str, known: Outage | None, opened_at: float
) -> Follow | None:
    """What to do about a record; None: nothing.

    me: this worker's name. state: of the circuit here. known: the last outage that was followed or made here.
    opened_at: when the circuit here opened last.
    """
    if record is None:
        return None
    if record.state == OPEN:
        left_s = record.until - now
        return Follow(OPEN, left_s) if record.by != me and record.outage != known and left_s > 0 else None
    assert record.since is not None
    follow = Follow(RECOVERING, max(0.0, now - record.since))
    if state == CLOSED:
        return follow if record.by != me and record.outage != known else None
    if state in (OPEN, HALF_OPEN):
        return follow if record.outage == known or record.since > opened_at else None
    return None
