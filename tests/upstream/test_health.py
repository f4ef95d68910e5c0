"""When an instance leaves the rotation and when it comes back."""

from typing import Any

from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock

from apigw.config.model import Backend, Instance
from apigw.net.deadlines import Deadlines
from apigw.testing import MemoryConnector
from apigw.upstream.health import CHECK_TIMEOUT_S, DOWN_INTERVAL_S, HealthCheck
from apigw.upstream.pool import Pool

INSTANCES = (Instance("10.0.0.1", 80), Instance("10.0.0.2", 80))


class World:
    """A backend of two instances; `answers`: a status, None for a refusal, an error to raise, or nothing yet."""

    def __init__(self, **about: Any) -> None:
        self.clock = Clock()
        connector: Any = MemoryConnector()
        backend = Backend("users", INSTANCES, health_check_interval_s=about.pop("interval_s", 10.0), **about)
        self.pool = Pool(self.clock, Deadlines(self.clock), connector, backend)
        self.answers: dict[str, Any] = {"10.0.0.1": 200, "10.0.0.2": 200}
        self.asked: list[tuple[str, float]] = []
        self.check = HealthCheck(self.clock, self.pool, self.probe)
        self.check.startService()

    def probe(self, host: str, port: int, path: str, timeout_s: float) -> "Deferred[int]":
        assert (port, path) == (80, "/healthz") and timeout_s <= CHECK_TIMEOUT_S
        self.asked.append((host, self.clock.seconds()))
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Deferred):
            return answer
        return fail(ConnectionRefusedError("refused")) if answer is None else succeed(answer)

    def run(self, seconds: float) -> None:
        for _ in range(int(seconds * 4)):
            self.clock.advance(0.25)

    def up(self) -> list[bool]:
        return [member.up for member in self.pool.members]


def test_all_are_asked_within_a_second_of_the_start_and_then_each_interval() -> None:
    """Not all at once: they are spread."""
    world = World()
    assert world.up() == [True, True], "a restart does not wait for checks"
    world.run(2)
    assert {host for host, _ in world.asked} == {"10.0.0.1", "10.0.0.2"}
    assert len({at_s for _, at_s in world.asked}) == 2
    world.asked.clear()
    world.run(40)
    assert 6 <= len(world.asked) <= 8


def test_out_after_three_failures_and_back_after_two_successes() -> None:
    world = World()
    world.answers["10.0.0.1"] = None  # after the first check, at once; the next are 10, 20 and 30 s later
    world.run(25)
    assert world.up() == [True, True]
    world.run(7)
    assert world.up() == [False, True]
    world.answers["10.0.0.1"] = 200
    world.run(9)
    assert world.up() == [False, True]
    world.run(16)
    assert world.up() == [True, True]


def test_a_status_that_is_no_success_is_a_failure_and_one_success_forgets_failures() -> None:
    world = World()
    world.answers["10.0.0.2"] = 500
    world.run(15)
    world.answers["10.0.0.2"] = 204
    world.run(10)
    world.answers["10.0.0.2"] = 404
    world.run(15)
    assert world.up() == [True, True]
    world.run(20)
    assert world.up() == [True, False]


def test_refused_connects_of_requests_count_and_the_instance_is_asked_again_within_ten_seconds() -> None:
    """However long the interval is."""
    world = World(interval_s=3600.0)
    world.run(2)
    member = world.pool.members[0]
    for _ in range(3):
        world.check.live_failure(member)
    assert world.up() == [False, True]
    world.asked.clear()
    world.run(DOWN_INTERVAL_S + 2)
    assert [host for host, _ in world.asked] == ["10.0.0.1"]
    world.run(DOWN_INTERVAL_S + 2)
    assert world.up() == [True, True]


def test_a_probe_that_hangs_is_not_asked_again_beside_itself() -> None:
    world = World(interval_s=1.0)
    world.answers["10.0.0.1"] = Deferred()
    world.asked.clear()
    world.run(10)
    assert [host for host, _ in world.asked].count("10.0.0.1") == 1
    world.answers["10.0.0.1"].errback(TimeoutError())
    world.answers["10.0.0.1"] = 200
    world.run(5)
    assert [host for host, _ in world.asked].count("10.0.0.1") > 1


def test_a_probe_that_raises_at_once_is_a_failure_like_others() -> None:
    """The instance goes out, the others are asked as ever, and it comes back when the probe can ask."""
    world = World(interval_s=1.0)
    world.answers["10.0.0.1"] = ValueError("no such path")
    world.asked.clear()
    world.run(6)
    assert world.up() == [False, True]
    assert [host for host, _ in world.asked].count("10.0.0.2") >= 5
    world.answers["10.0.0.1"] = 200
    world.run(4)
    assert world.up() == [True, True]


def test_an_instance_that_a_reload_removed_is_asked_no_more() -> None:
    world = World(interval_s=1.0)
    world.run(3)
    world.pool.update(Backend("users", INSTANCES[1:], health_check_interval_s=1.0))
    world.check.reconfigured()
    world.asked.clear()
    world.run(5)
    assert {host for host, _ in world.asked} == {"10.0.0.2"}
