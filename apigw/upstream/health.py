"""Is an instance fit for requests? A poller per backend asks; failed connects of live traffic are told.

    UP   --unhealthy_after failures in a row--> DOWN      a failure: no 2xx or 3xx in time, or a refused connect
    DOWN --healthy_after successes in a row---> UP        a success: only of the poller

A new instance is UP until it fails: a restart of the gateway must not wait for checks. The instances of a
backend are asked one after another, spread over the interval; those that are DOWN at least every 10 s.
"""

from typing import Any, Callable, Iterable

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.net.poller import Poller
from apigw.upstream.pool import Member, Pool

CHECK_TIMEOUT_S = 5.0  # design part 10, "Health check: 5 seconds"
DOWN_INTERVAL_S = 10.0  # an instance that is down is asked at least as often, however long the interval
_FIRST_CHECKS_WITHIN_S = 1.0  # after a start, all instances are asked once within it

Probe = Callable[[str, int, str, float], "Deferred[int]"]  # host, port, path, timeout_s -> status

log = Logger()


class HealthCheck(Poller):
    """The checks of one backend. Each poll asks the instances whose turn has come."""

    def __init__(self, reactor: Any, pool: Pool, probe: Probe) -> None:
        self._pool = pool
        self._probe = probe
        self._due_s: dict[Member, float] = {}
        self._good: dict[Member, int] = {}
        self._asking: set[Member] = set()
        super().__init__(reactor, _tick_s(pool), name=f"health of {pool.backend.name}")

    def reconfigured(self) -> None:
        """The pool's members changed: forget those that are gone."""
        self._due_s = {member: due for member, due in self._due_s.items() if member in self._pool.members}
        self._good = {member: n for member, n in self._good.items() if member in self._pool.members}

    def poll(self) -> None:
        now_s = self.clock.seconds()
        members = self._pool.members
        for place, member in enumerate(members):
            due_s = self._due_s.get(member)
            if due_s is None:
                due_s = self._due_s[member] = now_s + _FIRST_CHECKS_WITHIN_S * place / len(members)
            if now_s >= due_s and member not in self._asking:
                self._ask(member, now_s)

    def _ask(self, member: Member, now_s: float) -> None:
        backend = self._pool.backend
        interval_s = backend.health_check_interval_s
        if not member.up:
            interval_s = min(interval_s, DOWN_INTERVAL_S)
        self._due_s[member] = now_s + interval_s
        self._asking.add(member)
        instance = member.instance
        timeout_s = min(CHECK_TIMEOUT_S, max(interval_s, 0.1))
        # What the probe raises at once is a failure too: else the member would count as being asked for ever.
        asked = maybeDeferred(self._probe, instance.host, instance.port, backend.health_check_path, timeout_s)
        asked.addCallbacks(self._answered, self._unanswered, callbackArgs=(member,), errbackArgs=(member,))
        asked.addBoth(lambda _: self._asking.discard(member))

    def _answered(self, status: int, member: Member) -> None:
        if 200 <= status < 400:
            self._succeeded(member)
        else:
            self._failed(member, f"status {status}")

    def _unanswered(self, failure: Failure, member: Member) -> None:
        self._failed(member, failure.getErrorMessage() or type(failure.value).__name__)

    def live_failure(self, member: Member) -> None:
        """A request's connect failed."""
        self._failed(member, "connect failed")

    def _failed(self, member: Member, why: str) -> None:
        member.failures += 1
        self._good[member] = 0
        backend = self._pool.backend
        if member.up and member.failures >= backend.unhealthy_after and member in self._pool.members:
            member.up = False
            self._pool.rebalance()
            interval_s = min(backend.health_check_interval_s, DOWN_INTERVAL_S)
            self._due_s[member] = min(self._due_s.get(member, 0.0), self.clock.seconds() + interval_s)
            log.warn("{backend}: {instance} is out: {why}", backend=backend.name, instance=member.label, why=why)

    def _succeeded(self, member: Member) -> None:
        member.failures = 0
        if member.up:
            return
        good = self._good[member] = self._good.get(member, 0) + 1
        backend = self._pool.backend
        if good >= backend.healthy_after and member in self._pool.members:
            member.up = True
            self._pool.rebalance()
            log.info("{backend}: {instance} is back", backend=backend.name, instance=member.label)


def _tick_s(pool: Pool) -> float:
    """How often to look whose turn it is: often enough to spread the members over the interval."""
    backend = pool.backend
    return max(0.05, min(1.0, backend.health_check_interval_s / (2 * max(1, len(pool.members)))))


class Sweeper(Poller):
    """Once a second: idle and old connections of all pools, and their warm minimum."""

    def __init__(self, reactor: Any, pools: Callable[[], Iterable[Pool]]) -> None:
        self._pools = pools
        super().__init__(reactor, 1.0, name="connection sweeper")

    def poll(self) -> None:
        for pool in self._pools():
            pool.sweep()
