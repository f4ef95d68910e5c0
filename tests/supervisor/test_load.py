"""The watch measures a worker's load and tells the decision; its log has a line for a change of state."""

from collections.abc import Iterator
from typing import Any, Callable

import pytest
from twisted.internet.task import Clock
from twisted.logger import globalLogPublisher

from apigw.core.shedding import NORMAL, REJECTING, SHEDDING, Shedding
from apigw.supervisor.load import LoadWatch


class Machine(Clock):
    """A clock whose threads run at once, a CPU, and memory that may be unreadable."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu_s = 0.0
        self.memory: float | Exception = 10.0
        self.memory_read = self.trimmed = 0
        self.shedding = Shedding({"P1": 90.0, "P2": 75.0, "P3": 60.0}, {"shed": 80.0, "reject": 95.0})
        self.watch = LoadWatch(self, self.shedding, lambda: self.cpu_s, self.memory_percent, self.trim)
        self.watch.startService()

    def memory_percent(self) -> float:
        self.memory_read += 1
        if isinstance(self.memory, Exception):
            raise self.memory
        return self.memory

    def trim(self) -> None:
        self.trimmed += 1

    def callInThread(self, call: Callable[[], Any]) -> None:
        call()

    def work(self, seconds: float, share: float, late_s: float = 0.0) -> None:
        """So much of the CPU for so long; every timer runs late."""
        for _ in range(round(seconds / 0.1)):
            self.cpu_s += share * (0.1 + late_s)
            self.advance(0.1 + late_s)


@pytest.fixture
def machine() -> Machine:
    return Machine()


@pytest.fixture
def lines() -> Iterator[list[str]]:
    """What the watch logs."""
    found: list[str] = []

    def observe(event: Any) -> None:
        if event.get("log_namespace") == "apigw.supervisor.load":
            found.append(event["log_format"].format(**event))

    globalLogPublisher.addObserver(observe)
    yield found
    globalLogPublisher.removeObserver(observe)


def test_cpu_is_a_share_of_the_time_that_passed(machine: Machine) -> None:
    machine.work(5, 0.4)
    assert machine.shedding.sample.cpu_percent == pytest.approx(40)
    assert machine.shedding.sample.lag_s == pytest.approx(0)
    machine.work(5, 0.4, late_s=0.02)
    assert machine.shedding.sample.cpu_percent == pytest.approx(40)
    assert machine.shedding.sample.lag_s == pytest.approx(0.02)


def test_a_change_of_state_is_one_line_each_way(machine: Machine, lines: list[str]) -> None:
    machine.work(5, 0.3)
    assert lines == []
    machine.work(20, 0.7)
    assert machine.shedding.state == SHEDDING
    machine.work(20, 0.1)
    assert machine.shedding.state == NORMAL
    assert len(lines) == 2 and lines[1] == "load shedding: over"
    assert lines[0].startswith("load shedding: shedding, load 60% by CPU, refused: P3 ")


def test_states_that_change_all_the_time_make_a_line_a_second_at_most(machine: Machine, lines: list[str]) -> None:
    for turn in range(100):
        machine.memory = 96.0 if turn % 2 else 10.0
        machine.work(0.5, 0.1)
    assert 2 <= len(lines) <= 51


def test_memory_is_read_twice_a_second_and_sheds(machine: Machine) -> None:
    machine.work(10, 0.1)
    assert 18 <= machine.memory_read <= 22
    machine.memory = 97.0
    machine.work(1, 0.1)
    assert machine.shedding.state == REJECTING


def test_memory_that_sheds_is_given_back_every_thirty_seconds(machine: Machine) -> None:
    """What the allocator keeps would refuse requests after all of them have gone."""
    machine.work(60, 0.1)
    assert machine.trimmed == 0
    machine.memory = 85.0
    machine.work(61, 0.1)
    assert machine.trimmed == 3


def test_memory_that_cannot_be_read_keeps_its_last_value_and_is_asked_again_later(
    machine: Machine, lines: list[str]
) -> None:
    machine.work(1, 0.1)
    machine.memory = OSError("no such file")
    machine.work(50, 0.1)
    assert machine.shedding.memory == 10.0 and machine.shedding.state == NORMAL
    assert len(lines) == 1 and "no such file" in lines[0]
    machine.memory = 85.0
    machine.work(61, 0.1)
    assert machine.shedding.memory == 85.0
