"""What the access log says of each way to fail behind the gateway: which instance, which attempt, why."""

import asyncio
import resource
import socket
import threading
import time
import uuid
from pathlib import Path

import pytest

from tests.e2e.client import Client
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, Settings, backend, quiet_port, route
from tests.e2e.origin import Origin, Script, Seen, read_body


def saying(data: bytes, then: str = "close") -> Script:
    """Reads the request, says `data`, and closes, or resets."""

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_body(seen, reader)
        writer.write(data)
        if data:
            await writer.drain()
            await asyncio.sleep(0.1)
        if then == "reset":
            writer.transport.abort()
        else:
            writer.close()

    return script


def entry_of(gateway: Gateway, target: str, *, method: str = "GET") -> Settings:
    """The log entry of one request on a connection of its own, whatever comes of it."""
    tag = f"log-{uuid.uuid4().hex}"
    with gateway.client() as client:
        try:
            client.request(method, target, [("X-Request-ID", tag)], None if method == "GET" else b"x")
        except Exception:  # noqa: S110  a cut answer is an answer here
            pass
    return gateway.entry(tag)


@pytest.mark.parametrize(
    ("said", "then", "reason", "message"),
    [
        (b"", "close", "connection_reset", "the backend closed before its answer"),
        (b"", "reset", "connection_reset", "the backend closed before its answer"),
        (b"garbage\r\n\r\n", "close", "invalid_response", ""),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "close", "truncated_response", "in the middle"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf", "reset", "truncated_response", "in the middle"),
    ],
)
def test_an_answer_that_is_none_is_named_with_its_instance(
    gateway: Gateway, origin: Origin, said: bytes, then: str, reason: str, message: str
) -> None:
    path = f"/pub/bad-{uuid.uuid4().hex}"
    origin.on(path, saying(said, then))
    found = entry_of(gateway, path, method="POST")
    assert (found["error_type"], found["backend_instance"]) == (reason, f"127.0.0.1:{origin.port}")
    assert found["error_message"].startswith("attempt 1 of 1: ") and message in found["error_message"]
    assert found["status"] == (200 if reason == "truncated_response" else 502)
    assert found["upstream_latency_ms"] is not None


def test_a_refused_connection_is_named_with_its_instance(gateway: Gateway) -> None:
    found = entry_of(gateway, "/dead/x")
    assert (found["status"], found["error_type"]) == (502, "connection_refused")
    assert found["backend_instance"].startswith("127.0.0.1:")
    assert found["error_message"] == "attempt 1 of 1: Connection refused"


def test_an_address_that_leads_nowhere_is_named_too(launch: Launch) -> None:
    """No way to it (multicast has no TCP), and a name without an address."""

    def change(gateway: Gateway) -> None:
        for name, host in (("nowhere", "224.0.0.1"), ("nameless", "no-such-host.invalid")):
            gateway.settings["backends"].append(backend(name, 9) | {"instances": [{"host": host, "port": 9}]})
            gateway.settings["routes"].append(route(name, f"/{name}/*", name))

    gateway = launch(change)
    for name, reason, instance in (
        ("nowhere", "unreachable", "224.0.0.1:9"),
        ("nameless", "unresolved", "no-such-host.invalid:9"),
    ):
        found = entry_of(gateway, f"/{name}/x")
        assert (found["status"], found["error_type"], found["backend_instance"]) == (502, reason, instance)
        assert found["error_message"].startswith("attempt 1 of 1: ")


def test_a_replay_is_seen_in_the_log_and_in_the_metrics_whether_it_helped_or_not(launch: Launch) -> None:
    """The first attempt met a connection that the backend closed as it came."""
    mortal = Origin().start(quiet_port())

    def change(gateway: Gateway) -> None:
        gateway.settings["backends"].append(backend("mortal", mortal.port))
        gateway.settings["routes"].append(route("mortal", "/mortal/*", "mortal"))

    times = 0

    async def closes(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal times
        times += 1
        if times != 2:
            writer.close()
        else:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    mortal.on("/mortal/closes", closes)
    try:
        gateway = launch(change)
        assert gateway.ask("GET", "/mortal/x").status == 200
        helped = entry_of(gateway, "/mortal/closes")
        assert (helped["status"], helped["error_type"]) == (200, None)
        assert helped["error_message"] == (
            "attempt 2 of 2: answered; attempt 1: connection_reset: the backend closed before its answer"
        )
        assert gateway.metric("upstream_failures_total", backend="mortal", reason="connection_reset") == 1
        assert gateway.ask("GET", "/mortal/x").status == 200
        in_vain = entry_of(gateway, "/mortal/closes")
        assert (in_vain["status"], in_vain["error_type"]) == (502, "connection_reset")
        assert in_vain["error_message"].startswith("attempt 2 of 2: ")
        assert gateway.metric("upstream_failures_total", backend="mortal", reason="connection_reset") == 3
        never = entry_of(gateway, "/mortal/closes", method="POST")
        assert never["error_message"].startswith("attempt 1 of 1: ")
    finally:
        mortal.remove()


def test_who_waited_for_a_place_in_vain_is_no_timeout_of_the_instance(launch: Launch, origin: Origin) -> None:
    """pool_full: the instance did not have the request."""

    def narrow(gateway: Gateway) -> None:
        gateway.settings["backends"].append(backend("narrow", origin.port, max_connections=1))
        gateway.settings["routes"].append(route("narrow", "/narrow/*", "narrow", timeout_ms=300))

    gateway = launch(narrow)
    with gateway.client() as busy:
        busy.send(b"GET /narrow/x?delay_ms=900 HTTP/1.1\r\nHost: gw.test\r\n\r\n")
        gateway.until(lambda: gateway.metric("upstream_connections", backend="narrow", state="busy") == 1)
        found = entry_of(gateway, "/narrow/x")
    assert (found["status"], found["error_type"], found["backend_instance"]) == (504, "pool_full", None)
    assert found["error_message"] == "all 1 connections stayed busy for 300 ms"
    gateway.until(gateway.quiet, 3)


@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_leaves_is_logged_with_what_it_waited_for(
    gateway: Gateway, origin: Origin, started: bool
) -> None:
    """499 before the answer; after its head the status that it saw."""
    path, tag = f"/pub/left-{uuid.uuid4().hex}", f"left-{uuid.uuid4().hex}"
    asked, go_on = threading.Event(), threading.Event()

    async def script(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if started:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhalf")
        asked.set()
        while not go_on.is_set():
            await asyncio.sleep(0.01)
        if not started:
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")

    origin.on(path, script)
    client = gateway.client()
    client.send(b"GET %b HTTP/1.1\r\nHost: gw.test\r\nX-Request-ID: %b\r\n\r\n" % (path.encode(), tag.encode()))
    assert asked.wait(5)
    if started:
        client.sock.recv(10)
    client.sock.close()
    found = gateway.entry(tag)
    go_on.set()
    assert (found["status"], found["error_type"]) == (200 if started else 499, "client_gone")
    assert found["backend_instance"] == f"127.0.0.1:{origin.port}"
    assert found["error_message"] == (
        "the client left in the middle of its answer" if started else "the client left before its answer"
    )


def test_out_of_descriptors_the_gateway_blames_itself_and_goes_on(launch: Launch, origin: Origin) -> None:
    """503 gateway_exhausted on connections that are there; no instance goes out; clients that come later are served."""

    def change(gateway: Gateway) -> None:
        gateway.settings["backends"] += [
            backend("unasked", origin.port, health_check_interval_ms=200, unhealthy_after=1),
        ]
        gateway.settings["routes"].append(route("unasked", "/unasked/*", "unasked"))

    gateway = launch(change)
    assert gateway.process is not None
    pid = gateway.process.pid
    clients = [gateway.client() for _ in range(3)]
    for client in clients:
        assert client.request("GET", "/pub/x").status == 200
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    fds = sorted(int(one.name) for one in Path(f"/proc/{pid}/fd").iterdir())
    free = next(number for number in range(len(fds) + 1) if number not in fds)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free, hard))  # not one more
    try:
        tag = f"full-{uuid.uuid4().hex}"
        reply = clients[0].request("GET", "/unasked/x", [("X-Request-ID", tag)])
        assert (reply.status, reply.json()["error"], reply.get("Retry-After")) == (503, "service_unavailable", "1")
        assert clients[1].request("GET", "/pub/x").status == 200, "a connection that is there serves"
        waiting = socket.create_connection(("127.0.0.1", gateway.http))  # in the backlog
        time.sleep(0.8)  # several health checks that cannot be made
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))
    waiting.close()
    found = gateway.entry(tag)
    assert (found["error_type"], found["error_message"]) == ("gateway_exhausted", "attempt 1 of 1: Too many open files")
    with Client(gateway.http, timeout_s=5) as late:
        assert late.request("GET", "/unasked/x").status == 200
    (instance,) = gateway.status()["backends"]["unasked"]["instances"]
    assert (instance["up"], instance["failures"], instance["why"]) == (True, 0, None)
    assert "cannot accept connections: [Errno 24]" in gateway.output.read_text()
    for client in clients:
        client.sock.close()
