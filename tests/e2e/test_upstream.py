"""Timeouts, pools and dead backends, seen by clients."""

import asyncio
import threading
import time
import uuid

import pytest

from tests.e2e.client import Response
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, backend, quiet_port, route
from tests.e2e.load import Load, median
from tests.e2e.origin import Origin, Seen, read_body

pytestmark = pytest.mark.alone


def _ask_all(gateway: Gateway, targets: list[str]) -> list[Response]:
    """All at once; answers in the order of the targets."""
    replies: dict[int, Response] = {}

    def ask(number: int) -> None:
        replies[number] = gateway.ask("GET", targets[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(len(targets))]
    for thread in threads:
        thread.start()
        time.sleep(0.02)  # in this order
    for thread in threads:
        thread.join(10)
    return [replies[number] for number in range(len(targets))]


def test_a_timeout_in_milliseconds_is_kept(gateway: Gateway, origin: Origin) -> None:
    """timeout_ms 200: 504 after 200 to 250 ms, and the backend is not told to stop."""
    ended = threading.Event()
    tag = uuid.uuid4().hex

    async def slow(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_body(seen, reader)
        await asyncio.sleep(0.6)
        if not reader.at_eof():
            ended.set()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")

    origin.on("/short/slow", slow)
    took = []
    with gateway.tls_client() as client:
        client.request("GET", "/pub/x")
        for _ in range(5):
            began_s = time.perf_counter()
            reply = client.request("POST", "/short/slow", [("X-Tag", tag)], b"work")
            took.append(time.perf_counter() - began_s)
            assert (reply.status, reply.json()["error"], reply.json()["backend"]) == (504, "upstream_timeout", "origin")
    assert all(0.199 <= one for one in took) and median(took) <= 0.250, took
    assert ended.wait(2), "the backend was told to stop"
    assert len(origin.tagged(tag)) == 5, "a POST was sent twice"
    gateway.until(gateway.quiet, 2)


def test_the_answer_after_a_timeout_reaches_nobody(gateway: Gateway) -> None:
    """Its connection is used again only when that late answer has been read to its end."""
    for number in range(5):
        assert gateway.ask("GET", f"/short/late-{number}?delay_ms=300").status == 504
        assert gateway.ask("GET", f"/pub/next-{number}").json()["target"] == f"/pub/next-{number}"
    gateway.until(gateway.quiet, 2)


def test_a_full_pool_queues_up_to_the_timeout(launch: Launch, origin: Origin) -> None:
    """max_connections 1: in order, one at a time; who waits longer than the route's timeout gets a 504."""

    def narrow(gateway: Gateway) -> None:
        gateway.settings["backends"].append(backend("narrow", origin.port, max_connections=1))
        gateway.settings["routes"].append(route("narrow", "/narrow/*", "narrow", timeout_ms=800))

    gateway = launch(narrow)
    replies = _ask_all(gateway, ["/narrow/x?delay_ms=300"] * 5)
    assert [reply.status for reply in replies[:2]] == [200, 200]
    assert [reply.status for reply in replies[3:]] == [504, 504]
    for reply in replies[3:]:
        assert 790 <= int(reply.get("X-Response-Time-Ms") or 0) <= 900
        assert reply.json()["error"] == "upstream_timeout"
    assert gateway.metric("upstream_connections", backend="narrow") <= 1
    gateway.until(gateway.quiet, 2)
    assert gateway.ask("GET", "/narrow/x").status == 200


def test_a_dead_backend_fails_quickly_then_at_once_and_comes_back_by_itself(launch: Launch, origin: Origin) -> None:
    """502 three times, then 503 with Retry-After; another backend never notices; good again after its return."""
    mortal = Origin().start(quiet_port())

    def change(gateway: Gateway) -> None:
        gateway.settings["backends"].append(backend("mortal", mortal.port, health_check_interval_ms=200))
        gateway.settings["routes"].append(route("mortal", "/mortal/*", "mortal"))

    try:
        gateway = launch(change)
        assert gateway.ask("GET", "/mortal/x").status == 200
        with Load(gateway.http, clients=2, target="/pub/x", pause_s=0.005) as other:
            other.wait_for(50)
            mortal.stop()
            statuses = []
            for _ in range(6):
                began_s = time.perf_counter()
                reply = gateway.ask("GET", "/mortal/x")
                statuses.append(reply.status)
                assert time.perf_counter() - began_s < 0.1
            assert set(statuses) <= {502, 503} and statuses[-1] == 503, statuses
            assert statuses.count(502) <= 3
            assert (reply.json()["error"], reply.json()["backend"]) == ("service_unavailable", "mortal")
            assert int(reply.get("Retry-After") or 0) >= 1
            assert gateway.entry(reply.get("X-Request-ID"))["error_type"] == "no_healthy_instance"
            assert gateway.metric("backend_instance_up", backend="mortal") == 0
            assert gateway.page("/readyz").status == 200, "one dead backend is not a dead gateway"
            mortal.start()
            gateway.until(lambda: gateway.ask("GET", "/mortal/x").status == 200, 5)
            assert gateway.metric("backend_instance_up", backend="mortal") == 1
            other.wait_for(50)
        assert other.failed() == []
    finally:
        mortal.remove()


def test_requests_are_shared_by_weight_and_an_instance_that_dies_is_left_out(launch: Launch) -> None:
    """Weights 3 and 1; then one dies: after its few failures all go to the other."""
    heavy, light = Origin().start(quiet_port()), Origin().start(quiet_port())

    def change(gateway: Gateway) -> None:
        both = backend("both", heavy.port, light.port, health_check_interval_ms=300)
        both["instances"][0]["weight"] = 3
        gateway.settings["backends"].append(both)
        gateway.settings["routes"].append(route("both", "/both/*", "both"))

    try:
        gateway = launch(change)
        with gateway.client() as client:
            for _ in range(40):
                assert client.request("GET", "/both/x").status == 200
        assert (len(heavy.seen), len(light.seen)) == (30, 10)
        heavy.stop()
        statuses = [gateway.ask("POST", "/both/x", body=b"1").status for _ in range(30)]
        assert statuses.count(502) <= 3 and set(statuses[-10:]) == {200}
    finally:
        heavy.remove()
        light.remove()


def test_an_idle_connection_that_the_backend_closed_costs_no_request(launch: Launch) -> None:
    """GET and POST alike after the backend was restarted: found dead before they are used, or safely repeated."""
    mortal = Origin().start(quiet_port())

    def change(gateway: Gateway) -> None:
        gateway.settings["backends"].append(backend("mortal", mortal.port, min_connections=0))
        gateway.settings["routes"].append(route("mortal", "/mortal/*", "mortal"))

    try:
        gateway = launch(change)
        for method in ("GET", "POST", "PUT", "DELETE") * 3:
            assert gateway.ask(method, "/mortal/x", body=b"" if method != "GET" else None).status == 200
            mortal.stop()
            mortal.start()
        assert len(mortal.seen) == 12
    finally:
        mortal.remove()


def test_a_post_on_a_connection_that_dies_is_never_sent_twice(gateway: Gateway, origin: Origin) -> None:
    """The backend takes the request and closes: 502 once for POST; a GET on a reused connection may be repeated."""

    async def closes(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_body(seen, reader)
        writer.close()

    origin.on("/pub/closes", closes)
    for method, most in (("POST", 1), ("PUT", 1), ("DELETE", 1), ("GET", 2)):
        gateway.ask("GET", "/pub/x")
        tag = uuid.uuid4().hex
        reply = gateway.ask(method, "/pub/closes", ("X-Tag", tag))
        assert (reply.status, reply.json()["error"]) == (502, "bad_gateway")
        assert 1 <= len(origin.tagged(tag)) <= most


def test_a_slow_backend_does_not_slow_down_another(launch: Launch, origin: Origin) -> None:
    """One backend with all its connections busy and a queue; the other's latency stays."""
    other = Origin().start(quiet_port())

    def change(gateway: Gateway) -> None:
        gateway.settings["backends"].append(backend("busy", other.port, max_connections=2))
        gateway.settings["routes"].append(route("busy", "/busy/*", "busy", timeout_ms=1000))

    try:
        gateway = launch(change)
        with Load(gateway.http, clients=1, target="/pub/x") as load:
            load.wait_for(200)
        normal_s = median([one.took_s for one in load.outcomes])
        with (
            Load(gateway.http, clients=6, target="/busy/x?delay_ms=500") as stuck,
            Load(gateway.http, clients=1, target="/pub/x") as load,
        ):
            load.wait_for(200)
        assert load.failed() == []
        assert median([one.took_s for one in load.outcomes]) < normal_s * 2 + 0.001
        assert stuck.failed(200, 504) == []
        gateway.until(gateway.quiet, 3)
    finally:
        other.remove()
