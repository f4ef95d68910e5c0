"""API keys in a real Redis."""

from collections.abc import Iterator
from typing import Any

import pytest
import pytest_twisted
from twisted.internet.defer import Deferred, fail, succeed

from apigw.adapters.api_key_shared import SharedKeys
from apigw.core.api_keys import digest, made, to_json
from apigw.errors import StoreDown
from tests.adapters.api_key_world import Store, shown
from tests.servers import RedisServer, redis_server

NAME = digest(shown("k1"))
KEY = made("k1", NAME, partner_id="acme", tier="gold", scopes=("a",), networks=("10.0.0.0/8",))


class Direct(Store):
    """The commands of a SharedStore on a connection each, to a real server."""

    def __init__(self, server: RedisServer) -> None:
        super().__init__()
        self.server = server

    def command(self, key: str, *words: Any) -> "Deferred[Any]":
        if self.down:
            return fail(StoreDown("the test says so"))
        return succeed(self.server.command(*words))


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


@pytest_twisted.ensureDeferred
async def test_a_key_that_was_put_is_found_by_its_digest_until_it_is_dropped(server: RedisServer) -> None:
    keys = SharedKeys(Direct(server), 300.0)
    assert await keys.get(NAME, "k1") is None
    await keys.put(KEY, NAME)
    found = await keys.get(NAME, "k1")
    assert found is not None and to_json(found) == to_json(KEY)
    assert await keys.get(NAME, "k2") is None, "the record of another id"
    await keys.drop(NAME)
    assert await keys.get(NAME, "k1") is None


@pytest_twisted.ensureDeferred
async def test_all_records_of_an_id_are_dropped_and_a_revocation_still_finds_what_is_put_meanwhile(
    server: RedisServer,
) -> None:
    """A gateway puts the digest first and then the record, and whoever drops the id may come in between."""
    keys, names = SharedKeys(Direct(server), 300.0), [digest(shown("k3", secret * 43)) for secret in (b"a", b"b")]
    for name in names:
        await keys.put(made("k3", name, partner_id="acme"), name)
    await keys.drop_id("k4")
    assert [await keys.get(name, "k3") is None for name in names] == [False, False]
    await keys.drop_id("k3")
    assert [await keys.get(name, "k3") is None for name in names] == [True, True]
    assert sorted(server.command("SMEMBERS", "apikeys:{k3}")) == sorted(name.encode() for name in names)


@pytest_twisted.ensureDeferred
async def test_whoever_drops_an_id_is_told_that_redis_does_not_answer() -> None:
    """So that it is tried again."""
    store = Store()
    store.down = True
    with pytest.raises(StoreDown):
        await SharedKeys(store, 300.0).drop_id("k1")
    await SharedKeys(None, 300.0).drop_id("k1")
    await SharedKeys(store, 0.0).drop_id("k1")


@pytest_twisted.ensureDeferred
async def test_redis_has_the_contracts_names_and_times_and_no_secret(server: RedisServer) -> None:
    """apikey:{sha256}, TTL 300 s; its digest in the SET that a revocation reads."""
    await SharedKeys(Direct(server), 300.0).put(KEY, NAME)
    assert 290 < server.command("TTL", f"apikey:{NAME}") <= 300
    assert 290 < server.command("TTL", "apikeys:{k1}") <= 300
    assert server.command("SMEMBERS", "apikeys:{k1}") == [NAME.encode()]
    for name in server.command("KEYS", "*"):
        assert b"ssss" not in name
    assert b"ssss" not in server.command("GET", f"apikey:{NAME}")


@pytest_twisted.ensureDeferred
async def test_how_long_a_record_stands_is_known(server: RedisServer) -> None:
    keys = SharedKeys(Direct(server), 300.0)
    await keys.put(KEY, NAME)
    assert 290.0 < await keys.left_s(NAME) <= 300.0
    server.command("PERSIST", f"apikey:{NAME}")
    assert await keys.left_s(NAME) == 0.0, "nobody here made a record without an end"
    await keys.drop(NAME)
    assert await keys.left_s(NAME) == 0.0


@pytest_twisted.ensureDeferred
async def test_a_record_that_is_none_is_no_key(server: RedisServer) -> None:
    for nonsense in ("", "null", '{"partner_id": "root"}'):
        server.command("SET", f"apikey:{NAME}", nonsense)
        assert await SharedKeys(Direct(server), 300.0).get(NAME, "k1") is None


@pytest_twisted.ensureDeferred
async def test_without_redis_or_cache_nothing_is_there_and_nothing_fails(server: RedisServer) -> None:
    down = Direct(server)
    down.down = True
    off = SharedKeys(Direct(server), 0.0)  # cache_ttl_seconds: 0
    for keys in (SharedKeys(down, 300.0), SharedKeys(None, 300.0), off):
        assert await keys.get(NAME, "k1") is None
        assert await keys.left_s(NAME) == 0.0
        await keys.put(KEY, NAME)
        await keys.drop(NAME)
