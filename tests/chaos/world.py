"""What a matrix needs: one gateway, a backend of three instances that fail on command, two others, and a control.

clients of the victim ------> gateway -----> instance.py x 3     /one/* by the defaults of the circuit breaker,
surge.py clients x 2 -------> gateway -----> surge.py backend x 2         /all/* by one scaled to seconds
surge.py clients x 2 -------> its twin ----> the same two        the same but for the backend that fails
surge.py clients (control) ---------------> surge.py backend     the machine alone: no gateway in between

Note [Who goes first]
    Production has the failing backend and its clients on other machines; here they would take the cores from those
    whose waits are compared. So the two gateways, their clients and backends, and the control, run before all else that
    the machine has to do, where we may ask for it (root, or CAP_SYS_NICE); niceness counts within a session only.
"""

import os
import resource
import select
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
from attrs import frozen

from tests.chaos import clients
from tests.chaos.faults import GATEWAY_FAULT, WARM_UP, Fault
from tests.chaos.judge import Limits, Record, Resources, Sample, good
from tests.e2e import surge
from tests.e2e.gateway import Gateway, backend, route
from tests.e2e.witness import Witness

TIMEOUT_S = 1.0  # of the victim's routes
HEALTH_INTERVAL_S, UNHEALTHY_AFTER, HEALTHY_AFTER = 0.5, 3, 2
INSTANCES = 3
OTHERS = ("left", "right")
MOST_CONNECTIONS = 50  # of the victim's pool: fewer than its clients have open when all of it hangs
BREAKER = {"window_seconds": 4, "min_requests": 20, "open_seconds": 2, "recovery_seconds": 4}  # for "all instances"
_SETTLE_S = 12.0
_LOOKS = 5
_SLACK_S = 1.0  # who recovers a little late is late, and not wrong in the quiet span that follows
_WARM_UP_S, _WARM_UP_RATE = 2.0, 100.0  # of answers that take 0.4 s: nearly MOST_CONNECTIONS at once
_EATERS = 150  # idle clients that take the descriptors which others give back
# A check that was under way when things changed, the ticks of the poller, and processes that wait for a core.
_DETECT_MARGIN_S, _RECOVER_MARGIN_S = 0.8, 0.5

Process = subprocess.Popen[str]
Others = dict[str, Process]
Load = tuple[Others, Others, Process, Process]  # others, those of the twin, control, clients of the victim


@frozen
class Plan:
    """How long and how often. A quiet span follows the last fault too."""

    rounds: int = 2
    warm_s: float = 1.5
    quiet_s: float = 6.0
    fault_s: float = 8.0
    victim_rate: float = 40.0
    other_rate: float = 600.0  # each, by each gateway: a p99 is of the hundredth part of it
    control_rate: float = 200.0
    breaker: Mapping[str, int] = BREAKER  # of "all instances"


def limits(all_instances: bool, breaker: Mapping[str, int] = BREAKER, **more: float) -> Limits:
    """In a scaled world. One instance: health checks decide; all: the breaker's schedule, in the worst case."""
    recover_s = HEALTHY_AFTER * HEALTH_INTERVAL_S + _RECOVER_MARGIN_S
    if all_instances:  # a last probe was sent just before the healing, and failed by its timeout
        recover_s += TIMEOUT_S + breaker["open_seconds"] + breaker["recovery_seconds"]
    detect_s = (UNHEALTHY_AFTER + 1) * HEALTH_INTERVAL_S + _DETECT_MARGIN_S
    return Limits(timeout_s=TIMEOUT_S, detect_s=detect_s, recover_s=recover_s, **more)


class Switched:
    """An instance.py process."""

    def __init__(self) -> None:
        command = [sys.executable, str(Path(__file__).with_name("instance.py"))]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._stopped = False
        self.port = int(self._line())

    def _line(self) -> str:
        assert self._process.stdout is not None
        readable, _, _ = select.select([self._process.stdout], [], [], 10)
        line = self._process.stdout.readline() if readable else ""
        assert line, "an instance does not answer"
        return line.strip()  # "" when it has seen no POST

    def say(self, word: str) -> str:
        assert self._process.stdin is not None
        self._process.stdin.write(word + "\n")
        self._process.stdin.flush()
        return self._line()

    def become(self, mode: str | None) -> None:
        """The mode is in force when this returns. None: stopped."""
        if self._stopped:
            self._process.send_signal(signal.SIGCONT)
        self._stopped = mode is None
        if mode is None:
            self._process.send_signal(signal.SIGSTOP)
        else:
            assert self.say(mode) == mode

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()


class World:
    """Enter it, then run() cells one after another: what one leaves behind the next would find."""

    def __init__(self, work: Path, plan: Plan) -> None:
        self.plan = plan
        self._work = work
        self._stack = ExitStack()

    def __enter__(self) -> "World":
        with self._stack:
            self.instances = [Switched() for _ in range(INSTANCES)]
            for instance in self.instances:
                self._stack.callback(instance.end)
            self._other_ports = {name: self._quick_backend() for name in OTHERS}
            self._control_port = self._quick_backend()
            (self._work / "twin").mkdir()
            self.gateway, self._twin = Gateway(self._work, 1), Gateway(self._work / "twin", 1)
            self._furnish()
            for gateway in (self.gateway, self._twin):
                self._stack.callback(gateway.kill)
                gateway.start()
                assert gateway.process is not None
                surge.first(gateway.process.pid)
            self._warm_up()
            self._stack = self._stack.pop_all()
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        with self._stack:
            if kind is None:
                self.gateway.assert_accounts()
                self.gateway.stop()

    def _quick_backend(self) -> int:
        process = surge.start("backend")
        surge.first(process.pid)
        self._stack.callback(process.communicate, timeout=5)  # its end of input ends it
        assert process.stdout is not None
        return int(process.stdout.readline())

    def _furnish(self) -> None:
        victim = {
            "health_check_interval_ms": round(HEALTH_INTERVAL_S * 1000),
            "unhealthy_after": UNHEALTHY_AFTER,
            "healthy_after": HEALTHY_AFTER,
            "max_connections": MOST_CONNECTIONS,
            "min_connections": 2,
            "idle_timeout_seconds": 2,
        }
        ports = [instance.port for instance in self.instances]
        for gateway in (self.gateway, self._twin):
            gateway.settings["backends"] = [
                backend(name, port, min_connections=10, health_check_interval_ms=1000)
                for name, port in self._other_ports.items()
            ]
            gateway.settings["routes"] = [route(name, f"/{name}/*", name, circuit_breaker=True) for name in OTHERS]
        self.gateway.settings["backends"] += [
            backend("one", *ports, **victim),
            backend("all", *ports, **victim, circuit_breaker=dict(self.plan.breaker)),
        ]
        self.gateway.settings["routes"] += [
            route(name, f"/{name}/*", name, timeout_ms=round(TIMEOUT_S * 1000), circuit_breaker=True)
            for name in ("one", "all")
        ]

    def _warm_up(self) -> None:
        """As many requests at once as there will ever be: what that takes the first time is no growth."""
        for victim in ("one", "all"):
            with self._load(victim, _WARM_UP_S, _WARM_UP_RATE) as (*_, watching):
                self._break(WARM_UP, True, time.monotonic() + _WARM_UP_S)
                assert all(map(good, clients.seen(watching, 20))), "the warm-up failed"
        self._doubled_posts()  # and forget them: each load has the same numbers
        self.base = self.settled()

    # -- one cell

    def run(self, fault: Fault, all_instances: bool) -> Record:
        """Quiet and faulty spans in turns under load, then what the gateway is left with."""
        plan, victim = self.plan, "all" if all_instances else "one"
        recover_s = limits(all_instances, plan.breaker).recover_s + _SLACK_S
        seconds = plan.warm_s + plan.rounds * (plan.quiet_s + plan.fault_s + recover_s) + plan.quiet_s
        before = self.settled()
        with Witness() as witness, self._load(victim, seconds, plan.victim_rate) as (others, twins, control, watching):
            now_s = time.monotonic() + plan.warm_s
            quiet, faulty = [], []
            for _ in range(plan.rounds):
                quiet.append((now_s, now_s + plan.quiet_s))
                _sleep_until(quiet[-1][1])
                began_s = time.monotonic()
                self._break(fault, all_instances, began_s + plan.fault_s)
                faulty.append((began_s, time.monotonic()))
                now_s = faulty[-1][1] + recover_s
            quiet.append((now_s, now_s + plan.quiet_s / 2))
            summaries = {name: surge.summary(process, seconds + 20) for name, process in others.items()}
            beside = [surge.summary(process, 20) for process in twins.values()]
            assert all(summary.statuses.keys() == {200} for summary in beside), "the twin has no fault"
            alone = surge.summary(control, 20)
            seen = clients.seen(watching, 20)
        return Record(
            fault=fault,
            all_instances=all_instances,
            victim=victim,
            quiet=tuple(quiet),
            faulty=tuple(faulty),
            others={name: _samples(summary) for name, summary in summaries.items()},
            unsent={name: summary.unsent for name, summary in summaries.items()},
            twin=[sample for summary in beside for sample in _samples(summary)],
            control=_samples(alone),
            stalls=witness.stalls,
            seen=seen,
            before=before,
            after=self.settled(before),
            doubled_posts=self._doubled_posts(),
        )

    @contextmanager
    def _load(self, victim: str, seconds: float, victim_rate: float) -> Iterator[Load]:
        """All the clients, ended at the latest when the block ends."""
        plan: dict[str, Any] = {"connections": 10, "seconds": seconds, "exact": True}
        others, twins = (
            {
                name: surge.clients(port=gateway.http, target=f"/{name}/x", rate=self.plan.other_rate, **plan)
                for name in OTHERS
            }
            for gateway in (self.gateway, self._twin)
        )
        control = surge.clients(port=self._control_port, target="/x", rate=self.plan.control_rate, **plan)
        watching = clients.start(port=self.gateway.http, target=f"/{victim}/x", rate=victim_rate, seconds=seconds)
        compared = (*others.values(), *twins.values(), control)
        try:
            for process in compared:
                surge.first(process.pid)
            yield others, twins, control, watching
        finally:
            for process in (*compared, watching):
                process.kill()
                process.communicate()

    def _break(self, fault: Fault, all_instances: bool, until_s: float) -> None:
        """Fail, wait, heal."""
        chosen = self.instances if all_instances else self.instances[:1]
        with self._no_descriptors() if fault is GATEWAY_FAULT else ExitStack():
            try:
                while (now_s := time.monotonic()) < until_s - 0.1:
                    _become(chosen, fault.mode)
                    _sleep_until(until_s if fault.flap_s is None else min(until_s, now_s + fault.flap_s))
                    if fault.flap_s is not None:
                        _become(chosen, "ok")
                        _sleep_until(min(until_s, now_s + 2 * fault.flap_s))
            finally:
                _become(chosen, "ok")

    @contextmanager
    def _no_descriptors(self) -> Iterator[None]:
        """The daemon may not open one more, and idle clients wait for each that it gives back."""
        pid = self._pid()
        _, hard = was = resource.prlimit(pid, resource.RLIMIT_NOFILE)
        highest = max(int(name) for name in os.listdir(f"/proc/{pid}/fd"))
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (highest + 1, hard))
        eaters: list[socket.socket] = []
        try:
            eaters += (socket.create_connection(("127.0.0.1", self.gateway.http)) for _ in range(_EATERS))
            yield
        finally:
            resource.prlimit(pid, resource.RLIMIT_NOFILE, was)
            for eater in eaters:
                eater.close()

    def _doubled_posts(self) -> int:
        posts = Counter(post for instance in self.instances for post in instance.say("posts").split())
        return sum(count > 1 for count in posts.values())

    # -- what the gateway holds

    def settled(self, before: Resources | None = None) -> Resources:
        """When it is quiet, and has given back what it took since `before`; or as it is after _SETTLE_S.

        Without `before` the descriptors of a health check that is under way are not taken for its own.
        """
        end_s = time.monotonic() + _SETTLE_S
        while True:
            now = self._resources()
            if not (now.busy() if before is None else now.grown(before)) or time.monotonic() > end_s:
                break
            time.sleep(0.2)
        if before is None:
            fewest = min(self._resources().own_descriptors for _ in range(_LOOKS))
            now = attrs.evolve(now, own_descriptors=min(fewest, now.own_descriptors))
        return now

    def _resources(self) -> Resources:
        """Descriptors are counted between two equal looks at the connections: else one that ends is taken off twice."""
        pid = self._pid()
        status = self.gateway.status()
        for _ in range(_LOOKS):
            descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            before, status = status, self.gateway.status()
            if _connections(before) == _connections(status):
                break
        pools = {
            name: {**found["connections"], "most": found["max_connections"]}
            for name, found in status["backends"].items()
        }
        threads = len(os.listdir(f"/proc/{pid}/task"))
        descriptors -= _connections(status)
        return Resources(self.gateway.rss_bytes(), descriptors, threads, status["in_flight"], pools)

    def _pid(self) -> int:
        assert self.gateway.process is not None
        return self.gateway.process.pid


def _become(instances: Sequence[Switched], mode: str | None) -> None:
    for instance in instances:
        instance.become(mode)


def _samples(summary: surge.Summary) -> list[Sample]:
    return [(summary.began_s + at_s, status, wait_s) for at_s, status, wait_s in summary.answers]


def _sleep_until(moment_s: float) -> None:
    time.sleep(max(0.0, moment_s - time.monotonic()))


def _connections(status: dict[str, Any]) -> int:
    """Those of clients, and those to backends."""
    pooled = sum(found["connections"]["open"] for found in status["backends"].values())
    return int(status["connections"]) + int(pooled)
