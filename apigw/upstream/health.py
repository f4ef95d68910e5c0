"""Is an instance fit for requests? A poller per backend asks; failed connects of live traffic are told.

    UP   --unhealthy_after failures in a row--> DOWN      a failure: no 2xx or 3xx in time, or a failed connect
    DOWN --healthy_after successes in a row---> UP        a success: only of the poller
    UP   --checks far slower than the others'-> SLOW UP   less weight, see core/balancer.py; back when it is quick

A new instance is UP until it fails: a restart of the gateway must not wait for checks.

Note [When an instance is asked]
  First within a second or so of its appearance; then each interval, at a place of its own in it: the k-th of n
  instances at k/n of the interval, moved by a part that is drawn once a process and backend, so that neither the
  instances of a backend nor the gateways of a fleet are asked in step. One that is DOWN is asked at least every
  DOWN_INTERVAL_S, and a first success is confirmed after half of that: back within one and a half intervals.
  A check that lasts until the next one is due is followed after _REST_S, not in the same turn of the loop.
  What the gateway could not ask (it has no descriptor left) says nothing.
"""

from heapq import heappop, heappush
from itertools import count
from typing import Any, Callable, Iterable

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from apigw.core.balancer import is_slow, lower_median
from apigw.errors import NotAsked
from apigw.net.poller import Poller
from apigw.upstream.member import Member
from apigw.upstream.pool import Pool

CHECK_TIMEOUT_S = 5.0  # design part 10, "Health check: 5 seconds"
DOWN_INTERVAL_S = 10.0  # an instance that is down is asked at least as often, however long the interval
FIRST_CHECKS_PER_S = 100.0  # after a start; a check is half a millisecond of the loop
_FIRST_CHECKS_WITHIN_S = 1.0
_LONGEST_SLEEP_S = 1.0
_REST_S = 0.01  # from the end of a check to the next: both take 0.1 to 0.3 ms of the loop, which is free in between

Probe = Callable[[str, int, str, float], "Deferred[int]"]  # host, port, path, timeout_s -> status, or ProbeFailed

log = Logger()


class HealthCheck(Poller):
    """The checks of one backend. Each poll asks the instances whose turn has come."""

    def __init__(self, reactor: Any, pool: Pool, probe: Probe, draw: Callable[[], float]) -> None:
        self._pool = pool
        self._probe = probe
        self._phase = draw()
        self._due_s: dict[Member, float] = {}
        self._place: dict[Member, float] = {}
        self._turns: list[tuple[float, int, Member]] = []  # a heap; an entry whose time is not the member's is void
        self._number = count()
        self._asking: dict[Member, int] = {}  # which question is out; the answer to an older one does not count
        self._asks = self._terms()
        self._compared_s = float("-inf")
        super().__init__(reactor, _LONGEST_SLEEP_S, name=f"health of {pool.backend.name}")
        self._line_up()

    def reconfigured(self) -> None:
        """Members or settings changed. What is asked, and how often, counts at once."""
        before, self._asks = self._asks, self._terms()
        if before != self._asks:
            self._due_s.clear()
            self._asking.clear()
        self._line_up()

    def _terms(self) -> tuple[str, float]:
        return self._pool.backend.health_check_path, self._pool.backend.health_check_interval_s

    def _line_up(self) -> None:
        """A place in the interval for each member, and a first turn for those that are new."""
        members, now_s = self._pool.members, self.clock.seconds()
        self._place = {member: (self._phase + place / len(members)) % 1.0 for place, member in enumerate(members)}
        self._due_s = {member: due for member, due in self._due_s.items() if member in self._place}
        self._asking = {member: n for member, n in self._asking.items() if member in self._place}
        self._turns = []
        within_s = min(max(_FIRST_CHECKS_WITHIN_S, len(members) / FIRST_CHECKS_PER_S), self._asks[1])
        for place, member in enumerate(members):
            due_s = self._due_s.get(member)
            self._turn(member, now_s + within_s * place / len(members) if due_s is None else due_s)

    def _turn(self, member: Member, due_s: float) -> None:
        self._due_s[member] = due_s
        heappush(self._turns, (due_s, next(self._number), member))
        self.poll_within(due_s - self.clock.seconds())

    def delay_s(self) -> float:
        """Until the next turn."""
        if not self._turns:
            return _LONGEST_SLEEP_S
        return min(_LONGEST_SLEEP_S, max(0.001, self._turns[0][0] - self.clock.seconds()))

    def poll(self) -> None:
        now_s = self.clock.seconds()
        while self._turns and self._turns[0][0] <= now_s:
            due_s, _, member = heappop(self._turns)
            if self._due_s.get(member) == due_s and member not in self._asking:  # else when that has been told
                self._turn(member, self._next_s(member, now_s))
                self._ask(member, now_s)

    def _next_s(self, member: Member, now_s: float) -> float:
        """The member's place in the coming interval; one that is down is asked without regard to places."""
        interval_s = self._asks[1]
        if not member.up:
            return now_s + min(interval_s, DOWN_INTERVAL_S)
        begun_s = now_s + interval_s / 4  # after a first check, or one out of turn, at least so much later
        place_s = self._place[member] * interval_s
        return begun_s + (place_s - begun_s) % interval_s

    def back_in_s(self) -> float:
        """When the first of the instances, all of them down, may be back; for Retry-After."""
        now_s, backend = self.clock.seconds(), self._pool.backend
        again_s = min(self._asks[1], DOWN_INTERVAL_S) / 2
        waits = [
            self._due_s[member] - now_s + again_s * (backend.healthy_after - member.good - 1)
            for member in self._pool.members
            if member in self._due_s
        ]
        return min(waits, default=DOWN_INTERVAL_S)

    # -- a check

    def _ask(self, member: Member, now_s: float) -> None:
        self._asking[member] = number = next(self._number)
        instance, (path, interval_s) = member.instance, self._asks
        timeout_s = min(CHECK_TIMEOUT_S, max(interval_s, 0.1))
        # What the probe raises at once is a failure too: else the member would count as being asked for ever.
        asked = maybeDeferred(self._probe, instance.host, instance.port, path, timeout_s)
        asked.addBoth(self._told, member, number, now_s)
        asked.addErrback(self._broke)

    def _told(self, answer: "int | Failure", member: Member, number: int, began_s: float) -> None:
        if self._asking.get(member) != number:
            return  # gone, or asked for something else meanwhile
        del self._asking[member]
        now_s = self.clock.seconds()
        latency_s = now_s - began_s
        if not isinstance(answer, Failure):
            member.check_s = latency_s
            if 200 <= answer < 400:
                self._succeeded(member, now_s, latency_s)
            else:
                self._failed(member, f"its health check answered {answer}")
        elif not answer.check(NotAsked):
            member.check_s = latency_s
            self._failed(member, answer.getErrorMessage() or type(answer.value).__name__)
        rested_s = now_s + _REST_S
        if self._due_s.get(member, rested_s) < rested_s:  # its next turn came while this one lasted, or comes at once
            self._turn(member, rested_s)

    def _broke(self, failure: Failure) -> None:
        log.failure("{name}: a check was not judged", failure=failure, name=self._pool.backend.name)

    def live_failure(self, member: Member, why: str) -> None:
        """A request's connect failed."""
        member.refused += 1
        self._judge(member, why)

    def _failed(self, member: Member, why: str) -> None:
        member.failures += 1
        self._judge(member, why)

    def _judge(self, member: Member, why: str) -> None:
        member.good = 0
        member.why = why
        backend = self._pool.backend
        if not member.up or member.retired or member.failures + member.refused < backend.unhealthy_after:
            return
        now_s = self.clock.seconds()
        member.up, member.since_s = False, now_s
        self._turn(member, min(self._due_s.get(member, now_s), now_s + min(self._asks[1], DOWN_INTERVAL_S)))
        log.warn("{backend}: {instance} is out: {why}", backend=backend.name, instance=member.label, why=why)
        self._pool.rebalance()

    def _succeeded(self, member: Member, now_s: float, latency_s: float) -> None:
        member.failures = member.refused = 0
        if member.up:
            member.took_s = (*member.took_s[-2:], latency_s)
            self._compare(now_s)
            return
        member.good += 1
        backend = self._pool.backend
        if member.good < backend.healthy_after:
            self._turn(member, now_s + min(self._asks[1], DOWN_INTERVAL_S) / 2)
        elif not member.retired:
            member.up, member.since_s, member.joined_s = True, now_s, now_s
            member.good, member.why, member.slow, member.took_s = 0, None, False, ()
            self._turn(member, self._next_s(member, now_s))
            log.info("{backend}: {instance} is back", backend=backend.name, instance=member.label)
            self._pool.rebalance()

    def _compare(self, now_s: float) -> None:
        """Who is slow beside the others, by the middle one of its last three checks; at most once a second."""
        if now_s - self._compared_s < 1.0:
            return
        self._compared_s = now_s
        up = [
            (member, sorted(member.took_s)[1]) for member in self._pool.members if member.up and len(member.took_s) > 2
        ]
        median_s = lower_median([latency_s for _, latency_s in up])
        changed = [(one, took_s) for one, took_s in up if is_slow(took_s, median_s, one.slow) != one.slow]
        for member, took_s in changed:
            member.slow = not member.slow
            log.warn(
                "{backend}: {instance} is {what}: its checks take {ms} ms, the median is {median_ms} ms",
                backend=self._pool.backend.name,
                instance=member.label,
                what="slow and gets less" if member.slow else "quick again",
                ms=round(took_s * 1000),
                median_ms=round(median_s * 1000),
            )
        if changed:
            self._pool.rebalance()


class Sweeper(Poller):
    """Once a second: idle and old connections of all pools, their warm minimum, and what new instances weigh."""

    def __init__(self, reactor: Any, pools: Callable[[], Iterable[Pool]]) -> None:
        self._pools = pools
        super().__init__(reactor, 1.0, name="connection sweeper")

    def poll(self) -> None:
        for pool in self._pools():
            pool.sweep()
