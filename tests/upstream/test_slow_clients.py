"""Who has kept a connection waiting for too long, and who has not."""

import pytest

from apigw.upstream.slow_clients import PACE_BYTES, PATIENCE_S, SlowClients


class Transfer:
    """A client that sends `pace` bytes a second while its connection waits for it."""

    def __init__(self, slow_clients: SlowClients, pace: float = 0.0, since_s: float = 0.0) -> None:
        self.holds = True
        self.pace = pace
        self.count = 0.0
        self.told = ""
        slow_clients.follow(self, since_s)

    def client_holds(self) -> bool:
        return self.holds

    def client_bytes(self) -> int:
        return int(self.count)

    def give_way(self, how_slow: str) -> None:
        assert not self.told
        self.told = how_slow


class Second:
    """Seconds that pass for all of them, looked at as the sweep does."""

    def __init__(self) -> None:
        self.slow_clients = SlowClients()
        self.now_s = 0.0

    def client(self, pace: float = 0.0) -> Transfer:
        return Transfer(self.slow_clients, pace, self.now_s)

    def passes(self, seconds: float, step_s: float = 1.0) -> None:
        for _ in range(round(seconds / step_s)):
            self.now_s += step_s
            for transfer in self.slow_clients:
                assert isinstance(transfer, Transfer)
                transfer.count += transfer.pace * step_s
            self.slow_clients.look(self.now_s)


def test_one_that_sends_nothing_has_its_patience_and_no_more() -> None:
    second = Second()
    client = second.client()
    second.passes(PATIENCE_S)
    second.slow_clients.give_way(10)
    assert not client.told
    second.passes(0.5, 0.5)
    second.slow_clients.give_way(10)
    assert client.told == "3.5 s behind 8192 bytes a second while others waited for its place"
    assert (second.slow_clients.ended, len(second.slow_clients)) == (1, 0)


@pytest.mark.parametrize("step_s", [0.1, 1.0])
def test_one_at_its_pace_stays_however_long_it_takes(step_s: float) -> None:
    second = Second()
    client = second.client(PACE_BYTES)
    for _ in range(100):
        second.passes(10, step_s)
        second.slow_clients.give_way(10)
    assert not client.told


def test_one_that_rests_now_and_then_is_judged_by_the_mean() -> None:
    """Five seconds of nothing after a lot; but what it did long ago does not pay for minutes."""
    second = Second()
    client = second.client()
    for _ in range(20):
        client.pace = 10 * PACE_BYTES
        second.passes(1)
        client.pace = 0
        second.passes(5)
        second.slow_clients.give_way(10)
    assert not client.told
    second.passes(2)
    second.slow_clients.give_way(10)
    assert client.told


def test_time_in_which_the_backend_is_waited_for_is_not_the_clients() -> None:
    second = Second()
    client = second.client()
    client.holds = False
    second.passes(600)
    client.holds = True  # the backend has just taken what there was: nobody knows since when
    second.passes(PATIENCE_S)
    second.slow_clients.give_way(10)
    assert not client.told
    second.passes(2)
    client.holds = False  # far behind, but now its backend has the next move
    second.passes(1)
    second.slow_clients.give_way(10)
    assert not client.told


def test_the_slowest_go_first_and_only_as_many_as_are_wanted() -> None:
    second = Second()
    clients = [second.client(pace) for pace in (4000, 0, 7000, 2000, 1000)]
    second.passes(60)
    second.slow_clients.give_way(0)
    assert not any(client.told for client in clients)
    second.slow_clients.give_way(2)
    assert [bool(client.told) for client in clients] == [False, True, False, False, True]
    second.slow_clients.give_way(10)
    assert all(client.told for client in clients)
    assert second.slow_clients.ended == 5


def test_following_again_forgets_nothing() -> None:
    """An answer stops and goes on many times: each stop says so."""
    second = Second()
    client = second.client()
    for _ in range(5):
        second.passes(1)
        second.slow_clients.follow(client, second.now_s)
    second.slow_clients.give_way(1)
    assert client.told


def test_what_was_sent_before_does_not_count() -> None:
    """The bytes that came while it waited for the connection have paid for nothing."""
    second = Second()
    client = second.client()
    second.slow_clients.pop(client)
    client.count = 10_000_000
    second.slow_clients.follow(client, second.now_s)
    second.passes(PATIENCE_S + 1)
    second.slow_clients.give_way(1)
    assert client.told
