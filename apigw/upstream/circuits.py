"""The gates of all backends of a worker, kept across reloads by name, and their second hand.

Once a second each breaker is told the time, so that logs, metrics and /status are right without requests. What other
gateways know of the same backends comes by shared_circuits.py, and their parts of max_rps by shared_rates.py.
"""

from functools import partial
from typing import Any, Callable, Mapping

from apigw.config.model import Backend, CircuitBreaker, Config
from apigw.core.breaker import CLOSED, HALF_OPEN, OPEN, RECOVERING
from apigw.net.poller import Poller
from apigw.upstream.gate import CIRCUIT_OPEN, Gate, Told
from apigw.upstream.pool import Pool

CIRCUIT_VALUES = {CLOSED: 0.0, HALF_OPEN: 1.0, OPEN: 2.0, RECOVERING: 3.0}  # of the metric circuit_state
_SECOND_S = 1.0
_AT_ONCE = 50


def _nobody(gate: Gate, old: str, new: str) -> None:
    """Without other gateways there is nobody to tell."""


class Circuits(Poller):
    """`gates` has exactly the backends of the configuration in force; requests of older ones keep theirs.

    pools() gives the pools in force. on_change(gate, old, new) is told of each transition.
    """

    def __init__(self, reactor: Any, pools: Callable[[], Mapping[str, Pool]], on_change: Told = _nobody) -> None:
        self.gates: Mapping[str, Gate] = {}
        self._pools = pools
        self.on_change = on_change
        super().__init__(reactor, _SECOND_S, name="circuit breakers")

    def configure(self, config: Config) -> Mapping[str, Gate]:
        """Gates for these backends: known ones as they are with the new settings, new ones closed."""
        gates: dict[str, Gate] = {}
        for backend in config.backends:
            gate = self.gates.get(backend.name)
            settings = settings_of(backend, config)
            if gate is None:
                others_fine = partial(self._others_fine, backend.name)
                gate = Gate(backend, settings, self.clock.seconds, others_fine, self._changed)
            else:
                gate.configure(backend, settings)
            gates[backend.name] = gate
        self.gates = gates
        return gates

    def poll(self) -> None:
        now_s = self.clock.seconds()
        for gate in self.gates.values():
            gate.breaker.tick(now_s)

    def _changed(self, gate: Gate, old: str, new: str) -> None:
        if new == OPEN:
            self.clock.callLater(0, self._turn_away, gate)
        self.on_change(gate, old, new)

    def _turn_away(self, gate: Gate) -> None:
        """Who waits for a connection would be refused now: a slice a turn of the loop, a queue may be long."""
        pool = self._pools().get(gate.name)
        if pool is None or gate.breaker.state != OPEN:
            return
        taken = pool.take_guarded(_AT_ONCE)
        for waiter in taken:
            waiter.pool_failed(CIRCUIT_OPEN, "the circuit opened while it waited for a connection", None)
        if len(taken) == _AT_ONCE:
            self.clock.callLater(0, self._turn_away, gate)

    def _others_fine(self, name: str, instance: str | None) -> bool:
        pool = self._pools().get(name)
        members = () if pool is None else pool.members
        return any(
            member.up and not member.failures and not member.refused and member.label != instance for member in members
        )

    # -- what the operator sees

    def states(self) -> list[tuple[tuple[str], float]]:
        """circuit_state."""
        now_s = self.clock.seconds()
        return [((name,), CIRCUIT_VALUES[gate.breaker.state_at(now_s)]) for name, gate in self.gates.items()]

    def openings(self) -> list[tuple[tuple[str], float]]:
        """circuit_openings_total."""
        return [((name,), float(gate.breaker.opened)) for name, gate in self.gates.items()]

    def status(self, name: str) -> dict[str, object]:
        """For /status; of a backend of the configuration in force."""
        gate, now_s = self.gates[name], self.clock.seconds()
        breaker = gate.breaker
        outcomes, failed = breaker.counts()
        return {
            "circuit": {
                "state": breaker.state_at(now_s),
                "open_seconds_left": round(max(0.0, breaker.open_until_s - now_s), 1)
                if breaker.state == OPEN
                else None,
                "share": breaker.share(now_s),
                "outcomes": outcomes,
                "failed": failed,
                "opened": breaker.opened,
            },
            "max_rps": gate.max_rps,
            "max_rps_here": None if gate.pace is None else round(gate.pace.rps, 3),
            "refused_at_max_rps": gate.refused_at_rate,
        }


def settings_of(backend: Backend, config: Config) -> CircuitBreaker:
    """The backend's own, else those of the main file."""
    return backend.circuit_breaker or config.circuit_breaker
