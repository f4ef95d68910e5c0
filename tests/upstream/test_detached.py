"""When a connection whose client is gone is given up."""

from typing import Any

from apigw.upstream.detached import DETACHED_TIMEOUT_S, DETACHED_YIELDS_S, Detached


class Connection:
    """Takes itself out when it is closed, as the pool does for a real one."""

    def __init__(self, detached: Any, since_s: float) -> None:
        self.killed = False
        self._detached = detached
        detached[self] = since_s

    def kill(self) -> None:
        self.killed = True
        del self._detached[self]


def test_the_oldest_gives_way_first_and_none_before_its_time() -> None:
    detached = Detached()
    first, second = Connection(detached, 10.0), Connection(detached, 10.5)
    assert not detached.give_way(10.0 + DETACHED_YIELDS_S / 2)
    assert detached.give_way(10.0 + DETACHED_YIELDS_S)
    assert (first.killed, second.killed) == (True, False)
    assert not detached.give_way(10.0 + DETACHED_YIELDS_S)
    assert detached.give_way(10.5 + DETACHED_YIELDS_S) and second.killed
    assert not detached.give_way(1000.0)


def test_none_stays_for_ever() -> None:
    detached = Detached()
    connections = [Connection(detached, since_s) for since_s in (0.0, 1.0, 20.0)]
    detached.expire(DETACHED_TIMEOUT_S)
    assert len(detached) == 3
    detached.expire(DETACHED_TIMEOUT_S + 1.5)
    assert [one.killed for one in connections] == [True, True, False]
