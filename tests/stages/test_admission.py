"""Stage 6: the ceiling of requests in flight, and load shedding by priority."""

from typing import Any

import pytest

from apigw.core.shedding import Sample, Shedding
from apigw.errors import GatewayError
from apigw.stages.admission import Admission


def shedding(cpu: float = 0.0, memory: float = 0.0) -> Shedding:
    """In the state that this load of a minute leaves."""
    one = Shedding({"P1": 90.0, "P2": 75.0, "P3": 60.0}, {"shed": 80.0, "reject": 95.0})
    for _ in range(600):
        one.observe(Sample(cpu, 0.0, memory), 0.1)
    return one


class House:
    """An Admission, and what it told."""

    def __init__(self, in_flight: int, ceiling: int, shedding: Shedding) -> None:
        self.told: list[str] = []
        self.stage = Admission(lambda: in_flight, ceiling, shedding, self.told.append)


def refusal(stage: Admission, ex: Any) -> GatewayError | None:
    try:
        stage.enter(ex)
    except GatewayError as error:
        return error
    return None


@pytest.mark.parametrize("in_flight", [0, 1, 80])
@pytest.mark.parametrize("priority", ["P0", "P1", "P2", "P3"])
def test_up_to_the_ceiling_requests_pass(exchange: Any, route: Any, in_flight: int, priority: str) -> None:
    """The request itself is counted already."""
    house = House(in_flight, 100, shedding())
    assert refusal(house.stage, exchange(route=route(priority=priority))) is None
    assert house.told == []


@pytest.mark.parametrize("priority", ["P0", "P1", "P2", "P3"])
def test_above_it_they_are_told_to_come_again(exchange: Any, route: Any, priority: str) -> None:
    house = House(101, 100, shedding())
    error = refusal(house.stage, exchange(route=route(priority=priority)))
    assert error is not None and (error.status, error.code, error.reason) == (503, "overloaded", "shed")
    places = {"P0": 100, "P1": 99, "P2": 90, "P3": 80}[priority]
    assert error.detail == f"{priority}, more than {places} requests in flight"
    assert house.told == [priority]


@pytest.mark.parametrize(
    ("ceiling", "places"),
    [
        (5000, {"P0": 5000, "P1": 4950, "P2": 4500, "P3": 4000}),
        (100, {"P0": 100, "P1": 99, "P2": 90, "P3": 80}),
        (20, {"P0": 20, "P1": 20, "P2": 18, "P3": 16}),
        (3, {"P0": 3, "P1": 3, "P2": 3, "P3": 3}),
    ],
)
def test_each_priority_leaves_the_last_places_to_those_before_it(
    exchange: Any, route: Any, ceiling: int, places: dict[str, int]
) -> None:
    """P1 is the default, and has a small ceiling for itself; so have all a very small one."""
    for priority, most in places.items():
        ex = exchange(route=route(priority=priority))
        assert refusal(House(most, ceiling, shedding()).stage, ex) is None
        assert refusal(House(most + 1, ceiling, shedding()).stage, ex) is not None


def test_an_overloaded_worker_refuses_by_priority_and_says_why_to_the_log_alone(exchange: Any, route: Any) -> None:
    house = House(1, 5, shedding(cpu=70.0))
    error = refusal(house.stage, exchange(route=route(priority="P3")))
    assert error is not None and (error.status, error.code, error.reason) == (503, "overloaded", "shed")
    assert error.detail == "P3, load 70% by CPU"
    assert "%" not in error.message and "P3" not in error.message
    for priority in ("P2", "P1", "P0"):
        assert refusal(house.stage, exchange(route=route(priority=priority))) is None
    assert house.told == ["P3"]


def test_out_of_memory_refuses_p0_too(exchange: Any, route: Any) -> None:
    house = House(1, 5, shedding(memory=96.0))
    assert refusal(house.stage, exchange(route=route(priority="P0"))) is not None


def test_those_refused_together_do_not_come_again_together(exchange: Any, route: Any) -> None:
    house = House(1, 5, shedding(cpu=70.0))
    errors = [refusal(house.stage, exchange(route=route(priority="P3"))) for _ in range(30)]
    waits = [error.retry_after_s for error in errors if error is not None]
    assert {wait: waits.count(wait) for wait in waits} == {1: 10, 2: 10, 3: 10}
