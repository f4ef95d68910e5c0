"""This worker's part of each max_rps, settled with the other workers through Redis once a second.

    HSET rps:{backend} worker "demand when", PEXPIRE, HGETALL -> core/rate_shares.py -> the gate's pace

While Redis is gone each worker keeps its last part; one that starts meanwhile takes the whole cap for itself.
"""

from typing import Any, Final

from twisted.internet.defer import Deferred, FirstError, gatherResults
from twisted.internet.interfaces import IReactorTime
from twisted.python.failure import Failure

from apigw.core.rate_shares import FORGOTTEN_S, NEW_WEIGHT, entry, forgotten, part
from apigw.errors import StoreDown
from apigw.names import rate_shares
from apigw.net.poller import Poller, PollFailed
from apigw.ports import SharedStore, WallClock
from apigw.upstream.circuits import Circuits
from apigw.upstream.gate import Gate

_SECOND_S: Final = 1.0
_TTL_MS: Final = int(FORGOTTEN_S * 2000)


class SharedRates(Poller):
    """For the gates of `circuits` that have a max_rps. me: this worker's name among all."""

    def __init__(self, clock: IReactorTime, store: SharedStore, circuits: Circuits, wall: WallClock, me: str) -> None:
        self._store = store
        self._circuits = circuits
        self._wall = wall
        self._me = me.encode()
        self._demand_rps: dict[str, float] = {}
        self._asked: dict[str, int] = {}
        self._measured_s = clock.seconds()
        super().__init__(clock, _SECOND_S, name="shares of max_rps")

    def poll(self) -> "Deferred[Any] | None":
        gates = [gate for gate in self._circuits.gates.values() if gate.max_rps is not None]
        now_s = self.clock.seconds()
        since_s, self._measured_s = now_s - self._measured_s, now_s
        if not gates:
            return None
        self._measure(gates, since_s)
        return gatherResults([self._settle(gate) for gate in gates], consumeErrors=True).addErrback(self._failed)

    def _measure(self, gates: list[Gate], since_s: float) -> None:
        """What clients asked of each since the last time, smoothed a little."""
        before, old = self._asked, self._demand_rps
        self._asked = {gate.name: gate.asked for gate in gates}
        self._demand_rps = {}
        for gate in gates:
            new_rps = max(0, gate.asked - before.get(gate.name, 0)) / max(since_s, 0.001)
            self._demand_rps[gate.name] = NEW_WEIGHT * new_rps + (1.0 - NEW_WEIGHT) * old.get(gate.name, new_rps)

    def _settle(self, gate: Gate) -> "Deferred[Any]":
        key, name = rate_shares(gate.name), self._me
        said = self._store.command(key, "HSET", key, name, entry(self._demand_rps[gate.name], self._wall()))
        lasting = self._store.command(key, "PEXPIRE", key, _TTL_MS)
        read = self._store.command(key, "HGETALL", key).addCallback(self._heard, gate)
        return gatherResults([said, lasting, read], consumeErrors=True)

    def _heard(self, reply: Any, gate: Gate) -> None:
        if gate.max_rps is None or not isinstance(reply, list):
            return
        entries = dict(zip(reply[::2], reply[1::2]))
        now = self._wall()
        gate.set_part(part(entries, self._me, self._demand_rps.get(gate.name, 0.0), gate.max_rps, now))
        gone = forgotten(entries, now)
        if gone:
            key = rate_shares(gate.name)
            self._store.command(key, "HDEL", key, *gone).addErrback(_ignore)

    def _failed(self, failure: Failure) -> Failure:
        error = failure.value
        while isinstance(error, FirstError):
            error = error.subFailure.value
        if not isinstance(error, StoreDown):
            return failure
        raise PollFailed(f"Redis: {error}; each worker keeps its part")


def _ignore(failure: Failure) -> None:
    """It is forgotten the next time."""
    failure.trap(StoreDown)
