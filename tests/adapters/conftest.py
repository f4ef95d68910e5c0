"""One PostgreSQL for all tests of adapters that want a database."""

from collections.abc import Iterator

import pytest

from tests.postgresql import PostgreSQL, postgresql_server


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    with postgresql_server() as server:
        yield server
