"""The circuits of one deployment, over Redis: what opens here opens elsewhere, and what recovers there recovers here.

    a change here   -> SET circuit:{backend}, with a TTL      at once; again each second until Redis has taken it
    each second     -> GET circuit:{backend} of each backend  core/circuit_record.py says what to make of it

While Redis is gone each worker decides for itself. Backends with `shared: false` are neither told of nor read about.
"""

from typing import Any, Final

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from apigw.core.breaker import CLOSED, HALF_OPEN, OPEN, RECOVERING
from apigw.core.circuit_record import CircuitRecord, Outage, decoded, encoded, judged
from apigw.errors import StoreDown
from apigw.names import circuit_record
from apigw.net.poller import Poller, PollFailed
from apigw.ports import SharedStore, WallClock
from apigw.upstream.circuits import Circuits
from apigw.upstream.gate import Gate

_SECOND_S: Final = 1.0
_TTL_MORE_S: Final = 5.0  # after an opening or a ramp is over: a clock that is late by so much still learns of it


class _Known:
    """What this worker knows of one backend's last outage. `unsaid`: Redis has not taken it yet."""

    __slots__ = ("record", "outage", "opened_at", "unsaid")

    def __init__(self) -> None:
        self.record: CircuitRecord | None = None  # of an outage that was opened or recovered here
        self.outage: Outage | None = None
        self.opened_at = 0.0
        self.unsaid = False


class SharedCircuits(Poller):
    """Knows the gates of `circuits`, and is told of their changes. me: this worker's name among all.

    followed: how many changes were taken over from others.
    """

    def __init__(self, clock: IReactorTime, store: SharedStore, circuits: Circuits, wall: WallClock, me: str) -> None:
        self.followed = 0
        self._store = store
        self._circuits = circuits
        self._wall = wall
        self._me = me
        self._known: dict[str, _Known] = {}
        self._following = False
        circuits.on_change = self.changed
        super().__init__(clock, _SECOND_S, name="shared circuits")

    # -- what changes here

    def changed(self, gate: Gate, old: str, new: str) -> None:
        """A transition of a gate, by its own judgement unless it is being made to follow another's."""
        known = self._known.setdefault(gate.name, _Known())
        now = self._wall()
        if new == OPEN:
            known.opened_at = now
        if self._following or not gate.settings.shared:
            return
        if new == OPEN:
            left_s = gate.breaker.open_until_s - self.clock.seconds()
            failures = gate.breaker.counts()[1]
            known.record = CircuitRecord(OPEN, now, self._me, now + left_s, None, failures, now)
            known.outage = known.record.outage
        elif new == RECOVERING:
            opened_at, by = known.outage or (known.opened_at, self._me)
            known.record = CircuitRecord(RECOVERING, opened_at, by, now, now, 0, opened_at)
        else:
            if new == CLOSED:
                known.record, known.unsaid = None, False
            return
        known.unsaid = True
        self._say(gate.name, known).addErrback(self._unheard)

    def _say(self, name: str, known: _Known) -> "Deferred[Any]":
        record = known.record
        assert record is not None
        gate = self._circuits.gates.get(name)
        ramp_s = gate.settings.recovery_s if gate is not None else 0.0
        end = record.until if record.since is None else record.since + ramp_s
        ttl_ms = max(1, int((end - self._wall() + _TTL_MORE_S) * 1000))
        key = circuit_record(name)
        said = self._store.command(key, "SET", key, encoded(record), "PX", ttl_ms)
        return said.addCallback(self._said, known, record)

    def _said(self, _: Any, known: _Known, record: CircuitRecord) -> None:
        if known.record is record:
            known.unsaid = False

    def _unheard(self, failure: Failure) -> None:
        """Redis is down: it is said again at the next poll."""
        failure.trap(StoreDown)

    # -- what others say

    def poll(self) -> "Deferred[Any]":
        gates = self._circuits.gates
        self._known = {name: known for name, known in self._known.items() if name in gates}
        asked = [self._read(gate) for gate in gates.values() if gate.settings.shared]
        return gatherResults(asked, consumeErrors=True).addErrback(self._failed)

    def _failed(self, failure: Failure) -> Failure:
        error = failure.value
        if isinstance(error, FirstError):
            error = error.subFailure.value
        if not isinstance(error, StoreDown):
            return failure
        raise PollFailed(f"Redis: {error}; each worker decides for itself")

    def _read(self, gate: Gate) -> "Deferred[Any]":
        key = circuit_record(gate.name)
        known = self._known.get(gate.name)
        if known is not None and known.unsaid:
            return self._say(gate.name, known)
        return self._store.command(key, "GET", key).addCallback(self._heard, gate)

    def _heard(self, reply: Any, gate: Gate) -> None:
        known = self._known.setdefault(gate.name, _Known())
        if known.unsaid or self._circuits.gates.get(gate.name) is not gate:
            return  # the reply is older than what was said since
        breaker, now = gate.breaker, self._wall()
        if reply is None:
            self._say_again(gate, known, now)
            return
        record = decoded(reply)
        follow = judged(record, now, me=self._me, state=breaker.state, known=known.outage, opened_at=known.opened_at)
        if follow is None or record is None:
            return
        why = f"as {record.by} found" if follow.state == OPEN else "as another gateway's probes were good"
        self.followed += 1
        self._following = True
        try:
            if follow.state == OPEN:
                breaker.open_elsewhere(follow.seconds, self.clock.seconds(), why)
            else:
                breaker.recovering_elsewhere(follow.seconds, self.clock.seconds(), why)
        finally:
            self._following = False
        known.outage, known.record = record.outage, None

    def _say_again(self, gate: Gate, known: _Known, now: float) -> None:
        """Redis has lost it (a restart): those who have not heard of it may want to know."""
        record = known.record
        if record is None or gate.breaker.state not in (OPEN, HALF_OPEN, RECOVERING):
            return
        end = record.until if record.since is None else record.since + gate.settings.recovery_s
        if now < end:
            self._say(gate.name, known).addErrback(self._unheard)
