"""What an instance weighs, and when it holds more than its part of what is in flight."""

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from apigw.config.model import Instance
from apigw.core.balancer import SLOW_SHARE
from apigw.upstream.member import FAIR, SPARE, Member, oldest_idle, share_out


def members(*weights: int) -> list[Member]:
    return [Member(Instance(f"10.0.0.{n}", 80, weight), 0.0) for n, weight in enumerate(weights)]


def test_a_member_of_the_first_hour_has_its_whole_weight() -> None:
    assert Member(Instance("10.0.0.1", 80, 3), 0.0).weight(0.0, 20.0) == 3


def test_one_that_came_later_has_a_tenth_of_it_first_and_all_of_it_in_the_end() -> None:
    member = Member(Instance("10.0.0.1", 80, 10), 100.0, joined_s=100.0)
    assert [member.weight(100.0 + age_s, 20.0) for age_s in (0, 10, 19)] == [1, 5, 9.5]
    assert member.joined_s == 100.0
    assert member.weight(120.0, 20.0) == 10 and member.joined_s is None
    assert Member(Instance("10.0.0.1", 80), 0.0, joined_s=0.0).weight(0.0, 0.0) == 1


def test_a_slow_one_has_a_part_of_it() -> None:
    member = Member(Instance("10.0.0.1", 80, 8), 0.0)
    member.slow = True
    assert member.weight(0.0, 20.0) == 8 * SLOW_SHARE


def test_what_is_in_flight_is_what_is_open_and_not_idle() -> None:
    member = Member(Instance("10.0.0.1", 80), 0.0)
    idle: list[Any] = member.idle
    member.open = 5
    idle += ["a", "b"]
    assert member.in_flight == 3


def test_a_single_instance_is_never_crowded() -> None:
    (member,) = members(1)
    share_out([member], 10)
    member.open = 10
    assert member.in_flight < member.free and not member.crowded(10)


def test_one_that_holds_all_that_is_in_flight_is_crowded_after_a_few_requests() -> None:
    """One of three that hangs: it holds some requests until their timeout, not half of the pool."""
    three = members(1, 1, 1)
    share_out(three, 100)
    hanging = three[0]
    while not hanging.crowded(hanging.open + 2):
        hanging.open += 1
    assert SPARE < hanging.open <= 3 * SPARE
    hanging.open = 1
    assert hanging.in_flight < hanging.free, "the look costs nothing while little is in flight"


def test_no_instance_holds_more_than_its_part_of_a_small_pool() -> None:
    three = members(1, 1, 1)
    share_out(three, 4)
    three[0].open = 2
    assert three[0].crowded(3)


@given(
    st.lists(st.tuples(st.integers(1, 20), st.integers(0, 60)), min_size=1, max_size=6), st.integers(1, 200), st.data()
)
def test_where_there_is_room_in_the_pool_there_is_an_instance_that_is_not_crowded(
    sizes: list[tuple[int, int]], limit: int, data: st.DataObject
) -> None:
    """So a request that finds a free place finds an instance for it. Others may be busy with instances that are out."""
    all_of_them = members(*(weight for weight, _ in sizes))
    share_out(all_of_them, limit)
    left = limit - 1
    for member, (_, busy) in zip(all_of_them, sizes):
        member.open = min(busy, left)
        left -= member.open
    in_flight = sum(member.open for member in all_of_them) + data.draw(st.integers(0, left))
    assert in_flight < limit
    assert not all(member.in_flight >= member.free and member.crowded(in_flight) for member in all_of_them)
    assert FAIR > 1


def test_the_idle_connection_that_rested_longest_is_found_among_all() -> None:
    one, two, three = members(1, 1, 1)
    rested: list[Any] = [SimpleNamespace(idle_since_s=at_s) for at_s in (5.0, 9.0, 3.0, 4.0)]
    one.idle += rested[:2]
    three.idle += rested[2:]
    assert oldest_idle([one, two, three]) is rested[2]
    assert oldest_idle([two]) is None


def test_who_failed_of_late_is_not_sound() -> None:
    (member,) = members(1)
    assert member.sound()
    member.refused = 1
    assert not member.sound()
    member.refused, member.failures = 0, 1
    assert not member.sound()
