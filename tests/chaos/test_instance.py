"""The faults are real: what a client of the instance itself sees of each."""

import socket
import time
from collections.abc import Iterator

import pytest

from tests.chaos.instance import DRIP_BYTES, DRIP_S, LATE_S
from tests.chaos.world import Switched
from tests.e2e.client import Client, Closed


@pytest.fixture
def instance() -> Iterator[Switched]:
    switched = Switched()
    yield switched
    switched.become("ok")
    with Client(switched.port) as client:
        assert client.request("GET", "/x").body == b"x" * 1000, "well again"
    switched.end()


def test_refused_closes_what_was_open_and_refuses_what_comes(instance: Switched) -> None:
    with Client(instance.port) as client:
        assert client.request("GET", "/x").status == 200
        instance.become("refused")
        with pytest.raises(ConnectionResetError):
            client.sock.recv(1)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", instance.port), 1)


def test_blackholed_answers_no_connect_and_nothing_that_is_open(instance: Switched) -> None:
    with Client(instance.port, timeout_s=0.3) as client:
        assert client.request("GET", "/x").status == 200
        instance.become("blackholed")
        for _ in range(3):
            with pytest.raises(TimeoutError):
                socket.create_connection(("127.0.0.1", instance.port), 0.2)
        with pytest.raises(TimeoutError):
            client.request("GET", "/x")


def test_stopped_accepts_and_hangs(instance: Switched) -> None:
    instance.become(None)
    with Client(instance.port, timeout_s=0.3) as client, pytest.raises(TimeoutError):
        client.request("GET", "/x")


def test_late_is_whole_but_late(instance: Switched) -> None:
    instance.become("late")
    began_s = time.monotonic()
    with Client(instance.port) as client:
        assert client.request("GET", "/x").complete
    assert time.monotonic() - began_s >= LATE_S


def test_resets_ends_in_the_middle_of_a_body(instance: Switched) -> None:
    instance.become("resets")
    with Client(instance.port) as client:
        client.sock.sendall(b"GET /x HTTP/1.1\r\nHost: x\r\n\r\n")
        came = b""
        with pytest.raises(ConnectionResetError):
            while data := client.sock.recv(65_536):
                came += data
        assert came.startswith(b"HTTP/1.1 200 OK\r\n") and came.count(b"x" * 500) == 1


def test_garbage_is_no_answer(instance: Switched) -> None:
    instance.become("garbage")
    with Client(instance.port) as client, pytest.raises((Closed, ValueError, IndexError)):
        client.request("GET", "/healthz")


def test_half_of_the_requests_get_500_and_health_checks_none(instance: Switched) -> None:
    instance.become("half")
    with Client(instance.port) as client:
        statuses = [client.request("GET", "/x").status for _ in range(100)]
        assert {client.request("GET", "/healthz").status for _ in range(20)} == {200}
    assert 25 < statuses.count(500) < 75 and set(statuses) == {200, 500}


def test_drip_is_whole_and_slow(instance: Switched) -> None:
    instance.become("drip")
    began_s = time.monotonic()
    with Client(instance.port) as client:
        reply = client.request("GET", "/x")
    assert reply.complete and len(reply.body) == DRIP_BYTES
    assert time.monotonic() - began_s >= DRIP_BYTES * DRIP_S * 0.9


def test_without_descriptors_who_is_connected_gets_one_answer_and_nobody_is_accepted(instance: Switched) -> None:
    with Client(instance.port, timeout_s=0.3) as old:
        assert old.request("GET", "/x").status == 200
        instance.become("descriptors")
        with Client(instance.port, timeout_s=0.3) as new, pytest.raises(TimeoutError):
            new.request("GET", "/x")
        assert old.request("GET", "/x").get("Connection") == "close"
    with Client(instance.port, timeout_s=0.3) as new, pytest.raises(TimeoutError):
        new.request("GET", "/x")


def test_posts_are_told_once(instance: Switched) -> None:
    with Client(instance.port) as client:
        client.request("POST", "/x", [("X-Request-ID", "a")], b"body")
    assert instance.say("posts") == "a"
