"""What a worker has of its Redis, by the URL alone. Failovers are in test_redis_sentinel.py."""

import contextlib
from pathlib import Path
from typing import Any

import pytest
import pytest_twisted
from twisted.internet import reactor
from twisted.internet.threads import deferToThread

from apigw.adapters.redis_deployment import RedisDeployment
from apigw.config.model import RedisSection
from apigw.core.cluster_slots import slot_of
from apigw.core.window import Counted, Demand
from apigw.errors import StoreDown
from apigw.net.connect import Connector
from apigw.net.deadlines import Deadlines
from tests.redis_cluster import cluster_set
from tests.servers import redis_server, turns, until

loop: Any = reactor
DEMAND = Demand("standard", "rate:{standard:user:a}", 10, 60)


def deployment(url: str, **more: Any) -> RedisDeployment:
    connector = Connector(loop, Deadlines(loop))
    return RedisDeployment(RedisSection(url=url, timeout_s=0.1, **more), loop, connector, lambda took_s, checks: None)


@pytest_twisted.ensureDeferred
async def test_one_server_with_user_password_and_database() -> None:
    """Counters and what is shared are in the same place."""
    with redis_server() as server:
        server.command("ACL", "SETUSER", "gw", "on", ">s3cret", "~*", "&*", "+@all")
        made = deployment(f"redis://gw:s3cret@127.0.0.1:{server.port}/3")
        counters, store = made.counters(), made.shared_store()
        made.startService()
        await until(lambda: counters.up and store.up, loop)
        assert made.whereabouts() == {}
        assert await counters.take([DEMAND], 0.0) == Counted(True, [(0, 1, 0)])
        assert await store.command("k", "GET", "rate:{standard:user:a}:0") == b"1"
        server.command("SELECT", 3)
        assert b"db3:keys=4" in server.command("INFO", "keyspace"), (
            "the counter and that of the probe, with their spreads"
        )
        await made.stopService()
        assert not counters.up and not store.up
        await turns(loop, 0.02)


@pytest_twisted.ensureDeferred
async def test_a_wrong_password_is_told_without_it() -> None:
    with redis_server("--requirepass", "s3cret") as server:
        made = deployment(f"redis://:wr0ng@127.0.0.1:{server.port}")
        counters = made.counters()
        made.startService()
        await until(lambda: "WRONGPASS" in (counters.last_error or ""), loop)
        assert "wr0ng" not in (counters.last_error or "")
        await made.stopService()


def test_a_ca_file_that_is_gone_is_told_at_once() -> None:
    with pytest.raises(OSError):
        deployment("rediss://127.0.0.1", ca_file=Path("/nonexistent/ca.pem"))


def documented_rules() -> list[str]:
    """The words of ACL SETUSER in docs/rate-limiting.rst, with the password s3cret."""
    text = (Path(__file__).parents[2] / "docs" / "rate-limiting.rst").read_text()
    rules = text.partition("ACL SETUSER apigw ")[2].partition("\n\n")[0]
    return rules.replace("PASSWORD", "s3cret").split()


async def does_all_it_does(made: RedisDeployment) -> None:
    """Every command that a gateway sends, by its kind."""
    counters, store = made.counters(), made.shared_store()
    heard: list[bytes] = []
    store.listen("apigw:apikeys", heard.append, lambda: None)
    made.startService()
    try:
        await until(lambda: counters.up and store.up and store.listening, loop)
        assert isinstance(await counters.take([DEMAND], 0.0), Counted)
        counters.add(DEMAND, 5, 0)
        assert await counters.take([DEMAND], 0.0) == Counted(True, [(0, 7, 0)])
        for words in (
            ("SET", "apikey:a", "x", "EX", 9),
            ("GET", "apikey:a"),
            ("DEL", "apikey:a"),
            ("SADD", "apikeys:{a}", "x"),
            ("EXPIRE", "apikeys:{a}", 9),
            ("SMEMBERS", "apikeys:{a}"),
            ("ZCOUNT", "revoked:tokens", 0, "+inf"),
            ("ZSCAN", "revoked:users", 0, "COUNT", 9),
            ("SET", "circuit:a", "x", "PX", 900),
            ("HSET", "rps:a", "x", "1"),
            ("HGETALL", "rps:a"),
            ("HDEL", "rps:a", "x"),
            ("PEXPIRE", "rps:a", 900),
        ):
            await store.command(str(words[1]), *words)
        await store.publish("apigw:apikeys", b"x")
        await until(lambda: heard == [b"x"], loop)
        with pytest.raises(StoreDown, match="NOPERM"):
            await store.command("other", "SET", "other", "x")
        assert counters.last_error is None
    finally:
        await made.stopService()
        await turns(loop, 0.02)


@pytest_twisted.ensureDeferred
async def test_a_user_with_the_documented_rights_is_enough() -> None:
    with redis_server() as server:
        server.command("ACL", "SETUSER", "apigw", *documented_rules())
        await does_all_it_does(deployment(f"redis://apigw:s3cret@127.0.0.1:{server.port}"))


@pytest_twisted.ensureDeferred
async def test_a_user_with_the_documented_rights_is_enough_in_a_cluster() -> None:
    """On every node; while a slot moves, too."""
    with contextlib.ExitStack() as stack:
        servers = await deferToThread(stack.enter_context, cluster_set(replicas=False))
        for node in servers.nodes:
            node.command("ACL", "SETUSER", "apigw", *documented_rules())
        source = servers.master_of(slot := slot_of(DEMAND.key))
        target = next(master for master in servers.masters if master is not source)
        servers.begin_move(slot, source, target)
        await does_all_it_does(deployment(servers.url.replace("://", "://apigw:s3cret@")))
        assert target.command("CLUSTER", "COUNTKEYSINSLOT", slot) == 2, "counted at the new place, in halves"
