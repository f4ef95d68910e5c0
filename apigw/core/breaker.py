"""The circuit breaker of one backend: when it is not asked any more, and how it gets its traffic back. Pure.

    state      event                                               then
    CLOSED     more than error_rate of at least min_requests       OPEN for open_s
               outcomes within window_s were bad
    OPEN       a request before its time is over                   OPEN: refused
    OPEN       a request after it                                  HALF_OPEN: it is the probe
    HALF_OPEN  a request while a probe is out                      HALF_OPEN: refused
    HALF_OPEN  a request while none is                             HALF_OPEN: it is the probe
    HALF_OPEN  the probe was good                                  HALF_OPEN, and RECOVERING after close_after_probes
                                                                   good ones in a row
    HALF_OPEN  the probe was bad                                   OPEN for open_s
    HALF_OPEN  the probe came to nothing (its client left, no      HALF_OPEN: the next request is the probe
               connection was free), or its patience is over
    RECOVERING a request                                           admitted or refused, as core/ramp.py says
    RECOVERING bad outcomes as in CLOSED, of a fresh window        OPEN for open_s
    RECOVERING the ramp is over                                    CLOSED
    any        another gateway opened it, or has got it back       OPEN, RECOVERING: see upstream/circuits.py

Note [Tickets]
  Who is admitted holds a ticket: the era in which it was. Every opening, every probe and every ramp begins another era,
  and an outcome counts only in its own: the late answer to a request from before the opening says nothing about the
  probe. Ticket 0 is that of a request that is not counted; no era is 0.

Note [Answers without end]
  An outcome is known at an answer's end. A probe whose answer began well and is still coming when its patience is over
  was good: a backend that only streams could not be got back otherwise. A probe that nothing is heard of says nothing.

Time is an argument: seconds of a clock that only goes forward.
"""

from math import ceil
from typing import Callable, Final, Protocol

from apigw.core.outcomes import Outcomes
from apigw.core.ramp import Ramp

CLOSED, HALF_OPEN, OPEN, RECOVERING = "closed", "half_open", "open", "recovering"

_FADE: Final = 0.99  # of the normal rate, each tenth of a window: after some minutes the present counts


class Policy(Protocol):
    """config.model.CircuitBreaker has these."""

    @property
    def error_rate(self) -> float: ...

    @property
    def window_s(self) -> float: ...

    @property
    def min_requests(self) -> int: ...

    @property
    def open_s(self) -> float: ...

    @property
    def close_after_probes(self) -> int: ...

    @property
    def recovery_steps(self) -> tuple[float, ...]: ...

    @property
    def recovery_s(self) -> float: ...


OnChange = Callable[[str, str, str], None]  # (state it was in, state it is in, why)


class Breaker:
    """`closed`: everybody is admitted, with the ticket `era`; else ask admit(). Each ticket is handed back once, by
    succeeded(), failed() or abandoned(); one that never is wedges nothing.

    `opened` counts openings; a probe that failed is none. `normal_rps` is what the backend was seen to carry,
    None while that is not known; a ramp that opened it again has shown at least something.
    """

    __slots__ = (
        "policy", "state", "closed", "era", "opened", "normal_rps", "_guessed",
        "_on_change", "_outcomes", "_until_s", "_good_probes", "_probing", "_probe_until_s", "_probe_answers", "_ramp",
    )  # fmt: skip

    def __init__(self, policy: Policy, now_s: float, on_change: OnChange) -> None:
        self.policy = policy
        self.state = CLOSED
        self.closed = True
        self.era = 1
        self.opened = 0
        self.normal_rps: float | None = None
        self._guessed = False  # `normal_rps`, from a ramp that failed
        self._on_change = on_change
        self._outcomes = Outcomes(policy.window_s, now_s)
        self._until_s = now_s  # of OPEN
        self._good_probes = 0
        self._probing = False
        self._probe_until_s = now_s
        self._probe_answers = False
        self._ramp: Ramp | None = None  # of RECOVERING

    # -- requests

    def admit(self, now_s: float, patience_s: float) -> int:
        """A ticket, or 0: refused. `patience_s`: what a probe may take, well above its route's timeout."""
        self.tick(now_s)
        if self.state == CLOSED:
            return self.era
        if self.state == RECOVERING:
            assert self._ramp is not None
            return self.era if self._ramp.admits(now_s) else 0
        if self.state == OPEN:
            if now_s < self._until_s:
                return 0
            self._good_probes = 0
            self._become(HALF_OPEN, f"open for {self.policy.open_s:g} s")
        if self._probing:
            return 0
        self.era += 1
        self._probing, self._probe_answers = True, False
        self._probe_until_s = now_s + patience_s
        return self.era

    def succeeded(self, ticket: int, now_s: float) -> None:
        """The backend gave a whole answer, of a status below 500."""
        if ticket != self.era:
            return
        outcomes = self._outcomes
        if now_s >= outcomes.until_s:
            self._turn(now_s)
        outcomes.ever += 1
        if self.closed:
            if outcomes.bad:
                self._judge(now_s)
        elif self.state == RECOVERING:
            assert self._ramp is not None
            self._ramp.succeeded(now_s)
            self._judge(now_s)
        elif self.state == HALF_OPEN and self._probing:
            self._good_probe(now_s)

    def failed(self, ticket: int, now_s: float) -> None:
        """The backend's answer was a 5xx, no answer, or none in time."""
        if ticket != self.era:
            return
        if self.state == HALF_OPEN:
            if self._probing:
                self._open(now_s, "the probe failed")
            return
        self._turn(now_s)
        self._outcomes.failed()
        if self._ramp is not None:
            self._ramp.failed(now_s)
        self._judge(now_s)

    def abandoned(self, ticket: int, now_s: float) -> None:
        """Nothing was learned: the client left, or the gateway had no connection to give."""
        if ticket != self.era:
            return
        if self._ramp is not None:
            self._ramp.abandoned(now_s)
        elif self.state == HALF_OPEN and self._probing:
            self._probe_over()

    def answering(self, ticket: int) -> None:
        """The head of an answer has come, its status is below 500, and its end may take a while."""
        if ticket == self.era and self.state == HALF_OPEN and self._probing:
            self._probe_answers = True

    def retry_after_s(self, now_s: float) -> int:
        """Whole seconds, at least 1, for who was refused now."""
        if self.state == OPEN:
            return max(1, ceil(self._until_s - now_s))
        return 1 if self._ramp is None else self._ramp.retry_after_s()

    # -- time and others

    def tick(self, now_s: float) -> None:
        """What time alone changes; also once a second, so that the state is right without requests."""
        self._turn(now_s)
        if self.state == RECOVERING:
            assert self._ramp is not None
            if self._ramp.over(now_s):
                self._become(CLOSED, "the ramp is over")
        elif self.state == HALF_OPEN and self._probing and now_s >= self._probe_until_s:
            if self._probe_answers:
                self._good_probe(now_s)
            else:
                self._probe_over()

    def configure(self, policy: Policy, now_s: float) -> None:
        """Other settings from now on. The state stays; what is open is so for no longer than it would be now."""
        old, self.policy = self.policy, policy
        if old.window_s != policy.window_s:
            self._outcomes = Outcomes(policy.window_s, now_s)
        self._until_s = min(self._until_s, now_s + policy.open_s)
        if self._ramp is not None:
            self._ramp = self._new_ramp(self._ramp.begun_s)

    def open_elsewhere(self, left_s: float, now_s: float, why: str) -> None:
        """Another gateway found it failing: OPEN for `left_s`, never longer than by a judgement of one's own."""
        left_s = min(left_s, self.policy.open_s)
        if self.state == OPEN:
            self._until_s = min(max(self._until_s, now_s + left_s), now_s + self.policy.open_s)
        elif left_s > 0:
            self._open(now_s, why, left_s)

    def recovering_elsewhere(self, since_s: float, now_s: float, why: str) -> None:
        """Another gateway's probes were good `since_s` ago: the same ramp, from where that one is."""
        if self.state != RECOVERING:
            self._recover(now_s - max(0.0, since_s), why)
            self.tick(now_s)

    @property
    def open_until_s(self) -> float:
        """The end of OPEN, where it is that or was last."""
        return self._until_s

    def state_at(self, now_s: float) -> str:
        """For who looks: what is open and over waits for a probe."""
        return HALF_OPEN if self.state == OPEN and now_s >= self._until_s else self.state

    def share(self, now_s: float) -> float:
        """Of the requests that are admitted, for who looks."""
        if self._ramp is not None:
            return self._ramp.share(now_s)
        return 1.0 if self.closed else 0.0

    def recovering_for_s(self, now_s: float) -> float | None:
        """Since when, in RECOVERING."""
        return None if self._ramp is None else now_s - self._ramp.begun_s

    def counts(self) -> tuple[int, int]:
        """(outcomes of the window, bad ones among them)."""
        return self._outcomes.total, self._outcomes.bad

    # -- transitions

    def _turn(self, now_s: float) -> None:
        outcomes = self._outcomes
        if now_s < outcomes.until_s:
            return
        covered_s = outcomes.covered_s(now_s)
        good = outcomes.total - outcomes.bad
        ended = outcomes.turn(now_s)
        if not self.closed:
            return
        if self.normal_rps is not None:
            self.normal_rps *= _FADE ** min(ended, 1000)
        if good >= self.policy.min_requests and covered_s >= self.policy.window_s / 2:
            known_rps = 0.0 if self._guessed else self.normal_rps or 0.0
            self.normal_rps, self._guessed = max(known_rps, good / covered_s), False

    def _judge(self, now_s: float) -> None:
        outcomes, policy = self._outcomes, self.policy
        total = outcomes.total
        if total >= policy.min_requests and outcomes.bad > policy.error_rate * total:
            self._open(now_s, f"{outcomes.bad} of {total} requests failed within {policy.window_s:g} s")

    def _good_probe(self, now_s: float) -> None:
        self._good_probes += 1
        self._probe_over()
        if self._good_probes >= self.policy.close_after_probes:
            probes = self._good_probes
            self._recover(now_s, f"{probes} good probe{'' if probes == 1 else 's'}")
            self.tick(now_s)

    def _probe_over(self) -> None:
        self._probing = False
        self.era += 1

    def _open(self, now_s: float, why: str, left_s: float | None = None) -> None:
        if self.state == RECOVERING and self.normal_rps is None:  # the shares alone were a storm: not again
            good = self._outcomes.total - self._outcomes.bad
            self._guessed = True
            self.normal_rps = max(self._floor_rps(), good / max(self._outcomes.covered_s(now_s), 1.0))
        self._until_s = now_s + (self.policy.open_s if left_s is None else left_s)
        self._probing = False
        self._ramp = None
        self.era += 1
        self.opened += self.state != HALF_OPEN
        self._become(OPEN, why)

    def _recover(self, begun_s: float, why: str) -> None:
        self._probing = False
        self.era += 1
        self._outcomes = Outcomes(self.policy.window_s, begun_s)
        self._ramp = self._new_ramp(begun_s)
        self._become(RECOVERING, why)

    def _new_ramp(self, begun_s: float) -> Ramp:
        policy = self.policy
        steps, over_s = policy.recovery_steps, policy.recovery_s
        return Ramp(steps, over_s, policy.window_s, begun_s, self.normal_rps, self._floor_rps(), self._guessed)

    def _floor_rps(self) -> float:
        """Enough for a judgement in half a window."""
        return 2.0 * self.policy.min_requests / self.policy.window_s

    def _become(self, state: str, why: str) -> None:
        old, self.state = self.state, state
        self.closed = state == CLOSED
        if self.closed:
            self._ramp = None
        self._on_change(old, state, why)
