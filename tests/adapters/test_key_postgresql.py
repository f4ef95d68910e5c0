"""PostgreSQL that is gone, busy or frozen: told in time, no thread stays with it, and found again where it is then."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor as installed_reactor
from twisted.internet.defer import Deferred, maybeDeferred

from apigw.adapters.api_key_database import KeyDatabase
from apigw.adapters.key_database import Database
from apigw.adapters.key_postgresql import ANSWER_S, CONNECT_TIMEOUT_S, PING_S
from apigw.adapters.key_store import KeyStore
from apigw.errors import StoreDown
from tests.postgresql import PostgreSQL, postgresql_server
from tests.servers import DelayProxy

reactor: Any = installed_reactor
SLACK_S = 0.5  # the machine is others', too


@pytest.fixture
def freezable() -> Iterator[PostgreSQL]:
    """A server of the test's own: the common one is never frozen."""
    with postgresql_server() as server:
        yield server


@contextmanager
def told(words: str, within_s: float) -> Iterator[None]:
    """The block ends with StoreDown that says these words, not later."""
    began_s = time.monotonic()
    with pytest.raises(StoreDown, match=words):
        yield
    assert time.monotonic() - began_s < within_s + SLACK_S


def pooled(database: Database, number: int = 2) -> None:
    """Fill the pool with so many connections that were used."""
    if number:
        with database.reading() as connection:
            connection.exec_driver_sql("SELECT 1")
            pooled(database, number - 1)


def test_a_postgresql_that_went_away_is_told_and_found_again() -> None:
    """Its connections are made anew; nothing is asked twice by the caller."""
    with postgresql_server() as server:
        url = server.database()
        store = KeyStore(url, cost=4)
        record = store.create("acme").record
        server.stop()
        with pytest.raises(StoreDown, match="database of API keys"):
            store.find(record.key_id)
        server.start()
        assert store.find(record.key_id) == record
        store.close()


def test_a_statement_that_waits_for_a_lock_has_an_end(postgresql: PostgreSQL) -> None:
    database = Database(postgresql.database())
    with database.writing() as holder:
        holder.exec_driver_sql("LOCK TABLE api_keys IN ACCESS EXCLUSIVE MODE")
        began_s = time.monotonic()
        with pytest.raises(StoreDown, match="timeout"), database.reading() as reader:
            reader.exec_driver_sql("SELECT count(*) FROM api_keys")
        assert 1.0 < time.monotonic() - began_s < 3.0
    database.close()


def test_a_frozen_server_is_told_and_found_again(freezable: PostgreSQL) -> None:
    """Its kernel acknowledges all that is sent: neither its timeouts nor the kernel's end the wait."""
    store = KeyStore(freezable.database(), cost=4)
    record = store.create("acme").record
    pooled(store._database)
    freezable.freeze()
    with told("database of API keys does not", PING_S + CONNECT_TIMEOUT_S):
        store.find(record.key_id)
    for _ in range(2):  # no connection is left by now
        with told("database of API keys does not", CONNECT_TIMEOUT_S):
            store.find(record.key_id)
    freezable.thaw()
    assert store.find(record.key_id) == record
    store.close()


def test_a_server_that_freezes_in_a_statement_is_told_and_found_again(freezable: PostgreSQL) -> None:
    database = Database(freezable.database())
    for block in (database.reading, database.writing):
        with told(f"no answer within {ANSWER_S} s", ANSWER_S), block() as connection:
            connection.exec_driver_sql("SELECT 1")
            freezable.freeze()
            connection.exec_driver_sql("SELECT 2")
        freezable.thaw()
        with database.reading() as connection:
            assert connection.exec_driver_sql("SELECT 3").scalar() == 3
    database.close()


class Moving:
    """A name that leads to a server that freezes, with two connections in the pool, and then to one that is well."""

    def __init__(self, frozen: PostgreSQL, well: PostgreSQL) -> None:
        self._frozen, self._well = frozen, well
        name = f"moving{frozen.port}"
        frozen.database(name)
        there = KeyStore(well.database(name), cost=4)
        self.key_id = there.create("acme").record.key_id
        there.close()
        self._proxy = DelayProxy(reactor, frozen.port)
        self._url = f"postgresql://postgres@127.0.0.1:{self._proxy.port}/{name}"
        self._store: KeyStore | None = None
        self.keys = KeyDatabase(reactor, self._open)

    def _open(self) -> KeyStore:
        self._store = KeyStore(self._url)
        pooled(self._store._database)
        return self._store

    async def freeze(self) -> None:
        self.keys.startService()
        assert await self.keys.find(self.key_id) is None
        self._frozen.freeze()

    def move(self) -> float:
        """When."""
        self._proxy.target_port = self._well.port
        return float(reactor.seconds())

    async def end(self) -> None:
        await maybeDeferred(self.keys.stopService)
        assert self._store is not None
        self._store.close()
        await self._proxy.close()


@pytest.fixture
def moving(freezable: PostgreSQL, postgresql: PostgreSQL) -> Iterator[Moving]:
    made = Moving(freezable, postgresql)
    yield made
    pytest_twisted.blockon(Deferred.fromCoroutine(made.end()))


@pytest_twisted.ensureDeferred
async def test_a_failover_that_nobody_was_told_of_costs_nobody_an_answer(moving: Moving) -> None:
    """All connections lead to the frozen one; the first who asks has them made anew, in its time."""
    await moving.freeze()
    moved_s = moving.move()
    found, changes = moving.keys.find(moving.key_id), moving.keys.since(0)
    assert (await found is not None) and (await changes)[0] == 1
    assert reactor.seconds() - moved_s < PING_S + SLACK_S


@pytest_twisted.ensureDeferred
async def test_after_a_failover_keys_are_found_though_all_threads_hung_in_the_frozen_server(moving: Moving) -> None:
    await moving.freeze()
    for question in [moving.keys.find(moving.key_id), moving.keys.since(0)]:
        with pytest.raises(StoreDown, match="does not answer in time"):
            await question
    moved_s = moving.move()
    while reactor.seconds() - moved_s < CONNECT_TIMEOUT_S + SLACK_S:
        try:
            assert await moving.keys.find(moving.key_id) is not None
        except StoreDown:
            continue
        break
    else:
        pytest.fail("not found in time")
