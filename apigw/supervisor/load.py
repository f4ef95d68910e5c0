"""How loaded this worker is, ten times a second, for the decision what to shed (core/shedding.py)."""

from typing import Any, Callable

from twisted.logger import Logger

from apigw.core.shedding import NORMAL, Sample, Shedding
from apigw.net.poller import Poller

_EVERY_S = 0.1
_MEMORY_EVERY = 5  # polls: reading what the kernel says costs more than all the rest
_LOG_EVERY_S = 1.0
_TRIM_EVERY_S = 30.0  # the allocator is locked meanwhile

log = Logger()


class LoadWatch(Poller):
    """Measures and tells `shedding`; logs a change of its state, at most once a second.

    cpu_s: CPU seconds of the loop's thread, and called in it: what bcrypt's threads do holds no request up.
    memory_percent: may raise; the last value is then kept. trim(): gives memory back, runs in a thread when memory
    is what sheds: what the allocator keeps would else go on to refuse requests after all of them have gone.
    """

    def __init__(
        self,
        reactor: Any,
        shedding: Shedding,
        cpu_s: Callable[[], float],
        memory_percent: Callable[[], float],
        trim: Callable[[], None],
    ) -> None:
        self._reactor = reactor
        self._shedding = shedding
        self._cpu_s = cpu_s
        self._memory_percent = memory_percent
        self._trim = trim
        self._last_s: float | None = None
        self._last_cpu_s = 0.0
        self._memory = 0.0
        self._until_memory = 0
        self._told = NORMAL
        self._told_s = self._trimmed_s = float("-inf")
        super().__init__(reactor, _EVERY_S, name="load of this worker")

    def poll(self) -> None:
        now_s, cpu_s = self.clock.seconds(), self._cpu_s()
        last_s, last_cpu_s = self._last_s, self._last_cpu_s
        self._last_s, self._last_cpu_s = now_s, cpu_s
        if last_s is None or now_s <= last_s:
            return
        since_s = now_s - last_s
        self._read_memory()
        cpu_percent = 100.0 * (cpu_s - last_cpu_s) / since_s
        self._shedding.observe(Sample(cpu_percent, max(0.0, since_s - _EVERY_S), self._memory), since_s)
        self._tell(now_s)
        self._give_back(now_s)

    def _read_memory(self) -> None:
        if self._until_memory > 0:
            self._until_memory -= 1
            return
        self._until_memory = _MEMORY_EVERY - 1
        try:
            self._memory = self._memory_percent()
        except (OSError, ValueError) as error:
            self._until_memory = 600  # a minute: this is no matter of moments
            log.warn("memory in use cannot be read, load shedding goes by the last value: {error}", error=error)

    def _tell(self, now_s: float) -> None:
        shedding = self._shedding
        if shedding.state == self._told or now_s - self._told_s < _LOG_EVERY_S:
            return
        self._told, self._told_s = shedding.state, now_s
        if shedding.state == NORMAL:
            log.info("load shedding: over")
        else:
            shares = ", ".join(f"{name} {share:.0%}" for name, share in shedding.shares.items() if share)
            why = shedding.because
            log.warn("load shedding: {state}, {why}, refused: {shares}", state=shedding.state, why=why, shares=shares)

    def _give_back(self, now_s: float) -> None:
        if self._shedding.memory_high and now_s - self._trimmed_s >= _TRIM_EVERY_S:
            self._trimmed_s = now_s
            self._reactor.callInThread(self._trim)
