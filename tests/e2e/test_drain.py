"""The end of a process, and its access log while it lives: nothing in flight is lost, no entry either."""

import signal
import threading
import time

import pytest

from tests.e2e.client import Client, Response
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway
from tests.e2e.identity import bearer
from tests.e2e.load import Load
from tests.e2e.origin import Origin


def _in_background(gateway: Gateway, target: str, count: int = 1) -> tuple[list[Response], list[threading.Thread]]:
    """Ask from threads; returns when all are in flight."""
    replies: list[Response] = []

    def ask() -> None:
        with gateway.tls_client() as client:
            replies.append(client.request("GET", target))

    threads = [threading.Thread(target=ask) for _ in range(count)]
    for thread in threads:
        thread.start()
    gateway.until(lambda: gateway.metric("in_flight_requests") >= count)
    return replies, threads


def test_a_drain_answers_what_is_in_flight_and_closes_the_rest(launch: Launch) -> None:
    """Slow requests get their answers, idle connections are closed, nobody new comes in, /readyz says draining."""
    gateway = launch()
    idle = [gateway.tls_client() for _ in range(3)] + [gateway.client() for _ in range(3)]
    for client in idle:
        assert client.request("GET", "/pub/x").status == 200
    replies, threads = _in_background(gateway, "/pub/x?delay_ms=2000", 5)
    began_s = time.monotonic()
    gateway.signal(signal.SIGTERM)
    gateway.until(lambda: gateway.page("/readyz").status == 503)
    assert gateway.page("/readyz").json()["checks"]["draining"]["ok"] is False
    assert gateway.page("/healthz").status == 200
    for port in (gateway.http, gateway.https):
        with pytest.raises(ConnectionRefusedError):
            Client(port, timeout_s=1)
    for client in idle:
        assert client.ended(2)
        client.close()
    assert time.monotonic() - began_s < 1.9, "idle connections waited for the slow ones"
    assert gateway.wait(5) == 0
    assert time.monotonic() - began_s < 3.5
    for thread in threads:
        thread.join(2)
    assert [reply.status for reply in replies] == [200] * 5
    assert all(reply.get("Connection") == "close" for reply in replies)
    assert [entry["status"] for entry in gateway.entries()].count(200) == 11


def test_the_drain_timeout_cuts_what_is_left(launch: Launch) -> None:
    """A backend that never answers holds the end up no longer than drain_timeout_seconds; its request is logged."""

    def short(gateway: Gateway) -> None:
        gateway.settings["gateway"]["drain_timeout_seconds"] = 1

    gateway = launch(short)
    with gateway.tls_client() as client:
        client.send(b"GET /pub/x?delay_ms=4000 HTTP/1.1\r\nHost: gw.test\r\n\r\n")
        gateway.until(lambda: gateway.metric("in_flight_requests") == 1)
        began_s = time.monotonic()
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(5) == 0
        assert 0.9 < time.monotonic() - began_s < 2.0
        assert client.rest() == b""
    (entry,) = [entry for entry in gateway.entries() if entry["path"] == "/pub/x"]
    assert entry["status"] == 499 and entry["error_type"]


def test_a_second_sigterm_ends_at_once(launch: Launch) -> None:
    """For the operator who will not wait; still with status 0."""
    gateway = launch()
    with gateway.client() as client:
        client.send(b"GET /pub/x?delay_ms=4000 HTTP/1.1\r\nHost: gw.test\r\n\r\n")
        gateway.until(lambda: gateway.metric("in_flight_requests") == 1)
        gateway.signal(signal.SIGTERM)
        gateway.until(lambda: gateway.page("/readyz").status == 503)
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(2) == 0


def test_a_drain_under_load_loses_no_answer_and_no_log_entry(launch: Launch, origin: Origin) -> None:
    """Every request that got an answer got a whole one, once; every request that reached the backend is logged."""
    gateway = launch()
    token = bearer()
    load = Load(gateway.https, gateway.context(), headers=lambda: [token], once=True, target="/api/x?delay_ms=5")
    with load:
        load.wait_for(100)
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(5) == 0
    assert len(load.outcomes) > 100
    lost = [one for one in load.outcomes if one.reply is None]
    assert [one for one in load.failed() if one not in lost] == []
    assert [one for one in lost if origin.tagged(one.tag)] == [], "a request was worked on and its answer lost"
    reached = sum(len(origin.tagged(one.tag)) for one in load.outcomes)
    assert reached == sum(one.status == 200 for one in load.outcomes)
    assert len(gateway.entries()) == reached


def test_rotating_the_access_log_under_load_loses_no_entry(launch: Launch) -> None:
    """mv and SIGUSR1 again and again: every entry is in exactly one file, each line whole."""
    gateway = launch()
    token = bearer()
    with Load(gateway.https, gateway.context(), clients=4, headers=lambda: [token]) as load:
        for number in range(10):
            load.wait_for(30)
            gateway.access_log.rename(gateway.work / f"access.log.{number}")
            gateway.signal(signal.SIGUSR1)
            gateway.until(gateway.access_log.exists)
    assert load.failed() == []
    files = sorted(gateway.work.glob("access.log*"))
    assert len(files) == 11
    gateway.assert_accounts(*files)
    ids = [entry["request_id"] for entry in gateway.entries(*files)]
    asked = [one.reply.get("X-Request-ID") for one in load.outcomes if one.reply is not None]
    assert sorted(ids) == sorted(str(one) for one in asked)
