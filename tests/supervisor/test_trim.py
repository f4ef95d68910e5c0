"""Memory goes back once after each crowd, and not for a few connections that come and go."""

from typing import Any, Callable

from twisted.internet.task import Clock

from apigw.supervisor.trim import Trimming


class Threads(Clock):
    """A clock whose threads run at once."""

    def callInThread(self, call: Callable[[], Any]) -> None:
        call()


def test_trims_once_after_a_crowd_has_left_and_again_after_the_next() -> None:
    clock, open_now, trims = Threads(), [0], []
    Trimming(clock, lambda: open_now[0], lambda: trims.append(clock.seconds())).startService()
    for count in (1000, 900, 10, 10, 10):
        open_now[0] = count
        clock.advance(30)
    assert len(trims) == 1
    for count in (300, 10, 10):
        open_now[0] = count
        clock.advance(30)
    assert len(trims) == 2


def test_crowds_that_come_and_go_all_the_time_cost_one_trim_in_thirty_seconds() -> None:
    clock, open_now, trims = Threads(), [0], []
    Trimming(clock, lambda: open_now[0], lambda: trims.append(clock.seconds())).startService()
    for second in range(120):
        open_now[0] = 0 if second % 4 else 1000
        clock.advance(1)
    assert 3 <= len(trims) <= 4


def test_a_few_connections_are_not_worth_it() -> None:
    clock, open_now, trims = Threads(), [0], []
    Trimming(clock, lambda: open_now[0], lambda: trims.append(1)).startService()
    for count in (200, 0, 255, 3, 250):
        open_now[0] = count
        clock.advance(5)
    assert trims == []


def test_a_crowd_that_still_leaves_is_waited_for() -> None:
    """Trimmed in its middle, the memory of the rest would stay for another thirty seconds."""
    clock, open_now, trims = Threads(), [1000], []
    Trimming(clock, lambda: open_now[0], lambda: trims.append(open_now[0])).startService()
    for left in (600, 200, 0):
        open_now[0] = left
        clock.advance(0.5)
        assert trims == []
    clock.advance(0.5)
    assert trims == [0]
