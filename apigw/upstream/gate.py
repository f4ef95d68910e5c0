"""Before a backend is asked: its circuit breaker and its max_rps. After the answer: what it says about the backend.

    request  --circuit closed, or its turn---> --max_rps not reached---> the pool
                     | open                          | reached
                     503 circuit_open                503 max_rps          neither has touched a connection

Note [What counts]
  An outcome is read off the exchange that has ended: bad is a 5xx of the backend, and every reason of FAULTS. What the
  gateway itself refused (pool_full, no_healthy_instance, max_rps), a client that left, a failure of the client's own
  body, and an end that the backend made after its client had held it up for a second say nothing. A 4xx is a good
  answer. A connect that failed is bad unless another instance is in rotation that never failed lately: then it is that
  one instance's fault, which the health check takes out after some failures, and a backend of several instances is not
  closed to all for the sake of one.
"""

from typing import Callable, Final

from twisted.logger import Logger

from apigw.config.model import Backend, CircuitBreaker
from apigw.core.breaker import HALF_OPEN, OPEN, Breaker
from apigw.core.pace import Pace
from apigw.errors import GatewayError
from apigw.exchange import Exchange

CIRCUIT_OPEN, MAX_RPS = "circuit_open", "max_rps"
CONNECT_FAULTS: Final = frozenset(("connection_refused", "connect_timeout", "unreachable", "unresolved"))
FAULTS: Final = CONNECT_FAULTS | {"connection_reset", "invalid_response", "truncated_response", "upstream_timeout"}
_MORE, _MORE_S = 1.1, 1.0  # a probe may take its route's timeout, and a busy loop may be late to say that it is over
_MAX_RPS_RETRY_S = 1  # by then there is room for another max_rps requests
_LOG_STRETCH_S, _LOG_LINES = 10.0, 8  # so many lines at most: a circuit with an open time of milliseconds changes often

Told = Callable[["Gate", str, str], None]  # (gate, old state, new state)

log = Logger()


class Gate:
    """Of one backend, kept across reloads by its name.

    others_fine(instance): whether another instance is in rotation and without failures. on_change: told of each
    transition after it was logged. `pace` is None without max_rps; its rate is this worker's part of it.
    """

    __slots__ = ("name", "breaker", "settings", "pace", "max_rps", "asked", "refused_at_rate", "_part",
                 "_others_fine", "_on_change", "_now_s", "_logged_s", "_logged", "_unlogged")  # fmt: skip

    def __init__(
        self,
        backend: Backend,
        settings: CircuitBreaker,
        now_s: Callable[[], float],
        others_fine: Callable[[str | None], bool],
        on_change: Told,
    ) -> None:
        self.name = backend.name
        self.settings = settings
        self.max_rps = backend.max_rps
        self.pace = None if backend.max_rps is None else Pace(backend.max_rps)
        self.asked = 0  # requests that came to the pace, ever
        self.refused_at_rate = 0  # of them
        self._part = 1.0  # of max_rps, this worker's
        self._others_fine = others_fine
        self._on_change = on_change
        self._now_s = now_s
        self._logged_s = float("-inf")
        self._logged = self._unlogged = 0
        self.breaker = Breaker(settings, now_s(), self._changed)

    def configure(self, backend: Backend, settings: CircuitBreaker) -> None:
        """A reload: what changed applies, the state stays."""
        if settings != self.settings:
            self.settings = settings
            self.breaker.configure(settings, self._now_s())
        if backend.max_rps != self.max_rps:
            self.max_rps = backend.max_rps
            self.pace = None if backend.max_rps is None else Pace(backend.max_rps * self._part)

    def set_part(self, part: float) -> None:
        """This worker's part of max_rps, above 0 and at most 1."""
        self._part = part
        if self.pace is not None and self.max_rps is not None:
            self.pace.set(self.max_rps * part)

    # -- requests

    def refusal(self, ex: Exchange, guarded: bool, timeout_s: float) -> GatewayError | None:
        """None: the request may go on. `guarded`: its route's circuit_breaker."""
        breaker, ticket = self.breaker, 0
        if guarded:
            ticket = breaker.era if breaker.closed else breaker.admit(self._now_s(), timeout_s * _MORE + _MORE_S)
            if not ticket:
                return self.circuit_refusal()
        if self.pace is not None:
            self.asked += 1
            now_s = self._now_s()
            if not self.pace.take(now_s):
                self.refused_at_rate += 1
                breaker.abandoned(ticket, now_s)
                detail = f"more than {self.pace.rps:g} requests a second for {self.name} from here"
                return self._unavailable(MAX_RPS, detail, _MAX_RPS_RETRY_S)
        if ticket:
            ex.gate, ex.ticket = self, ticket
        return None

    def shut(self) -> bool:
        """Whether every request that obeys the circuit would be refused now."""
        return self.breaker.state == OPEN and self._now_s() < self.breaker.open_until_s

    def circuit_refusal(self) -> GatewayError:
        """For a request that is refused now."""
        now_s, breaker = self._now_s(), self.breaker
        if breaker.state == OPEN:
            detail = f"circuit open for another {max(0.0, breaker.open_until_s - now_s):.1f} s"
        elif breaker.state == HALF_OPEN:
            detail = "circuit half open: a probe is out"
        else:
            detail = f"circuit recovering: {breaker.share(now_s):.0%} are let through"
        return self._unavailable(CIRCUIT_OPEN, detail, breaker.retry_after_s(now_s))

    def _unavailable(self, reason: str, detail: str, retry_after_s: int) -> GatewayError:
        return GatewayError(
            "The backend is not available.",
            status=503,
            code="service_unavailable",
            reason=reason,
            detail=detail,
            retry_after_s=retry_after_s,
            extra={"backend": self.name},
        )

    def ended(self, ex: Exchange) -> None:
        """The exchange of a request that was let through is over. See Note [What counts]."""
        reason = ex.error_type
        if reason is None:
            if ex.status < 500:
                self.breaker.succeeded(ex.ticket, ex.ended_s)
            else:
                self.breaker.failed(ex.ticket, ex.ended_s)
        elif reason in FAULTS and not (reason in CONNECT_FAULTS and self._others_fine(ex.instance)):
            self.breaker.failed(ex.ticket, ex.ended_s)
        else:
            self.breaker.abandoned(ex.ticket, ex.ended_s)

    def spared(self, ex: Exchange) -> None:
        """An exchange that is about to fail for its client's sake: it is not counted."""
        self.breaker.abandoned(ex.ticket, self._now_s())
        ex.gate = None

    # -- transitions

    def _changed(self, old: str, new: str, why: str) -> None:
        now_s = self._now_s()
        if now_s - self._logged_s >= _LOG_STRETCH_S:
            self._logged_s, self._logged = now_s, 0
        self._logged += 1
        if self._logged > _LOG_LINES:
            self._unlogged += 1
        else:
            more = f" ({self._unlogged} changes before it not logged)" if self._unlogged else ""
            self._unlogged = 0
            say = log.info if new not in (OPEN, HALF_OPEN) else log.warn
            say(
                "{backend}: circuit {state}, it was {old}: {why}{more}",
                backend=self.name,
                state=new.replace("_", " "),
                old=old.replace("_", " "),
                why=why,
                more=more,
            )
        self._on_change(self, old, new)


def record(ex: Exchange) -> None:
    """An observer of the ledger: each exchange that has ended."""
    if ex.gate is not None:
        ex.gate.ended(ex)
