"""What the process weighs: with many routes, with many idle connections, and after a storm of requests."""

import gc
import resource
from pathlib import Path

import pytest
import yaml

from tests.e2e.client import Client
from tests.e2e.conftest import Launch
from tests.e2e.gateway import Gateway, protected
from tests.e2e.identity import bearer
from tests.e2e.load import Load

pytestmark = pytest.mark.alone

MIB = 1 << 20
CONNECTIONS = 2000


@pytest.mark.slow
def test_five_thousand_routes_fit_into_80_mib(launch: Launch) -> None:
    """Idle, after a reload of all of them too; and they are all there."""

    def many(gateway: Gateway) -> None:
        gateway.settings["config"]["include"] = ["routes.d/*.yaml"]
        folder = gateway.work / "routes.d"
        folder.mkdir()
        for part in range(50):
            _write_routes(folder / f"team-{part}.yaml", part)

    gateway = launch(many)
    assert gateway.status()["config"]["routes"] == 5002
    assert gateway.ask("GET", "/team-49/v1/thing-99/x", bearer()).status == 200
    gateway.until(lambda: gateway.rss_bytes() < 80 * MIB, 5)
    print(f"5,000 routes: {gateway.rss_bytes() / MIB:.1f} MiB")
    _write_routes(gateway.work / "routes.d" / "team-0.yaml", 0, timeout_ms=4000)
    gateway.reload(timeout_s=30)
    gateway.until(lambda: gateway.rss_bytes() < 110 * MIB, 10)
    print(f"after a reload: {gateway.rss_bytes() / MIB:.1f} MiB")


def _write_routes(path: Path, part: int, timeout_ms: int = 5000) -> None:
    routes = [
        protected(f"t{part}-{number}", f"/team-{part}/v1/thing-{number}/*", timeout_ms=timeout_ms)
        for number in range(100)
    ]
    path.write_text(yaml.safe_dump({"routes": routes}))


@pytest.mark.slow
def test_an_idle_tls_connection_costs_less_than_64_kib(launch: Launch) -> None:
    """2,000 of them, after a request each; when they are gone, so is what they took."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard < 2 * CONNECTIONS:
        pytest.skip(f"only {hard} descriptors")
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    def wide(gateway: Gateway) -> None:
        gateway.settings["limits"] = {"max_connections_per_ip": 5000, "keepalive_timeout_seconds": 300}

    gateway = launch(wide)
    context = gateway.context()
    clients = []
    with Client(gateway.https, context) as client:
        client.request("GET", "/pub/x")
    base = gateway.rss_bytes()
    try:
        for _ in range(CONNECTIONS):
            client = Client(gateway.https, context)
            client.request("GET", "/pub/x")
            clients.append(client)
        each = (gateway.rss_bytes() - base) / CONNECTIONS
        print(f"an idle TLS connection: {each / 1024:.1f} KiB")
        assert each < 64 * 1024
        assert all(client.request("GET", "/pub/x").status == 200 for client in clients[::100])
    finally:
        for client in clients:
            client.close()
        del clients
        gc.collect()
    gateway.until(lambda: gateway.metric("connections") == 0)
    took_s = gateway.until(lambda: gateway.rss_bytes() - base < 0.2 * each * CONNECTIONS, 8)
    print(f"back after {took_s:.1f} s but for {(gateway.rss_bytes() - base) / MIB:.1f} MiB")


def test_memory_does_not_grow_with_requests(launch: Launch) -> None:
    """After a warm-up, thousands of requests of all outcomes leave the process as it was within 3 MiB."""
    gateway = launch()
    token = bearer()

    def storm(count: int) -> None:
        with (
            Load(gateway.https, gateway.context(), clients=3, headers=lambda: [token]) as good,
            Load(gateway.http, clients=1, target="/nowhere/x") as lost,
            Load(gateway.http, clients=1, target="/api/x") as anonymous,
        ):
            good.wait_for(count)
        assert good.failed() == [] and lost.failed(404) == [] and anonymous.failed(401) == []

    storm(800)
    before = gateway.rss_bytes()
    storm(2500)
    grown = gateway.rss_bytes() - before
    print(f"grown: {grown / 1024:.0f} KiB")
    assert grown < 3 * MIB
