"""A backend that fails is left alone, tried, and given its traffic back; the others do not notice. Times are scaled."""

import asyncio
import contextlib
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import pytest

from tests.e2e.client import Client, head
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, backend, quiet_port, route
from tests.e2e.limited import Limited
from tests.e2e.load import Load
from tests.e2e.origin import Origin, Seen
from tests.e2e.queued import Queued

QUICK = {"window_seconds": 4, "min_requests": 10, "open_seconds": 1, "recovery_seconds": 3}


class Patient:
    """A backend whose path /sick/x answers with `status`, and holds its answer while `held`."""

    def __init__(self) -> None:
        self.origin = Origin().start(quiet_port())
        self.status = 200
        self.asked = 0
        self.let_go = threading.Event()
        self.let_go.set()
        self.origin.on("/sick/x", self._script)

    async def _script(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        while not self.let_go.is_set():
            await asyncio.sleep(0.01)
        writer.write(b"HTTP/1.1 %d Said\r\nContent-Length: 2\r\n\r\nok" % self.status)


@pytest.fixture
def patient() -> Iterator[Patient]:
    patient = Patient()
    try:
        yield patient
    finally:
        patient.let_go.set()
        patient.origin.remove()


def sick(launch: Launch, patient: Patient, **breaker: Any) -> Gateway:
    """A gateway with the patient behind /sick/x, and behind /free/x for a route without circuit breaker."""

    def change(gateway: Gateway) -> None:
        gateway.settings["circuit_breaker"] = QUICK
        gateway.settings["backends"].append(backend("patient", patient.origin.port, circuit_breaker=breaker))
        guarded = {"circuit_breaker": True, "timeout_ms": 2000}
        gateway.settings["routes"] += [
            route("sick", "/sick/*", "patient", **guarded),
            route("free", "/free/*", "patient", strip_prefix="/free"),
        ]

    return launch(change)


def ask(gateway: Gateway, count: int, target: str = "/sick/x") -> list[int]:
    """One after another, on one connection."""
    with gateway.client() as client:
        return [client.request("GET", target).status for _ in range(count)]


def circuit(gateway: Gateway) -> dict[str, Any]:
    found: dict[str, Any] = gateway.status()["backends"]["patient"]["circuit"]
    return found


def test_a_500_for_uploads_that_stand_still_closes_nothing_to_the_others(launch: Launch, patient: Patient) -> None:
    """An application whose read of the body fails may say so."""

    async def failing(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1.5):
                await reader.readexactly(int(seen.get("Content-Length") or 0))
        writer.write(b"HTTP/1.1 500 Oh\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops")
        await writer.drain()
        writer.close()

    gateway = sick(launch, patient)
    patient.origin.on("/sick/failing", failing)
    with ExitStack() as stack:
        slow = [stack.enter_context(gateway.client(timeout_s=20)) for _ in range(12)]
        for client in slow:
            client.send(head("POST", "/sick/failing", [("Content-Length", "200000")], None) + b"x" * 100_000)
        assert [client.response("POST").status for client in slow] == [500] * len(slow)
    assert circuit(gateway)["state"] == "closed" and ask(gateway, 1) == [200]


@pytest.mark.parametrize("method", ["GET", "POST"])
def test_a_backend_that_has_had_enough_of_slow_clients_is_not_closed_to_the_others(
    launch: Launch, patient: Patient, method: str
) -> None:
    """Servers give up an upload that stands still, and an answer that is not taken."""
    gave_up: list[str] = []

    async def impatient(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            async with asyncio.timeout(1.5):
                await reader.readexactly(int(seen.get("Content-Length") or 0))
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 30000000\r\n\r\n" + b"x" * 30_000_000)
                await writer.drain()
        except TimeoutError:
            writer.transport.abort()
            gave_up.append(seen.method)

    gateway = sick(launch, patient)
    patient.origin.on("/sick/impatient", impatient)
    length = [("Content-Length", "200000")] if method == "POST" else []
    failures = {"backend": "patient", "reason": "connection_reset" if method == "POST" else "truncated_response"}
    with ExitStack() as stack:
        slow = [stack.enter_context(gateway.client()) for _ in range(12)]
        for client in slow:
            client.send(head(method, "/sick/impatient", length, None) + b"x" * 100_000 * len(length))
        gateway.until(lambda: len(gave_up) == len(slow), 20)
        if method == "GET":  # what it had sent comes first
            stack.enter_context(ThreadPoolExecutor(len(slow))).map(_take_all, slow)
        gateway.until(lambda: gateway.metric("upstream_failures_total", **failures) == len(slow), 20)
        assert circuit(gateway)["state"] == "closed"
        assert ask(gateway, 1) == [200]


def _take_all(client: Client) -> None:
    with contextlib.suppress(OSError):
        while client.sock.recv(65_536):
            pass


def test_it_opens_is_probed_ramps_and_closes(launch: Launch, patient: Patient) -> None:
    gateway = sick(launch, patient)
    assert ask(gateway, 8) == [200] * 8
    patient.status = 500
    assert ask(gateway, 10) == [500] * 9 + [503]
    assert circuit(gateway)["state"] == "open"
    asked = patient.asked
    reply = gateway.ask("GET", "/sick/x")
    assert reply.status == 503 and reply.get("Retry-After") == "1"
    assert (reply.json()["error"], reply.json()["backend"]) == ("service_unavailable", "patient")
    entry = gateway.entry(reply.get("X-Request-ID"))
    assert (entry["error_type"], entry["backend_instance"]) == ("circuit_open", None)
    assert entry["error_message"].startswith("circuit open for another")
    assert patient.asked == asked, "what is refused does not touch the backend"
    assert gateway.metric("circuit_state", backend="patient") == 2
    assert gateway.metric("upstream_failures_total", backend="patient", reason="circuit_open") == 2
    assert ask(gateway, 1, "/free/sick/x") == [500], "a route without circuit breaker"
    with gateway.client() as client:
        client.send(head("POST", "/sick/x", [("Content-Length", "1000"), ("Expect", "100-continue")]))
        assert client.rest().startswith(b"HTTP/1.1 503 "), "no upload is asked for"

    patient.status = 200
    gateway.until(lambda: gateway.metric("circuit_state", backend="patient") == 1, 3)
    began_s = time.monotonic()
    assert ask(gateway, 2) == [200, 200]
    shares = {0.1: [0, 0], 0.25: [0, 0], 0.5: [0, 0]}
    with gateway.client() as client:
        while time.monotonic() - began_s < 2.95:
            step = min(2, int(time.monotonic() - began_s))
            status = client.request("GET", "/sick/x").status
            counts = list(shares.values())[step]
            counts[0] += 1
            counts[1] += status == 200
            time.sleep(0.004)
    for share, (total, good) in shares.items():  # a step's end is seen with some delay
        assert share * 0.8 - 0.02 < good / total < share * 1.2 + 0.03, shares
    gateway.until(lambda: gateway.metric("circuit_state", backend="patient") == 0, 3)
    assert ask(gateway, 20) == [200] * 20
    assert gateway.metric("circuit_openings_total", backend="patient") == 1
    said = [line for line in gateway.output.read_text().splitlines() if "patient: circuit" in line]
    states = [line.split("circuit ")[1].split(",")[0] for line in said]
    assert states == ["open", "half open", "recovering", "closed"], said


def test_one_probe_at_a_time_and_a_bad_one_opens_it_again(launch: Launch, patient: Patient) -> None:
    gateway = sick(launch, patient)
    patient.status = 500
    ask(gateway, 10)
    gateway.until(lambda: circuit(gateway)["state"] == "half_open", 3)
    patient.let_go.clear()
    asked = patient.asked
    with gateway.client() as probe:
        probe.send(b"GET /sick/x HTTP/1.1\r\nHost: gw.test\r\n\r\n")
        gateway.until(lambda: patient.asked == asked + 1)
        began_s = time.monotonic()
        assert ask(gateway, 20) == [503] * 20
        assert time.monotonic() - began_s < 1.5, "at once, not behind the probe"
        assert patient.asked == asked + 1
        patient.let_go.set()
        assert probe.response().status == 500
    assert circuit(gateway)["state"] == "open"
    assert gateway.metric("circuit_openings_total", backend="patient") == 1


def test_a_probe_that_times_out_opens_it_again(launch: Launch, patient: Patient) -> None:
    """Also while other clients ask all the time, and the moment of the timeout is everybody's."""
    gateway = sick(launch, patient)
    patient.status = 500
    ask(gateway, 10)
    patient.let_go.clear()
    asked = patient.asked
    with Load(gateway.http, clients=4, target="/sick/x", pause_s=0.002) as load:
        gateway.until(lambda: patient.asked > asked, 4)
        gateway.until(lambda: circuit(gateway)["state"] == "open", 5)
        assert patient.asked == asked + 1
        gateway.until(lambda: 504 in [outcome.status for outcome in load.outcomes], 1)
    patient.let_go.set()


def test_a_probe_whose_client_leaves_makes_room_for_the_next(launch: Launch, patient: Patient) -> None:
    gateway = sick(launch, patient)
    patient.status = 500
    ask(gateway, 10)
    gateway.until(lambda: circuit(gateway)["state"] == "half_open", 3)
    patient.let_go.clear()
    asked = patient.asked
    with gateway.client() as probe:
        probe.send(b"GET /sick/x HTTP/1.1\r\nHost: gw.test\r\n\r\n")
        gateway.until(lambda: patient.asked == asked + 1)
    gateway.until(lambda: gateway.metric("in_flight_requests") == 0)
    patient.status = 200
    patient.let_go.set()
    assert ask(gateway, 2) == [200, 200]
    assert circuit(gateway)["state"] == "recovering"


def test_failures_in_the_ramp_open_it_again(launch: Launch, patient: Patient) -> None:
    gateway = sick(launch, patient, recovery_seconds=60)
    patient.status = 500
    ask(gateway, 10)
    patient.status = 200
    gateway.until(lambda: circuit(gateway)["state"] == "half_open", 3)
    ask(gateway, 2)
    assert circuit(gateway)["state"] == "recovering"
    patient.status = 500
    statuses = ask(gateway, 120)
    assert 10 <= statuses.count(500) <= 12 and circuit(gateway)["opened"] == 2, statuses


def test_timeouts_and_a_backend_that_is_gone_open_it_too(launch: Launch, patient: Patient) -> None:
    """Its only instance stays in rotation here, so that it is the breaker that refuses."""

    def change(gateway: Gateway) -> None:
        gateway.settings["circuit_breaker"] = QUICK
        gateway.settings["backends"] += [
            backend("patient", patient.origin.port),
            backend("gone", quiet_port(), unhealthy_after=1000),
        ]
        gateway.settings["routes"] += [
            route("sick", "/sick/*", "patient", circuit_breaker=True, timeout_ms=50),
            route("gone", "/gone/*", "gone", circuit_breaker=True),
        ]

    gateway = launch(change)
    patient.let_go.clear()
    assert ask(gateway, 12) == [504] * 10 + [503] * 2
    patient.let_go.set()
    assert ask(gateway, 12, "/gone/x") == [502] * 10 + [503] * 2


def _sent(stack: ExitStack, gateway: Gateway, target: str) -> Client:
    """A connection that has asked."""
    client = stack.enter_context(gateway.client())
    client.send(head("GET", target))
    return client


def test_who_waits_for_a_connection_is_refused_when_it_opens(launch: Launch, patient: Patient) -> None:
    """A backend that hangs: ten requests hold its connections until their timeout; those behind them do not wait on."""

    def change(gateway: Gateway) -> None:
        gateway.settings["circuit_breaker"] = {**QUICK, "open_seconds": 30}
        gateway.settings["backends"].append(backend("patient", patient.origin.port, max_connections=10))
        gateway.settings["routes"] += [
            route("sick", "/sick/*", "patient", circuit_breaker=True, timeout_ms=1000),
            route("slow", "/slow/*", "patient", circuit_breaker=True, timeout_ms=8000, strip_prefix="/slow"),
        ]

    gateway = launch(change)
    patient.let_go.clear()
    with ExitStack() as stack:
        held = [_sent(stack, gateway, "/sick/x") for _ in range(10)]
        gateway.until(lambda: patient.asked == 10)
        began_s = time.monotonic()
        waiting = [_sent(stack, gateway, "/slow/sick/x") for _ in range(20)]
        assert {client.response().status for client in waiting} == {503}
        assert time.monotonic() - began_s < 4
        assert {client.response().status for client in held} == {504}
    assert patient.asked == 10
    patient.let_go.set()


def test_a_backend_that_only_streams_is_got_back(launch: Launch, patient: Patient) -> None:
    """A probe whose answer has begun well is good once its route's timeout is over, though it has not ended."""
    gateway = sick(launch, patient, recovery_seconds=0)
    stop = threading.Event()

    async def stream(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 Said\r\nTransfer-Encoding: chunked\r\n\r\n")
        while not stop.is_set():
            writer.write(b"400\r\n%b\r\n" % (b"x" * 1024))
            await writer.drain()
            await asyncio.sleep(0.05)
        writer.write(b"0\r\n\r\n")

    patient.origin.on("/sick/stream", stream)
    patient.status = 500
    ask(gateway, 10)
    gateway.until(lambda: circuit(gateway)["state"] == "half_open", 3)
    with ExitStack() as stack:
        first = _sent(stack, gateway, "/sick/stream")
        assert first.sock.recv(12) == b"HTTP/1.1 200"
        gateway.until(lambda: _sent(stack, gateway, "/sick/stream").sock.recv(12) == b"HTTP/1.1 200", 6)
        gateway.until(lambda: circuit(gateway)["state"] == "closed", 6)
        stop.set()


def test_settings_and_state_over_a_reload(launch: Launch, patient: Patient) -> None:
    gateway = sick(launch, patient, open_seconds=3600)
    patient.status = 500
    ask(gateway, 10)
    assert int(gateway.ask("GET", "/sick/x").get("Retry-After") or 0) > 3500
    gateway.settings["backends"][-1]["circuit_breaker"] = {"open_seconds": 1}
    gateway.reload()
    assert circuit(gateway)["state"] != "closed"
    gateway.until(lambda: circuit(gateway)["state"] == "half_open", 3)


def test_an_open_circuit_changes_nothing_for_other_backends(launch: Launch, patient: Patient) -> None:
    """Neither errors nor latency, while clients hammer on the one that is open."""
    gateway = sick(launch, patient)
    with Load(gateway.http, clients=2, target="/pub/x", pause_s=0.005) as before:
        before.wait_for(200)
    patient.status = 500
    patient.let_go.clear()
    with Load(gateway.http, clients=4, target="/sick/x", pause_s=0.005) as hammering:
        with Load(gateway.http, clients=2, target="/pub/x", pause_s=0.005) as during:
            during.wait_for(100)
            patient.let_go.set()
            during.wait_for(300)
        assert {outcome.status for outcome in hammering.outcomes} >= {500, 503}
    assert during.failed() == []

    def median_s(load: Load) -> float:
        took = sorted(outcome.took_s for outcome in load.outcomes)
        return took[len(took) // 2]

    assert median_s(during) < 3 * median_s(before) + 0.005  # a busy machine; a backend that hangs holds for 2 s


def test_max_rps_is_held_and_no_other_backend_is_limited(launch: Launch, origin: Origin) -> None:
    def change(gateway: Gateway) -> None:
        gateway.settings["backends"].append(backend("capped", origin.port, max_rps=50))
        gateway.settings["routes"].append(route("capped", "/capped/*", "capped"))

    gateway = launch(change)
    began_s = time.monotonic()
    with Load(gateway.http, clients=4, target="/capped/x", pause_s=0.005) as load:
        load.wait_for(600)
        assert ask(gateway, 50, "/pub/x") == [200] * 50
    took_s = time.monotonic() - began_s
    statuses = [outcome.status for outcome in load.outcomes]
    assert set(statuses) == {200, 503}
    assert 0.9 * 50 * took_s - 5 <= statuses.count(200) <= 1.05 * 50 * took_s + 6
    (reply,) = [outcome.reply for outcome in load.outcomes if outcome.status == 503][:1]
    assert reply is not None and reply.get("Retry-After") == "1" and reply.json()["backend"] == "capped"
    assert gateway.entry(reply.get("X-Request-ID"))["error_type"] == "max_rps"
    assert gateway.status()["backends"]["capped"]["refused_at_max_rps"] == statuses.count(503)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.timeout(150)
def test_a_retry_storm_is_survived_by_one_recovery(launch: Launch) -> None:
    """Clients that never give up queue through an outage; the backend can carry 1.5 times their normal load and
    collapses above it. It recovers once, without opening again, and the queue is served."""
    normal_rps = 20.0
    weak = Limited(quiet_port(), 1.5 * normal_rps)

    def change(gateway: Gateway) -> None:
        settings = {"window_seconds": 3, "min_requests": 10, "open_seconds": 1, "recovery_seconds": 6}
        gateway.settings["backends"].append(backend("weak", weak.port, circuit_breaker=settings))
        gateway.settings["routes"].append(route("weak", "/weak/*", "weak", circuit_breaker=True, timeout_ms=700))

    try:
        gateway = launch(change)
        gateway.until(weak.ready)
        with Queued(gateway.http, "/weak/x", normal_rps) as clients:
            gateway.until(lambda: clients.statuses[200] >= 5 * normal_rps, 20)
            weak.tell("/fail")
            gateway.until(lambda: clients.waiting >= 7 * normal_rps, 30)
            assert gateway.metric("circuit_state", backend="weak") in (1, 2)
            weak.tell("/recover")
            gateway.until(lambda: gateway.metric("circuit_state", backend="weak") == 3, 10)
            gateway.until(lambda: gateway.metric("circuit_state", backend="weak") == 0, 90)
            assert clients.waiting < 2 * normal_rps, "the queue is served when it closes"
            gateway.until(lambda: clients.waiting < normal_rps, 10)
            assert gateway.metric("circuit_openings_total", backend="weak") == 1
    finally:
        weak.remove()
