"""A tool with a configuration, and the servers that its verbs talk to."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.tool import Tool
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
