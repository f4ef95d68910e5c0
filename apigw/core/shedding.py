"""Load shedding: which requests an overloaded worker refuses, by the priority of their route (design: Load Shedding).

    load      CPU of the loop's thread in percent, or the lag of the loop where that says more; see Note [Lag]
    level     the load, smoothed: it rises with RISE_S and falls with FALL_S, so what was shed comes back slowly
    share     of a priority's requests that are refused: 0 up to its threshold of the level, then a straight line
              to 1 at RAMP above it. P0 is never shed by load
    memory    P3 above `shed`, P2 one ramp later, P1 in the last third of the way to `reject`; from there on every
              request, P0 too: a worker that is killed for its memory serves nobody. It lets go only below RELEASE of
              what was reached

Which requests of a priority go is no matter of chance: each adds its share to an account, and the one that makes it
whole is refused. So at a share of 0.25 it is every fourth.

    NORMAL    --a share rises above 0-->           SHEDDING
    SHEDDING  --level below RELEASE of the lowest threshold that sheds, no share left--> NORMAL
    any       --memory at `reject`-->              REJECTING  --memory below RELEASE of it--> SHEDDING or NORMAL

Note [Lag]
  CPU alone cannot say how far demand is above capacity: it ends at 100, and on a machine that others use it ends
  below. The loop's lag goes on: it is the time that requests wait before anybody looks at them. LAG_FULL_S of it
  counts as 100%, so that it says nothing while the loop keeps up (a busy one lags by a millisecond or two). The median
  of the last three measurements counts: one long pause, as of a reload or of the machine, is no overload.

Note [Why it does not swing]
  Refusing lowers the load, which lowers the share, which raises the load: where demand is three times the capacity, a
  point of the level moves the load by 20 to 30. A fast rise and a slow fall keep that stable: the level falls by a
  fortieth of the difference every 100 ms, so it comes down to its balance and does not pass it. tests/core/
  test_shedding.py closes the loop. A refusal costs about a third of an answer: from three times the capacity on a
  priority is refused whole, and far beyond it the refusals themselves fill the CPU, so that the next priority goes too.
"""

from collections import deque
from math import exp
from typing import Final, Mapping

from attrs import frozen

RISE_S: Final = 0.5  # time constants of the level
FALL_S: Final = 4.0
LAG_FULL_S: Final = 0.025  # three turns of the loop make a proxied request: at this lag they take about 100 ms
RAMP: Final = 0.1  # from nothing to everything, as a part of the threshold
RELEASE: Final = 0.97
_MAX_LOAD: Final = 200.0  # percent; a lag of seconds says no more than one of 50 ms
_LONGEST_STEP_S: Final = 0.2  # a measurement that came late speaks for no more time than this
OFF: Final = 100.0  # a threshold of 100% is never exceeded

PRIORITIES: Final = ("P0", "P1", "P2", "P3")

NORMAL, SHEDDING, REJECTING = "normal", "shedding", "rejecting"


@frozen
class Sample:
    """One measurement of a worker. `memory_percent`: of what it may use."""

    cpu_percent: float
    lag_s: float
    memory_percent: float


def share_above(value: float, threshold: float, ramp: float) -> float:
    """0 up to the threshold, 1 from `ramp` above it, a straight line between; nothing is above OFF."""
    if threshold >= OFF or value <= threshold:
        return 0.0
    return min(1.0, (value - threshold) / ramp)


def cpu_share(level: float, threshold: float) -> float:
    """The share of a priority with this threshold. The ramp ends at 100%, or a threshold of 95 could not be reached."""
    return share_above(level, threshold, min(threshold * RAMP, OFF - threshold))


def memory_share(percent: float, priority: str, shed: float, reject: float) -> float:
    """The share of P1, P2 or P3 that memory refuses. A ramp is at most a third of the way from `shed` to `reject`."""
    if shed >= OFF:
        return 0.0
    third = max((reject - shed) / 3, 1e-9)
    if priority == "P1":
        return 0.0 if reject >= OFF else share_above(percent, reject - third, third)
    ramp = min(shed * RAMP, third)
    return share_above(percent, shed if priority == "P3" else min(shed + ramp, OFF), ramp)


class Shedding:
    """Fed with samples by supervisor/load.py, asked for each request by stages/admission.py.

    active: False while nothing is refused, which is all that a request then looks at. state: see the table above.
    level, memory: percent. shares: priority -> share. because: for the log, which of its signals counts.
    memory_high: it is above `shed`.
    """

    def __init__(self, cpu_percent: Mapping[str, float], memory_percent: Mapping[str, float]) -> None:
        self.active = False
        self.state = NORMAL
        self.level = 0.0
        self.memory = 0.0
        self.because = ""
        self.memory_high = False
        self.sample = Sample(0.0, 0.0, 0.0)
        self.shares: dict[str, float] = dict.fromkeys(PRIORITIES, 0.0)
        self._accounts: dict[str, float] = dict.fromkeys(PRIORITIES, 0.0)
        self._lags: deque[float] = deque((0.0, 0.0, 0.0), 3)
        self.configure(cpu_percent, memory_percent)

    def configure(self, cpu_percent: Mapping[str, float], memory_percent: Mapping[str, float]) -> None:
        """Thresholds of P1, P2, P3 and `shed`, `reject`; a reload changes them and nothing else."""
        self._cpu = dict(cpu_percent)
        self._shed, self._reject = memory_percent["shed"], memory_percent["reject"]
        self._decide()

    def observe(self, sample: Sample, since_s: float) -> None:
        """A measurement, `since_s` after the one before."""
        self.sample = sample
        self._lags.append(sample.lag_s)
        lag_percent = sorted(self._lags)[1] / LAG_FULL_S * 100.0
        load = min(max(sample.cpu_percent, lag_percent), _MAX_LOAD)
        constant_s = RISE_S if load > self.level else FALL_S
        self.level += (load - self.level) * (1.0 - exp(-min(since_s, _LONGEST_STEP_S) / constant_s))
        self.level = min(self.level, OFF)
        self.memory = max(sample.memory_percent, min(self.memory, sample.memory_percent / RELEASE))
        signal = "loop lag" if lag_percent > sample.cpu_percent else "CPU"
        self._decide()
        self.because = self._reason(signal)

    def refuses(self, priority: str) -> bool:
        """Whether this request is one of those that go. Ask once a request."""
        share = self.shares[priority]
        if share <= 0.0:
            return False
        account = self._accounts[priority] + share
        refused = account >= 1.0
        self._accounts[priority] = account - 1.0 if refused else account
        return refused

    def _decide(self) -> None:
        rejecting = self._reject < OFF and self.memory >= self._reject
        self.memory_high = rejecting or (self._shed < OFF and self.memory > self._shed)
        for priority in PRIORITIES:
            self.shares[priority] = 1.0 if rejecting else self._share(priority)
        self.active = any(self.shares.values())
        if rejecting:
            self.state = REJECTING
        elif self.active:
            self.state = SHEDDING
        elif self.state == REJECTING or not self._lingers():
            self.state = NORMAL

    def _share(self, priority: str) -> float:
        threshold = self._cpu.get(priority)
        if threshold is None:
            return 0.0  # P0
        return max(cpu_share(self.level, threshold), memory_share(self.memory, priority, self._shed, self._reject))

    def _lingers(self) -> bool:
        """Whether shedding ended only a moment ago and may come again: not worth a line in the log."""
        lowest = min(self._cpu.values())
        return self.state == SHEDDING and lowest < OFF and self.level > lowest * RELEASE

    def _reason(self, signal: str) -> str:
        if not self.active:
            return ""
        if self.shares["P3"] > cpu_share(self.level, self._cpu["P3"]):  # memory sheds P3 first
            return f"memory {self.memory:.0f}%"
        return f"load {self.level:.0f}% by {signal}"
