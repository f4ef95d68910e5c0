"""Instances that come from registries: the real daemon with a real etcd and a real name server, under load."""

import asyncio
import json
import signal
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.dnsmasq import NameServer, name_server
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, Settings, quiet_port, route
from tests.e2e.load import Load, median
from tests.e2e.origin import Origin, Seen
from tests.etcd import EtcdServer, etcd_server

PREFIX = "/services/orders/"
SRV = "_http._tcp.orders.test"


@pytest.fixture
def etcd() -> Iterator[EtcdServer]:
    with etcd_server() as server:
        yield server


@pytest.fixture
def dns() -> Iterator[NameServer]:
    with name_server() as server:
        yield server


@pytest.fixture
def origins() -> Iterator[list[Origin]]:
    """Three instances of the backend `orders`."""
    made = [Origin().start() for _ in range(3)]
    yield made
    for one in made:
        one.remove()


def register(etcd: EtcdServer, *origins: Origin) -> None:
    for origin in origins:
        etcd.put(f"{PREFIX}{origin.port}", {"host": "127.0.0.1", "port": origin.port})


def discovering(discovery: Settings, **more: Any) -> Callable[[Gateway], None]:
    """A backend `orders` with this discovery, and a route /orders/*."""

    def change(gateway: Gateway) -> None:
        orders = {"name": "orders", "discovery": discovery, "health_check_interval_ms": 300, "slow_start_seconds": 0}
        gateway.settings["backends"].append(orders | more)
        gateway.settings["routes"].append(route("orders", "/orders/*", "orders"))

    return change


def alone(discovery: Settings) -> Callable[[Gateway], None]:
    """`orders` and no other backend."""

    def change(gateway: Gateway) -> None:
        gateway.settings["backends"], gateway.settings["routes"] = [], []
        discovering(discovery)(gateway)

    return change


def at(etcd: EtcdServer) -> Settings:
    return {"type": "etcd", "service": "orders", "endpoints": [etcd.url]}


def instances(gateway: Gateway) -> list[str]:
    return sorted(each["instance"] for each in gateway.status()["backends"]["orders"]["instances"])


def discovery_of(gateway: Gateway) -> Settings:
    found: Settings = gateway.status()["backends"]["orders"]["discovery"]
    return found


def has(gateway: Gateway, *origins: Origin, timeout_s: float = 10.0) -> None:
    wanted = sorted(f"127.0.0.1:{origin.port}" for origin in origins)
    gateway.until(lambda: instances(gateway) == wanted, timeout_s)


def load(gateway: Gateway, **more: Any) -> Load:
    return Load(gateway.http, target="/orders/x", clients=4, pause_s=0.002, **more)


def assert_nothing_lost(load: Load, *origins: Origin) -> None:
    """Every request has its answer, and reached one instance, once."""
    assert load.failed() == [] and load.connects_refused == 0
    for one in load.outcomes:
        assert sum(len(origin.tagged(one.tag)) for origin in origins) == 1, one


def test_instances_come_and_go_under_load_and_no_request_is_lost(
    launch: Launch, etcd: EtcdServer, origins: list[Origin]
) -> None:
    first, second, third = origins
    register(etcd, first)
    gateway = launch(discovering(at(etcd)))
    has(gateway, first)
    with load(gateway) as clients:
        clients.wait_for(50)
        register(etcd, second, third)
        has(gateway, *origins)
        before = second.connections, third.connections
        clients.wait_for(100)
        assert second.connections and third.connections, before
        etcd.delete(f"{PREFIX}{first.port}")
        has(gateway, second, third)
        reached = len(first.seen)
        clients.wait_for(100)
        assert len([seen for seen in first.seen[reached:] if seen.get("X-Tag")]) <= 4, "those that were under way"
        for _ in range(5):  # back and forth as fast as it goes
            register(etcd, first)
            etcd.delete(f"{PREFIX}{second.port}")
            clients.wait_for(20)
            register(etcd, second)
            etcd.delete(f"{PREFIX}{first.port}")
            clients.wait_for(20)
    assert_nothing_lost(clients, *origins)
    assert gateway.metric("registry_up") == gateway.metric("discovery_up", backend="orders", type="etcd") == 1


def test_instances_of_dns_come_and_go_under_load_too(launch: Launch, dns: NameServer, origins: list[Origin]) -> None:
    """The name server is restarted for each change: its absence is not seen either."""
    first, second, third = origins

    def records(*which: Origin) -> list[str]:
        return [f"srv-host={SRV},host.test,{origin.port},10,1" for origin in which] + [
            "host-record=host.test,127.0.0.1"
        ]

    dns.restart(*records(first))
    gateway = launch(discovering({"type": "dns", "service": SRV, "nameservers": [dns.address]}))
    has(gateway, first)
    with load(gateway) as clients:
        clients.wait_for(50)
        dns.restart(*records(*origins))
        has(gateway, *origins)
        clients.wait_for(50)
        dns.restart(*records(second, third))
        has(gateway, second, third)
        clients.wait_for(50)
    assert_nothing_lost(clients, *origins)


def test_a_registry_that_dies_under_load_is_not_noticed_by_a_request(
    launch: Launch, etcd: EtcdServer, origins: list[Origin]
) -> None:
    """Its last list serves, ready as before; an instance that dies meanwhile is taken out all the same."""
    first, second, _ = origins
    register(etcd, first, second)
    gateway = launch(alone(at(etcd)))
    has(gateway, first, second)
    with load(gateway) as clients:
        clients.wait_for(50)
        etcd.kill()
        gateway.until(lambda: gateway.metric("registry_up") == 0)
        clients.wait_for(200)
        said = discovery_of(gateway)
        assert (said["up"], said["list"], said["instances"]) == (False, "live", 2) and said["last_error"]
        ready = gateway.page("/readyz")
        check = ready.json()["checks"]["registries"]
        assert ready.status == 200 and not check["ok"] and "its last 2 instances serve" in check["detail"]
    assert_nothing_lost(clients, first, second)
    second.stop()
    gateway.until(lambda: gateway.metric("backend_instance_up", backend="orders") == 1, 10)
    assert [gateway.ask("GET", "/orders/x").status for _ in range(20)] == [200] * 20
    etcd.start()
    register(etcd, origins[2])
    gateway.until(lambda: gateway.metric("registry_up") == 1, 20)
    has(gateway, *origins)


def test_a_restart_with_the_registry_dead_serves_from_the_saved_list(
    launch: Launch, etcd: EtcdServer, origins: list[Origin]
) -> None:
    first, second, _ = origins
    register(etcd, first, second)
    gateway = launch(alone(at(etcd)))
    has(gateway, first, second)
    saved = gateway.work / "discovery" / "orders.json"
    gateway.until(lambda: saved.exists() and len(json.loads(saved.read_text())["instances"]) == 2)
    gateway.stop()
    etcd.kill()
    gateway.start()
    assert gateway.ask("GET", "/orders/x").status == 200, "with the first request"
    said = discovery_of(gateway)
    assert (said["list"], said["instances"]) == ("saved", 2) and said["saved_at"]
    assert gateway.page("/readyz").status == 200
    assert "orders: 2 instances from the list saved before" in gateway.output.read_text()
    etcd.start()
    etcd.delete(f"{PREFIX}{second.port}")
    has(gateway, first, timeout_s=20)
    assert discovery_of(gateway)["list"] == "live"


def test_a_start_without_registry_and_list_is_not_ready_and_says_why(
    launch: Launch, etcd: EtcdServer, origins: list[Origin]
) -> None:
    register(etcd, origins[0])
    etcd.kill()
    gateway = launch(alone(at(etcd)))
    gateway.until(lambda: "down: " in gateway.page("/readyz").body.decode())
    ready = gateway.page("/readyz")
    assert ready.status == 503 and "0 of 1" in ready.json()["checks"]["backends"]["detail"]
    detail = ready.json()["checks"]["registries"]["detail"]
    assert f"orders: etcd {etcd.url} {PREFIX}: down: " in detail and "no instance is known" in detail
    began_s = time.monotonic()
    refused = gateway.ask("GET", "/orders/x")
    assert refused.status == 503 and time.monotonic() - began_s < 1 and refused.get("Retry-After")
    assert refused.json()["backend"] == "orders" and "127.0.0.1" not in refused.body.decode()
    assert gateway.entry(refused.get("X-Request-ID"))["error_type"] == "no_healthy_instance"
    etcd.start()
    gateway.until(lambda: gateway.page("/readyz").status == 200, 20)
    assert gateway.ask("GET", "/orders/x").status == 200


def test_a_reload_gives_a_backend_discovery_and_takes_it_away_under_load(
    launch: Launch, etcd: EtcdServer, origins: list[Origin]
) -> None:
    first, second, third = origins
    register(etcd, second)

    def static(gateway: Gateway) -> None:
        discovering({})(gateway)
        orders = gateway.settings["backends"][-1]
        del orders["discovery"]
        orders["instances"] = [{"host": "127.0.0.1", "port": first.port}]

    gateway = launch(static)
    orders = gateway.settings["backends"][-1]
    etcd.kill()
    with load(gateway) as clients:
        clients.wait_for(50)
        listed = orders.pop("instances")
        orders["discovery"] = at(etcd)
        gateway.reload()
        clients.wait_for(50)
        has(gateway, first)  # the registry is down: what was listed serves on
        etcd.start()
        has(gateway, second, timeout_s=20)
        register(etcd, third)
        has(gateway, second, third)
        clients.wait_for(50)
        del orders["discovery"]
        orders["instances"] = listed
        gateway.reload()
        has(gateway, first)
        register(etcd, first, second)
        clients.wait_for(50)
        has(gateway, first)
    assert_nothing_lost(clients, *origins)
    assert discovery_of(gateway) is None  # type: ignore[comparison-overlap]


@pytest.mark.parametrize("tightened", [{"networks": ["10.0.0.0/8"]}, {"allow_loopback": False}], ids=["net", "lo"])
def test_a_reload_that_allows_less_ends_what_is_not_allowed(
    launch: Launch, etcd: EtcdServer, origin: Origin, tightened: Settings
) -> None:
    """At once, though the registry goes on naming it; what is allowed again comes back."""
    register(etcd, origin)
    gateway = launch(discovering(at(etcd)))
    has(gateway, origin)
    assert gateway.ask("GET", "/orders/x").status == 200
    orders = gateway.settings["backends"][-1]
    orders["discovery"] = at(etcd) | tightened
    gateway.reload()
    assert instances(gateway) == [] and gateway.ask("GET", "/orders/x").status == 503
    gateway.until(lambda: "no usable instance" in str(discovery_of(gateway)["last_error"]), 10)
    assert instances(gateway) == [] and gateway.ask("GET", "/orders/x").status == 503
    orders["discovery"] = at(etcd)
    gateway.reload()
    has(gateway, origin)


def test_a_frozen_registry_holds_up_neither_requests_nor_a_reload_nor_the_end(
    launch: Launch, etcd: EtcdServer, origins: list[Origin]
) -> None:
    register(etcd, origins[0])
    gateway = launch(discovering(at(etcd)))
    has(gateway, origins[0])
    etcd.freeze()
    try:
        with load(gateway) as clients:
            clients.wait_for(50)
            gateway.settings["routes"].append(route("more", "/more/*", "orders"))
            gateway.settings["backends"].append({"name": "other", "discovery": at(etcd) | {"service": "other"}})
            gateway.settings["routes"].append(route("other", "/other/*", "other"))
            gateway.reload()
            assert gateway.ask("GET", "/more/x").status == 200
            assert gateway.ask("GET", "/other/x").status == 503
            clients.wait_for(50)
        assert_nothing_lost(clients, *origins)
        began_s = time.monotonic()
        gateway.signal(signal.SIGTERM)
        assert gateway.wait(10) == 0 and time.monotonic() - began_s < 5
    finally:
        etcd.thaw()


# -- registries that mean no good, played by an origin with Consul's path


PATH = "/v1/health/service/orders"


def entries(*addresses: tuple[str, int]) -> list[Settings]:
    return [{"Node": {"Address": host}, "Service": {"Address": host, "Port": port}} for host, port in addresses]


def whole(body: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nX-Consul-Index: 0\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%b" % (
        len(body),
        body,
    )


async def _hang(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read()


async def _garbage(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(bytes(range(256)) * 20)
    await writer.drain()


async def _flood(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\nX-Consul-Index: 1\r\nContent-Length: 100000000\r\n\r\n")
    for _ in range(100):
        writer.write(b"[" * 1_000_000)
        await writer.drain()


async def _ten_thousand(seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    found = entries(*((f"127.{n // 62_500 + 1}.{n // 250 % 250}.{n % 250 + 1}", 9) for n in range(10_000)))
    writer.write(whole(json.dumps(found).encode()))
    await writer.drain()


class _Flapping:
    """Now this instance, now that one, now an error."""

    def __init__(self, *ports: int) -> None:
        self._ports = ports
        self.asked = 0

    async def __call__(self, seen: Seen, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked += 1
        if self.asked % 3 == 0:
            writer.write(b"HTTP/1.1 500 Oops\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
        else:
            found = entries(("127.0.0.1", self._ports[self.asked % 2]))
            index = b"X-Consul-Index: %d" % self.asked
            writer.write(whole(json.dumps(found).encode()).replace(b"X-Consul-Index: 0", index))
        await writer.drain()


@pytest.mark.parametrize("script", [_hang, _garbage, _flood, _ten_thousand], ids=lambda script: script.__name__[1:])
def test_a_bad_registry_harms_no_other_backend(launch: Launch, script: Any, origin: Origin) -> None:
    """Their requests are answered, as quickly as before, and the memory is bounded."""
    registry = Origin()
    registry.on(PATH, script)
    registry.start()
    discovery = {"type": "consul", "service": "orders", "url": f"http://127.0.0.1:{registry.port}"}
    try:
        gateway = launch(discovering(discovery, health_check_interval_ms=60_000))
        with Load(gateway.http, target="/pub/x", clients=2, pause_s=0.005) as clients:
            gateway.until(lambda: registry.connections >= 1)
            gateway.until(lambda: discovery_of(gateway)["up"] is not None, 20)
            clients.wait_for(300, 30)
        assert clients.failed() == []
        assert median([one.took_s for one in clients.outcomes]) < 0.1
        said = discovery_of(gateway)
        if script is _ten_thousand:
            assert said["up"] and said["instances"] == 1000 and said["skipped"] == {"too_many": 9000}
        else:
            assert said["up"] is False and said["instances"] == 0 and said["last_error"].isprintable()
        assert gateway.rss_bytes() < 250_000_000
        gateway.stop()
    finally:
        registry.remove()


def test_a_registry_that_flaps_loses_no_request(launch: Launch, origins: list[Origin]) -> None:
    registry = Origin()
    script = _Flapping(origins[0].port, origins[1].port)
    registry.on(PATH, script)
    registry.start()
    discovery = {"type": "consul", "service": "orders", "url": f"http://127.0.0.1:{registry.port}"}
    try:
        gateway = launch(discovering(discovery))
        gateway.until(lambda: instances(gateway))
        with load(gateway) as clients:
            began_s, asked = time.monotonic(), script.asked
            gateway.until(lambda: script.asked >= asked + 8, 20)
            clients.wait_for(50)
            assert (script.asked - asked) / (time.monotonic() - began_s) < 6, "asked at a bounded rate"
        assert_nothing_lost(clients, *origins)
    finally:
        registry.remove()


def test_the_gateways_own_admin_listener_cannot_be_published(launch: Launch, etcd: EtcdServer) -> None:
    """By whoever may write into the registry: not here, and not as the metadata of a cloud."""
    gateway = launch(alone(at(etcd)), start=False)
    etcd.put(PREFIX + "1", f"127.0.0.1:{gateway.admin}")
    etcd.put(PREFIX + "2", "169.254.169.254:80")
    etcd.put(PREFIX + "3", f"0.0.0.0:{quiet_port()}")
    gateway.launch()
    gateway.until(lambda: "no usable instance" in gateway.output.read_text(), 20)
    assert gateway.ask("GET", "/orders/config").status == 503
    assert discovery_of(gateway)["skipped"] == {"own_port": 1, "forbidden_address": 2}
