"""Bounds in time, size and number, each against a client that goes beyond it."""

import socket
import threading
import time

import pytest

from tests.e2e.client import Closed, Response
from tests.e2e.conftest import Change, Launch
from tests.e2e.gateway import Gateway, protected, route
from tests.e2e.identity import bearer
from tests.e2e.origin import Origin


def _limits(**limits: float) -> Change:
    def change(gateway: Gateway) -> None:
        gateway.settings["limits"] = limits

    return change


@pytest.mark.parametrize("tls", [False, True])
def test_headers_that_come_a_byte_at_a_time_end_with_408(launch: Launch, tls: bool) -> None:
    """The deadline is for all of them, however many bytes come meanwhile."""
    gateway = launch(_limits(header_timeout_seconds=1))
    with gateway.tls_client() if tls else gateway.client() as client:
        began_s = time.monotonic()
        client.send(b"GET /pub/x HTTP/1.1\r\nHost: gw.test\r\nX-Slow: ")
        client.sock.settimeout(0.1)
        while not client.buffered:
            try:
                client.buffered = client.sock.recv(65_536)
            except TimeoutError:
                client.send(b"x")
            assert time.monotonic() - began_s < 3
        assert 0.9 < time.monotonic() - began_s < 1.5
        client.sock.settimeout(3)
        reply = client.response()
        assert (reply.status, reply.json()["error"]) == (408, "request_timeout")
        assert reply.get("Connection") == "close" and client.rest() == b""
    entry = gateway.entry(reply.get("X-Request-ID"))
    assert entry["status"] == 408 and entry["error_type"] == "request_timeout" and entry["method"] is None
    assert gateway.metric("requests_total", route="parser", status="408") == 1


def test_a_connection_that_says_nothing_is_closed_silently(launch: Launch) -> None:
    """No request, no answer, no log entry."""
    gateway = launch(_limits(header_timeout_seconds=0.5))
    with gateway.client() as client:
        began_s = time.monotonic()
        assert client.ended(3)
        assert 0.4 < time.monotonic() - began_s < 1.0
    assert gateway.entries() == []


def test_a_body_that_stalls_ends_with_408_and_never_looks_whole(launch: Launch, origin: Origin) -> None:
    """A byte now and then is no progress; held or streamed already; the backend sees a cut request or none."""
    gateway = launch(_limits(body_timeout_seconds=0.5))
    for already, tag in ((10, "stall-held"), (100_000, "stall-streamed")):
        with gateway.client() as client:
            client.send(b"POST /pub/x HTTP/1.1\r\nHost: gw.test\r\nX-Tag: %b\r\n" % tag.encode())
            client.send(b"Content-Length: 200000\r\n\r\n" + b"b" * already)
            began_s = time.monotonic()
            client.sock.settimeout(0.1)
            while not client.buffered and time.monotonic() - began_s < 3:
                try:
                    client.buffered = client.sock.recv(65_536)
                except TimeoutError:
                    client.send(b"b")
            client.sock.settimeout(3)
            reply = client.response("POST")
            assert (reply.status, reply.json()["error"]) == (408, "request_timeout")
            assert time.monotonic() - began_s < 1.6
        assert all(seen.body is None for seen in origin.tagged(tag))


def test_an_idle_connection_is_closed_after_the_keepalive_timeout(launch: Launch) -> None:
    """Without a word; a request within the time restarts it."""
    gateway = launch(_limits(keepalive_timeout_seconds=0.5))
    with gateway.tls_client() as client:
        for _ in range(3):
            time.sleep(0.3)
            assert client.request("GET", "/pub/x").status == 200
        began_s = time.monotonic()
        assert client.ended(3)
        assert 0.4 < time.monotonic() - began_s < 1.2


def test_a_client_that_reads_nothing_is_cut_and_costs_no_memory(launch: Launch) -> None:
    """A 50 MB answer that nobody takes: cut after body_timeout without progress, memory flat meanwhile."""
    gateway = launch(_limits(body_timeout_seconds=1))
    gateway.ask("GET", "/pub/warm?bytes=1000000")
    before = gateway.rss_bytes()
    with gateway.client(receive_buffer_bytes=8192) as client:
        client.send(b"GET /pub/x?bytes=50000000 HTTP/1.1\r\nHost: gw.test\r\n\r\n")
        began_s = time.monotonic()
        gateway.until(lambda: gateway.metric("in_flight_requests") == 1)
        most = 0
        while gateway.metric("in_flight_requests"):
            most = max(most, gateway.rss_bytes() - before)
            time.sleep(0.1)
            assert time.monotonic() - began_s < 5
        assert 0.9 < time.monotonic() - began_s < 3
        assert most < 4 << 20
    gateway.until(lambda: len(gateway.entries()) == 2, 3)
    entry = gateway.entries()[1]
    assert entry["error_type"] and entry["response_bytes"] < 50_000_000


def test_a_client_that_reads_slowly_but_reads_is_served(launch: Launch) -> None:
    """200 KB/s for four times body_timeout: progress is progress, however much the kernel would buffer."""
    gateway = launch(_limits(body_timeout_seconds=1))
    with gateway.client() as client:
        client.send(b"GET /pub/x?bytes=8000000 HTTP/1.1\r\nHost: gw.test\r\n\r\n")
        got, began_s = 0, time.monotonic()
        while got < 8_000_000:
            piece = client.sock.recv(10_000 if time.monotonic() - began_s < 4 else 262_144)
            assert piece, f"cut after {got} bytes and {time.monotonic() - began_s:.1f} s"
            got += len(piece)
            if time.monotonic() - began_s < 4:
                time.sleep(0.05)


def test_more_connections_than_allowed_are_closed_at_once(launch: Launch) -> None:
    """max_connections, and max_connections_per_ip; those that are in stay; a place that is free is given again."""
    for name in ("max_connections", "max_connections_per_ip"):
        gateway = launch(_limits(**{name: 5}))
        inside = [gateway.client() for _ in range(5)]
        for client in inside:
            assert client.request("GET", "/pub/x").status == 200
        with pytest.raises((OSError, Closed)), gateway.client(timeout_s=2) as client:
            client.request("GET", "/pub/x")
        assert inside[0].request("GET", "/pub/x").status == 200
        inside.pop().close()
        gateway.until(lambda: gateway.metric("connections") == 4)
        with gateway.client() as client:
            assert client.request("GET", "/pub/x").status == 200
        for client in inside:
            client.close()


def test_connections_in_a_tls_handshake_count_too(launch: Launch) -> None:
    """Else a handshake that never ends would be the way around the limit."""
    gateway = launch(_limits(max_connections_per_ip=3))
    mute = [socket.create_connection(("127.0.0.1", gateway.https), 2) for _ in range(3)]
    gateway.until(lambda: gateway.metric("connections") == 3)
    with pytest.raises((OSError, Closed)), gateway.client(timeout_s=2) as client:
        client.request("GET", "/pub/x")
    for one in mute:
        one.close()
    gateway.until(lambda: gateway.metric("connections") == 0)


def test_more_requests_in_flight_than_allowed_are_refused(launch: Launch) -> None:
    """503 overloaded with Retry-After at once; those in flight are answered."""

    def change(gateway: Gateway) -> None:
        gateway.settings["gateway"]["max_in_flight"] = 3

    gateway = launch(change)
    replies: list[Response] = []
    threads = [
        threading.Thread(target=lambda: replies.append(gateway.ask("GET", "/pub/x?delay_ms=700"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    gateway.until(lambda: gateway.metric("in_flight_requests") == 3)
    reply = gateway.ask("GET", "/pub/x")
    assert (reply.status, reply.json()["error"]) == (503, "overloaded")
    assert int(reply.get("Retry-After") or 0) >= 1 and int(reply.get("X-Response-Time-Ms") or 999) < 100
    entry = gateway.entry(reply.get("X-Request-ID"))
    assert (entry["error_type"], entry["error_message"]) == ("shed", "P1, more than 3 requests in flight")
    assert gateway.ask("GET", "/healthz").status == 200
    for thread in threads:
        thread.join(5)
    assert [reply.status for reply in replies] == [200] * 3
    assert gateway.ask("GET", "/pub/x").status == 200


def test_a_refused_body_is_not_read_as_the_next_request(launch: Launch) -> None:
    """413, and a request hidden in the body never reaches the backend, on TCP and TLS."""

    def change(gateway: Gateway) -> None:
        gateway.settings["routes"].append(route("small", "/small/*", max_body_bytes=10))
        gateway.settings["routes"].append(protected("locked", "/locked/*"))

    gateway = launch(change)
    hidden = b"GET /pub/hidden HTTP/1.1\r\nHost: gw.test\r\n\r\n"
    for connect in (gateway.client, gateway.tls_client):
        for target, status in ((b"/small/x", 413), (b"/locked/x", 401), (b"/nowhere", 404)):
            with connect() as client:
                client.send(b"POST %b HTTP/1.1\r\nHost: gw.test\r\nContent-Length: 5000\r\n\r\n" % target)
                assert client.response("POST").status == status
                try:
                    client.send(hidden)
                    assert b"200 OK" not in client.rest()
                except OSError:
                    pass
    assert [entry for entry in gateway.entries() if entry["path"] == "/pub/hidden"] == []


def test_a_good_token_does_not_widen_the_limits(launch: Launch) -> None:
    """A header block just below the limit passes, just above it is 431."""
    gateway = launch()
    name, value = bearer()
    for size, status in ((8192, 200), (8193, 431)):
        head = f"GET /api/x HTTP/1.1\r\nHost: gw.test\r\n{name}: {value}\r\nX-Fill: "
        with gateway.client() as client:
            client.send(head.encode() + b"f" * (size - len(head) - 4) + b"\r\n\r\n")
            assert client.response().status == status
