"""When an instance leaves the rotation and when it comes back."""

from typing import Any, Callable

import pytest
from attrs import evolve
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.task import Clock, deferLater

from apigw.config.model import Backend, Instance
from apigw.errors import NotAsked
from apigw.net.deadlines import Deadlines
from apigw.testing import MemoryConnector
from apigw.upstream.health import CHECK_TIMEOUT_S, DOWN_INTERVAL_S, HealthCheck
from apigw.upstream.member import Member
from apigw.upstream.pool import Pool

INSTANCES = (Instance("10.0.0.1", 80), Instance("10.0.0.2", 80))


class World:
    """A backend of two instances; `answers`: a status, None for a refusal, an error to raise, or nothing yet."""

    def __init__(self, instances: tuple[Instance, ...] = INSTANCES, phase: float = 0.0, **about: Any) -> None:
        self.clock = Clock()
        connector: Any = MemoryConnector()
        backend = Backend("users", instances, health_check_interval_s=about.pop("interval_s", 10.0), **about)
        self.pool = Pool(self.clock, Deadlines(self.clock), connector, backend)
        self.answers: dict[str, Any] = {instance.host: 200 for instance in instances}
        self.takes_s: dict[str, float] = {}
        self.asked: list[tuple[str, float]] = []
        self.paths: list[str] = []
        self.check = HealthCheck(self.clock, self.pool, self.probe, lambda: phase)
        self.pool.back_in_s = self.check.back_in_s
        self.check.startService()

    def probe(self, host: str, port: int, path: str, timeout_s: float) -> "Deferred[int]":
        assert port == 80 and timeout_s <= CHECK_TIMEOUT_S
        self.asked.append((host, self.clock.seconds()))
        self.paths.append(path)
        answer = self.answers[host]
        if isinstance(answer, Exception):
            raise answer
        if isinstance(answer, Deferred):
            return answer
        if answer == "hang":
            return Deferred().addTimeout(timeout_s, self.clock)
        if host in self.takes_s:
            return deferLater(self.clock, self.takes_s[host], lambda: answer)
        return fail(ConnectionRefusedError("refused")) if answer is None else succeed(answer)

    def run(self, seconds: float, step_s: float = 0.25) -> None:
        for _ in range(round(seconds / step_s)):
            self.clock.advance(step_s)

    def until(self, condition: Callable[[], bool], within_s: float = 100.0, step_s: float = 0.25) -> float:
        began_s = self.clock.seconds()
        while not condition():
            self.clock.advance(step_s)
            assert self.clock.seconds() - began_s <= within_s
        return self.clock.seconds() - began_s

    def times(self, host: str) -> int:
        """How often it was asked."""
        return [one for one, _ in self.asked].count(host)

    def member(self, host: str) -> Member:
        return next(member for member in self.pool.members if member.instance.host == host)

    def up(self) -> list[bool]:
        return [member.up for member in self.pool.members]


def test_all_are_asked_within_a_second_of_the_start_and_then_each_interval() -> None:
    world = World()
    assert world.up() == [True, True], "a restart does not wait for checks"
    world.run(2)
    assert {host for host, _ in world.asked} == {"10.0.0.1", "10.0.0.2"}
    world.run(20)
    world.asked.clear()
    world.run(40)
    assert len(world.asked) == 8


@pytest.mark.parametrize("interval_s", [1.0, 10.0])
@pytest.mark.parametrize("phase", [0.0, 0.37])
def test_the_instances_of_a_backend_are_spread_over_the_interval(interval_s: float, phase: float) -> None:
    """At equal distances; where in the interval the first one stands is drawn once a process."""
    instances = tuple(Instance(f"10.0.0.{n}", 80) for n in range(5))
    world = World(instances, interval_s=interval_s, phase=phase)
    world.run(interval_s * 3.1, step_s=interval_s / 100)
    world.asked.clear()
    world.run(interval_s, step_s=interval_s / 100)
    at_s = sorted(at for _, at in world.asked)
    assert len({host for host, _ in world.asked}) == len(at_s) == 5
    assert all(abs(b - a - interval_s / 5) < interval_s / 25 for a, b in zip(at_s, at_s[1:]))
    first_s = min(at for host, at in world.asked if host == "10.0.0.0")
    assert abs(first_s / interval_s % 1.0 - phase) < 0.05 or first_s / interval_s % 1.0 > 0.97


def test_many_instances_are_not_asked_all_in_the_first_second() -> None:
    world = World(tuple(Instance(f"10.0.{n // 250}.{n % 250}", 80) for n in range(500)))
    world.run(1)
    assert 80 <= len(world.asked) <= 120
    world.run(5)
    assert len({host for host, _ in world.asked}) == 500


def test_out_after_three_failures_and_back_after_two_successes() -> None:
    """The second success is asked for after half an interval: back within one and a half intervals."""
    world = World()
    world.answers["10.0.0.1"] = None
    world.asked.clear()
    world.until(lambda: not world.pool.members[0].up)
    assert world.times("10.0.0.1") == 3 and world.clock.seconds() <= 35.0
    member = world.pool.members[0]
    assert (member.failures, member.why) == (3, "refused")
    world.answers["10.0.0.1"] = 200
    world.asked.clear()
    healed_s = world.clock.seconds()
    world.until(lambda: world.times("10.0.0.1") == 1)
    assert not member.up
    world.until(lambda: member.up)
    assert world.times("10.0.0.1") == 2 and world.clock.seconds() - healed_s <= 15.25
    assert (member.failures, member.why, member.since_s) == (0, None, world.clock.seconds())


@pytest.mark.parametrize("interval_s", [0.2, 1.0, 5.0, 10.0, 60.0])
@pytest.mark.parametrize("hangs", [False, True])
def test_an_instance_is_back_within_two_intervals_of_its_healing_and_35_seconds(interval_s: float, hangs: bool) -> None:
    """Contract 13.14, whenever in the interval it heals, and also when a check hangs as it heals."""
    for part in range(7):
        world = World(interval_s=interval_s)
        world.answers["10.0.0.1"] = "hang" if hangs else None
        world.until(lambda: not world.pool.members[0].up, within_s=interval_s * 12, step_s=0.05)  # noqa: B023
        world.run(interval_s * part / 7, step_s=0.05)
        world.answers["10.0.0.1"] = 200
        took_s = world.until(lambda: world.pool.members[0].up, within_s=35, step_s=0.05)  # noqa: B023
        assert took_s <= 2 * max(interval_s, 0.2), part


def test_a_status_that_is_no_success_is_a_failure_and_one_success_forgets_failures() -> None:
    world = World()

    def answered(status: int, times: int) -> None:
        world.answers["10.0.0.2"] = status
        world.asked.clear()
        world.until(lambda: world.times("10.0.0.2") == times)

    answered(500, 2)
    answered(204, 1)
    answered(404, 2)
    assert world.up() == [True, True]
    answered(404, 1)
    assert world.up() == [True, False]
    assert world.pool.members[1].why == "its health check answered 404"


def test_refused_connects_of_requests_count_and_the_instance_is_asked_again_within_ten_seconds() -> None:
    """However long the interval is."""
    world = World(interval_s=3600.0)
    world.run(2)
    member = world.pool.members[0]
    for _ in range(3):
        world.check.live_failure(member, "refused")
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


def test_the_loop_is_free_between_a_check_that_took_its_whole_interval_and_the_next() -> None:
    """A request that comes meanwhile waits for one of them, not for both."""
    world = World(interval_s=1.0)
    world.run(3)
    hangs = world.answers["10.0.0.1"] = Deferred()
    world.run(3)
    world.answers["10.0.0.1"] = 200
    before = world.times("10.0.0.1")
    hangs.errback(TimeoutError())
    world.clock.advance(0.009)
    assert world.times("10.0.0.1") == before
    world.clock.advance(0.002)
    assert world.times("10.0.0.1") == before + 1


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


def test_new_settings_count_at_once() -> None:
    """Not at the end of an interval that is no longer configured; nor does the answer to the old question count."""
    world = World(interval_s=3600.0)
    world.run(5)
    old = world.answers["10.0.0.1"] = Deferred()
    world.check._turn(world.pool.members[0], world.clock.seconds())
    world.run(1)
    world.answers["10.0.0.1"] = 200
    world.asked.clear()
    world.paths.clear()
    world.pool.update(evolve(world.pool.backend, health_check_path="/new", health_check_interval_s=10.0))
    world.check.reconfigured()
    world.run(1)
    assert {host for host, _ in world.asked} == {"10.0.0.1", "10.0.0.2"} and set(world.paths) == {"/new"}
    old.errback(ConnectionRefusedError("of the old path"))
    assert world.pool.members[0].failures == 0
    world.asked.clear()
    world.run(10)
    assert len(world.asked) >= 2


def test_a_list_that_changes_all_the_time_delays_no_check() -> None:
    """As discovery may change it several times a second."""
    world = World(interval_s=1.0)
    world.run(3)
    world.asked.clear()
    for n in range(40):
        fresh = Instance(f"10.0.1.{n}", 80)
        world.answers[fresh.host] = 200
        world.pool.update(evolve(world.pool.backend, instances=(*INSTANCES, fresh)))
        world.check.reconfigured()
        world.run(0.25)
    assert all(8 <= world.times(instance.host) <= 14 for instance in INSTANCES)


def test_connects_that_succeed_between_refused_ones_keep_an_instance_in() -> None:
    """Failures count in a row; but they do not make up for checks that failed."""
    world = World(interval_s=3600.0)
    world.run(2)
    member = world.pool.members[0]
    for _ in range(5):
        world.check.live_failure(member, "refused")
        world.check.live_failure(member, "refused")
        member.refused = 0  # as the pool does when a connection was made
    assert member.up
    member.failures = 2
    world.check.live_failure(member, "refused")
    assert not member.up


def test_what_the_gateway_could_not_ask_says_nothing_about_the_instance() -> None:
    world = World(interval_s=1.0)
    world.answers["10.0.0.1"] = NotAsked("no descriptors")
    world.run(10)
    member = world.pool.members[0]
    assert world.up() == [True, True] and (member.failures, member.why) == (0, None)


def test_who_asks_while_all_are_out_is_told_when_one_may_be_back() -> None:
    world = World()
    world.answers = dict.fromkeys(world.answers, None)
    world.until(lambda: world.up() == [False, False])
    for _ in range(20):
        world.run(1)
        began_s, guess_s = world.clock.seconds(), world.check.back_in_s()
        assert 0 <= guess_s <= 15.0
    world.answers["10.0.0.1"] = world.answers["10.0.0.2"] = 200
    world.until(lambda: any(world.up()))
    assert abs(world.clock.seconds() - began_s - guess_s) <= 0.5


# -- slow instances


def slow_world(**takes_s: float) -> World:
    world = World(tuple(Instance(host, 80) for host in ("a", "b", "c")), interval_s=1.0)
    world.takes_s = {"a": 0.02, "b": 0.02, "c": 0.02, **takes_s}
    world.run(20, step_s=0.01)
    return world


def test_an_instance_whose_checks_take_far_longer_gets_less_until_they_do_not() -> None:
    world = slow_world(c=0.5)
    assert [member.slow for member in world.pool.members] == [False, False, True]
    assert world.up() == [True, True, True]
    now_s = world.clock.seconds()
    assert [member.weight(now_s, 0.0) for member in world.pool.members] == [1, 1, 0.25]
    assert world.member("c").check_s == pytest.approx(0.5, abs=0.02)
    world.takes_s["c"] = 0.02
    world.run(20, step_s=0.01)
    assert not world.member("c").slow


@pytest.mark.parametrize("takes_s", [dict(a=0.9, b=0.9, c=0.9), dict(a=0.001, b=0.001, c=0.08)])
def test_no_instance_is_slow_where_all_are_or_where_all_are_quick(takes_s: dict[str, float]) -> None:
    assert [member.slow for member in slow_world(**takes_s).pool.members] == [False] * 3


def test_one_slow_check_is_no_slow_instance() -> None:
    world = slow_world()
    world.takes_s["c"] = 0.3
    world.run(1.2, step_s=0.01)
    world.takes_s["c"] = 0.02
    world.run(3, step_s=0.01)
    assert not world.member("c").slow


def test_an_instance_that_is_back_is_not_judged_by_the_checks_that_timed_out() -> None:
    world = slow_world()
    world.answers["c"] = "hang"
    world.until(lambda: not world.member("c").up, step_s=0.05)
    world.answers["c"] = 200
    world.until(lambda: world.member("c").up, step_s=0.01)
    world.run(1, step_s=0.01)
    assert not world.member("c").slow and world.member("c").joined_s is not None
