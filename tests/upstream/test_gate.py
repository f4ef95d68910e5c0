"""What a gate refuses and with which words; what it reads off an exchange that has ended; what it logs."""

from typing import Any

import pytest
from attrs import evolve
from twisted.internet.task import Clock

from apigw.config.model import Backend, CircuitBreaker, Instance
from apigw.core.breaker import CLOSED, HALF_OPEN, OPEN, RECOVERING
from apigw.exchange import Exchange
from apigw.names import UPSTREAM_REASONS
from apigw.testing import ended_exchange
from apigw.upstream.gate import CIRCUIT_OPEN, CONNECT_FAULTS, FAULTS, MAX_RPS, Gate, record
from tests.logs import captured_lines

USERS = Backend("users", (Instance("10.0.0.1", 80),))
POLICY = CircuitBreaker()


class World:
    """One gate on a clock. `fine`: whether another instance of the backend is well."""

    def __init__(self, backend: Backend = USERS, settings: CircuitBreaker = POLICY) -> None:
        self.clock = Clock()
        self.fine = False
        self.changes: list[tuple[str, str]] = []
        self.gate = Gate(backend, settings, self.clock.seconds, lambda _: self.fine, self._changed)

    def _changed(self, gate: Gate, old: str, new: str) -> None:
        assert gate is self.gate
        self.changes.append((old, new))

    def ask(self, guarded: bool = True) -> Exchange | Any:
        """An exchange that was let through, or the refusal."""
        ex = ended_exchange(ended_s=self.clock.seconds())
        return self.gate.refusal(ex, guarded, 10.0) or ex

    def request(self, *, guarded: bool = True, **facts: Any) -> Any:
        """One that was let through and has ended with these facts, or the refusal."""
        ex = self.ask(guarded)
        if isinstance(ex, Exchange):
            for name, value in facts.items():
                setattr(ex, name, value)
            record(ex)
        return ex

    @property
    def counts(self) -> tuple[int, int]:
        return self.gate.breaker.counts()

    def open(self) -> "World":
        for _ in range(20):
            self.request(status=503)
        assert self.gate.breaker.state == OPEN
        return self


@pytest.mark.parametrize("status", [100, 200, 204, 302, 400, 404, 429, 499])
def test_a_status_below_500_is_a_good_outcome(status: int) -> None:
    world = World()
    world.request(status=status)
    assert world.counts == (1, 0)


@pytest.mark.parametrize("status", [500, 501, 502, 503, 504, 599])
def test_a_5xx_of_the_backend_is_a_bad_one(status: int) -> None:
    world = World()
    world.request(status=status)
    assert world.counts == (1, 1)


@pytest.mark.parametrize("reason", sorted(FAULTS))
def test_no_answer_is_a_bad_one(reason: str) -> None:
    world = World()
    world.request(status=502, error_type=reason)
    assert world.counts == (1, 1)


@pytest.mark.parametrize("reason", sorted(UPSTREAM_REASONS.keys() - FAULTS) + ["client_gone", "payload_too_large"])
def test_what_is_not_the_backends_fault_is_no_outcome(reason: str) -> None:
    world = World()
    world.request(status=503, error_type=reason)
    assert world.counts == (0, 0)


def test_every_fault_is_a_reason_that_operators_know() -> None:
    assert {*UPSTREAM_REASONS} >= FAULTS | {CIRCUIT_OPEN, MAX_RPS}


@pytest.mark.parametrize("reason", sorted(FAULTS))
def test_a_failed_connect_is_one_instances_fault_while_another_is_well(reason: str) -> None:
    world = World()
    world.fine = True
    world.request(status=502, error_type=reason)
    assert world.counts == ((0, 0) if reason in CONNECT_FAULTS else (1, 1))


def test_an_open_circuit_refuses_with_the_seconds_that_are_left() -> None:
    world = World().open()
    world.clock.advance(17.5)
    refusal = world.ask()
    assert (refusal.status, refusal.code, refusal.reason) == (503, "service_unavailable", "circuit_open")
    assert refusal.extra == {"backend": "users"} and refusal.retry_after_s == 13
    assert refusal.detail == "circuit open for another 12.5 s"


def test_it_is_shut_while_it_is_open_and_a_probe_is_not_due() -> None:
    world = World()
    assert not world.gate.shut()
    world.open()
    assert world.gate.shut()
    world.clock.advance(30.0)
    assert not world.gate.shut()
    world.ask()
    assert not world.gate.shut()


def test_while_a_probe_is_out_the_others_are_refused_at_once() -> None:
    world = World().open()
    world.clock.advance(30.0)
    probe = world.ask()
    assert isinstance(probe, Exchange)
    refusal = world.ask()
    assert (refusal.reason, refusal.retry_after_s) == ("circuit_open", 1)
    assert refusal.detail == "circuit half open: a probe is out"
    record(probe)
    assert isinstance(world.ask(), Exchange)


def test_the_ramp_says_what_it_lets_through() -> None:
    world = World().open()
    world.clock.advance(30.0)
    world.request()
    world.request()
    assert world.ask().detail == "circuit recovering: 10% are let through"
    assert world.changes == [(CLOSED, OPEN), (OPEN, HALF_OPEN), (HALF_OPEN, RECOVERING)]


def test_a_probe_whose_client_left_is_followed_by_another() -> None:
    world = World().open()
    world.clock.advance(30.0)
    world.request(status=499, error_type="client_gone")
    assert world.gate.breaker.state == HALF_OPEN and isinstance(world.ask(), Exchange)


def test_a_route_without_circuit_breaker_neither_obeys_nor_counts() -> None:
    world = World()
    for _ in range(50):
        assert world.request(guarded=False, status=500).status == 500
    assert world.counts == (0, 0)
    world.open()
    assert isinstance(world.request(guarded=False), Exchange)


def test_max_rps_holds_for_every_route_with_a_reason_of_its_own() -> None:
    world = World(evolve(USERS, max_rps=10.0))
    passed, refusals = 0, []
    for n in range(300):  # 100 a second
        ex = world.request(guarded=bool(n % 2))
        if isinstance(ex, Exchange):
            passed += 1
        else:
            refusals.append(ex)
        world.clock.advance(0.01)
    assert 30 <= passed <= 35
    assert world.gate.refused_at_rate == len(refusals) == 300 - passed
    one = refusals[0]
    assert (one.status, one.code, one.reason, one.retry_after_s) == (503, "service_unavailable", "max_rps", 1)
    assert one.extra == {"backend": "users"}


def test_a_probe_that_max_rps_refuses_makes_room_for_another() -> None:
    world = World(evolve(USERS, max_rps=0.1), evolve(POLICY, min_requests=1))
    world.request(status=500)
    world.clock.advance(30.0)
    for _ in range(3):
        world.ask(guarded=False)
    assert world.ask().reason == "max_rps"
    world.clock.advance(10.0)
    assert isinstance(world.ask(), Exchange)


def test_a_reload_keeps_the_state_and_applies_what_changed() -> None:
    world = World().open()
    world.gate.configure(USERS, evolve(POLICY, open_s=3.0))
    assert world.ask().retry_after_s == 3
    assert world.gate.pace is None
    world.gate.configure(evolve(USERS, max_rps=5.0), evolve(POLICY, open_s=3.0))
    assert world.gate.pace is not None and world.gate.pace.rps == 5.0
    pace = world.gate.pace
    world.gate.configure(evolve(USERS, max_rps=5.0), evolve(POLICY, open_s=3.0))
    assert world.gate.pace is pace
    world.gate.configure(USERS, POLICY)
    assert world.gate.pace is None


def test_each_change_is_one_line_and_a_flapping_circuit_few() -> None:
    settings = CircuitBreaker(min_requests=1, open_s=0.01, recovery_s=0.0, close_after_probes=1)
    world = World(settings=settings)
    with captured_lines() as lines:
        for _ in range(1000):
            world.request(status=500)
            world.clock.advance(0.02)
    assert lines[0] == "users: circuit open, it was closed: 1 of 1 requests failed within 30 s"
    assert 16 <= len(lines) <= 24 and "changes before it not logged" in lines[8]
    with captured_lines() as lines:
        World().open()
    assert lines == ["users: circuit open, it was closed: 20 of 20 requests failed within 30 s"]


def test_what_a_client_brought_about_is_not_counted() -> None:
    world = World()
    ex = world.ask()
    world.gate.spared(ex)
    ex.error_type = "connection_reset"
    record(ex)
    assert world.counts == (0, 0)


def test_a_probe_that_its_client_spoiled_says_nothing_and_the_next_request_is_the_probe() -> None:
    world = World().open()
    world.clock.advance(POLICY.open_s)
    probe = world.ask()
    assert isinstance(probe, Exchange) and not isinstance(world.ask(), Exchange)
    world.gate.spared(probe)
    assert world.gate.breaker.state == HALF_OPEN and isinstance(world.ask(), Exchange)
