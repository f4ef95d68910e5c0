"""A tool with a configuration, and the servers that its verbs talk to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.tool import Tool
from tests.e2e.gateway import Gateway, backend, protected, quiet_port
from tests.e2e.origin import Origin
from tests.postgresql import PostgreSQL, postgresql_server
from tests.servers import RedisServer, redis_server


@pytest.fixture
def tool(tmp_path: Path) -> Tool:
    return Tool(tmp_path)


@pytest.fixture(scope="package")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest.fixture(scope="package")
def postgresql() -> Iterator[PostgreSQL]:
    with postgresql_server() as server:
        yield server


@pytest.fixture(scope="package")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A running gateway with a backend that is well and one that is dead. No test leaves it changed."""
    origin = Origin().start()
    gateway = Gateway(tmp_path_factory.mktemp("gateway"), origin.port)
    gateway.settings["backends"] += [backend("dead", quiet_port(), unhealthy_after=1)]
    gateway.settings["routes"] += [
        protected("grace", "/grace/*", auth_grace_period=True, required_scopes=["read"], owner="team-old"),
    ]
    try:
        yield gateway.start()
        gateway.stop()
    finally:
        gateway.kill()
        origin.remove()
