"""Gateways and backends of the end-to-end tests: one shared gateway, and as many others as a test wants."""

from typing import Callable, Iterator

import pytest

from tests.e2e import surge
from tests.e2e.gateway import APP, Gateway, backend, protected, quiet_port, route
from tests.e2e.origin import Origin

Launch = Callable[..., Gateway]
Change = Callable[[Gateway], None]


@pytest.fixture(scope="session")
def origin() -> Iterator[Origin]:
    """The backend that most tests share; a test finds its own requests by their X-Tag."""
    origin = Origin().start()
    yield origin
    origin.remove()


@pytest.fixture
def quick_backend() -> Iterator[int]:
    """The port of a backend that is never the bottleneck."""
    process = surge.start("backend")
    surge.first(process.pid)
    assert process.stdin is not None and process.stdout is not None
    yield int(process.stdout.readline())
    process.stdin.close()
    process.wait(5)
    process.stdout.close()


def _furnish(gateway: Gateway) -> None:
    """Routes of every kind, for the tests that need no gateway of their own."""
    gateway.settings["backends"] += [backend("dead", quiet_port(), unhealthy_after=1000)]
    gateway.settings["limits"] = {"max_body_bytes": 1_000_000}
    gateway.settings["rate_limits"] = {
        "store": "memory",
        "tiers": [
            {"tier": "tiny", "limit": 3, "window_seconds": 3600, "per": "user_id"},
            {"tier": "wide", "limit": 100_000, "window_seconds": 3600, "per": "client_ip"},
        ],
    }
    gateway.settings["routes"] += [
        route("cors", "/cors/*", cors_allowed_origins=[APP], methods=["GET", "PUT"]),
        route("cookies", "/cookies/*", forward_cookies=True),
        route("old", "/old/*", deprecated=True, sunset_date="2099-06-01"),
        route("wide", "/wide/*", rate_limit_tier="wide"),
        route("small", "/small/*", max_body_bytes=1000),
        route("short", "/short/*", timeout_ms=200),
        route("dead", "/dead/*", "dead"),
        route("self", "/self", "self", methods=["GET"]),
        protected("admin", "/admin/*", required_scopes=["admin"]),
        protected("tiny", "/tiny/*", rate_limit_tier="tiny"),
    ]


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory, origin: Origin) -> Iterator[Gateway]:
    """The gateway of the tests that change no configuration and harm nothing."""
    gateway = Gateway(tmp_path_factory.mktemp("shared"), origin.port)
    _furnish(gateway)
    try:
        gateway.start()
        yield gateway
        gateway.assert_accounts()
        gateway.stop()
    finally:
        gateway.kill()


@pytest.fixture
def gateway(shared: Gateway) -> Iterator[Gateway]:
    """The shared gateway; after the test it is quiet again."""
    yield shared
    shared.assert_quiet()


@pytest.fixture
def launch(tmp_path_factory: pytest.TempPathFactory, origin: Origin) -> Iterator[Launch]:
    """launch(change) starts a gateway with the basic settings changed by change(gateway).

    In the end each is quiet, squares its accounts, stops with 0 and has no traceback in its log.
    """
    made: list[Gateway] = []

    def launch(change: Callable[[Gateway], None] = lambda gateway: None, *, start: bool = True) -> Gateway:
        gateway = Gateway(tmp_path_factory.mktemp("gateway"), origin.port)
        change(gateway)
        made.append(gateway)
        return gateway.start() if start else gateway

    try:
        yield launch
        for gateway in made:
            if gateway.process is not None and gateway.process.poll() is None:
                gateway.assert_quiet()
                gateway.assert_accounts(*sorted(gateway.work.glob("access.log*")))
            gateway.stop()
    finally:
        for gateway in made:
            gateway.kill()
